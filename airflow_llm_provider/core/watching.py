"""What a task that has nothing in the server makes of how full others keep it: they fill it only in a calm.

Owns that inference. Pure. Does not know how a task that holds the server sees real-time (`core.arrivals`).

Whoever holds fills the server up to its queue in a calm. An offer leaves few places empty, and nobody comes there but
those who take it up: where more are empty, or the total rises again, or more wait than whoever holds lets wait,
real-time is about.
"""

from __future__ import annotations

from collections import deque

FULL_LOOKS = 5
MANY = 3
"""So many of the last `FULL_LOOKS` looks must have seen the server full."""

OFFERED = 2
"""Places that somebody who offers leaves empty at most: where more are, real-time may be about."""


class Watch:
    """See the module.

    Args:
        wavers: sequences that come and go in any look, where there are many slots.
    """

    def __init__(self, wavers: int) -> None:
        self._wavers = wavers
        self._full: deque[bool] = deque(maxlen=FULL_LOOKS)

    def look(self, total: int, *, brim: int, queued: int, sees_room: bool) -> bool:
        """Whether others take it that it is calm.

        Args:
            total: sequences in the server, none of them of this task.
            brim: sequences that fill it, as far as batch may.
            queued: those that whoever holds lets wait beyond.
            sees_room: whether the task has seen room of late.
        """
        if total >= brim or not sees_room:
            self._full.append(total >= brim + queued - self._wavers)
        risen = sees_room and total == brim
        if risen or not brim - OFFERED - 2 * self._wavers <= total <= brim + queued:
            self._full.clear()
        return sum(self._full) >= MANY

    def forget(self) -> None:
        """What was seen is over."""
        self._full.clear()
