from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pendulum
from hypothesis import given, settings
from hypothesis import strategies as st
from window_oracle import MINUTE, Rule, open_minutes, runs

from airflow_llm_provider.core.window import Opening, Window, Windows
from airflow_llm_provider.core.window_text import format_windows, parse_windows

# Changes of half an hour, at midnight, into another day, in winter instead of summer, often, and none.
ODD = (
    "Europe/London", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "America/Havana", "Asia/Beirut",
    "Africa/Casablanca", "Europe/Dublin", "Asia/Gaza", "Africa/Cairo", "America/Sao_Paulo", "Antarctica/Troll",
    "Pacific/Kwajalein", "Asia/Pyongyang", "Asia/Kathmandu", "UTC",
)  # fmt: skip
FIRST, LAST = datetime(1975, 1, 1, tzinfo=UTC), datetime(2037, 12, 1, tzinfo=UTC)


@cache
def changes(zone: str) -> list[datetime]:
    """The instants from `FIRST` to `LAST` at which the zone's offset changes."""
    there = ZoneInfo(zone)
    found = []
    for day, following in pairwise(FIRST + timedelta(days=number) for number in range((LAST - FIRST).days)):
        low, high = day, following
        if low.astimezone(there).utcoffset() == high.astimezone(there).utcoffset():
            continue
        while high - low > MINUTE:
            middle = low + (high - low) // MINUTE // 2 * MINUTE
            if middle.astimezone(there).utcoffset() == low.astimezone(there).utcoffset():
                low = middle
            else:
                high = middle
        found.append(high)
    return found


MOSTLY = st.sampled_from([True, True, True, False])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Window], datetime]:
    """Some windows and a moment, mostly on a night on which the clocks of the first window change."""
    zone = draw(st.sampled_from(ODD) | st.sampled_from(sorted(available_timezones())))
    if changes(zone) and draw(MOSTLY):
        moment = draw(st.sampled_from(changes(zone)))
    else:
        moment = FIRST + draw(st.integers(0, int((LAST - FIRST) / MINUTE))) * MINUTE
    windows = [draw(windows_near(zone, moment))]
    if not draw(MOSTLY):
        windows.append(draw(windows_near(draw(st.just(zone) | st.sampled_from(ODD)), moment)))
    return windows, moment + draw(st.integers(-1500, 1500) | st.integers(-90, 90)) * MINUTE


@st.composite
def windows_near(draw: st.DrawFn, zone: str, moment: datetime) -> Window:
    """A window whose times are mostly those that the clocks skip or show twice at `moment`, or close to them."""
    clock = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    before = (moment - MINUTE).astimezone(ZoneInfo(zone)).replace(tzinfo=None) + MINUTE
    skipped_or_shown_twice = st.integers(0, int(abs(clock - before) / MINUTE))

    def a_time() -> time:
        if draw(MOSTLY):
            return (min(clock, before) + draw(skipped_or_shown_twice | st.integers(-90, 90)) * MINUTE).time()
        return draw(st.builds(time, st.integers(0, 23), st.integers(0, 59)) | st.just(time(0)))

    opens, closes = a_time(), a_time()
    if draw(MOSTLY):
        return Window(opens=opens, closes=closes, timezone=zone)
    dates = st.frozensets(st.integers(-3, 3).map(lambda days: clock.date() + timedelta(days=days)), max_size=3)
    closed = draw(dates)
    return Window(
        opens=opens,
        closes=closes,
        timezone=zone,
        days=draw(st.frozensets(st.integers(0, 6), min_size=1)),
        open_dates=draw(dates) - closed,
        closed_dates=closed,
    )


def is_cut(opening: Opening | None) -> bool:
    """An opening that goes on for very long is told as far as it was followed, which depends on the moment."""
    return opening is not None and opening.duration_s > 100 * 86400


