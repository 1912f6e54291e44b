"""The adaptive limit's rules, one by one; tests/property closes the loop."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from airflow_llm_provider.core.limit_adaptive import BLIND_AFTER, DEAD_BAND, AdaptiveLimit
from airflow_llm_provider.core.limit_ceiling import CUT, MAX_PATIENCE_S, PATIENCE_S, Ceiling, Phase
from airflow_llm_provider.core.limit_pressure import GROW, SHRINK, Pressure
from airflow_llm_provider.core.limit_slope import REST_TURNS, SPARE, Slope, Stage
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.exceptions import ConfigurationError


def load(running: int, waiting: int = 0, preemptions: float | None = None) -> Load:
    return Load(running=running, waiting=waiting, preemptions=preemptions)


def test_it_doubles_while_the_server_queues_nothing_and_comes_to_rest_in_one_look() -> None:
    limit = AdaptiveLimit(16)
    assert limit.look(0.1, load(16), 16).limit == 32
    assert limit.look(0.2, load(32), 32).limit == 64
    assert limit.look(0.3, load(64), 64).limit == 128
    assert limit.look(0.4, load(100, 28), 128).limit == 128  # it still takes in
    verdict = limit.look(0.5, load(100, 28), 128)
    assert verdict.limit == 112  # and an eighth more than run, to wait
    assert verdict.give_up == 0
    assert verdict.reason == "the server runs 100 and queues 28"


def test_it_does_not_double_again_before_what_it_sent_shows() -> None:
    limit = AdaptiveLimit(16)
    limit.look(0.1, load(16), 16)
    verdict = limit.look(0.2, load(16), 32)
    assert (verdict.limit, verdict.reason) == (32, "the server shows 16 of 32 yet")
    assert limit.look(1.2, load(16), 32).limit == 64  # it never will: another replica's gauges, say


def test_what_has_ended_since_has_shown() -> None:
    limit = AdaptiveLimit(16)
    limit.look(0.1, load(16), 16)
    for number in range(32):
        limit.ended(0.15 + number / 1000, 0.01)
    assert limit.look(0.2, load(0), 32).limit == 64


@pytest.mark.parametrize("own", [0, 5, 11])
def test_it_does_not_grow_where_something_else_binds(own: int) -> None:
    assert AdaptiveLimit(16).look(0.1, load(own), own).limit == 16


def test_a_queue_used_up_at_the_plateau_asks_for_a_longer_one_which_is_forgotten_slowly() -> None:
    limit = at_rest(64)
    assert limit.look(10.0, load(60), 72).limit == 72 + 8 + 8
    longer = limit.look(11.1, load(60), 88).limit
    assert longer == 88 + 8 + 8 + 16
    later = [longer]
    for second in range(300):
        later.append(limit.look(12.0 + second, load(64, later[-1] - 64), later[-1]).limit)
    assert later == sorted(later, reverse=True)
    assert later[30] > 80
    assert later[-1] <= 75


def test_a_gauge_read_between_two_steps_does_not_empty_the_server() -> None:
    limit = at_rest(64)
    assert limit.look(10.0, load(0, 8), 72).limit >= 64


def test_two_tasks_drift_towards_the_same_number() -> None:
    mine, theirs = 20, 132
    small, large = AdaptiveLimit(mine), AdaptiveLimit(theirs)
    for second in range(20):
        waiting = max(0, mine + theirs - 128)
        mine = small.look(second, load(128, waiting), mine).limit
        theirs = large.look(second, load(128, waiting), theirs).limit
    assert theirs - mine <= 2 * DEAD_BAND * theirs / (1 - 128 / (mine + theirs))
    assert mine + theirs == pytest.approx(128 + 2 * 16, rel=2 * DEAD_BAND)


def test_a_load_that_cannot_be_read_just_now_leaves_the_limit() -> None:
    limit = at_rest(64)
    for second in range(100):
        verdict = limit.unread(10.0 + second, 0)
    assert (verdict.limit, verdict.reason) == (72, "the load cannot be read just now")


def test_a_load_that_was_never_read_leaves_it_to_the_pace_of_rows() -> None:
    limit = AdaptiveLimit(16)
    now = 0.0
    for _ in range(BLIND_AFTER):
        limit.unread(now, 0)
    for _ in range(1000):
        now += 1 / 16
        limit.ended(now, 1.0)
    verdict = limit.unread(now, 0)
    assert verdict.limit > 16
    assert "rows/s" in verdict.reason
    assert limit.look(now, load(8, 8), 16).reason == "the server still takes in: 8 run, 8 wait"  # once read, it counts


def test_a_refusal_binds_whatever_the_law_would_have() -> None:
    limit = at_rest(64)
    limit.capacity(10.0)
    verdict = limit.look(10.1, load(20, 20), 40)
    assert verdict.limit == round(CUT * 40)
    assert "refused" in verdict.reason


def test_it_begins_at_one_or_more() -> None:
    with pytest.raises(ConfigurationError, match="not at 0"):
        AdaptiveLimit(0)


def at_rest(slots: int) -> AdaptiveLimit:
    """With that many slots known."""
    limit = AdaptiveLimit(2 * slots)
    for second in range(3):
        assert limit.look(second, load(slots, slots), 2 * slots).limit >= slots + slots // 8
    return limit


class TestCeiling:
    def test_a_storm_is_one_cut(self) -> None:
        ceiling = Ceiling()
        for second in range(1, 60):
            for _ in range(50):
                ceiling.refused(float(second))
            ceiling.ended(second + 0.05, second + 10.0)  # sent before the storm
            ceiling.look(second + 0.1, own=max(0, 128 - 2 * second), limit=128)
        assert ceiling.value == CUT * 127

    def test_it_recovers_half_the_way_each_look_once_something_was_taken(self) -> None:
        ceiling = cut(100)
        assert ceiling.look(3.0, own=75, limit=100) == ""
        ceiling.ended(3.5, 1.0)  # sent at 2.5, after the cut
        values = []
        for second in range(4, 12):
            ceiling.look(float(second), own=75, limit=100)
            values.append(ceiling.value)
        assert values == [87.5, 93.75, 96.875, 98.4375, 99.4375, 100, 100, 100]
        assert ceiling.phase is Phase.HOLDING

    def test_more_in_flight_at_two_looks_is_something_taken_too(self) -> None:
        ceiling = cut(100)
        for second, own in enumerate((20, 60, 70), start=3):
            ceiling.look(float(second), own=own, limit=100)
        assert ceiling.phase is Phase.RECOVERING

    def test_it_is_never_cut_below_what_the_server_computes(self) -> None:
        ceiling = Ceiling()
        ceiling.refused(1.0)
        ceiling.look(1.1, own=70, limit=72, runs=64)
        assert ceiling.value == 64

    def test_a_refusal_on_the_way_up_goes_back_a_step_and_doubles_the_patience(self) -> None:
        ceiling, now, waits = holding(100), 20.0, []
        for _ in range(6):
            began = now
            while ceiling.phase is not Phase.PROBING:
                now += 1
                ceiling.look(now, own=100, limit=200)
            waits.append(now - began)
            ceiling.refused(now + 0.5)
            now += 1
            assert "no more than 100 fit" in ceiling.look(now, own=100, limit=200)
            assert ceiling.value == 100
        assert waits[0] <= PATIENCE_S
        assert [later / earlier for earlier, later in pairwise(waits[1:4])] == [2, 2]
        assert waits[5] <= MAX_PATIENCE_S

    def test_where_more_fit_it_is_forgotten_fast(self) -> None:
        ceiling, looks = holding(100), 0
        while ceiling.phase is not Phase.FREE:
            ceiling.look(100.0 + looks, own=int(min(ceiling.value, 10_000)), limit=400)
            looks += 1
        assert looks <= 8
        assert ceiling.value == math.inf

    def test_it_does_not_try_for_more_while_the_server_queues(self) -> None:
        ceiling = holding(100)
        for second in range(100, 200):
            ceiling.look(float(second), own=100, limit=200, queued=True)
        assert ceiling.value == 100


def cut(fits: int) -> Ceiling:
    """Refused at 1 s, cut at 1.1 s."""
    ceiling = Ceiling()
    ceiling.refused(1.0)
    ceiling.look(1.1, own=fits, limit=2 * fits)
    return ceiling


def holding(fits: int) -> Ceiling:
    ceiling = cut(fits)
    ceiling.ended(3.0, 1.0)
    for second in range(4, 20):
        ceiling.look(float(second), own=int(ceiling.value), limit=2 * fits)
        if ceiling.phase is Phase.HOLDING:
            break
    return ceiling


class TestPressure:
    def test_preemptions_lower_it_and_their_end_lifts_it(self) -> None:
        pressure = Pressure()
        pressure.look(load(100, 20, 0.0), 120)
        ends(pressure, 60)
        assert pressure.look(load(100, 20, 30.0), 120) == "KV memory is short, 0.5 preemptions a row"
        assert pressure.value == pytest.approx(SHRINK * 100)
        ends(pressure, 60)
        assert pressure.look(load(93, 0, 30.0), 93) == "KV memory suffices"
        assert pressure.value == pytest.approx(GROW * SHRINK * 100)

    def test_other_tasks_preemptions_are_theirs(self) -> None:
        pressure = Pressure()
        pressure.look(load(100, 20, 0.0), 12)
        ends(pressure, 16)
        assert pressure.look(load(100, 20, 30.0), 12) == ""  # 3 of ours for 16 rows

    def test_a_server_that_was_restarted_counts_anew(self) -> None:
        pressure = Pressure()
        pressure.look(load(100, 20, 500.0), 120)
        ends(pressure, 100)
        assert pressure.look(load(100, 20, 3.0), 120) == ""
        assert pressure.value == math.inf

    def test_a_server_that_tells_none_has_none(self) -> None:
        pressure = Pressure()
        ends(pressure, 100)
        assert pressure.look(load(100), 100) == ""


def ends(pressure: Pressure, rows: int) -> None:
    for _ in range(rows):
        pressure.ended()


class TestSlope:
    def test_it_climbs_to_the_knee_and_rests_a_little_above(self) -> None:
        slope, _ = climbed(places=100)
        assert slope.stage is Stage.RESTING
        assert slope.limit == math.ceil(SPARE * 128)  # 128 had no more places than 100, and 256 end no more

    def test_a_later_try_that_does_not_pay_goes_back_and_rests_longer(self) -> None:
        slope, now = climbed(places=100)
        at = slope.limit
        rests = []
        for _ in range(3):
            rested = 0
            while slope.stage is Stage.RESTING:
                now += 1 / 100
                slope.ended(now)
                rested += 1
            rests.append(rested)
            while slope.stage is not Stage.RESTING:
                now += 1 / 100
                slope.ended(now)
            assert slope.limit == at
        assert rests[0] == (REST_TURNS + 1) * at  # a turn is left out
        assert rests[2] > 3.5 * rests[0]

    def test_a_server_that_grew_is_found_out(self) -> None:
        slope, now = climbed(places=100)
        for _ in range(60_000):
            now += 1 / min(slope.limit, 400)
            slope.ended(now)
        assert slope.limit >= 400


def climbed(*, places: int) -> tuple[Slope, float]:
    """Rows of 1 s on so many places."""
    slope, now = Slope(16), 0.0
    while slope.stage is Stage.CLIMBING:
        now += 1 / min(slope.limit, places)
        slope.ended(now)
    return slope, now


def test_a_limit_that_does_not_bind_is_not_learnt_from() -> None:
    """Where `max_in_flight` is less, the pace says nothing of what more in flight would bring."""
    limit, now = AdaptiveLimit(16), 0.0
    for _ in range(2000):
        now += 0.1
        limit.unread(now, 8)
        limit.ended(now, 0.5)
    assert limit.unread(now, 8).limit == 16
    for _ in range(2000):
        now += 0.01
        limit.unread(now, 16)
        limit.ended(now, 0.5)
    assert limit.unread(now, 16).limit > 16
