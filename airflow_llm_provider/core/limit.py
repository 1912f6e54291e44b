"""How many sequences a task may have in flight on a server, as it learns from the server's load.

Owns what a limit is, and the one that learns nothing. Does not know who reads the load or carries a verdict out
(`batch.control`), nor the other bounds on what is in flight (`core.limits`, `core.release`).

`core.limit_headroom` is for a server that is shared with real-time, `core.limit_adaptive` for one of our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from airflow_llm_provider.core.load import Load

IDLE_LOOK_S = 5.0
"""How often the load is read for the log alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a look at the load leads to.

    Attributes:
        limit: sequences in flight at most, 0 or more.
        give_up: how many of those in flight are cancelled now, the cheapest loss first; the others above `limit` end
            by themselves and are not replaced.
        reason: why the limit is what it is, for the log.
        look_in_s: when the load should be read again.
        calm: whether real-time is quiet, so that giving way will not be asked for soon.
    """

    limit: int
    give_up: int = 0
    reason: str = ""
    look_in_s: float = IDLE_LOOK_S
    calm: bool = False


class Limit(Protocol):
    """A control law. Pure: moments are passed in, monotonic seconds."""

    def look(self, now: float, load: Load, own: int, *, needs: int = 1) -> Verdict:
        """The load was read.

        Args:
            now: when the answer came.
            load: the server's.
            own: sequences of this task in flight there.
            needs: sequences that the next request asks for: it goes where there is room for all of them.
        """
        ...

    def unread(self, now: float, own: int) -> Verdict:
        """The load could not be read; `own` as for `look`."""
        ...

    def gave_up(self, now: float, sequences: int) -> None:
        """So many sequences of this task were cancelled; the server may count them for a moment yet."""
        ...

    def rested(self) -> None:
        """Nothing was sent for a while: what was seen before is over."""
        ...

    def capacity(self, now: float) -> None:
        """The server had no capacity for a request of ours: 503, 429, or it timed out."""
        ...

    def ended(self, now: float, duration_s: float) -> bool:
        """A row or a slice of one ended well.

        Args:
            now: when.
            duration_s: how long it took.

        Returns:
            False where the place it held should stay empty for a while.
        """
        ...


class FixedLimit:
    """The limit is what it was set to; the load is read for the log alone.

    Law: ``limit(t) = limit``. Assumes that whoever set it knows the server.

    Args:
        limit: sequences in flight at most, 1 or more.
    """

    def __init__(self, limit: int) -> None:
        self._verdict = Verdict(limit=limit, reason="fixed")

    def look(self, now: float, load: Load, own: int, *, needs: int = 1) -> Verdict:  # noqa: ARG002 - it learns nothing
        """The same as ever."""
        return self._verdict

    def unread(self, now: float, own: int) -> Verdict:  # noqa: ARG002
        """The same as ever."""
        return self._verdict

    def gave_up(self, now: float, sequences: int) -> None:
        """It gives nothing up itself."""

    def rested(self) -> None:
        """There is nothing to forget."""

    def capacity(self, now: float) -> None:
        """The dispatcher's circuit pauses; the limit stays."""

    def ended(self, now: float, duration_s: float) -> bool:  # noqa: ARG002
        """Its place is taken again."""
        return True


class Learnt:
    """What a law has learned about one server, for the dispatcher that obeys it and for whoever tells people.

    Args:
        law: the control law.
    """

    def __init__(self, law: Limit) -> None:
        self._law = law
        self.limit = 0
        """Sequences in flight at most: none before the first look, or the first rows would all go at once."""
        self.load: Load | None = None
        """What was read last; None before, and while nothing can be read."""
        self.others = 0
        """Sequences of everybody else in the server at the last look: real-time, and batch tasks of other runs."""
        self.reason = ""
        self.calm = False
        """Whether real-time was quiet at the last look."""

    def look(self, now: float, load: Load | None, own: int, *, needs: int = 1) -> Verdict:
        """Ask the law what follows from `load` (None: it could not be read); the rest as for `Limit.look`."""
        verdict = self._law.unread(now, own) if load is None else self._law.look(now, load, own, needs=needs)
        self.limit, self.reason, self.load, self.calm = verdict.limit, verdict.reason, load, verdict.calm
        self.others = 0 if load is None else max(0, load.total - own)
        return verdict

    def rest(self) -> None:
        """Nothing may be sent, for whatever reason: what was learned is stale when something may be again."""
        self.limit, self.load, self.others, self.reason, self.calm = 0, None, 0, "", False
        self._law.rested()

    def gave_up(self, now: float, sequences: int) -> None:
        """So many sequences in flight were cancelled."""
        self._law.gave_up(now, sequences)

    def capacity(self, now: float) -> None:
        """The server had no capacity for a request of ours."""
        self._law.capacity(now)

    def ended(self, now: float, duration_s: float, *, in_flight: int) -> None:
        """A row or a slice of one ended well, and `in_flight` sequences are left; see `Limit.ended`."""
        if not self._law.ended(now, duration_s):
            self.limit = min(self.limit, in_flight)
