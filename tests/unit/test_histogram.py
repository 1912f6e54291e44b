"""Histogram arithmetic by examples; what must hold for all is in tests/property/test_histogram_properties.py."""

from __future__ import annotations

from collections import Counter
from math import inf, isnan

import pytest

from airflow_llm_provider.core.histogram import (
    Bounds,
    Buckets,
    Histogram,
    Own,
    change,
    is_reset,
    quantile,
    quantile_bounds,
)

BOUNDS = (0.1, 1.0, 2.5, 5.0, inf)


def of(*counts: int, bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    return Histogram(bounds=bounds, counts=counts)


def test_of_cumulative_in_any_order():
    made = Histogram.of_cumulative([(inf, 9.0), (0.1, 2.0), (2.5, 7.0), (1.0, 2.0), (5.0, 7.0)])
    assert made == of(2, 0, 5, 0, 2)
    assert made.total == 9


@pytest.mark.parametrize(
    "buckets",
    [[], [(1.0, 5)], [(1.0, 5), (inf, 4)], [(1.0, 5), (1.0, 6), (inf, 7)]],
    ids=["none", "no infinite one", "falling", "twice"],
)
def test_what_is_no_histogram_is_refused(buckets):
    with pytest.raises(ValueError, match="no "):
        Histogram.of_cumulative(buckets)


def test_bounds_belong_to_their_buckets():
    assert [of(0, 0, 0, 0, 0).bucket(value) for value in (0.0, 0.1, 0.10001, 5.0, 5.1, inf)] == [0, 0, 1, 3, 4, 4]


def test_change():
    assert change(of(1, 2, 3, 0, 0), of(1, 5, 3, 1, 0)) == of(0, 3, 0, 1, 0)


@pytest.mark.parametrize("after", [of(1, 1, 3, 0, 0), of(0, 5, 5, 5, 5), of(9, 9, bounds=(1.0, inf))])
def test_after_a_reset_all_there_is_came_since(after):
    before = of(1, 2, 3, 0, 0)
    assert is_reset(before, after)
    assert change(before, after) == after


def test_quantile_interpolates_as_prometheus_does():
    histogram = of(10, 20, 10, 0, 0)
    assert quantile(histogram, 0.5) == pytest.approx(0.1 + 0.9 * 10 / 20)
    assert quantile(histogram, 0.25) == pytest.approx(0.1)
    assert quantile(histogram, 0.95) == pytest.approx(1.0 + 1.5 * 8 / 10)
    assert quantile(of(0, 0, 0, 0, 4), 0.5) == 5.0
    assert quantile(of(4, 0, bounds=(-1.0, inf)), 0.5) == -1.0
    assert isnan(quantile(of(0, 0, 0, 0, 0), 0.5))
    assert isnan(quantile(of(3, bounds=(inf,)), 0.5))


def test_nothing_own_is_the_quantiles_own_bucket():
    assert quantile_bounds(of(19, 0, 0, 1, 0), 0.95) == Bounds(lower=0.0, upper=0.1, samples=20)
    assert quantile_bounds(of(18, 0, 0, 1, 0), 0.95) == Bounds(lower=2.5, upper=5.0, samples=19)
    assert quantile_bounds(of(0, 0, 0, 0, 1), 0.5) == Bounds(lower=5.0, upper=inf, samples=1)
    assert quantile_bounds(of(0, 0, 0, 0, 0), 0.5) is None


def test_certain_samples_are_taken_away_exactly():
    own = Own(certain=Counter({Buckets(3, 3): 60}))
    assert quantile_bounds(of(20, 0, 0, 60, 0), 0.95, own) == Bounds(lower=0.0, upper=0.1, samples=20)
    assert quantile_bounds(of(20, 0, 0, 61, 0), 0.95, own) == Bounds(lower=0.0, upper=0.1, samples=21)
    assert quantile_bounds(of(20, 0, 0, 62, 0), 0.95, own) == Bounds(lower=2.5, upper=5.0, samples=22)
    assert quantile_bounds(of(0, 0, 0, 60, 0), 0.95, own) is None


def test_possible_samples_only_widen():
    own = Own(possible=Counter({Buckets(3, 3): 60}))
    assert quantile_bounds(of(20, 0, 0, 60, 0), 0.95, own) == Bounds(lower=0.0, upper=5.0, samples=20)
    few = Own(possible=Counter({Buckets(3, 3): 10}))
    assert quantile_bounds(of(20, 0, 0, 60, 0), 0.95, few) == Bounds(lower=2.5, upper=5.0, samples=70)


def test_not_more_than_so_many_in_flight_can_have_been_counted():
    flying = Counter({Buckets(3, 4): 500})
    overload = of(5, 5, 0, 60, 0)
    assert quantile_bounds(overload, 0.95, Own(flying=flying)) == Bounds(lower=0.1, upper=5.0, samples=10)
    bounds = quantile_bounds(overload, 0.95, Own(flying=flying, flying_at_most=8))
    assert bounds == Bounds(lower=2.5, upper=5.0, samples=62)


def test_claiming_more_than_there_is_widens_and_does_not_break():
    own = Own(certain=Counter({Buckets(4, 4): 5}), possible=Counter({Buckets(0, 1): 3}))
    assert quantile_bounds(of(10, 0, 0, 0, 1), 0.5, own) == Bounds(lower=0.0, upper=0.1, samples=7)
