"""What preemptions teach: where KV memory, and not slots, is what a server lacks.

Owns the ceiling that follows. Does not know refusals (`core.limit_ceiling`), nor what the limit would be without it
(`core.limit_adaptive`).

vLLM starts what finds memory for its prompt, and when answers have grown beyond memory, takes it from the youngest,
which computes all of it again. Some of that costs little, much of it up to a tenth of the throughput (measured on the
simulator, docs/limits.md), and fewer in flight would have been faster.

Law, over windows of at least `ENDS` rows and half of what is in flight, with ``r`` = preemptions per ended row, of all
clients (ours ÷ our share of what is there):

- ``r > HIGH``: ``ceiling = SHRINK × ours of what runs``, or of the ceiling where that is less;
- ``r < LOW``: ``ceiling × GROW``, and none from `FORGET` × what is in flight on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_llm_provider.core.load import Load

HIGH, LOW = 0.25, 0.1
SHRINK, GROW = 0.93, 1.03
FORGET = 1.5
ENDS = 16


class Pressure:
    """One server's KV memory, for one task."""

    def __init__(self) -> None:
        self.value = math.inf
        self._ended = 0
        self._preempted: float | None = None  # in all, when the window began

    def ended(self) -> None:
        """A row ended well."""
        self._ended += 1

    def look(self, load: Load, own: int) -> str:
        """Move it.

        Returns:
            Why it moved; empty where it did not.
        """
        if load.preemptions is None or not load.total or not own:
            return ""
        if self._preempted is None or load.preemptions < self._preempted:  # the server is another one now
            self._preempted, self._ended = load.preemptions, 0
        if self._ended < max(ENDS, own / 2):
            return ""
        share = min(1.0, own / load.total)
        rate = (load.preemptions - self._preempted) * share / self._ended
        self._preempted, self._ended = load.preemptions, 0
        if rate > HIGH:
            self.value = max(1.0, SHRINK * min(self.value, share * load.running))
            return f"KV memory is short, {rate:.1f} preemptions a row"
        if rate < LOW and self.value < math.inf:
            self.value *= GROW
            if self.value > FORGET * own:
                self.value = math.inf
            return "KV memory suffices"
        return ""
