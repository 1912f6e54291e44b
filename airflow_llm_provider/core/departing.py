"""Requests given up that the server still counts: it takes notice of a cancelled one a step or more later.

Owns how many there are at a look. Pure. Does not know why requests are given up (`core.limit_headroom`).

A fall of the server's total that our own ends do not explain is taken for theirs; what is left after `LAG_S` is
forgotten. An arrival of somebody else in the same moment hides one for so long; somebody else's end reveals one early.
"""

from __future__ import annotations

LAG_S = 0.3


class Departing:
    """See the module."""

    def __init__(self) -> None:
        self.number = 0
        self._since_s = 0.0
        self._total = 0
        self._own = 0

    def given_up(self, number: int, now: float) -> None:
        """So many of our own in flight were cancelled; they do not count as our own from now on."""
        if number:
            self.number += number
            self._own -= number
            self._since_s = now

    def look(self, now: float, total: int, own: int) -> int:
        """How many of `total`, as the server shows it, are on their way out, with `own` sequences in flight."""
        fallen = (self._total - self._own) - (total - own)
        self._total, self._own = total, own
        self.number = max(0, self.number - max(0, fallen))
        if now - self._since_s >= LAG_S:
            self.number = 0
        return self.number
