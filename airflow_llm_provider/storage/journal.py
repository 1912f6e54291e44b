"""The journal: settled rows of chunks that are not committed yet.

Owns reading, writing and dropping journal objects. Object stores cannot append, so each flush is an object of its own;
the chunk's part replaces them all.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow_llm_provider.storage import layout, lines
from airflow_llm_provider.storage.store import read_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_llm_provider.core.ledger import SettledLine
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)


class Journal:
    """One try's view of a run's journal.

    Args:
        store: the run's storage.
        fingerprint: the run's: journals of other answers are not looked at.
        try_token: this try's own token: two tries never write the same object.
        found: journal objects of earlier tries, as listed when the run was opened.
    """

    def __init__(self, store: RunStore, fingerprint: str, try_token: str, found: Iterable[str]) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._try_token = try_token
        self._sequence = 0
        self._objects: dict[int, list[str]] = {}
        for name in found:
            folder, _, flush = name.removeprefix(f"{layout.JOURNAL}/").partition("/")
            if folder.isdecimal() and flush.startswith(f"{fingerprint}-"):
                self._objects.setdefault(int(folder), []).append(name)

    @property
    def objects(self) -> int:
        """How many there are."""
        return sum(map(len, self._objects.values()))

    def load(self, chunk: int) -> dict[int, SettledLine]:
        """Rows of `chunk` that earlier tries journalled, by index."""
        rows: dict[int, SettledLine] = {}
        for name, data in read_all(self._store, self._objects.get(chunk, ())):
            found, torn = lines.decode_journal(data)
            if torn:
                log.warning("%s/%s: %d damaged lines; their rows are requested again", self._store.uri, name, torn)
            rows.update(found)
        return rows

    def write(self, chunk: int, settled: list[SettledLine], *, durable: bool = False) -> None:
        """Make `settled` rows of `chunk` survive this process; with `durable`, a power loss too."""
        name = layout.journal(chunk, self._fingerprint, self._try_token, self._sequence)
        self._sequence += 1
        # Seldom fsynced: a kill loses nothing, and a power loss costs at most the rows of the last moments again.
        self._store.write(name, lines.encode_journal(settled), durable=durable)
        self._objects.setdefault(chunk, []).append(name)

    def drop(self, chunk: int) -> None:
        """Remove the chunk's journal; its part holds everything."""
        self._store.delete(self._objects.pop(chunk, ()))
