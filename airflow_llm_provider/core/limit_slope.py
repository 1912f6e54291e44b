"""How many requests pay where a server's load cannot be read: what the pace of ended rows tells.

Owns the estimate. Does not know refusals (`core.limit_ceiling`), nor why the load cannot be read: a gateway in front
of the server shows no vLLM metrics.

Law. At each limit L the pace X (rows/s) is measured over whole turns: the first L ends after a change still began
before it and are left out, then ``k × L`` ends are timed, at least `ENDS` of them, so that rows that run in step with
one another do not bend it. Against the limit before:

    slope = ln(X₁ / X₀) / ln(L₁ / L₀)

which is 1 where every request has a place and 0 where they only queue. From `PAYS` on, L doubles. Below, the knee is
where Little's law puts it: rows took ``R₀ = L₀ / X₀`` while they had places, so that ``X₁ × R₀`` places were used, and
``L = SPARE × X₁ × R₀``. After `RETRY_TURNS` turns L is measured anew, and half as many more are tried.

Assumes that rows come in no order of length, or a trend in the rows is taken for the server's: an attempt after a
while mends that. It never goes below the knee it found: too many requests only queue on a server of our own, and a
server that refuses them says so. Several tasks do not share fairly by this law; they need the load for that.
"""

from __future__ import annotations

import math
from enum import StrEnum

PAYS = 0.3
SPARE = 1.25
ENDS = 24
RETRY_TURNS = 30
RETRY_FACTOR = 1.5


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
        self.reason = "the load cannot be read: learning from the pace of rows"
        self._before: tuple[float, float] | None = None  # (L₀, X₀)
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
            self._decide(self._want / (now - self._since_s))

    def _begin(self) -> None:
        turn = max(1, round(self.limit))
        self._ends, self._skip, self._since_s = 0, turn, -math.inf
        self._want = RETRY_TURNS * turn if self.stage is Stage.RESTING else turn * math.ceil(ENDS / turn)

    def _decide(self, pace: float) -> None:
        here = (self.limit, pace)
        match self.stage:
            case Stage.RESTING:
                self.stage = Stage.MEASURING
            case Stage.MEASURING:
                self._go(here, RETRY_FACTOR, Stage.TRYING)
            case Stage.CLIMBING | Stage.TRYING:
                if self._before is None or self._slope(here) >= PAYS:
                    self._go(here, 2.0, Stage.CLIMBING)
                else:
                    self._rest(here)
        self._begin()

    def _go(self, here: tuple[float, float], factor: float, stage: Stage) -> None:
        self._before, self.stage = here, stage
        self.limit *= factor
        self.reason = f"{here[0]:.0f} in flight end {here[1]:.2g} rows/s: whether {self.limit:.0f} end more"

    def _rest(self, here: tuple[float, float]) -> None:
        before = self._before or here
        knee = before[0] * here[1] / before[1]
        self.limit = min(here[0], max(before[0], math.ceil(SPARE * knee)))
        self.stage = Stage.RESTING
        self.reason = f"{here[0]:.0f} in flight end no more rows than {before[0]:.0f}: {here[1]:.2g} rows/s"

    def _slope(self, here: tuple[float, float]) -> float:
        limit, pace = self._before or here
        return math.log(here[1] / pace) / math.log(here[0] / limit)
