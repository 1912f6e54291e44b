"""Arithmetic on Prometheus histograms: their change, their quantiles, and quantiles of what is not one's own.

Owns buckets and counts. Does not know where a histogram comes from (`endpoint.exposition`), nor which samples are one's
own and where they may lie (`core.own_requests`).

A quantile here is the nearest rank: the smallest sample that at least that share of all samples does not exceed. Of a
histogram no more is known than the bucket it lies in, so it is given as that bucket's two bounds. `quantile` guesses a
value inside the bucket, as Prometheus does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from math import inf, nan
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_FINEST_QUANTILE = 10**9  # 0.95 is meant as 95/100, and not as the binary fraction nearest to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Samples counted by size.

    Attributes:
        bounds: the buckets' upper bounds, which belong to them, in seconds; ascending, the last one infinite.
        counts: samples in each bucket alone: not cumulative, unlike on the wire.

    Raises:
        ValueError: these are no buckets.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.bounds or self.bounds[-1] != inf or any(a >= b for a, b in pairwise(self.bounds)):
            raise ValueError(f"no histogram's bucket bounds: {self.bounds}")
        if len(self.counts) != len(self.bounds) or any(count < 0 for count in self.counts):
            raise ValueError(f"no counts of {len(self.bounds)} buckets: {self.counts}")

    @classmethod
    def of_cumulative(cls, buckets: Iterable[tuple[float, float]]) -> Histogram:
        """Make one of ``(le, cumulative count)`` in any order, as an exposition has them.

        Raises:
            ValueError: these are no buckets.
        """
        ordered = sorted(buckets)
        cumulative = [round(count) for _, count in ordered]
        counts = tuple(after - before for before, after in pairwise([0, *cumulative]))
        return cls(bounds=tuple(bound for bound, _ in ordered), counts=counts)

    @property
    def total(self) -> int:
        """All samples."""
        return sum(self.counts)

    def bucket(self, value: float) -> int:
        """The index of the bucket that `value` lies in."""
        return bisect_left(self.bounds, value)


class Buckets(NamedTuple):
    """Where a sample may lie: a bucket from `lowest` to `highest`, both included."""

    lowest: int
    highest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """One's own samples in a histogram, as far as they are known; each with the buckets it may lie in.

    Attributes:
        certain: samples that are in it.
        possible: samples that may be in it.
        flying: samples that may be in it, of which not more than `flying_at_most` are.
        flying_at_most: None knows no limit.
    """

    certain: Mapping[Buckets, int] = field(default_factory=Counter)
    possible: Mapping[Buckets, int] = field(default_factory=Counter)
    flying: Mapping[Buckets, int] = field(default_factory=Counter)
    flying_at_most: int | None = None


NOTHING_OWN = Own()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Where a quantile lies.

    Attributes:
        lower: it is above this, or 0.
        upper: it is not above this; may be infinite.
        samples: how many samples it is a quantile of, at least.
    """

    lower: float
    upper: float
    samples: int


def is_reset(before: Histogram, after: Histogram) -> bool:
    """Whether the counting began anew in between: a count went down, or the buckets are others."""
    if before.bounds != after.bounds:
        return True
    return any(now < then for then, now in zip(accumulate(before.counts), accumulate(after.counts), strict=True))


def change(before: Histogram, after: Histogram) -> Histogram:
    """What came in between. After a reset, what came since it: Prometheus's rule for counters."""
    if is_reset(before, after):
        return after
    # a bucket's own count may go down by a torn read while no cumulative one does: then it had no sample
    cumulative = [now - then for then, now in zip(accumulate(before.counts), accumulate(after.counts), strict=True)]
    rising = list(accumulate(cumulative, max))
    return Histogram(bounds=after.bounds, counts=tuple(after - before for before, after in pairwise([0, *rising])))


def quantile(histogram: Histogram, share: float) -> float:
    """What Prometheus's ``histogram_quantile(share, …)`` says: interpolated linearly inside its bucket.

    NaN where there is no sample, or only the one bucket; the highest finite bound where it lies above all of them.
    """
    bounds, total = histogram.bounds, histogram.total
    if len(bounds) < 2 or not total:  # noqa: PLR2004 - Prometheus wants a finite bucket besides the infinite one
        return nan
    cumulative = list(accumulate(histogram.counts))
    rank = share * total
    index = min(bisect_left(cumulative, rank), len(bounds) - 1)
    if index == len(bounds) - 1:
        return bounds[-2]
    if index == 0 and bounds[0] <= 0:
        return bounds[0]
    start = bounds[index - 1] if index else 0.0
    within = rank - (cumulative[index - 1] if index else 0)
    return start + (bounds[index] - start) * within / histogram.counts[index]


