"""What the log and ``progress.json`` say while a run works.

Owns when they are written. Does not compute rates (`core.progress`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import orjson

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.core.circuit import State
from airflow_llm_provider.core.progress import Pace, PaceMeter
from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage import layout

if TYPE_CHECKING:
    from airflow_llm_provider.batch.gate import Gate
    from airflow_llm_provider.core.dispatch import Dispatcher
    from airflow_llm_provider.core.ledger import Ledger
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0
PROGRESS_INTERVAL_S = 2.0


class Reporter:
    """Tells how far a try is.

    Args:
        store: where ``progress.json`` lies.
        ledger: what is done.
        dispatcher: what is in flight, and why nothing is.
    """

    def __init__(self, store: RunStore, ledger: Ledger, dispatcher: Dispatcher) -> None:
        self._store = store
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._meter = PaceMeter()
        self._state = State.UP
        self._eta_s: float | None = None
        self.gate: Gate | None = None

    def remaining_s(self) -> float | None:
        """How long the rest takes at the pace of late; None while nobody knows."""
        return self._eta_s

    async def run(self) -> None:
        """Report until cancelled."""
        loop = asyncio.get_running_loop()
        next_log = loop.time() + LOG_INTERVAL_S
        while True:
            now = loop.time()
            pace = self._pace(now)
            await self._write(pace, now)
            self._log_state(now)
            if now >= next_log:
                log.info("%s, %d in flight", pace, self._dispatcher.in_flight)
                next_log = now + LOG_INTERVAL_S
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    async def finish(self) -> None:
        """The last word of a try."""
        now = asyncio.get_running_loop().time()
        pace = self._pace(now)
        log.info("%s", pace)
        await self._write(pace, now)

    def _pace(self, now: float) -> Pace:
        totals = self._ledger.totals
        pace = self._meter.sample(
            now=now,
            done=totals.done,
            total=self._ledger.plan.total_rows,
            completion_tokens=totals.usage.completion_tokens,
        )
        if pace.eta_s is not None:  # a hold makes the pace unknown, and not what it was
            self._eta_s = pace.eta_s
        return pace

    def _log_state(self, now: float) -> None:
        """Say once that the endpoint went away, and once that it is back."""
        circuit = self._dispatcher.circuit
        if circuit.state is State.UP and self._state is not State.UP:
            log.info("The endpoint answers again")
        elif circuit.state is not State.UP and circuit.state is not self._state:
            log.warning("Nothing is sent just now; the endpoint is %s", circuit.describe(now))
        self._state = circuit.state

    def _hold_reason(self, now: float) -> str | None:
        if self.gate is not None and self.gate.held is not None:
            return self.gate.held.reason
        circuit = self._dispatcher.circuit
        return None if circuit.state is State.UP else circuit.describe(now)

    async def _write(self, pace: Pace, now: float) -> None:
        totals, circuit = self._ledger.totals, self._dispatcher.circuit
        progress = {
            "format_version": layout.FORMAT_VERSION,
            "updated_at": utc_now().isoformat(),
            "total": pace.total,
            "done": pace.done,
            "succeeded": totals.succeeded,
            "errored": totals.errored,
            "usage": totals.usage.as_dict(),
            "rows_per_s": round(pace.rows_per_s, 2),
            "tokens_per_s": round(pace.tokens_per_s, 1),
            "eta_s": None if pace.eta_s is None else round(pace.eta_s, 1),
            "row_s": round(self._dispatcher.durations.predicted_s(), 3),
            "in_flight": self._dispatcher.in_flight,
            "limit": self._dispatcher.limit,
            "endpoint": circuit.state,
            "hold_reason": self._hold_reason(now),
        }
        data = orjson.dumps(progress, option=orjson.OPT_APPEND_NEWLINE)
        try:
            await asyncio.to_thread(self._store.write, layout.PROGRESS, data, durable=False)
        except StorageError as error:  # progress is for people; a run does not fail for it
            log.warning("progress.json could not be written: %s", error)


def earlier_row_s(store: RunStore) -> float | None:
    """How long the last stretch of this run took a row to need; None where that is not known. Blocks."""
    try:
        row_s = orjson.loads(store.read(layout.PROGRESS) or b"null")["row_s"]
    except (StorageError, ValueError, KeyError, TypeError):  # a guess takes its place, until rows are measured
        return None
    return float(row_s) if isinstance(row_s, float | int) and row_s > 0 else None
