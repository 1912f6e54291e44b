"""Whether room that a task takes up in a calm was offered to it, or is kept free for real-time.

Owns the question and its answer. Pure. Does not know when a task takes room (`core.turns`), nor what it does about the
answer (`core.limit_headroom`).

A task that waits looks seldom. It may still believe in a calm when a burst has begun, and whoever holds the server then
keeps slots free: that looks like an offer, and the longer a task has waited, the sooner it takes one up. So it sends as
little as it can and looks often. An offer leaves one place empty, and one sequence more fills the server; where it does
not, `LOOKS` looks and `ASKS_S` later, the room is kept free by somebody.
"""

from __future__ import annotations

ASKS_S = 0.04
ASKS_STEPS = 3
"""What it sends shows within so long, or so many steps of the engine; few rows of whoever offers have ended by then."""

LOOKS = 3
"""So many in that time."""


class Asking:
    """See the module.

    Attributes:
        open: whether it is still to be seen.
    """

    def __init__(self) -> None:
        self.open = False
        self._until_s = 0.0
        self._lasts_s = ASKS_S
        self._looks = 0

    @property
    def look_in_s(self) -> float:
        """How soon to look again while it is open."""
        return self._lasts_s / LOOKS

    def begin(self, now: float, step_s: float) -> None:
        """The task takes a place.

        Args:
            now: monotonic seconds.
            step_s: what a step of the engine takes; 0: not known.
        """
        self._lasts_s = max(ASKS_S, ASKS_STEPS * step_s)
        self.open, self._until_s, self._looks = True, now + self._lasts_s, 0

    def look(self, now: float, *, full: bool) -> bool:
        """The load was read.

        Args:
            now: monotonic seconds.
            full: whether sequences fill the server, as far as batch may.

        Returns:
            Whether it has just turned out that the room is kept free.
        """
        if not self.open:
            return False
        self._looks += 1
        kept = not full and now >= self._until_s and self._looks > LOOKS
        self.open = not full and not kept
        return kept

    def forget(self) -> None:
        """There is nothing to ask any more."""
        self.open = False
