"""What real-time on a server has wanted of late: how many slots at once, and whether it is quiet now.

Owns both figures, and how an arrival is told from noise. Pure. Does not know what follows from them
(`core.limit_headroom`).

A task sees others as ``total - own``. That wavers by what is under way: a row of the task's own that has ended in the
server, and whose answer is still to be read, hides somebody for some milliseconds. So an arrival is a rise above all
that was seen in the `WAVERS_S` before the last look, and at that look.

- **Headroom**: the `QUANTILE` of what arrived within `REACTION_S`, over the latest `REMEMBERED` looks, 1 at least: as
  many slots as real-time has wanted at once, before one could be freed. It is 1 once it has been quiet for
  `PASSING_GAPS` times the usual gap between two arrivals.
- **Calm**: quiet for `CALM_GAPS` gaps, or `CALM_S`, whichever is shorter: a burst is over when what should have come
  several times over has not come.
"""

from __future__ import annotations

from collections import deque

CALM_S = 2.0
CALM_GAPS = 6.0
PASSING_GAPS = 4.0
"""Of a Poisson stream one gap in 400 is longer than six usual ones, and one in 55 longer than four: a calm that is none
costs a wait, a headroom of 1 hardly more than one that is right."""

EASE = 0.2
"""A gap's weight in the usual one."""

FIRST_GAP_S = CALM_S / 4
"""The usual gap where a burst begins."""

REACTION_S = 0.09
"""Some three times what it takes to free a slot (a look, a cancelled request, a step: 25 ms on 8 slots): headroom is
slow to be there again, since what is above `limit_headroom.AT_ONCE` comes as rows end. Found in virtual time, as are
the next."""

QUANTILE = 0.95
"""As of the promise: p95 near that of no batch."""

REMEMBERED = 300
"""Looks: three seconds of those that see real-time about."""

WAVERS_S = 0.06
"""A row's answer has been read, and its slot taken by the next one, within so long."""

LATEST_S = 0.04
"""Growth goes by the most others that were seen for so long: somebody hidden by a row under way is counted all the
same."""

WAVERS_STEPS = 3
LATEST_STEPS = 2
"""So many steps of the engine instead, where those take longer: what is shown is as of its last one."""


class Arrivals:
    """See the module.

    Attributes:
        headroom: slots to keep free while real-time is about.
        step_s: what a step of the engine takes; 0: not known.
    """

    def __init__(self) -> None:
        self.headroom = 1
        self.step_s = 0.0
        self._others: deque[tuple[float, int]] = deque()  # of the last `WAVERS_S`, the latest look at least
        self._at_once: deque[tuple[float, int]] = deque()  # arrivals of the last `REACTION_S`
        self._peaks: deque[int] = deque(maxlen=REMEMBERED)  # their sum at each look that saw real-time about
        self._quiet_s = float("inf")  # since when
        self._gap_s = CALM_S

    def see(self, now: float, others: int) -> int:
        """Take note of how many others there are; how many of them have come."""
        came = max(0, others - max(number for _, number in self._others)) if self._others else 0
        self._others.append((now, others))
        while self._others[0][0] < now - max(WAVERS_S, WAVERS_STEPS * self.step_s):
            self._others.popleft()
        return came

    def others(self, now: float) -> tuple[int, int]:
        """The fewest and the most others that were seen of late."""
        since_s = now - max(LATEST_S, LATEST_STEPS * self.step_s)
        numbers = [number for at_s, number in self._others if at_s >= since_s]
        return min(numbers), max(numbers)

    def calm(self, now: float) -> bool:
        """Whether real-time is quiet."""
        return now - self._quiet_s >= min(CALM_S, CALM_GAPS * self._gap_s)

    def wanted(self, now: float) -> int:
        """Slots to keep free while it is not; see the module."""
        return 1 if now - self._quiet_s >= PASSING_GAPS * self._gap_s else self.headroom

    def learn(self, now: float, arrived: int) -> None:
        """So many have arrived since the last look."""
        if not arrived and self.calm(now):
            return
        if arrived:
            gap_s = (now - self._quiet_s) / arrived
            self._gap_s = self._gap_s + EASE * (gap_s - self._gap_s) if 0 <= gap_s < CALM_S else FIRST_GAP_S
            self._quiet_s = now
        self._at_once.append((now, arrived))
        while self._at_once[0][0] <= now - REACTION_S:
            self._at_once.popleft()
        self._peaks.append(sum(number for _, number in self._at_once))
        if arrived or len(self._peaks) == REMEMBERED:
            ranked = sorted(self._peaks)
            self.headroom = max(1, ranked[min(len(ranked) - 1, int(QUANTILE * len(ranked)))])

    def expect(self, number: int) -> None:
        """So many may arrive at once, until it is known better."""
        self.headroom = max(self.headroom, number)

    def busy(self, now: float) -> None:
        """Real-time is taken to be about, whatever was seen."""
        self._quiet_s = now

    def quiet(self, now: float) -> None:
        """Real-time is taken to have been quiet for long enough."""
        self._quiet_s = min(self._quiet_s, now - CALM_S)

    def forget(self) -> None:
        """What was seen last is long ago; what real-time has wanted is not forgotten."""
        self._others.clear()
        self._at_once.clear()
