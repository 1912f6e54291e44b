"""The gate of a running batch: asks the release brain every second and makes the runner obey.

Owns when it is asked, the margin before a close, and when a try stops waiting in place and gives its worker back. Does
not own a rule of release: those are `core.release`'s.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.core.circuit import State
from airflow_llm_provider.core.progress import duration
from airflow_llm_provider.core.release import Cause, Hold, Release, decide
from airflow_llm_provider.exceptions import ConfigurationError, RunStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.batch.switch import HoldSwitch
    from airflow_llm_provider.batch.watch import LatencyWatch
    from airflow_llm_provider.core.dispatch import Dispatcher
    from airflow_llm_provider.core.ledger import Ledger
    from airflow_llm_provider.core.release import Terms

log = logging.getLogger(__name__)

CONTROL_PERIOD_S = 1.0

CLOSE_MARGIN_S = 2.0
"""So long before the close is what is still in flight yielded: a server frees a slot within 0.5 s of a disconnect."""

SHORT_WAIT_S = 30.0
"""A shorter wait is waited in place: giving the worker back and coming again costs seconds, and Airflow 3.3.2 loses
tasks that come back within three."""

TRIED_SHARE = 0.5
"""However long rows take, they are sent in the first half of a window: what is never tried is never known."""

DRAIN_S = 300.0
"""So long does a shift wait for rows that real-time keeps from going on."""

WHOLE_WINDOW = 0.9
"""A try that had room for this share of a window, and in which no row ended, will not do better tomorrow."""


class RunHeld(Exception):  # noqa: N818 - no error: the run waits
    """The run may not go on for a while; what has settled is kept, and this try should give its worker back.

    Attributes:
        hold: why, and until when.
        remaining_s: how long the rest would take at the pace measured; None where there is none.
        drained_until: the close before which nothing more fits; until then the window is open, and it is of no use.
        released: whether batch was released at all in this stretch.
    """

    def __init__(
        self,
        hold: Hold,
        *,
        remaining_s: float | None = None,
        drained_until: datetime | None = None,
        released: bool = False,
    ) -> None:
        super().__init__(hold.reason)
        self.hold = hold
        self.remaining_s = remaining_s
        self.drained_until = drained_until
        self.released = released


class Held(Protocol):
    """What the gate does to the runner, for one server."""

    def hold(self, *, yields: bool) -> None:
        """Send nothing more."""
        ...

    def release(self, *, limit: int, closes_s: float | None) -> None:
        """Send."""
        ...

    def drain(self) -> None:
        """Begin nothing more; what is begun goes on."""
        ...

    def stay(self) -> None:
        """Wait in place."""
        ...

    def end(self, error: BaseException) -> None:
        """End the try; with `RunHeld`, once every server is on hold."""
        ...


class Gate:
    """Holds and releases one server of a try.

    Args:
        terms: what was agreed on.
        switch: the connection's hold switch, as last read.
        watch: real-time's standing there; None where no objective is obeyed.
        runner: obeys.
        dispatcher: says what is in flight there, and what still fits.
        ledger: says what has settled.
        name: the server's, for the log; empty where there is only one.
        shift: after so long, or twice that where no row has settled, the worker is given back for a while; None: never.
        remaining_s: estimates the time the rest takes; None where nobody knows.
        now: the wall clock.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        switch: HoldSwitch,
        watch: LatencyWatch | None,
        runner: Held,
        dispatcher: Dispatcher,
        ledger: Ledger,
        remaining_s: Callable[[], float | None],
        name: str = "",
        shift: timedelta | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._shift = shift
        self._began_s: float | None = None
        self._shift_ends: datetime | None = None  # for the log; how long it lasts, the loop's clock tells
        self._terms = terms
        self._switch = switch
        self._watch = watch
        self._runner = runner
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._remaining_s = remaining_s
        self._name = name
        self._now = now
        self.held: Hold | None = None
        """What holds the run just now; None while it is released."""
        self._said: object = None
        self._running = False
        self._held_since: datetime | None = None
        self._ever_released = False
        self._released_at: datetime | None = None
        self._released_for = timedelta()
        self._drains_since: datetime | None = None

    async def run(self) -> None:
        """Ask and obey until cancelled."""
        loop = asyncio.get_running_loop()
        while True:  # noqa: ASYNC110 - it asks the clock, which sets no event
            await asyncio.sleep(self.step(loop.time()))

    def step(self, loop_s: float) -> float:
        """Ask once, at the loop's time `loop_s`; returns the seconds until it should be asked again."""
        now = self._now()
        if self._began_s is None:
            self._began_s = loop_s
            self._shift_ends = now + self._shift if self._shift is not None else None
        decision = self._ask(now)
        if isinstance(decision, Hold):
            self._hold(decision, now)
            return CONTROL_PERIOD_S
        closes_s, period_s = None, CONTROL_PERIOD_S
        beyond = decision if decision.until is None else self._ask(decision.until)
        if decision.until is not None and isinstance(beyond, Hold):  # else, whatever ends there, the window stays open
            self._bound_prediction(now)
            left_s = (decision.until - now).total_seconds() - CLOSE_MARGIN_S
            over = left_s < self._dispatcher.durations.predicted_s() and self._dispatcher.in_flight == 0
            if over or left_s <= 0:
                self._hold(beyond, now, drained_until=decision.until)
                return CONTROL_PERIOD_S
            closes_s, period_s = loop_s + left_s, min(CONTROL_PERIOD_S, left_s)
        if self._shift_is_over(loop_s - self._began_s):
            self._end_shift(now)
        else:
            self._release(decision, now, closes_s=closes_s)
        return period_s

    def _ask(self, at: datetime) -> Release | Hold:
        return decide(
            at,
            self._terms,
            switch=self._switch.reason,
            standing=self._watch.standing if self._watch else None,
            running=self._running,
            remaining_s=self._remaining_s(),
        )

    def _shift_is_over(self, worked_s: float) -> bool:
        """A shift in which nothing has settled is twice as long: one too short for a row would be worked for ever.

        In an outage none ends: whoever came back would find nobody there.
        """
        if self._shift is None or self._dispatcher.away:
            return False
        shifts = 1 if self._ledger.settled_here.done else 2
        return worked_s >= shifts * self._shift.total_seconds()

    def _end_shift(self, now: datetime) -> None:
        """What is begun goes to its end, and then the worker is given back.

        A row of which slices are kept may wait for room to go on: so long, and no longer, is it waited for.
        """
        reason = f"the shift was over at {self._shift_ends:%Y-%m-%d %H:%M:%S} UTC, and the worker is given back"
        hold = Hold(cause=Cause.SHIFT, reason=reason, yields=False)
        self._tell(hold)
        self._count(now)
        self._released_at = now if self._could_work() else None  # what is begun may end
        self._drains_since = self._drains_since or now
        self._runner.drain()
        patient = (now - self._drains_since).total_seconds() < DRAIN_S
        if self._dispatcher.in_flight == 0 and not (self._dispatcher.begun and patient):
            self._leave(hold, None)
        else:
            self._runner.stay()

    def _bound_prediction(self, now: datetime) -> None:
        opening = self._terms.windows.at(now) if self._terms.windows is not None else None
        if opening is not None:
            self._dispatcher.durations.at_most_s = TRIED_SHARE * opening.duration_s

    def _release(self, release: Release, now: datetime, *, closes_s: float | None) -> None:
        until = "" if release.until is None else f" until {release.until:%Y-%m-%d %H:%M:%S} UTC"
        said = f"Released{until}, at most {release.limit} in flight: {release.reason}"
        self._say(said, about=(release.limit, release.until))
        self.held = None
        self._running, self._held_since = not release.capped, None
        self._count(now)
        self._ever_released = True
        self._released_at = now if self._could_work() else None
        self._runner.release(limit=release.limit, closes_s=closes_s)

    def _hold(self, hold: Hold, now: datetime, *, drained_until: datetime | None = None) -> None:
        self._tell(hold)
        self._running = False
        self._count(now)
        if self._held_since is None:
            self._held_since = now
        self._runner.hold(yields=hold.yields)
        if self._dispatcher.in_flight == 0 and self._is_long(hold, now):
            self._leave(hold, drained_until)
        else:
            self._runner.stay()

    def _tell(self, hold: Hold) -> None:
        flying = self._dispatcher.in_flight
        fate = f"; {flying} requests in flight {'are given up' if hold.yields else 'may end'}" if flying else ""
        self._say(f"On hold: {hold.reason}{fate}", about=(hold.cause, hold.until))
        self.held = hold

    def _is_long(self, hold: Hold, now: datetime) -> bool:
        if hold.cause is Cause.LOOKING or self._held_since is None:
            return False
        if hold.until is not None:
            return (hold.until - now).total_seconds() > SHORT_WAIT_S
        return hold.cause is Cause.WINDOW or (now - self._held_since).total_seconds() >= SHORT_WAIT_S

    def _leave(self, hold: Hold, drained_until: datetime | None) -> None:
        windows = self._terms.windows
        if hold.cause is Cause.WINDOW and windows is not None and self._ledger.settled_here.done == 0:
            opening = windows.at(self._now() - self._released_for) if self._released_for else None
            if opening is not None and self._released_for.total_seconds() >= WHOLE_WINDOW * opening.duration_s:
                self._runner.end(
                    ConfigurationError(
                        f"A whole window of {duration(opening.duration_s)} went by and no row ended in it, so none "
                        "ever will. Make the rows or max_tokens smaller, or have the platform widen the window"
                    )
                )
                return
        error = held(hold, remaining_s=self._remaining_s())
        if isinstance(error, RunHeld):
            error.drained_until, error.released = drained_until, self._ever_released
        self._runner.end(error)

    def _could_work(self) -> bool:
        """Whether a row can have ended there: not where the server was away, or others had all of it."""
        dispatcher = self._dispatcher
        return dispatcher.circuit.state is State.UP and (dispatcher.most > 0 or dispatcher.in_flight > 0)

    def _count(self, now: datetime) -> None:
        if self._released_at is not None:
            self._released_for += now - self._released_at
            self._released_at = None

    def _say(self, text: str, *, about: object) -> None:
        """Log what is new: not each second, and not because a figure in the reason changed."""
        if about != self._said:
            self._said = about
            log.info(f"{self._name}: {text}" if self._name else text)


