"""Requests given up that the server still counts: it takes notice of a cancelled one a step or more later.

Owns how many there are at a look. Pure. Does not know why requests are given up (`core.limit_headroom`).

A fall of the server's total that our own ends do not explain is taken for theirs; what is left after `LAG_S` is
forgotten. An arrival of somebody else in the same moment hides one for so long; somebody else's end reveals one early.
"""

from __future__ import annotations

from collections import deque

LAG_S = 0.3
"""Far more than a step takes, and the half a second within which a vLLM on a loaded machine was seen to free a slot is
seldom used up: a phantom that is kept too long hides somebody of real-time for so long."""


class Departing:
    """See the module."""

    def __init__(self) -> None:
        self._gone: deque[tuple[float, int]] = deque()  # (when, how many), those still counted
        self._total = 0
        self._own = 0

    @property
    def number(self) -> int:
        """How many there are."""
        return sum(number for _, number in self._gone)

    def given_up(self, number: int, now: float) -> None:
        """So many of our own in flight were cancelled; they do not count as our own from now on."""
        if number:
            self._gone.append((now, number))
            self._own -= number

    def look(self, now: float, total: int, own: int) -> int:
        """How many of `total`, as the server shows it, are on their way out, with `own` sequences in flight."""
        fallen = (self._total - self._own) - (total - own)
        self._total, self._own = total, own
        while self._gone and fallen > 0:
            since_s, number = self._gone.popleft()
            if number > fallen:
                self._gone.appendleft((since_s, number - fallen))
            fallen -= number
        while self._gone and now - self._gone[0][0] >= LAG_S:
            self._gone.popleft()
        return self.number
