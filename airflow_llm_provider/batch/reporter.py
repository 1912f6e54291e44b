"""What the log, ``progress.json`` and metrics say while a run works.

Owns when they are told. Does not compute rates (`core.progress`), nor know whose metrics they are.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.core.circuit import State
from airflow_llm_provider.core.occupancy import Bound, occupancy_of, together
from airflow_llm_provider.core.progress import Pace, PaceMeter
from airflow_llm_provider.core.request import Status
from airflow_llm_provider.exceptions import ConfigurationError, RunStoppedError, StorageError
from airflow_llm_provider.storage import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_llm_provider.batch.gate import Gate
    from airflow_llm_provider.core.ledger import Ledger, Totals
    from airflow_llm_provider.core.occupancy import Occupancy
    from airflow_llm_provider.core.spread import Spread
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0
PROGRESS_INTERVAL_S = 2.0
FIRST_S = 0.5


class Reporter:
    """Tells how far a try is.

    Args:
        store: where ``progress.json`` lies.
        ledger: what is done.
        spread: what is in flight, and why nothing is.
        urls: the servers', in `spread`'s order.
        interval_s: how often progress is told; None: every `PROGRESS_INTERVAL_S`.
        remaining_s: how long the rest took at the pace of the last stretch; None where there was none.
        told: called in a thread, whenever progress is written, with what the run holds of its servers and what this
            try has settled; at the end of the try with what it holds then, which is nothing.
    """

    def __init__(
        self,
        store: RunStore,
        ledger: Ledger,
        spread: Spread,
        urls: Sequence[str],
        *,
        remaining_s: float | None = None,
        interval_s: float | None = None,
        told: Callable[[Occupancy, Totals], None] | None = None,
    ) -> None:
        self._interval_s = PROGRESS_INTERVAL_S if interval_s is None else interval_s
        self._store = store
        self._told = told
        self._told_others = False  # what others have was told once: nobody else would take it back
        self._ledger = ledger
        self._spread = spread
        self._urls = urls
        self._meter = PaceMeter()
        self._states = [State.UP] * len(urls)
        self._sending = False
        self._looked = self._began = _Sample()
        self._eta_s = remaining_s
        self.gates: Sequence[Gate] = ()

    def remaining_s(self) -> float | None:
        """How long the rest takes at the pace of late; None while nobody knows."""
        return self._eta_s

    async def run(self) -> None:
        """Report until cancelled.

        Raises:
            RunStoppedError: another try has taken the run over.
        """
        loop = asyncio.get_running_loop()
        self._looked = self._began = _Sample(loop.time())
        next_log = loop.time() + LOG_INTERVAL_S
        await asyncio.sleep(FIRST_S)  # until what earlier tries journalled is counted
        while True:
            now = loop.time()
            pace = self._pace(now)
            await self._write(pace, now)
            self._log_states(now)
            if now >= next_log:
                log.info("%s", self._words(pace))
                next_log = now + LOG_INTERVAL_S
            await asyncio.sleep(self._interval_s)

    async def finish(self) -> None:
        """The last word of a try."""
        now = asyncio.get_running_loop().time()
        pace, began, at_last = self._pace(now), self._began, self._looked
        if began.now is not None:
            pace = pace.at_the_end(
                settled=at_last.settled - began.settled,
                completion_tokens=at_last.completion_tokens - began.completion_tokens,
                elapsed_s=now - began.now,
            )
        if pace.done >= pace.total:
            self._eta_s = 0.0
        log.info("%s", self._words(pace, ended=True))
        await self._write(pace, now, ended=True)

    def _words(self, pace: Pace, *, ended: bool = False) -> str:
        held = [gate.held for gate in self.gates if gate.held is not None]
        if held and len(held) == len(self.gates):
            return f"{pace.done:,}/{pace.total:,} rows{pace.bad}, on hold: {held[0].reason}"
        occupancy = self._occupancy()
        return f"{pace}, {_nothing(occupancy) if ended else occupancy}"

    def _occupancy(self) -> Occupancy:
        """Of all servers; the reason is that of the first one that is sent requests."""
        dispatchers = self._spread.dispatchers
        servers = [occupancy_of(each) for each in dispatchers]
        first = next((number for number, each in enumerate(dispatchers) if not each.held), 0)
        return together(servers, limit=self._spread.limit, told=servers[first])

    def _pace(self, now: float) -> Pace:
        totals = self._ledger.totals
        here = self._ledger.settled_here
        sending = self._spread.sending(now)
        if sending and not self._sending:
            self._meter = PaceMeter()  # a lull is no pace
            self._began = self._looked
        self._sending = sending
        pace = self._meter.sample(
            now=now,
            done=totals.done,
            total=self._ledger.total_rows,
            settled=here.done,
            completion_tokens=here.usage.completion_tokens,
        )
        pace = replace(pace, otherwise=totals.otherwise)
        self._looked = _Sample(now, here.done, here.usage.completion_tokens)
        if not sending:
            return replace(pace, eta_s=None)
        if pace.eta_s is not None:
            self._eta_s = pace.eta_s
        return pace

    def _log_states(self, now: float) -> None:
        """Say once that a server went away, and once that it is back."""
        for number, dispatcher in enumerate(self._spread.dispatchers):
            circuit, before = dispatcher.circuit, self._states[number]
            if circuit.state is State.UP and before is not State.UP:
                log.info("%s answers again", self._urls[number])
            elif circuit.state is not State.UP and circuit.state is not before:
                log.warning("Nothing is sent to %s just now; it is %s", self._urls[number], circuit.describe(now))
            self._states[number] = circuit.state

    def _server(self, number: int, now: float, *, ended: bool) -> dict[str, Any]:
        dispatcher = self._spread.dispatchers[number]
        held = self.gates[number].held if self.gates else None
        state = dispatcher.circuit.state
        reason = None if state is State.UP else dispatcher.circuit.describe(now)
        occupancy = occupancy_of(dispatcher)
        return {
            "base_url": self._urls[number],
            **_numbers(_nothing(occupancy) if ended else occupancy),
            "endpoint": state,
            "hold_reason": held.reason if held is not None else reason,
        }

    async def _write(self, pace: Pace, now: float, *, ended: bool = False) -> None:
        totals = self._ledger.totals
        servers = [self._server(number, now, ended=ended) for number in range(len(self._urls))]
        occupancy = _nothing(self._occupancy()) if ended else self._occupancy()
        best = next((each for each in servers if each["hold_reason"] is None), servers[0])
        progress = {
            "format_version": layout.FORMAT_VERSION,
            "updated_at": utc_now().isoformat(),
            "total": pace.total,
            "done": pace.done,
            **{status.value: getattr(totals, status) for status in Status},
            "usage": totals.usage.as_dict(),
            "rows_per_s": round(pace.rows_per_s, 2),
            "tokens_per_s": round(pace.tokens_per_s, 1),
            "eta_s": None if pace.eta_s is None else round(pace.eta_s, 1),
            "remaining_s": None if self._eta_s is None else round(self._eta_s, 1),
            "row_s": None if self._spread.measured_s is None else round(self._spread.measured_s, 3),
            **_numbers(occupancy),
            "endpoint": best["endpoint"],
            "hold_reason": best["hold_reason"],
            "servers": servers,
        }
        data = orjson.dumps(progress, option=orjson.OPT_APPEND_NEWLINE)
        lost: RunStoppedError | None = None
        try:
            await asyncio.to_thread(self._store.write, layout.PROGRESS, data, durable=False)
        except (StorageError, ConfigurationError) as error:  # progress is for people; a run does not fail for it
            log.warning("progress.json could not be written: %s", error)
        except RunStoppedError as error:  # another try has the run: it is found out here where no row settles
            lost = error
        if self._told is not None:
            self._told_others = self._told_others or occupancy.others is not None
            others = 0 if self._told_others else None
            holds = replace(occupancy, others=others, waiting=others) if ended else occupancy
            await asyncio.to_thread(self._told, holds, replace(self._ledger.settled_here))
        if lost is not None and not ended:
            raise lost


@dataclass(frozen=True, slots=True)
class _Sample:
    """What this try had settled at a moment; None: it has not begun."""

    now: float | None = None
    settled: int = 0
    completion_tokens: int = 0


def _nothing(occupancy: Occupancy) -> Occupancy:
    """What a try holds when it has ended, and may."""
    return replace(occupancy, in_flight=0, limit=0, bound=Bound.RELEASE, reason="")


def _numbers(occupancy: Occupancy) -> dict[str, Any]:
    return {
        "in_flight": occupancy.in_flight,
        "limit": occupancy.limit,
        "bound": occupancy.bound,
        "others": occupancy.others,
        "waiting": occupancy.waiting,
        "yields": occupancy.yields,
        "limit_reason": occupancy.reason or None,
    }


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the last stretch of a run left in ``progress.json``: guesses, each None where it is not known.

    Attributes:
        row_s: how long a row was taken to need.
        remaining_s: how long the rest was taken to need.
    """

    row_s: float | None = None
    remaining_s: float | None = None

    @classmethod
    def read(cls, store: RunStore) -> Earlier:
        """Read it; blocks. What can't be read is measured anew."""
        try:
            progress = orjson.loads(store.read(layout.PROGRESS) or b"{}")
            return cls(_seconds(progress.get("row_s")), _seconds(progress.get("remaining_s")))
        except (StorageError, ValueError, AttributeError):
            return cls()


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) and value > 0 else None