def quantile_bounds(histogram: Histogram, share: float, own: Own = NOTHING_OWN) -> Bounds | None:
    """Where the quantile of the samples that are not one's own lies, whichever of the possible ones are.

    For each bucket the worst case is taken by itself: to have the quantile above it, as many own samples as possible
    are taken from it and below, and as few as possible from above; to have it in or below it, the other way round.
    So the true quantile is never outside the bounds, and with all own samples certain they are its very bucket.

    Returns:
        None when all samples are certainly one's own, or there are none.
    """
    certain, all_known = sum(own.certain.values()), Counter(own.certain) + Counter(own.possible)
    if histogram.total <= certain:
        return None
    cumulative = list(accumulate(histogram.counts))
    most_low = _removable(histogram.counts, all_known, own)
    mirrored = histogram.counts[::-1]
    most_high = _removable(mirrored, _mirror(all_known, len(mirrored)), own, mirrored=True)[::-1]
    size = len(histogram.counts)
    upper = lower = -1
    for index in range(size):
        below, above = cumulative[index], cumulative[-1] - cumulative[index]
        most_low_here, most_high_here = most_low[index], most_high[index + 1] if index + 1 < size else 0
        least_low = sum(count for buckets, count in own.certain.items() if buckets.highest <= index)
        least_high = sum(count for buckets, count in own.certain.items() if buckets.lowest > index)
        if lower < 0 and _reaches(share, below - min(least_low, most_low_here), above - most_high_here):
            lower = index
        if upper < 0 and _reaches(share, below - most_low_here, above - min(least_high, most_high_here)):
            upper = index
    return Bounds(
        lower=histogram.bounds[lower - 1] if lower else 0.0,
        upper=histogram.bounds[upper],
        samples=cumulative[-1] - most_low[-1],
    )


def _reaches(share: float, below: int, above: int) -> bool:
    """Whether the quantile lies among the `below` lowest of ``below + above`` samples; exactly, without rounding."""
    exact = Fraction(share).limit_denominator(_FINEST_QUANTILE)
    return (exact.denominator - exact.numerator) * below >= exact.numerator * above


def _removable(counts: Sequence[int], known: Mapping[Buckets, int], own: Own, *, mirrored: bool = False) -> list[int]:
    """How many own samples the buckets up to each one can hold at most.

    Own samples can't be more than there are samples in a bucket: it is a matching, and taking the one first that must
    be taken lowest finds the largest for all buckets at once.
    """
    flying = _mirror(own.flying, len(counts)) if mirrored else own.flying
    everything = _matching(counts, Counter(known) + Counter(flying))
    if own.flying_at_most is None:
        return everything
    return [
        min(most, without + own.flying_at_most)
        for most, without in zip(everything, _matching(counts, known), strict=True)
    ]


def _matching(counts: Sequence[int], samples: Mapping[Buckets, int]) -> list[int]:
    waiting: Counter[int] = Counter()  # by the highest bucket they may lie in
    starting: dict[int, Counter[int]] = {}
    for (lowest, highest), count in samples.items():
        starting.setdefault(lowest, Counter())[highest] += count
    taken, most = 0, []
    for index, room in enumerate(counts):
        waiting.update(starting.get(index, ()))
        left = room
        for highest in sorted(waiting):
            if left == 0 and highest >= index:
                break
            fits = min(left, waiting[highest]) if highest >= index else 0
            taken += fits
            left -= fits
            waiting[highest] -= fits
            if highest <= index or not waiting[highest]:
                del waiting[highest]
        most.append(taken)
    return most


def _mirror(samples: Mapping[Buckets, int], size: int) -> Counter[Buckets]:
    """The same samples with the buckets counted from the top."""
    mirrored: Counter[Buckets] = Counter()
    for (lowest, highest), count in samples.items():
        mirrored[Buckets(size - 1 - highest, size - 1 - lowest)] += count
    return mirrored
