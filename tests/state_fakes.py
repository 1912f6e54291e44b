"""Airflow's task state store, as a dictionary that can be killed."""

from __future__ import annotations

import json
import threading
from typing import Any


class Values:
    """Airflow's task state store: keeps JSON, in the end of every kind; dies at its `dies_at`-th change."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.changes = 0
        self.dies_at = 0
        self.after = False
        self.superseded = False
        """Another try has begun: what is asked for is not found, and nothing can be changed."""
        self.retentions: set[Any] = set()
        self._one = threading.Lock()

    def get(self, key: str) -> Any:
        self._live()
        return json.loads(self.kept[key]) if key in self.kept and not self.superseded else None

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        if retention is not None:
            self.retentions.add(retention)
        self._change(lambda: self.kept.__setitem__(key, json.dumps(value)))

    def delete(self, key: str) -> None:
        self._change(lambda: self.kept.pop(key, None))

    def reborn(self) -> Values:
        """What the next process finds."""
        other = Values()
        other.kept = dict(self.kept)
        return other

    def _live(self) -> None:
        if self.dies_at and self.changes >= self.dies_at:
            raise RuntimeError("killed")

    def _change(self, change: Any) -> None:
        with self._one:
            self._live()
            if self.superseded:
                raise RuntimeError("404")
            self.changes += 1
            dies = self.changes == self.dies_at
            if not dies or self.after:
                change()
            self._live()
