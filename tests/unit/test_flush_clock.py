from __future__ import annotations

from itertools import pairwise

import pytest

from airflow_llm_provider.core.flush_clock import FlushClock


def flushes(*, rows_per_s: float, lasts_s: float, rows: int = 100, interval_s: float = 2.0) -> list[float]:
    """The moments of all flushes of a try whose rows settle so fast."""
    clock, now, last, moments = FlushClock(rows=rows, interval_s=interval_s, began_s=0.0), 0.0, 0.0, []
    while now < lasts_s:
        now += 0.05
        if now >= clock.due_s(int((now - last) * rows_per_s)):
            clock.flushed(now)
            moments.append(now)
            last = now
    return moments


def gaps(moments: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(moments)]


def test_in_the_first_minute_the_interval_is_the_one_asked_for() -> None:
    assert gaps(flushes(rows_per_s=1, lasts_s=60)) == pytest.approx([2.0] * 28, abs=0.11)


def test_it_grows_with_the_root_of_the_age_and_not_for_ever() -> None:
    moments = flushes(rows_per_s=1, lasts_s=5 * 3600)
    for moment, gap in zip(moments, gaps(moments), strict=False):
        assert gap == pytest.approx(min(max(2.0, 2.0 * (moment / 60) ** 0.5), 15.0), abs=0.11)
    assert max(gaps(moments)) == pytest.approx(15.0, abs=0.11)


@pytest.mark.parametrize(("rows_per_s", "gap_s"), [(20, 5.0), (40, 2.5), (50, 2.0), (1000, 2.0)])
def test_many_rows_are_journalled_sooner_but_not_all_the_time(rows_per_s: float, gap_s: float) -> None:
    later = [gap for moment, gap in _pairs(flushes(rows_per_s=rows_per_s, lasts_s=3700)) if moment > 3600]
    assert later == pytest.approx([gap_s] * len(later), abs=0.11)


def _pairs(moments: list[float]) -> list[tuple[float, float]]:
    return list(zip(moments, gaps(moments), strict=False))


def test_the_first_rows_wait_for_nothing_if_they_are_many() -> None:
    assert FlushClock(rows=100, interval_s=3600, began_s=5.0).due_s(100) == 5.0
    assert FlushClock(rows=100, interval_s=3600, began_s=5.0).due_s(99) == 3605.0


def test_an_interval_shorter_than_the_gap_is_obeyed() -> None:
    clock = FlushClock(rows=2, interval_s=0.02, began_s=0.0)
    clock.flushed(1.0)
    assert clock.due_s(2) == pytest.approx(1.02)
    assert clock.due_s(0) == pytest.approx(1.02)


def test_a_night_of_sixteen_shares_is_a_seventh_of_the_objects() -> None:
    night_s = 8 * 3600
    assert 16 * len(flushes(rows_per_s=1, lasts_s=night_s)) < night_s / 2 * 16 / 6
