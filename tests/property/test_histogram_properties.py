"""For any samples, ours and others', and whatever we know of ours: the others' quantile lies within the bounds."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import accumulate, product
from math import ceil, inf

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_llm_provider.core.histogram import (
    Buckets,
    Histogram,
    Own,
    change,
    is_reset,
    quantile,
    quantile_bounds,
)

BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, inf)
PERCENTS = st.integers(1, 99)
RANGES = [Buckets(lowest, highest) for lowest in range(3) for highest in range(lowest, 3)]
VALUES = st.one_of(st.floats(0, 30), st.sampled_from([bound for bound in BOUNDS if bound < inf]))


def histogram(values) -> Histogram:
    counted = Counter(Histogram(bounds=BOUNDS, counts=(0,) * len(BOUNDS)).bucket(value) for value in values)
    return Histogram(bounds=BOUNDS, counts=tuple(counted[index] for index in range(len(BOUNDS))))


def nearest_rank(values, percent: int) -> float:
    return sorted(values)[ceil(Fraction(percent, 100) * len(values)) - 1]


@st.composite
def own_samples(draw, what: str):
    """Values that are in the histogram, and what we know: for each the buckets it may lie in; some are not in it."""
    present = draw(st.lists(VALUES, max_size=12))
    absent = draw(st.lists(VALUES, max_size=0 if what == "certain" else 12))
    known: Counter[Buckets] = Counter()
    for value in present + absent:
        exact = histogram([value]).counts.index(1)
        lowest = max(0, exact - draw(st.integers(0, 4)))
        known[Buckets(lowest, min(len(BOUNDS) - 1, exact + draw(st.integers(0, 4))))] += 1
    return present, known


@given(
    others=st.lists(VALUES, max_size=40),
    percent=PERCENTS,
    own=st.tuples(own_samples("certain"), own_samples("possible"), own_samples("flying")),
    slack=st.none() | st.integers(0, 3),
)
def test_the_others_quantile_lies_within_the_bounds(others, percent, own, slack):
    certain, possible, flying = own
    whole = histogram([*others, *certain[0], *possible[0], *flying[0]])
    at_most = None if slack is None else len(flying[0]) + slack
    known = Own(certain=certain[1], possible=possible[1], flying=flying[1], flying_at_most=at_most)
    bounds = quantile_bounds(whole, percent / 100, known)
    if bounds is None:
        assert not others
        return
    assert bounds.samples <= len(others)
    assert bounds.lower <= bounds.upper
    if others:
        true = nearest_rank(others, percent)
        assert bounds.lower < true <= bounds.upper or (bounds.lower == 0 and true == 0)


@given(others=st.lists(VALUES, min_size=1, max_size=60), percent=PERCENTS, own=st.lists(VALUES, max_size=60))
def test_bounds_are_one_bucket_where_all_own_samples_are_known(others, percent, own):
    known = Counter(Buckets(index, index) for value in own for index in [histogram([value]).counts.index(1)])
    bounds = quantile_bounds(histogram([*others, *own]), percent / 100, Own(certain=known))
    index = histogram([nearest_rank(others, percent)]).counts.index(1)
    assert bounds is not None
    assert (bounds.lower, bounds.upper) == (BOUNDS[index - 1] if index else 0.0, BOUNDS[index])
    assert bounds.samples == len(others)


@given(
    counts=st.tuples(*[st.integers(0, 3)] * 3),
    possible=st.dictionaries(st.sampled_from(RANGES), st.integers(1, 2)),
    percent=PERCENTS,
)
def test_bounds_without_certain_samples_are_the_narrowest(counts, possible, percent):
    """Tried out: every way in which the possible samples can lie in a small histogram, or not."""
    assume(sum(possible.values()) <= 4)
    small = Histogram(bounds=(1.0, 2.0, inf), counts=counts)
    samples = [buckets for buckets, count in possible.items() for _ in range(count)]
    seen = set()
    for choice in product(*[[None, *range(buckets.lowest, buckets.highest + 1)] for buckets in samples]):
        taken = Counter(choice)
        left = [count - taken[index] for index, count in enumerate(counts)]
        if min(left) < 0 or not sum(left):
            continue
        rank = ceil(Fraction(percent, 100) * sum(left))
        seen.add(next(index for index, reached in enumerate(accumulate(left)) if reached >= rank))
    bounds = quantile_bounds(small, percent / 100, Own(possible=possible))
    if bounds is None:
        assert not seen
    elif sum(counts) > sum(possible.values()):  # otherwise there may be nobody, whose quantile is anything
        edges = (0.0, 1.0, 2.0, inf)
        assert (bounds.lower, bounds.upper) == (edges[min(seen)], edges[max(seen) + 1])


@given(values=st.lists(VALUES, min_size=1, max_size=60), percent=PERCENTS)
def test_the_interpolated_quantile_lies_in_the_same_bucket(values, percent):
    made = histogram(values)
    bounds = quantile_bounds(made, percent / 100)
    assert bounds is not None
    if bounds.upper < inf and abs(percent * len(values) / 100 - round(percent * len(values) / 100)) > 1e-9:
        assert bounds.lower <= quantile(made, percent / 100) <= bounds.upper


@given(before=st.lists(VALUES, max_size=20), came=st.lists(VALUES, max_size=20))
def test_the_change_is_what_came(before, came):
    assert not is_reset(histogram(before), histogram([*before, *came]))
    assert change(histogram(before), histogram([*before, *came])) == histogram(came)


@pytest.mark.parametrize("percent", range(1, 100))
def test_ties_are_exact(percent):
    """Of 100 samples of which exactly the share is fast, the quantile is fast: no rounding makes it slow."""
    made = histogram([0.0005] * percent + [3.0] * (100 - percent))
    bounds = quantile_bounds(made, percent / 100)
    assert bounds is not None
    assert bounds.upper == BOUNDS[0]
