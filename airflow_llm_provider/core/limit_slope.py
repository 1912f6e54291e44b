"""How many requests pay where a server's load cannot be read: what the pace of ended rows tells.

Owns the estimate. Does not know refusals (`core.limit_ceiling`), nor why the load cannot be read: a gateway in front
of the server shows no vLLM metrics.

Law. At each limit L the pace X (rows/s) is measured over whole turns: the first L ends after a change still began
before it and are left out, then ``k × L`` ends are timed, at least `ENDS` of them, so that rows that run in step with
one another do not bend it. Against the limit before::

    slope = ln(X1 / X0) / ln(L1 / L0)

which is 1 where every request has a place and 0 where they only queue. From `PAYS` on, L doubles. Below, the knee is
where Little's law puts it: rows took ``R0 = L0 / X0`` while they had places, so that ``X1 × R0`` places are used, and
``L = SPARE × X1 × R0``. There it stays for `REST_TURNS` turns, is measured again, over four times as many ends, against
half as many more; if they do not pay by `PAYS_LATE`, it goes back and rests for twice as long.

Assumes that rows come in no order of length, or a trend in the rows is taken for the server's: the next try mends that.
It never goes below the knee it found: too many requests only queue on a server of our own, and a server that refuses
them says so. Several tasks do not share fairly by this law; they need the load for that.
"""

from __future__ import annotations

import math
from enum import StrEnum

PAYS, PAYS_LATE = 0.15, 0.25
SPARE = 1.25
ENDS = 48
REST_TURNS, MAX_REST_TURNS = 12, 200
CLIMB, TRY = 2.0, 1.5


class Stage(StrEnum):
    """What is being found out."""

    CLIMBING = "climbing"  # whether twice as many pay
    RESTING = "resting"  # nothing, for a while
    MEASURING = "measuring"  # the pace at the limit that rests
    TRYING = "trying"  # whether half as many more pay


class Slope:
    """One server's knee, for one task. Moments are monotonic seconds.

    Args:
        limit: where to begin, 1 or more.
    """

    def __init__(self, limit: int) -> None:
        self.limit = float(limit)
        self.stage = Stage.CLIMBING
        self.reason = "the load can't be read: learning from the pace of rows"
        self._before: tuple[float, float] | None = None  # L0, X0
        self._rest_turns = REST_TURNS
        self._begin()

    def disturbed(self) -> None:
        """Something else bound what was in flight: measure this limit again."""
        self._begin()

    def ended(self, now: float) -> None:
        """A row ended well."""
        self._ends += 1
        if self._ends <= self._skip:
            self._since_s = now
        elif self._ends >= self._skip + self._want and now > self._since_s:
            self._decide((self._ends - self._skip) / (now - self._since_s))

    def _begin(self) -> None:
        turn = max(1, round(self.limit))
        turns = {
            Stage.CLIMBING: math.ceil(ENDS / turn),
            Stage.RESTING: self._rest_turns,
            Stage.MEASURING: math.ceil(4 * ENDS / turn),
            Stage.TRYING: math.ceil(4 * ENDS / turn),
        }
        self._ends, self._skip, self._want, self._since_s = 0, turn, turns[self.stage] * turn, -math.inf

    def _decide(self, pace: float) -> None:
        here = (self.limit, pace)
        match self.stage:
            case Stage.RESTING:
                self.stage = Stage.MEASURING
            case Stage.MEASURING:
                self._go(here, TRY, Stage.TRYING)
            case Stage.CLIMBING:
                if self._before is None or _slope(self._before, here) >= PAYS:
                    self._go(here, CLIMB, Stage.CLIMBING)
                else:
                    self._rest(min(here[0], SPARE * self._before[0] * pace / self._before[1]), here, self._before)
            case Stage.TRYING:
                if self._before is None or _slope(self._before, here) >= PAYS_LATE:
                    self._go(here, TRY, Stage.TRYING)
                else:
                    self._rest(self._before[0], here, self._before)
                    self._rest_turns = min(2 * self._rest_turns, MAX_REST_TURNS)
        self._begin()

    def _go(self, here: tuple[float, float], factor: float, stage: Stage) -> None:
        self._before, self.stage = here, stage
        self.limit *= factor
        self.reason = f"{here[0]:.0f} in flight end {here[1]:.2g} rows/s: whether {self.limit:.0f} end more"

    def _rest(self, limit: float, here: tuple[float, float], before: tuple[float, float]) -> None:
        self.limit, self.stage = max(before[0], math.ceil(limit)), Stage.RESTING
        self.reason = f"{here[0]:.0f} in flight end hardly more rows than {before[0]:.0f} do: {here[1]:.2g} rows/s"


def _slope(before: tuple[float, float], here: tuple[float, float]) -> float:
    return math.log(here[1] / before[1]) / math.log(here[0] / before[0])
