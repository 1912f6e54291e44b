"""When settled rows are journalled.

Owns the rule. Pure. Does not know rows or storage (`batch.recorder`); a chunk that is complete is committed at once,
and its rows need no journal.

What a kill costs is what has settled since the last flush, beside what is in flight; what a flush costs is an object
for each open chunk, which a store counts and lists. With a cost C of a flush and a time M between two kills the best
interval is ``sqrt(2 C M)`` (Young 1974). Nobody knows M beforehand; a try that has lived for an hour is taken to be
killed once in an hour or so. So the interval grows with the root of the try's age, and a kill costs an ever smaller
share of what the try has done.
"""

from __future__ import annotations

from math import sqrt

YOUNG_S = 60.0
"""So long the interval is the one that was asked for."""

MOST = 7.5
"""It grows to so many times that at most, which it is after an hour: 15 s instead of 2."""

GAP_S = 2.0
"""Many rows make a flush due, but no sooner than this after the last one, unless the interval is shorter itself: on a
server that answers a thousand rows a second there would be ten a second."""


class FlushClock:
    """One try's.

    Args:
        rows: so many that are not journalled make a flush due.
        interval_s: so much time does, in a try's first minute.
        began_s: monotonic seconds.
    """

    def __init__(self, *, rows: int, interval_s: float, began_s: float) -> None:
        self._rows = rows
        self._interval_s = interval_s
        self._gap_s = min(GAP_S, interval_s)
        self._began_s = began_s
        self._flushed_s: float | None = None

    def due_s(self, unjournalled_rows: int) -> float:
        """The moment from which on a flush is due, monotonic seconds."""
        if unjournalled_rows >= self._rows:
            return self._began_s if self._flushed_s is None else self._flushed_s + self._gap_s
        last_s = self._began_s if self._flushed_s is None else self._flushed_s
        grown = sqrt((last_s - self._began_s) / YOUNG_S)
        return last_s + self._interval_s * min(max(1.0, grown), MOST)

    def flushed(self, now: float) -> None:
        """A flush began at `now`."""
        self._flushed_s = now
