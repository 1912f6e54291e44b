"""Settled rows on their way to storage: journal flushes, commits, and the ledger told afterwards.

Does not know when a flush is due (`core.flush_clock`), nor requests in flight. All storage work happens in one thread
at a time, so objects are written in the order in which this module asks for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_llm_provider.core.flush_clock import FlushClock
from airflow_llm_provider.core.redaction import KEEP
from airflow_llm_provider.core.request import BadRow, Outcome, RowError, RowRequest, Status
from airflow_llm_provider.storage.lines import encode_dead_letter, encode_outcome

if TYPE_CHECKING:
    from airflow_llm_provider.core.ledger import ChunkSummary, Ledger, OpenChunk, SettledLine
    from airflow_llm_provider.core.redaction import Redaction
    from airflow_llm_provider.core.request import Landing
    from airflow_llm_provider.storage.journal import Journal
    from airflow_llm_provider.storage.parts import Parts


class Recorder:
    """Takes in outcomes and makes them last.

    Args:
        ledger: the run's bookkeeping.
        journal: where settled rows of open chunks go.
        parts: where complete chunks go.
        flush_rows: see `FlushClock`.
        flush_interval_s: see `FlushClock`.
        redaction: of errors and dead letters.
    """

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        parts: Parts,
        *,
        flush_rows: int,
        flush_interval_s: float,
        redaction: Redaction = KEEP,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._parts = parts
        self._flush_rows = flush_rows
        self._flush_interval_s = flush_interval_s
        self._redaction = redaction
        self._woken = asyncio.Event()
        self._closed = False
        self.last_error = ""
        self.committed = asyncio.Event()
        """Set at every commit; the feeder waits on it for room."""

    def landed(self, request: RowRequest, landing: Landing, attempts: int) -> None:
        """A row has its answer, whether it is a success or not."""
        error = None if landing.error is None else self._redacted(landing.error)
        outcome = Outcome(
            request.index,
            request.custom_id,
            landing.status,
            attempts,
            completion=landing.completion,
            error=error,
            parsed=landing.parsed,
        )
        settled = encode_outcome(outcome)
        if error is not None:
            if landing.status is not Status.TRUNCATED:
                self.last_error = error.message
            settled.dead_letter = encode_dead_letter(outcome, request, self._redaction)
        self._settle(outcome.index, settled)

    def errored(self, row: RowRequest | BadRow, error: RowError, attempts: int) -> None:
        """A row will not succeed by trying again."""
        error = self._redacted(error)
        self.last_error = error.message
        outcome = Outcome(row.index, row.custom_id, Status.ERRORED, attempts, error=error)
        settled = encode_outcome(outcome)
        settled.dead_letter = encode_dead_letter(outcome, row, self._redaction)
        self._settle(outcome.index, settled)

    def opened(self, opened: OpenChunk) -> None:
        """A chunk was opened: what an earlier try journalled may complete it."""
        if opened.complete:
            self._woken.set()

    async def run(self) -> None:
        """Commit what is complete at once, and journal the rest whenever that is due, until closed.

        The last flush takes everything. Close it, never cancel it.

        Raises:
            StorageError: when storage fails; what it did not take is requested again by the next try.
        """
        now = asyncio.get_running_loop().time
        clock = FlushClock(rows=self._flush_rows, interval_s=self._flush_interval_s, began_s=now())
        closed = False
        while not closed:
            left_s = clock.due_s(self._ledger.unjournalled_rows) - now()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, left_s)):  # Python 3.11's wait_for may swallow a cancellation
                    await self._woken.wait()
            self._woken.clear()
            closed = self._closed  # as it was before the flush: what settles during one waits for the next
            journals = closed or now() >= clock.due_s(self._ledger.unjournalled_rows)
            if journals:
                clock.flushed(now())
            await self._flush(journals=journals)

    def close(self) -> None:
        """Nothing more will settle: `run` flushes once more and returns."""
        self._closed = True
        self._woken.set()

    async def _flush(self, *, journals: bool) -> None:
        """Commit the chunks that are complete and, where that is due, journal what has settled of the others."""
        complete = [opened for opened in self._ledger.open.values() if opened.complete]
        partial = [
            (opened, list(opened.unjournalled), [opened.settled[index] for index in opened.unjournalled])
            for opened in self._ledger.open.values()
            if journals and opened.unjournalled and not opened.complete
        ]
        if not complete and not partial:
            return
        journal = [(opened.chunk.number, settled) for opened, _, settled in partial]
        for summary in await asyncio.to_thread(self._write, complete, journal):
            self._ledger.commit(summary)
            self.committed.set()
        for opened, indices, _ in partial:
            self._ledger.journalled(opened, indices)

    def _redacted(self, error: RowError) -> RowError:
        return replace(error, message=self._redaction.text(error.message))

    def _settle(self, index: int, settled: SettledLine) -> None:
        opened = self._ledger.settle(index, settled)
        if self._ledger.unjournalled_rows == self._flush_rows or opened.complete:
            self._woken.set()

    def _write(self, complete: list[OpenChunk], partial: list[tuple[int, list[SettledLine]]]) -> list[ChunkSummary]:
        for number, settled in partial:
            self._journal.write(number, settled)
        summaries = [self._parts.commit(opened) for opened in complete]
        self._parts.record()
        for opened in complete:
            self._journal.drop(opened.chunk.number)
        return summaries