async def await_release(
    terms: Terms,
    switch: HoldSwitch,
    stop: StopSwitch,
    *,
    remaining_s: float | None = None,
    now: Callable[[], datetime] = utc_now,
) -> None:
    """Before anything is read or sent: wait for window and hold switch, if it is not for long.

    Real-time's latency is not looked at here: that takes a sampling period, and the gate does it.

    Raises:
        RunHeld: it would be long.
        RunStoppedError: `stop` was set meanwhile.
    """
    plain = replace(terms, gated=False)
    while True:
        await switch.refresh()
        decision = decide(now(), plain, switch=switch.reason, standing=None, running=False, remaining_s=remaining_s)
        if isinstance(decision, Release):
            return
        if stop.reason is not None:
            raise RunStoppedError(f"{stop.reason}: this try had sent nothing yet")
        if decision.until is None or (left_s := (decision.until - now()).total_seconds()) > SHORT_WAIT_S:
            log.info("On hold: %s", decision.reason)
            raise held(decision, remaining_s=remaining_s)
        log.info("On hold: %s", decision.reason)
        await asyncio.sleep(min(CONTROL_PERIOD_S, max(left_s, 0.05)))


def held(hold: Hold, *, remaining_s: float | None = None) -> RunHeld | ConfigurationError:
    """What ends a try that is on hold: waiting for a window that never opens would be waiting for ever."""
    if hold.cause is Cause.WINDOW and hold.until is None:
        return ConfigurationError(f"Batch can never run: {hold.reason}. Check the window's days and dates")
    return RunHeld(hold, remaining_s=remaining_s)