def inside(opening: Opening, moment: datetime) -> bool:
    return opening.opens <= moment < opening.closes


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(1000, 2000))
def test_openings_are_those_a_watcher_of_the_clock_would_see(case: tuple[list[Window], datetime], minutes: int) -> None:
    windows, moment = case
    start, end = moment - minutes * MINUTE, moment + minutes * MINUTE
    seen = open_minutes([Rule(**dataclasses.asdict(window)) for window in windows], start, end)
    told = Windows(tuple(windows)).between(start, end)
    assert [(max(one.opens, start), min(one.closes, end)) for one in told] == runs(seen, start)
    assert Windows(tuple(windows)).open_s(start, end) == 60 * sum(seen)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 6 * 24 * 60))
def test_openings_are_sorted_apart_and_whole(case: tuple[list[Window], datetime], minutes: int) -> None:
    windows, moment = Windows(tuple(case[0])), case[1]
    told = windows.between(moment, moment + minutes * MINUTE)
    assert all(one.closes < other.opens for one, other in pairwise(told))
    for one in told:
        if not is_cut(one):
            assert windows.between(one.opens, one.closes) == [one]
            assert windows.open_s(one.opens, one.closes) == one.duration_s
            assert windows.at(one.closes) is None


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 6 * 24 * 60))
def test_at_next_and_between_tell_the_same(case: tuple[list[Window], datetime], minutes: int) -> None:
    windows, moment = Windows(tuple(case[0])), case[1]
    end = moment + minutes * MINUTE
    told, now, coming = windows.between(moment, end), windows.at(moment), windows.next(moment)
    if any(map(is_cut, (*told, now, coming))):
        return
    assert [one for one in told if inside(one, moment)] == ([now] if now else [])
    later = [one for one in told if one.opens >= moment]
    if later:
        assert coming == later[0]
    if coming is not None:
        assert coming.opens >= (moment if later else end)
        assert windows.next(coming.opens) == windows.at(coming.opens) == coming
        assert windows.at(coming.opens - timedelta.resolution) is None
        assert windows.between(moment, coming.closes) == [*([now] if now and now != coming else []), coming]
    if now is not None and now.opens < moment:
        assert windows.at(now.closes) is None
        assert windows.next(now.closes) == coming


@settings(max_examples=25, deadline=None)
@given(cases(), cases())
def test_nothing_is_beyond_itself_or_what_includes_it(
    case: tuple[list[Window], datetime], another: tuple[list[Window], datetime]
) -> None:
    windows, moment = Windows(tuple(case[0])), case[1]
    wider = Windows((*another[0], *case[0]))
    assert windows.beyond(windows, since=moment) is None
    assert windows.beyond(wider, since=moment) is None
    beyond = wider.beyond(windows, since=moment)
    if beyond is not None:
        assert windows.open_s(beyond.opens, beyond.closes) < beyond.duration_s
    else:
        span = (moment, moment + timedelta(days=30))
        assert windows.open_s(*span) == wider.open_s(*span)


@settings(max_examples=60, deadline=None)
@given(cases(), st.frozensets(st.integers(0, 6), min_size=1), st.integers(0, 59))
def test_text_says_all_of_a_window(case: tuple[list[Window], datetime], days: frozenset[int], second: int) -> None:
    closes = case[0][0].closes.replace(second=second)
    windows = Windows((*case[0], dataclasses.replace(case[0][0], days=days, closes=closes)))
    assert parse_windows(format_windows(windows)) == windows


@settings(max_examples=30, deadline=None)
@given(cases(), st.sampled_from(ODD))
def test_a_moment_is_the_same_in_any_zone(case: tuple[list[Window], datetime], zone: str) -> None:
    windows, moment = Windows(tuple(case[0])), case[1]
    for same in (pendulum.instance(moment), moment.astimezone(ZoneInfo(zone)), pendulum.instance(moment).in_tz(zone)):
        assert windows.at(same) == windows.at(moment)
        assert windows.next(same) == windows.next(moment)
