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
    """

    limit: int
    give_up: int = 0
    reason: str = ""
    look_in_s: float = IDLE_LOOK_S


class Limit(Protocol):
    """A control law. Pure: moments are passed in, monotonic seconds."""

    def look(self, now: float, load: Load, own: int) -> Verdict:
        """The load was read.

        Args:
            now: when the answer came.
            load: the server's.
            own: sequences of this task in flight there.
        """
        ...

    def unread(self, now: float) -> Verdict:
        """The load could not be read."""
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

    def look(self, now: float, load: Load, own: int) -> Verdict:  # noqa: ARG002 - it learns nothing
        """The same as ever."""
        return self._verdict

    def unread(self, now: float) -> Verdict:  # noqa: ARG002
        """The same as ever."""
        return self._verdict

    def capacity(self, now: float) -> None:
        """The dispatcher's circuit pauses; the limit stays."""

    def ended(self, now: float, duration_s: float) -> bool:  # noqa: ARG002
        """Its place is taken again."""
        return True
