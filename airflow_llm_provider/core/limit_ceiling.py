"""What refusals teach: a ceiling on what is in flight, which comes down once per overload and goes up again quickly.

Owns the ceiling. Does not know what was refused or why (503, 429, a time-out), nor what the limit would be without it
(`core.limit_adaptive`).

Law, with ``fits`` = what the server kept of ours = in flight at the look after the refusal + what ended in between:

- a refusal: ``ceiling = max(CUT × fits, ours of what runs)``. More refusals are the same overload until the server took
  something after the cut: a row sent since was answered, or more are in flight at two looks than at the lowest;
- from then on, at each look without refusals: ``ceiling += (fits - ceiling) / 2``, at least 1, up to ``fits``;
- there it stays for ``patience``, and then, where none have waited in the server for `EMPTY_S`, goes up by 1, 2, 4 …
  per look, until at ``FORGET × fits`` it is forgotten;
- a refusal on the way up from ``fits`` goes back one step and doubles the patience (`PATIENCE_S`, `MAX_PATIENCE_S`).

So a storm, however many refusals it is made of, costs one cut, and what it took is back after ``log₂(fits / 4) + 1``
looks: 6 for 128. Multiplying by `CUT` at each refusal, as AIMD clients do, ends at a handful of requests and climbs
back from there by ones.
"""

from __future__ import annotations

import math
from enum import StrEnum

CUT = 0.75
FORGET = 2.0
PATIENCE_S, MAX_PATIENCE_S = 20.0, 300.0
QUIET_S = 0.9
"""This long without a refusal, between two looks, it has not come back."""

EMPTY_S = 5.0
"""This long without any waiting in the server, more might run there."""

TAKEN = 0.75
"""In flight from this share of the ceiling on, it is what binds."""


class Phase(StrEnum):
    """Where the ceiling is on its way."""

    FREE = "free"  # there is none
    CUT = "cut"  # down, and nothing was taken since
    RECOVERING = "recovering"  # from there up to what fitted
    HOLDING = "holding"  # at what fitted
    PROBING = "probing"  # beyond it


class Ceiling:
    """One server's ceiling for one task. Moments are monotonic seconds."""

    def __init__(self) -> None:
        self.value = math.inf
        self.phase = Phase.FREE
        self._fits = 0.0
        self._good = 0.0  # the ceiling before the last step up
        self._step = 1.0
        self._patience_s = PATIENCE_S
        self._until_s = 0.0  # it holds
        self._cut_s = -math.inf
        self._refused_s = -math.inf
        self._queued_s = -math.inf  # when the server was last seen to queue some
        self._ended = 0  # rows since the refusal that the next look weighs
        self._weigh = False
        self._lowest = math.inf  # in flight since the cut
        self._rose = False  # at the last look it was more than that

    def refused(self, now: float) -> None:
        """The server had no capacity for a request."""
        self._refused_s = now
        if not self._weigh and self.phase is not Phase.CUT:
            self._weigh, self._ended = True, 0

    def ended(self, now: float, duration_s: float) -> None:
        """A row ended well."""
        self._ended += 1
        if self.phase is Phase.CUT and now - duration_s > self._cut_s:
            self.phase = Phase.RECOVERING

    def look(self, now: float, *, own: int, limit: float, runs: float = 0.0, queued: bool = False) -> str:
        """Move it.

        Args:
            now: the moment.
            own: sequences in flight.
            limit: how many there might be.
            runs: how many of them are being computed; it is not cut below that.
            queued: whether the server queues some, so that more would not run.

        Returns:
            Why it moved; empty where it did not.
        """
        if queued:
            self._queued_s = now
        if self._weigh:
            return self._cut(now, own, limit, runs)
        if self.phase is Phase.CUT:
            self._see(now, own)
        if self.phase in (Phase.FREE, Phase.CUT) or now - self._refused_s < QUIET_S:
            return ""
        if self.phase is Phase.RECOVERING:
            return self._recover(now)
        if self.phase is Phase.HOLDING:
            if now < self._until_s:
                return ""
            self.phase, self._step = Phase.PROBING, 1.0
        return "" if now - self._queued_s < EMPTY_S or own < TAKEN * self.value else self._probe()

    def _cut(self, now: float, own: int, limit: float, runs: float) -> str:
        self._weigh = False
        kept = min(limit, own + self._ended)
        if self.phase is Phase.PROBING and kept >= TAKEN * self._good:
            self._fits = self.value = self._good
            self._patience_s = min(2 * self._patience_s, MAX_PATIENCE_S)
            self._hold(now)
            return f"the server refused: no more than {self._good:.0f} fit"
        if self.phase is not Phase.FREE:
            kept = min(kept, self._fits - 1)
        self._fits = max(1.0, kept)
        self.value = max(1.0, min(self._fits, max(CUT * self._fits, runs)))
        self.phase, self._cut_s, self._lowest, self._rose = Phase.CUT, now, own, False
        return f"the server refused, and kept {self._fits:.0f}"

    def _see(self, now: float, own: int) -> None:
        """Whether the server took something since the cut."""
        rises = own > self._lowest
        if rises and self._rose and now - self._refused_s >= QUIET_S:
            self.phase = Phase.RECOVERING
        self._lowest, self._rose = min(self._lowest, own), rises

    def _recover(self, now: float) -> str:
        self.value = min(self._fits, self.value + max(1.0, (self._fits - self.value) / 2))
        if self.value == self._fits:
            self._hold(now)
        return f"no refusal since: back towards the {self._fits:.0f} that fitted"

    def _hold(self, now: float) -> None:
        self.phase, self._until_s = Phase.HOLDING, now + self._patience_s

    def _probe(self) -> str:
        self._good = self.value
        self.value += self._step
        self._step *= 2
        if self.value >= FORGET * self._fits:
            self.phase, self.value, self._patience_s = Phase.FREE, math.inf, PATIENCE_S
        return f"no refusal for long: whether more than {self._good:.0f} fit"
