"""The release brain, rule by rule."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_llm_provider.core.objective import Health, Standing
from airflow_llm_provider.core.release import Cause, Hold, Release, Terms, decide
from airflow_llm_provider.core.window_text import parse_windows

NIGHT = parse_windows("23:00-07:00 Europe/London")
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATE = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
OPENS = datetime(2026, 11, 24, 23, tzinfo=UTC)
CLOSES = datetime(2026, 11, 25, 7, tzinfo=UTC)

FREE = Terms(limit=8)
NIGHTLY = Terms(limit=8, windows=NIGHT)
GATED = Terms(limit=8, gated=True)


def standing(health: Health, *, recovered: bool = False, since: datetime = NOON) -> Standing:
    return Standing(health=health, reason="as read", since=since, recovered=recovered, unknown_since=None)


def ask(terms: Terms, now: datetime = NOON, **changes: Any) -> Release | Hold:
    return decide(now, terms, **{"switch": None, "standing": None, "running": False, **changes})


def test_without_window_and_objective_it_may_always_run() -> None:
    assert ask(FREE) == Release(limit=8, until=None, reason="no window is set; no objective is set")


def test_the_window_holds_until_it_opens_and_releases_until_it_closes() -> None:
    held = ask(NIGHTLY, NOON)
    assert isinstance(held, Hold)
    assert (held.cause, held.until, held.yields) == (Cause.WINDOW, OPENS, True)
    assert held.reason == "the window is closed until 2026-11-24 23:00:00 UTC, for 11 h 00 min"
    released = ask(NIGHTLY, LATE)
    assert isinstance(released, Release)
    assert released.until == CLOSES
    assert isinstance(ask(NIGHTLY, OPENS), Release), "the first instant is open"
    assert isinstance(ask(NIGHTLY, CLOSES), Hold), "the close is closed"


def test_a_window_that_is_always_open_has_no_end() -> None:
    always = replace(NIGHTLY, windows=parse_windows("00:00-24:00 Europe/London"))
    released = ask(always)
    assert isinstance(released, Release)
    assert (released.until, released.reason) == (None, "the window is always open; no objective is set")


def test_a_window_that_never_opens_again_is_held_for_ever() -> None:
    never = parse_windows("23:00-07:00 Europe/London mon -2026-11-30")
    once = replace(NIGHTLY, windows=parse_windows("23:00-23:01 Europe/London mon"))
    assert ask(replace(NIGHTLY, windows=never)).until == datetime(2026, 12, 7, 23, tzinfo=UTC)
    assert isinstance(ask(once), Hold)


def test_the_hold_switch_beats_everything() -> None:
    held = ask(NIGHTLY, LATE, switch="GPU swap", running=True)
    assert isinstance(held, Hold)
    assert (held.cause, held.until, held.yields) == (Cause.SWITCH, None, True)
    assert "GPU swap" in held.reason


@pytest.mark.parametrize(
    ("health", "recovered", "running", "released"),
    [
        (Health.HEALTHY, True, False, True),
        (Health.HEALTHY, False, False, False),  # well again, not yet for long enough
        (Health.HEALTHY, False, True, True),
        (Health.AT_RISK, False, True, True),  # what runs goes on
        (Health.AT_RISK, False, False, False),  # what waits goes on waiting
        (Health.VIOLATED, False, True, False),
        (Health.VIOLATED, False, False, False),
        (Health.UNKNOWN, False, True, False),
        (Health.UNKNOWN, False, False, False),
    ],
)
def test_what_each_health_leads_to(health: Health, *, recovered: bool, running: bool, released: bool) -> None:
    decision = ask(GATED, standing=standing(health, recovered=recovered), running=running)
    assert isinstance(decision, Release if released else Hold)
    assert "as read" in decision.reason


def test_an_objective_is_obeyed_only_where_the_terms_say_so() -> None:
    assert isinstance(ask(FREE, standing=standing(Health.VIOLATED)), Release)


def test_before_the_first_look_nothing_runs() -> None:
    held = ask(GATED, running=True)
    assert isinstance(held, Hold)
    assert held.cause is Cause.LOOKING


def test_a_violation_reaches_what_is_in_flight_at_once_and_an_unknown_latency_after_its_grace() -> None:
    violated = ask(GATED, standing=standing(Health.VIOLATED), running=True)
    assert isinstance(violated, Hold)
    assert (violated.cause, violated.yields) == (Cause.OBJECTIVE, True)
    terms = replace(GATED, unknown_grace_s=30)
    for seconds, yields in ((0, False), (29, False), (30, True)):
        now = NOON + timedelta(seconds=seconds)
        unknown = ask(terms, now, standing=standing(Health.UNKNOWN, since=NOON), running=True)
        assert isinstance(unknown, Hold)
        assert (unknown.cause, unknown.yields) == (Cause.UNKNOWN, yields), seconds


@pytest.mark.parametrize("health", [Health.HEALTHY, Health.AT_RISK])
def test_each_server_has_a_limit_of_its_own(health: Health) -> None:
    terms = Terms(limit=168, limit_each=84, gated=True)
    released = ask(terms, standing=standing(health, recovered=True), running=True)
    assert released.limit == 84
    assert ask(replace(terms, gated=False)).limit == 84


def test_what_is_well_again_but_not_for_long_is_capped_as_what_is_unknown() -> None:
    terms = replace(GATED, on_unknown="cap", unknown_limit=2)
    again = replace(standing(Health.HEALTHY, recovered=False), unknown_since=NOON)
    released = ask(terms, standing=again)
    assert isinstance(released, Release)
    assert (released.limit, released.capped) == (2, True)
    assert isinstance(ask(terms, standing=standing(Health.HEALTHY)), Hold), "after a violation it must last"
    assert ask(terms, standing=standing(Health.HEALTHY, recovered=True)) == ask(
        replace(terms, on_unknown="hold"), standing=standing(Health.HEALTHY, recovered=True)
    )


def test_the_platform_may_cap_rather_than_hold_what_is_unknown() -> None:
    terms = replace(GATED, on_unknown="cap", unknown_limit=2)
    assert ask(terms, standing=standing(Health.UNKNOWN)).limit == 2
    assert ask(replace(terms, limit=1), standing=standing(Health.UNKNOWN)).limit == 1
    assert isinstance(ask(terms, standing=standing(Health.VIOLATED)), Hold), "known to be bad is not unknown"


class TestDeadline:
    """A burst's deadline opens the window where it would be missed otherwise, and where the platform allows it."""

    burst = replace(NIGHTLY, deadline_opens=True)

    @pytest.mark.parametrize(
        ("deadline_h", "remaining_h", "opens"),
        [
            (6, None, True),  # 18:00: before the window opens at all
            (12, None, False),  # midnight: there is an hour of window, and no pace yet
            (12, 0.5, False),  # fits into that hour
            (12, 0.9, True),  # does not, with the margin
            (12, 3, True),
            (-1, None, False),  # past: opens nothing
            (-1, 3, False),
            (0, None, False),
        ],
    )
    def test_opens_only_what_it_must(self, deadline_h: float, remaining_h: float | None, *, opens: bool) -> None:
        deadline = NOON + timedelta(hours=deadline_h)
        remaining_s = None if remaining_h is None else remaining_h * 3600
        decision = ask(replace(self.burst, deadline=deadline), NOON, remaining_s=remaining_s)
        assert isinstance(decision, Release if opens else Hold), decision
        if isinstance(decision, Release):
            assert decision.until == deadline
            assert "deadline" in decision.reason

    def test_never_without_the_platforms_leave(self) -> None:
        terms = replace(NIGHTLY, deadline=NOON + timedelta(hours=1))
        assert isinstance(ask(terms, remaining_s=3600), Hold)

    def test_never_shortens_a_window(self) -> None:
        terms = replace(self.burst, deadline=LATE + timedelta(hours=1))
        assert ask(terms, LATE, remaining_s=10 * 3600).until == CLOSES

    def test_goes_on_past_the_close(self) -> None:
        terms = replace(self.burst, deadline=CLOSES + timedelta(hours=2))
        assert ask(terms, LATE, remaining_s=9 * 3600).until == terms.deadline
        assert ask(terms, LATE, remaining_s=3600).until == CLOSES

    @pytest.mark.parametrize("year", [2030, 9999])
    def test_one_beyond_what_windows_look_ahead_opens_nothing(self, year: int) -> None:
        far = replace(self.burst, deadline=datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC))
        assert isinstance(ask(far, remaining_s=3600), Hold)
        assert isinstance(ask(far, remaining_s=10**9), Hold)

    def test_the_next_nights_are_enough_for_most(self) -> None:
        week = replace(self.burst, deadline=NOON + timedelta(days=7))
        assert isinstance(ask(week, remaining_s=40 * 3600), Hold), "seven nights of 8 h"
        assert isinstance(ask(week, remaining_s=50 * 3600), Release)

    def test_real_time_still_comes_first(self) -> None:
        terms = replace(self.burst, deadline=NOON + timedelta(hours=1), gated=True)
        assert isinstance(ask(terms, standing=standing(Health.VIOLATED)), Hold)
