"""Whether an endpoint may be sent requests now: a circuit breaker with a capacity pause.

Owns the endpoint's states, their one table, the back-off and the patience. Does not know rows (`core.dispatch`) and
does not send probes itself (`batch.runner`).

Times are monotonic seconds.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from airflow_llm_provider.core.progress import duration
from airflow_llm_provider.core.retry import Failure, FailureKind, Reaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TRIAL_S = 5.0
"""How long a trial request must live to count as accepted: a dead or draining server refuses within milliseconds,
while a healthy one may take minutes to answer."""


PAUSES = 4
PAUSE_SHARE = 0.25
"""A pause for want of capacity is no longer than the wait before this look, or than this share of the trouble so far: a
server that refuses is there, and may have room again any second. After a storm of seconds a run is back in as many;
beside a server that refuses for hours it asks as rarely as for one that is lost."""


class State(StrEnum):
    """The life of an endpoint, as one run sees it."""

    UP = "up"  # requests flow
    PAUSED = "paused"  # no capacity just now: nothing new until the pause ends
    DOWN = "down"  # lost: nothing until the back-off ends, then a probe
    PROBING = "probing"  # asking the server who it is
    TRIAL = "trial"  # one request shows whether it takes work again


class Event(StrEnum):
    """What moves an endpoint from state to state."""

    ANSWERED = "answered"  # a request was answered, usable or not
    CAPACITY = "capacity"  # Reaction.BACK_OFF
    LOST = "lost"  # Reaction.HOLD
    PROBE_OK = "probe_ok"
    PROBE_FAILED = "probe_failed"
    DUE = "due"  # the state's time is over


TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        (State.UP, Event.CAPACITY): State.PAUSED,
        (State.UP, Event.LOST): State.DOWN,
        (State.PAUSED, Event.LOST): State.DOWN,
        (State.PAUSED, Event.DUE): State.UP,
        (State.DOWN, Event.DUE): State.PROBING,
        (State.PROBING, Event.PROBE_OK): State.TRIAL,
        (State.PROBING, Event.PROBE_FAILED): State.DOWN,
        (State.TRIAL, Event.ANSWERED): State.UP,
        (State.TRIAL, Event.DUE): State.UP,
        (State.TRIAL, Event.CAPACITY): State.PAUSED,
        (State.TRIAL, Event.LOST): State.DOWN,
    }
)
"""Pairs that are not listed change nothing: requests of before the loss still end while the endpoint is down."""


class Circuit:
    """One endpoint's circuit breaker.

    Args:
        wait_s: seconds to wait before the n-th look, n from 1; jitter is its business.
        patience_s: how long the endpoint may go without an answer before the try gives up.
    """

    def __init__(self, *, wait_s: Callable[[int], float], patience_s: float) -> None:
        self._wait_s = wait_s
        self.patience_s = patience_s
        self.state = State.UP
        self.until: float | None = None
        self.reason = ""
        self.asked = False  # whether this state's one probe or trial request has been handed out
        self.was_alive = True  # whether the last loss was a death: it had answered since the loss before
        self._alive = True
        self._since: float | None = None  # when the trouble began; None while there is none
        self._looks = 0

    def answered(self) -> None:
        """A request was answered by the model or refused for its own sake: the endpoint works."""
        self._move(Event.ANSWERED)
        if self.state in (State.UP, State.PAUSED):  # while DOWN, a draining server still ends what it had
            self._since, self._looks, self._alive = None, 0, True

    def failed(self, failure: Failure, now: float) -> None:
        """A request failed for the endpoint's sake (reactions BACK_OFF and HOLD only)."""
        if failure.reaction is Reaction.HOLD:
            self.lost(failure, now)
        elif self._move(Event.CAPACITY):
            self._trouble(failure, now)

    def lost(self, failure: Failure, now: float) -> None:
        """The endpoint is gone, whatever `failure` would mean by itself."""
        if self._move(Event.LOST):
            self._trouble(failure, now)

    def probed(self, failure: Failure | None, now: float) -> None:
        """The probe came back; None means that the server is there and serves the run's model."""
        if failure is None:
            self._move(Event.PROBE_OK)
        elif self._move(Event.PROBE_FAILED):
            self._trouble(failure, now)

    def tried(self, now: float, *, by_answer: bool) -> None:
        """The trial was sent. Only its answer counts with `by_answer`, else also that it lives for `TRIAL_S`."""
        self.asked = True
        self.until = None if by_answer else now + TRIAL_S

    def untried(self) -> None:
        """The trial ended, and how it did says nothing: it takes another."""
        self.asked, self.until = False, None

    def look(self, now: float) -> State:
        """Let time pass up to `now` and say the state."""
        if self.until is not None and now >= self.until:
            self._move(Event.DUE)
        return self.state

    def impatient(self, now: float) -> bool:
        """Whether the endpoint has gone without an answer for longer than the patience."""
        return self.deadline is not None and now >= self.deadline  # the very sum that `Wait` names: no rounding between

    def describe(self, now: float) -> str:
        """Why nothing is sent and when the next look is, for the log."""
        if self.until is None:
            return f"{self.state}: {self.reason}"
        return f"{self.state}: {self.reason}; next look in {duration(max(0.0, self.until - now))}"

    @property
    def deadline(self) -> float | None:
        """When the patience ends; None while there is no trouble."""
        return None if self._since is None else self._since + self.patience_s

    def _move(self, event: Event) -> bool:
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            return False
        self.state = after
        self.until = None
        self.asked = False
        if event is Event.LOST:
            self.was_alive, self._alive = self._alive, False
        return True

    def _trouble(self, failure: Failure, now: float) -> None:
        self._looks += 1
        if self._since is None:
            self._since = now
        wait_s = self._wait_s(self._looks)
        if self.state is State.PAUSED and self._looks > PAUSES:
            wait_s = min(wait_s, max(self._wait_s(PAUSES), PAUSE_SHARE * (now - self._since)))
        self.until = now + max(wait_s, failure.retry_after_s or 0.0)
        self.reason = f"{FailureKind(failure.kind)} ({failure.message})"
