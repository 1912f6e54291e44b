"""Objectives: their text, the judgement of readings, and how long a health must last."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.core.objective import (
    AT_RISK_SHARE,
    Failed,
    Health,
    HealthTrack,
    Idle,
    Measured,
    Metric,
    Objective,
    Verdict,
    format_objectives,
    judge,
    parse_objectives,
)
from airflow_llm_provider.exceptions import ConfigurationError

TTFT = Objective(metric=Metric.TTFT, quantile=0.95, threshold_s=2.0)
ITL = Objective(metric=Metric.ITL, quantile=0.99, threshold_s=0.1)
NOON = datetime(2026, 10, 21, 12, tzinfo=UTC)


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reads_several_in_the_order_written():
    text = "ttft p95 < 2 s; itl p99 < 100 ms;e2e p99.9<10s ;"
    e2e = Objective(metric=Metric.E2E, quantile=0.999, threshold_s=10.0)
    assert parse_objectives(text) == (TTFT, ITL, e2e)
    assert format_objectives(parse_objectives(text)) == "ttft p95 < 2 s; itl p99 < 100 ms; e2e p99.9 < 10 s"


@pytest.mark.parametrize("text", ["TTFT P95 < 2 S", "ttft p95 < 2000 ms", "  ttft   p95.0<2.0s"])
def test_forms_of_one_objective(text):
    assert parse_objectives(text.replace("P95", "p95")) == (TTFT,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "No objective is written"),
        (" ; ", "No objective is written"),
        ("ttft < 2 s", "'ttft < 2 s' is no objective"),
        ("ttft p95 > 2 s", "is no objective"),
        ("ttft p95 < 2", "is no objective"),
        ("tpot p95 < 2 s", "'tpot' is none of ttft, itl, e2e"),
        ("ttft p95 < 2 min", "'min' is none of s, ms"),
        ("ttft p0 < 2 s", "not p0"),
        ("ttft p100 < 2 s", "not p100"),
        ("ttft p95 < 0 s", "must be above 0 s"),
        ("ttft p9.9.9 < 2 s", "a number that is none"),
        ("ttft p95 < 2 s; ttft p95 < 3 s", "ttft p95 is promised twice"),
        ("ttft p95 < 2 s, itl p99 < 100 ms", "is no objective"),
    ],
)
def test_what_is_none_is_refused_with_an_example(text, why):
    with pytest.raises(ConfigurationError, match=r"ttft p95 < 2 s; itl p99 < 100 ms|keep one") as caught:
        parse_objectives(text)
    assert why in str(caught.value)


@given(
    st.lists(
        st.builds(
            Objective,
            metric=st.sampled_from(Metric),
            quantile=st.floats(0.001, 0.9999),
            threshold_s=st.floats(0.0001, 10000.0),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda objective: objective.name,
    )
)
def test_the_text_form_reads_back_to_the_same(objectives):
    assert parse_objectives(format_objectives(objectives)) == tuple(objectives)


# ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reading", "health", "words"),
    [
        (Idle(), Health.HEALTHY, "no real-time request in the sampling period"),
        (Measured(lower_s=0.02, upper_s=0.04, samples=31), Health.HEALTHY, "between 20 ms and 40 ms (31 requests)"),
        (Measured(lower_s=1.5, upper_s=1.5), Health.HEALTHY, "ttft p95 is 1.5 s, and 2 s was promised"),
        (Measured(lower_s=1.6, upper_s=1.6), Health.AT_RISK, "1.6 s"),
        (Measured(lower_s=2.0, upper_s=2.0), Health.AT_RISK, "2 s"),
        (Measured(lower_s=2.1, upper_s=2.1), Health.VIOLATED, "2.1 s"),
        (Measured(lower_s=1.0, upper_s=2.5), Health.AT_RISK, "between 1 s and 2.5 s"),
        (Measured(lower_s=0.0, upper_s=inf, samples=0), Health.AT_RISK, "0 s or more (0 requests)"),
        (Measured(lower_s=2.5, upper_s=inf, samples=1), Health.VIOLATED, "2.5 s or more (1 requests)"),
        (Measured(lower_s=inf, upper_s=inf, samples=3), Health.VIOLATED, "infinite: nothing was answered (3 requests)"),
        (Failed("the page is gone"), Health.UNKNOWN, "the page is gone"),
        (None, Health.UNKNOWN, "ttft p95 was not read"),
    ],
)
def test_one_objective(reading, health, words):
    verdict = judge([TTFT], {} if reading is None else {TTFT: reading})
    assert verdict.health is health
    assert words in verdict.reason


def test_the_worst_decides_and_gives_the_reason():
    readings = {TTFT: Measured(lower_s=3, upper_s=4), ITL: Failed("gone")}
    assert judge([TTFT, ITL], readings).health is Health.VIOLATED
    assert "gone" not in judge([TTFT, ITL], readings).reason
    assert judge([TTFT, ITL], readings | {TTFT: Measured(lower_s=1, upper_s=4)}) == Verdict(
        health=Health.UNKNOWN, reason="gone"
    )
    assert judge([TTFT, ITL], {TTFT: Idle(), ITL: Measured(lower_s=0.0, upper_s=0.1)}).health is Health.AT_RISK
    both = judge([TTFT, ITL], {TTFT: Failed("gone"), ITL: Failed("gone")})
    assert both.reason == "gone", "one cause is said once"
    assert judge([], {}).health is Health.HEALTHY


@given(lower=st.floats(0, 5), width=st.floats(0, 5), true=st.floats(0, 1))
def test_whatever_lies_in_the_bounds_is_not_misjudged(lower, width, true):
    upper = lower + width
    value = lower + true * width
    health = judge([TTFT], {TTFT: Measured(lower_s=lower, upper_s=upper)}).health
    if health is Health.HEALTHY:
        assert value < TTFT.threshold_s * AT_RISK_SHARE
    if health is Health.VIOLATED:
        assert value > TTFT.threshold_s


@pytest.mark.parametrize(("lower", "upper"), [(2, 1), (-1, 1), (float("nan"), 1)])
def test_no_bounds_are_refused(lower, upper):
    with pytest.raises(ValueError, match="no bounds"):
        Measured(lower_s=lower, upper_s=upper)


# ── over time ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watched:
    """A track with a clock: `at(seconds, health)` observes."""

    def __init__(self, healthy_for_s: float = 60.0) -> None:
        self.track = HealthTrack(healthy_for_s)

    def at(self, seconds: float, health: Health):
        return self.track.observe(Verdict(health=health, reason=f"r{seconds}"), now=NOON + timedelta(seconds=seconds))


def test_healthy_from_the_first_look_is_recovered_at_once():
    standing = Watched().at(0, Health.HEALTHY)
    assert standing.recovered
    assert (standing.since, standing.reason, standing.unknown_since) == (NOON, "r0", None)


@pytest.mark.parametrize("bad", [Health.VIOLATED, Health.UNKNOWN])
def test_after_something_bad_it_must_be_healthy_for_long_enough(bad):
    watched = Watched()
    assert not watched.at(0, bad).recovered
    assert not watched.at(10, Health.HEALTHY).recovered
    assert not watched.at(69.9, Health.HEALTHY).recovered
    assert watched.at(70, Health.HEALTHY).recovered


@pytest.mark.parametrize("between", [Health.AT_RISK, Health.VIOLATED, Health.UNKNOWN])
def test_an_interruption_starts_the_wait_again(between):
    watched = Watched()
    watched.at(0, Health.VIOLATED)
    watched.at(10, Health.HEALTHY)
    watched.at(60, between)
    standing = watched.at(65, Health.HEALTHY)
    assert standing.since == NOON + timedelta(seconds=65)
    assert not watched.at(120, Health.HEALTHY).recovered
    assert watched.at(125, Health.HEALTHY).recovered


def test_at_risk_is_nothing_bad_but_does_not_recover():
    watched = Watched()
    assert not watched.at(0, Health.AT_RISK).recovered
    assert watched.at(1, Health.HEALTHY).recovered


def test_unknown_since_outlasts_short_spells_of_health():
    watched = Watched()
    assert watched.at(0, Health.HEALTHY).unknown_since is None
    since = NOON + timedelta(seconds=5)
    assert watched.at(5, Health.UNKNOWN).unknown_since == since
    assert watched.at(10, Health.UNKNOWN).unknown_since == since
    assert watched.at(15, Health.HEALTHY).unknown_since == since
    standing = watched.at(30, Health.UNKNOWN)
    assert (standing.unknown_since, standing.since) == (since, NOON + timedelta(seconds=30))
    watched.at(40, Health.HEALTHY)
    assert watched.at(100, Health.HEALTHY).unknown_since is None


@pytest.mark.parametrize("known", [Health.AT_RISK, Health.VIOLATED])
def test_a_latency_that_can_be_read_and_is_not_well_is_not_unknown(known):
    watched = Watched()
    watched.at(0, Health.UNKNOWN)
    assert watched.at(5, known).unknown_since is None


def test_a_clock_set_back_cannot_make_it_recover_early():
    watched = Watched()
    watched.at(0, Health.VIOLATED)
    watched.at(10, Health.HEALTHY)
    standing = watched.at(-3600, Health.HEALTHY)
    assert standing.since == NOON - timedelta(seconds=3600)
    assert not watched.at(-3550, Health.HEALTHY).recovered
    assert watched.at(-3540, Health.HEALTHY).recovered


def test_moments_are_utc():
    track = HealthTrack(60.0)
    local = NOON.astimezone(timezone(timedelta(hours=9)))
    assert track.observe(Verdict(health=Health.HEALTHY, reason=""), now=local).since.tzinfo is UTC
    with pytest.raises(ValueError, match="aware"):
        track.observe(Verdict(health=Health.HEALTHY, reason=""), now=NOON.replace(tzinfo=None))
