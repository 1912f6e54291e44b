"""What real-time wanted of late: arrivals told from noise, headroom, and when it is quiet."""

from __future__ import annotations

import pytest

from airflow_llm_provider.core.arrivals import (
    CALM_GAPS,
    CALM_S,
    FIRST_GAP_S,
    PASSING_GAPS,
    REACTION_S,
    REMEMBERED,
    WAVERS_S,
    Arrivals,
)


def every(arrivals: Arrivals, gap_s: float, *, times: int, number: int = 1, begin_s: float = 0.0) -> float:
    """So many arrive every so often, in looks of 10 ms; when the last ones did."""
    now, came_s = begin_s, begin_s - gap_s
    for _ in range(times):
        while now < came_s + gap_s - 1e-9:
            now += 0.01
            arrivals.learn(now, 0)
        came_s = now
        arrivals.learn(now, number)
    return came_s


def test_a_rise_of_the_others_is_an_arrival() -> None:
    arrivals = Arrivals()
    assert [arrivals.see(step / 100, others) for step, others in enumerate([3, 3, 5, 5, 6])] == [0, 0, 2, 0, 1]


def test_who_was_hidden_for_a_moment_has_not_arrived() -> None:
    arrivals = Arrivals()
    for others in (5, 4, 3):
        arrivals.see(0.0, others)
    assert arrivals.see(WAVERS_S * 0.9, 5) == 0
    assert arrivals.see(WAVERS_S * 0.95, 6) == 1


def test_who_left_long_ago_and_is_there_again_has() -> None:
    arrivals = Arrivals()
    for at_s, others in ((0.0, 5), (0.02, 2), (WAVERS_S + 0.01, 2)):
        arrivals.see(at_s, others)
    assert arrivals.see(WAVERS_S + 0.02, 5) == 3


def test_growth_goes_by_the_most_of_the_last_moments() -> None:
    arrivals = Arrivals()
    arrivals.see(0.0, 9)
    arrivals.see(0.04, 5)
    arrivals.see(0.05, 4)
    assert arrivals.others(0.05) == (4, 5)


@pytest.mark.parametrize("number", [1, 3, 8])
def test_headroom_is_what_came_at_once(number: int) -> None:
    arrivals = Arrivals()
    every(arrivals, 0.2, times=30, number=number)
    assert arrivals.headroom == number


def test_what_comes_one_by_one_within_the_reaction_counts_together() -> None:
    arrivals = Arrivals()
    every(arrivals, REACTION_S / 3, times=60)
    assert arrivals.headroom == 3


def test_a_peak_is_forgotten() -> None:
    arrivals = Arrivals()
    last_s = every(arrivals, 0.2, times=20, number=6)
    assert arrivals.headroom == 6
    every(arrivals, 0.2, times=REMEMBERED // 20 + 1, begin_s=last_s + 0.2)
    assert arrivals.headroom == 1


def test_it_is_calm_when_what_should_have_come_several_times_over_has_not() -> None:
    arrivals = Arrivals()
    last_s = every(arrivals, 0.1, times=60, number=2)  # one every 50 ms
    assert arrivals.wanted(last_s + 0.9 * PASSING_GAPS * 0.05) == arrivals.headroom > 1
    assert arrivals.wanted(last_s + 1.1 * PASSING_GAPS * 0.05) == 1
    assert not arrivals.calm(last_s + 0.9 * CALM_GAPS * 0.05)
    assert arrivals.calm(last_s + 1.1 * CALM_GAPS * 0.05)


def test_where_arrivals_are_rare_it_takes_no_longer_than_that() -> None:
    arrivals = Arrivals()
    last_s = every(arrivals, 1.5, times=20)
    assert not arrivals.calm(last_s + 0.95 * CALM_S)
    assert arrivals.calm(last_s + CALM_S)


def test_after_a_long_quiet_a_burst_is_not_over_at_once() -> None:
    arrivals = Arrivals()
    every(arrivals, 0.1, times=60)
    arrivals.learn(100.0, 1)
    assert not arrivals.calm(100.0 + 0.9 * min(CALM_S, CALM_GAPS * FIRST_GAP_S))


def test_what_is_taken_for_granted() -> None:
    arrivals = Arrivals()
    assert not arrivals.calm(0.0)
    arrivals.busy(10.0)
    assert not arrivals.calm(11.0)
    arrivals.quiet(11.0)
    assert arrivals.calm(11.0)
    arrivals.see(11.0, 3)
    arrivals.forget()
    assert arrivals.see(12.0, 7) == 0
