"""Shapes: what real-time asks for is what the shape says, whatever the seed."""

from __future__ import annotations

from random import Random

import pytest

from benchmarks.colocation.shapes import SHAPES, bursts, day, herd, ramp, waves

LONG_S = 2_000.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("duration_s", [1.0, 40.0, 300.0])
def test_arrivals_are_in_order_and_phases_cover_the_time(shape, duration_s):
    traffic = SHAPES[shape](duration_s, Random(3))
    moments = [arrival.at_s for arrival in traffic.arrivals]
    assert moments == sorted(moments)
    assert all(0 <= moment < duration_s for moment in moments)
    assert traffic.phases[0].from_s == 0
    assert traffic.phases[-1].to_s == pytest.approx(duration_s)
    for before, after in zip(traffic.phases, traffic.phases[1:], strict=False):
        assert before.to_s == pytest.approx(after.from_s)
    assert sum(map(traffic.share_s, traffic.names)) == pytest.approx(duration_s)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_traffic(shape):
    assert SHAPES[shape](60.0, Random(1)) == SHAPES[shape](60.0, Random(1))
    assert SHAPES[shape](60.0, Random(1)) != SHAPES[shape](60.0, Random(2))


def rate(traffic, name):
    inside = sum(1 for arrival in traffic.arrivals if traffic.phase_at(arrival.at_s) == name)
    return inside / traffic.share_s(name)


def test_bursts_are_quiet_and_then_at_their_rate():
    traffic = bursts(LONG_S, Random(0))
    assert rate(traffic, "quiet") == 0
    assert rate(traffic, "burst") == pytest.approx(8, rel=0.1)
    assert traffic.share_s("burst") / LONG_S == pytest.approx(10 / 28, rel=0.1)
    assert all(64 <= arrival.max_tokens <= 192 for arrival in traffic.arrivals)


def test_a_ramp_climbs_to_its_peak_and_falls_again():
    traffic = ramp(LONG_S, Random(0))
    low, middle, high = (rate(traffic, name) for name in ("low", "middle", "high"))
    assert (low, middle, high) == (pytest.approx(2, rel=0.15), pytest.approx(6, rel=0.15), pytest.approx(10, rel=0.15))


def test_waves_run_at_their_levels():
    traffic = waves(LONG_S, Random(0))
    assert [rate(traffic, name) for name in ("calm", "usual", "busy")] == [
        pytest.approx(each, rel=0.2) for each in (1, 4, 9)
    ]


def test_a_herd_comes_at_once():
    traffic = herd(LONG_S, Random(0), per_s=0.0)
    moments = [arrival.at_s for arrival in traffic.arrivals]
    herds = [moments[start : start + 6] for start in range(0, len(moments), 6)]
    assert len(herds) > 100
    assert all(each[-1] - each[0] <= 0.05 for each in herds)


def test_a_day_is_least_at_night_and_most_in_the_afternoon():
    traffic = day(LONG_S, Random(0), jumps=0.0)
    assert rate(traffic, "night") < 0.4 * rate(traffic, "evening") < 0.4 * rate(traffic, "day")
    assert rate(traffic, "day") == pytest.approx(14, rel=0.15)
    longest = max(arrival.prompt_tokens for arrival in traffic.arrivals)
    assert 1_000 < longest <= 3_000
