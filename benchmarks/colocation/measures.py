"""What a measurement comes to: quantiles, tokens per second and phase, the oracle, fairness. Pure.

Owns the formulas:

- **Quantile**: the smallest sample that at least a share ``q`` of all samples do not exceed.
- **Work in a phase**: tokens of an answer are spread evenly over the time in which it was generated, and counted where
  they fall.
- **Oracle**: ``(slots * time - slots held by real-time * time) * saturation / slots``: what batch would have got, had
  it run on every slot in every moment in which real-time did not, each slot as fast as with batch alone. Where a batch
  is smaller its steps are shorter, so a slot may be faster than that, and a share somewhat above what was used.
- **Thrown away**: tokens the server generated, less those that real-time got and those of batch answers that ended.
- **Jain's index** of shares ``x``: ``(sum x)² / (n * sum x²)``: 1 where all are equal, 1/n where one has everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.colocation.traffic import Traffic

QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Something that went on for a while: an answer being generated, a slot being held.

    Attributes:
        from_s: when it began, from the beginning of the traffic.
        to_s: when it ended.
        amount: of tokens, or of whatever is spread evenly over it.
    """

    from_s: float
    to_s: float
    amount: float


def quantile(values: Sequence[float], share: float) -> float:
    """See the module; NaN of nothing."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def jain(shares: Sequence[float]) -> float:
    """See the module; 1 of nothing at all, which is shared evenly."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def falls_into(stretches: Iterable[Stretch], from_s: float, to_s: float) -> float:
    """How much of them falls between two moments."""
    total = 0.0
    for each in stretches:
        lasts_s = each.to_s - each.from_s
        if lasts_s <= 0:
            total += each.amount if from_s <= each.to_s < to_s else 0.0
        else:
            total += each.amount * max(0.0, min(to_s, each.to_s) - max(from_s, each.from_s)) / lasts_s
    return total


def by_phase(stretches: Sequence[Stretch], traffic: Traffic) -> dict[str, float]:
    """How much falls into the phases of each name."""
    totals = dict.fromkeys(traffic.names, 0.0)
    for phase in traffic.phases:
        totals[phase.name] += falls_into(stretches, phase.from_s, phase.to_s)
    return totals


def held(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The same stretches as slots held: each amounts to the seconds it lasted."""
    return [Stretch(from_s=each.from_s, to_s=each.to_s, amount=each.to_s - each.from_s) for each in stretches]


def oracle_tokens(*, slots: int, time_s: float, realtime_slot_s: float, saturation_per_s: float) -> float:
    """Tokens that batch could have got; see the module.

    Args:
        slots: of the server.
        time_s: how long it was measured.
        realtime_slot_s: slots held by real-time, times seconds.
        saturation_per_s: tokens/s of batch alone on all slots.
    """
    return max(0.0, slots * time_s - realtime_slot_s) * saturation_per_s / slots
