"""Which try of a run may write: ``_run/lease.json``.

Owns taking the lease, and looking whether it is still held. Does not know what is written under it, nor how a try ends
that has lost it.

A try takes the lease when it begins to work, from whichever try holds it: Airflow has begun it, and knows better than
storage who is alive. From there on its store looks before each change whether the lease is still its own
(`store.RunStore.guard`), so that a try that was given up for dead, and is not, ends before its next write. Of two that
take it at the same moment the one that wrote last holds it. One of an older number does not take it from a newer one
that works: its worker was slow, or cut off from Airflow for a while. From one that does not work it takes it, since a
DAG run that is deleted and made again counts its tries from 1.

A look and the write that follows are two things, and in between another may take the lease. Such a write does no harm:
journal objects and commit records bear their try's token, and a part is put only where none lies, or, on a store that
knows no such condition, replaces one of the same rows and fingerprint (`parts`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import orjson

from airflow_llm_provider.exceptions import RunStoppedError
from airflow_llm_provider.storage import layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_llm_provider.storage.store import RunStore


WORKS = timedelta(seconds=60)
"""A try that works writes ``progress.json`` every 2 s; longer than clocks of workers are apart."""


class Lease:
    """One try's lease on a run.

    Args:
        store: the run's storage.
        token: the try's own.
        try_number: Airflow's: it grows with every try, over clears, too.
        guarded: further storage that is changed under it.
    """

    def __init__(self, store: RunStore, *, token: str, try_number: int, guarded: Sequence[RunStore] = ()) -> None:
        self._store = store
        self._guarded = (store, *guarded)
        self._token = token
        self._try_number = try_number
        self._ours = b""

    @property
    def taken(self) -> bool:
        """Whether it was taken once, and not whether it is held still (`check`)."""
        return bool(self._ours)

    def take(self, now: datetime) -> None:
        """Take it, and have the store change nothing unless it is held.

        Args:
            now: UTC.

        Raises:
            RunStoppedError: a newer try holds it, and works.
            StorageError: it could not be read or written.
        """
        there = self._store.read(layout.LEASE)
        if there is not None and _try_number(there) > self._try_number and self._works(there, now):
            raise self._lost(there)
        lease = {
            "format_version": layout.FORMAT_VERSION,
            "try_number": self._try_number,
            "token": self._token,
            "taken_at": now.isoformat(),
        }
        self._ours = orjson.dumps(lease, option=orjson.OPT_APPEND_NEWLINE)
        self._store.guard = None
        try:
            self._store.write(layout.LEASE, self._ours)
        finally:
            for store in self._guarded:
                store.guard = self.check

    def check(self) -> None:
        """Look whether it is still held.

        Raises:
            RunStoppedError: another try has taken it, or the run is over.
            StorageError: it could not be found out.
        """
        there = self._store.read(layout.LEASE)
        if there != self._ours:
            raise self._lost(there)

    def release(self) -> None:
        """Give it up at the run's end: there is nothing left to write."""
        self._store.delete([layout.LEASE])

    def _works(self, there: bytes, now: datetime) -> bool:
        """Whether whoever holds the lease took it, or told of its progress, a moment ago."""
        moments = (_moment(there, "taken_at"), _moment(self._store.read(layout.PROGRESS), "updated_at"))
        return any(moment is not None and abs(now - moment) < WORKS for moment in moments)

    def _lost(self, there: bytes | None) -> RunStoppedError:
        if there is None:
            return RunStoppedError(
                f"Try {self._try_number} may not write to {self._store.uri} any more: {layout.LEASE} is gone, so "
                "another try has finished the run, or somebody removed it. This one ends; the next sees what is there"
            )
        number = _try_number(there)
        who = f"Try {number}" if number and number != self._try_number else "Another process"
        return RunStoppedError(
            f"{who} has taken the run at {self._store.uri} over from this one, try {self._try_number}, which was given "
            "up for dead or cleared. This one ends and writes nothing more; what it has journalled is kept"
        )


def _moment(data: bytes | None, field: str) -> datetime | None:
    """A moment that an object tells; None where it tells none."""
    try:
        moment = datetime.fromisoformat(orjson.loads(data or b"{}")[field])
    except (ValueError, KeyError, TypeError):
        return None
    return moment if moment.tzinfo is not None else None


def _try_number(data: bytes) -> int:
    """Whose it is; 0 where that can't be told."""
    try:
        return int(orjson.loads(data)["try_number"])
    except (ValueError, KeyError, TypeError):
        return 0
