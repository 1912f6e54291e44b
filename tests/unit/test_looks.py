"""When a task looks, and whether it saw anything new."""

from __future__ import annotations

from random import Random

import pytest

from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.looks import (
    FIRST_SHARE,
    JITTER,
    LOOK_BUDGET,
    LOOKS_PER_S,
    SPARE,
    SPARE_LOOKS_PER_S,
    STALE_S,
    Looks,
)


def shown(generated: float | None, running: int = 8, waiting: int = 0) -> Load:
    return Load(running=running, waiting=waiting, generated=generated)


def mean_in_s(looks: Looks, own: int, *, at_work: bool, total: int = 8, free: int = 0) -> float:
    load = Load(running=total, waiting=0)
    return sum(looks.in_s(0.0, load, own, at_work=at_work, free=free) for _ in range(4000)) / 4000


def test_the_same_tokens_and_totals_are_no_news() -> None:
    looks = Looks(Random(0))
    assert looks.news(0.0, shown(100))
    assert not looks.news(0.01, shown(100))
    assert looks.news(0.02, shown(108))
    assert looks.news(0.03, shown(108, waiting=1))


@pytest.mark.parametrize("load", [shown(None), shown(100, running=0)])
def test_it_is_news_where_nothing_tells_steps_apart(load: Load) -> None:
    looks = Looks(Random(0))
    assert looks.news(0.0, load)
    assert looks.news(0.01, load)
    assert looks.step_s == 0


def test_what_stays_the_same_for_longer_than_a_step_takes_is_so() -> None:
    looks = Looks(Random(0))
    looks.news(0.0, shown(100))
    assert not looks.news(STALE_S * 0.9, shown(100))
    assert looks.news(STALE_S, shown(100))
    assert not looks.news(STALE_S * 1.1, shown(100))


def test_after_a_rest_everything_is_news_and_steps_are_as_they_were() -> None:
    looks = Looks(Random(0))
    looks.news(0.0, shown(100))
    looks.forget()
    assert looks.news(0.01, shown(100))
    looks.forget()
    looks.news(1000.0, shown(108))
    assert looks.step_s == 0


@pytest.mark.parametrize(("every_s", "step_s"), [(0.03, 0.03), (0.03, 0.01), (0.5, 0.02)])
def test_a_step_is_what_it_takes_each_sequence_to_get_a_token(every_s: float, step_s: float) -> None:
    looks = Looks(Random(0))
    for number in range(100):
        looks.news(number * every_s, shown(8 * number * every_s / step_s))
    assert looks.step_s == pytest.approx(step_s, rel=0.01)


def test_it_looks_no_more_often_than_the_server_makes_steps() -> None:
    looks = Looks(Random(0))
    assert mean_in_s(looks, 8, at_work=True) == pytest.approx(1 / LOOKS_PER_S, rel=0.05)
    looks.step_s = 0.04
    assert mean_in_s(looks, 8, at_work=True) == pytest.approx(0.04, rel=0.05)


def test_it_looks_less_often_while_whoever_comes_next_finds_a_slot() -> None:
    looks = Looks(Random(0))
    assert mean_in_s(looks, 6, at_work=True, free=SPARE - 1) == pytest.approx(1 / LOOKS_PER_S, rel=0.05)
    assert mean_in_s(looks, 6, at_work=True, free=SPARE) == pytest.approx(1 / SPARE_LOOKS_PER_S, rel=0.05)


def test_looks_are_shared_out_by_what_each_has_there() -> None:
    looks = Looks(Random(0))
    share = 2 / 8
    expected_s = Load(running=8, waiting=0).cost_s / (LOOK_BUDGET * (share + FIRST_SHARE) / 2)
    assert mean_in_s(looks, 2, at_work=False) == pytest.approx(expected_s, rel=0.05)


def test_moments_are_spread() -> None:
    looks = Looks(Random(0))
    moments = [looks.about(1.0) for _ in range(1000)]
    assert 1 - JITTER <= min(moments) < 1 - 0.9 * JITTER
    assert 1 + 0.9 * JITTER < max(moments) <= 1 + JITTER
