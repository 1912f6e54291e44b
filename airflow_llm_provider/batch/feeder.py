"""Rows from the source to the dispatcher, just ahead of need.

Owns how far ahead is read: by rows and bytes queued, and by rows and bytes of open chunks, which memory is spent on.
Does not know what is sent when.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import TYPE_CHECKING

from airflow_llm_provider.core.request import BadRow, RowError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from airflow_llm_provider.batch.prepare import Preparer
    from airflow_llm_provider.batch.recorder import Recorder
    from airflow_llm_provider.core.chunks import Chunk
    from airflow_llm_provider.core.dispatch import Dispatcher
    from airflow_llm_provider.core.ledger import Ledger
    from airflow_llm_provider.core.request import RowRequest
    from airflow_llm_provider.core.spread import Spread
    from airflow_llm_provider.storage.journal import Journal
    from airflow_llm_provider.storage.source import Source, SourceRow

log = logging.getLogger(__name__)

BLOCK_ROWS = 128
"""Rows read and rendered per visit to a thread: enough to make the visit cheap, few enough to share the GIL."""

BLOCK_BYTES = 4 << 20
"""Of request bodies, after which a visit ends early: rows may be megabytes each."""

AHEAD_BYTES = 64 << 20
"""Of request bodies that wait for their turn: no more is read while there are so many, however few the rows."""

OPEN_BYTES = 256 << 20
"""Of settled rows in open chunks: no other chunk is opened while there are so many. A single one may hold more."""


class Feeder:
    """Keeps the dispatcher supplied.

    Args:
        source: the input, with the `snapshot` that pins it.
        preparer: turns rows into requests.
        ledger: says which chunks are pending.
        journal: says which rows of a chunk an earlier try settled.
        recorder: takes the rows that cannot become requests.
        dispatcher: takes the requests; a `Spread`, or one dispatcher.
        fed: called when something new may be sent.
    """

    def __init__(
        self,
        *,
        source: Source,
        snapshot: Mapping[str, Any],
        preparer: Preparer,
        ledger: Ledger,
        journal: Journal,
        recorder: Recorder,
        dispatcher: Spread | Dispatcher,
        fed: Callable[[], None],
    ) -> None:
        self._source = source
        self._snapshot = snapshot
        self._preparer = preparer
        self._ledger = ledger
        self._journal = journal
        self._recorder = recorder
        self._dispatcher = dispatcher
        self._fed = fed
        self._wanted = asyncio.Event()
        self.exhausted = False

    def wake_if_low(self) -> None:
        """Read on, where the queue runs low."""
        if not self.exhausted and not self._enough():
            self._wanted.set()

    async def run(self) -> None:
        """Feed every pending chunk, then return.

        Raises:
            SourceError, StorageError: when the source cannot be read.
        """
        for chunk in self._ledger.pending_chunks():
            await self._room_for(chunk)
            journalled = await asyncio.to_thread(self._journal.load, chunk.number)
            opened = self._ledger.open_chunk(chunk, journalled)
            if journalled:
                log.info("Chunk %d: %d of its %d rows lie in the journal", chunk.number, len(journalled), chunk.rows)
            self._recorder.opened(opened)
            if not opened.complete:
                await self._feed(self._source.rows(self._snapshot, chunk), frozenset(opened.settled))
        self.exhausted = True
        self._fed()

    async def _feed(self, rows: Iterator[SourceRow], settled: frozenset[int]) -> None:
        while block := await asyncio.to_thread(self._block, rows, settled):
            for bad in block[1]:
                self._recorder.errored(bad, RowError("malformed_row", bad.message), attempts=0)
            self._dispatcher.feed(block[0])
            self._fed()
            while self._enough():
                self._wanted.clear()
                await self._wanted.wait()

    def _block(
        self, rows: Iterator[SourceRow], settled: frozenset[int]
    ) -> tuple[list[RowRequest], list[BadRow]] | None:
        requests: list[RowRequest] = []
        bad: list[BadRow] = []
        seen = size_bytes = 0
        for row in islice(rows, BLOCK_ROWS):
            seen += 1
            if row.index in settled:
                continue
            prepared = self._preparer.prepare(row)
            if isinstance(prepared, BadRow):
                bad.append(prepared)
                size_bytes += len(row.raw) if isinstance(row.raw, bytes) else 0
            else:
                requests.append(prepared)
                size_bytes += len(prepared.body)
            if size_bytes >= BLOCK_BYTES:
                break
        return (requests, bad) if seen else None

    async def _room_for(self, chunk: Chunk) -> None:
        """Wait for a commit while too many chunks are open: a row in its back-off must not let memory grow."""
        most_rows = 4 * self._ledger.plan.chunk_rows + 4 * self._dispatcher.limit
        while self._ledger.open and (
            self._ledger.open_rows + chunk.rows > most_rows or self._ledger.open_bytes >= OPEN_BYTES
        ):
            self._recorder.committed.clear()
            await self._recorder.committed.wait()

    def _enough(self) -> bool:
        """Whether enough rows wait for now."""
        low_water = max(BLOCK_ROWS, 2 * self._dispatcher.limit)
        return self._dispatcher.queued >= low_water or self._dispatcher.ready_bytes >= AHEAD_BYTES
