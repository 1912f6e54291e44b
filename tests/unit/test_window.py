from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pendulum
import pytest

from airflow_llm_provider.core.window import LOOK_DAYS, Opening, Window, Windows
from airflow_llm_provider.core.window_text import EXAMPLE, format_windows, parse_windows
from airflow_llm_provider.exceptions import ConfigurationError

NIGHT = Windows((Window(),))
ALWAYS = parse_windows("00:00-00:00 Europe/London")


def utc(text: str) -> pendulum.DateTime:
    return pendulum.instance(datetime.fromisoformat(text).replace(tzinfo=UTC))


def opening(opens: str, closes: str) -> Opening:
    return Opening(utc(opens), utc(closes))


def evening_of(text: str, evening: str) -> list[Opening]:
    """What a window that opens every evening comes to when it is opened on this one evening only."""
    day = date.fromisoformat(evening)
    near = {day + timedelta(days=number) for number in range(-9, 10)} - {day}
    window = parse_windows(f"{text} {' '.join(f'-{other}' for other in sorted(near))}")
    noon = utc(f"{evening} 12:00")
    return window.between(noon.subtract(days=4), noon.add(days=4))


def test_the_default_is_the_night_in_london() -> None:
    assert Window() == Window(
        opens=time(23), closes=time(7), timezone="Europe/London", days=frozenset(range(7)), open_dates=frozenset()
    )
    assert NIGHT.next(utc("2026-01-15 12:00")) == opening("2026-01-15 23:00", "2026-01-16 07:00")
    assert NIGHT.next(utc("2026-07-15 12:00")) == opening("2026-07-15 22:00", "2026-07-16 06:00")


def test_a_night_is_7_or_9_hours_long_when_the_clocks_change() -> None:
    spring, autumn = NIGHT.next(utc("2026-03-28 12:00")), NIGHT.next(utc("2026-10-24 12:00"))
    assert spring == opening("2026-03-28 23:00", "2026-03-29 06:00")
    assert autumn == opening("2026-10-24 22:00", "2026-10-25 07:00")
    assert (spring.duration_s, autumn.duration_s) == (7 * 3600, 9 * 3600)


@pytest.mark.parametrize(
    ("text", "evening", "expected"),
    [
        # London: 01:00 to 02:00 is skipped on 29 March 2026, and shown twice on 25 October.
        ("01:30-05:00 Europe/London", "2026-03-29", ("2026-03-29 01:00", "2026-03-29 04:00")),
        ("22:00-01:30 Europe/London", "2026-03-28", ("2026-03-28 22:00", "2026-03-29 01:00")),
        ("01:00-02:00 Europe/London", "2026-03-29", None),
        ("01:10-01:50:30 Europe/London", "2026-03-29", None),
        ("01:30-01:30 Europe/London", "2026-03-29", ("2026-03-29 01:00", "2026-03-30 00:30")),
        ("01:30-05:00 Europe/London", "2026-10-25", ("2026-10-25 00:30", "2026-10-25 05:00")),
        ("22:00-01:30 Europe/London", "2026-10-24", ("2026-10-24 21:00", "2026-10-25 01:30")),
        ("22:00-01:00 Europe/London", "2026-10-24", ("2026-10-24 21:00", "2026-10-25 01:00")),
        ("01:20-01:40 Europe/London", "2026-10-25", ("2026-10-25 00:20", "2026-10-25 01:40")),
        # Half an hour: 02:00 to 02:30 is skipped, 01:30 to 02:00 is shown twice.
        ("02:10-06:00 Australia/Lord_Howe", "2026-10-04", ("2026-10-03 15:30", "2026-10-03 19:00")),
        ("23:00-02:10 Australia/Lord_Howe", "2026-10-03", ("2026-10-03 12:30", "2026-10-03 15:30")),
        ("01:40-06:00 Australia/Lord_Howe", "2026-04-05", ("2026-04-04 14:40", "2026-04-04 19:30")),
        # A day that never was: 29 December 2011 ended where the 31st began, at 10:00 UTC of the 30th.
        ("23:00-07:00 Pacific/Apia", "2011-12-29", ("2011-12-30 09:00", "2011-12-30 10:00")),
        ("23:00-07:00 Pacific/Apia", "2011-12-30", ("2011-12-30 10:00", "2011-12-30 17:00")),
        ("09:00-17:00 Pacific/Apia", "2011-12-30", None),
        ("00:00-00:00 Pacific/Apia", "2011-12-30", None),
        # Midnight itself is skipped, or 23:00 to 00:00 is shown twice.
        ("00:00-06:00 America/Havana", "2026-03-08", ("2026-03-08 05:00", "2026-03-08 10:00")),
        ("00:00-00:00 America/Havana", "2026-03-08", ("2026-03-08 05:00", "2026-03-09 04:00")),
        ("00:00-06:00 Asia/Beirut", "2026-03-29", ("2026-03-28 22:00", "2026-03-29 03:00")),
        ("23:30-00:30 Asia/Beirut", "2026-10-24", ("2026-10-24 20:30", "2026-10-24 22:30")),
        ("20:00-00:00 Asia/Beirut", "2026-10-24", ("2026-10-24 17:00", "2026-10-24 22:00")),
        # Set back for Ramadan: 5 hours, then 3.
        ("01:00-05:00 Africa/Casablanca", "2026-02-15", ("2026-02-15 00:00", "2026-02-15 05:00")),
        ("01:00-05:00 Africa/Casablanca", "2026-03-22", ("2026-03-22 01:00", "2026-03-22 04:00")),
        # Nothing changes.
        ("23:00-07:00 Asia/Kathmandu", "2026-03-28", ("2026-03-28 17:15", "2026-03-29 01:15")),
        ("09:00-17:30:15 UTC", "2026-03-29", ("2026-03-29 09:00", "2026-03-29 17:30:15")),
        ("23:00-24:00 UTC", "2026-03-29", ("2026-03-29 23:00", "2026-03-30 00:00")),
    ],
)
def test_an_evening_in_civil_time(text: str, evening: str, expected: tuple[str, str] | None) -> None:
    assert evening_of(text, evening) == ([opening(*expected)] if expected else [])


def test_what_a_gap_swallows_is_passed_over() -> None:
    hour = parse_windows("01:00-02:00 Europe/London")
    assert hour.next(utc("2026-03-28 02:00")) == opening("2026-03-30 00:00", "2026-03-30 01:00")
    assert hour.at(utc("2026-03-29 01:00")) is None


def test_a_skipped_day_joins_its_neighbours() -> None:
    nights = parse_windows("23:00-07:00 Pacific/Apia")
    assert nights.at(utc("2011-12-30 10:00")) == opening("2011-12-30 09:00", "2011-12-30 17:00")


def test_it_is_open_from_the_instant_it_opens_to_before_that_of_its_close() -> None:
    night = opening("2026-01-15 23:00", "2026-01-16 07:00")
    second = timedelta.resolution
    assert NIGHT.at(night.opens - second) is None
    assert NIGHT.at(night.opens) == NIGHT.at(night.closes - second) == night
    assert NIGHT.at(night.closes) is None
    assert NIGHT.next(night.opens) == night
    assert (
        NIGHT.next(night.opens + second) == NIGHT.next(night.closes) == opening("2026-01-16 23:00", "2026-01-17 07:00")
    )


def test_answers_are_pendulum_in_utc_whatever_the_moment_is_told_in() -> None:
    night = opening("2026-07-15 22:00", "2026-07-16 06:00")
    for moment in (
        datetime(2026, 7, 15, 23, tzinfo=UTC),
        pendulum.datetime(2026, 7, 16, 0, tz="Europe/London"),
        pendulum.datetime(2026, 7, 15, 19, tz="America/New_York"),
    ):
        found = NIGHT.at(moment)
        assert found == night
        assert {type(found.opens), type(found.closes)} == {pendulum.DateTime}
        assert found.opens.timezone_name == found.closes.timezone_name == "UTC"


def test_days_are_those_of_the_evening() -> None:
    """16 January 2026 is a Friday: its night is open to Saturday morning, and the next one opens on Monday."""
    week = parse_windows("23:00-07:00 Europe/London mon-fri")
    assert week.at(utc("2026-01-17 06:59")) == opening("2026-01-16 23:00", "2026-01-17 07:00")
    assert week.next(utc("2026-01-17 00:00")) == opening("2026-01-19 23:00", "2026-01-20 07:00")


def test_dates_beat_days_and_name_the_evening() -> None:
    week = parse_windows("23:00-07:00 Europe/London mon-fri +2026-01-17 -2026-01-19")
    assert week.between(utc("2026-01-17 12:00"), utc("2026-01-21 12:00")) == [
        opening("2026-01-17 23:00", "2026-01-18 07:00"),
        opening("2026-01-20 23:00", "2026-01-21 07:00"),
    ]
    assert week.at(utc("2026-01-20 01:00")) is None


def test_windows_that_touch_or_overlap_are_one_opening() -> None:
    several = parse_windows("23:00-07:00 Europe/London; 07:00-08:00 Europe/London sat; 12:00-14:00 Europe/Paris")
    assert several.between(utc("2026-01-16 20:00"), utc("2026-01-17 23:30")) == [
        opening("2026-01-16 23:00", "2026-01-17 08:00"),
        opening("2026-01-17 11:00", "2026-01-17 13:00"),
        opening("2026-01-17 23:00", "2026-01-18 07:00"),
    ]
    assert several.next(utc("2026-01-17 07:00")) == opening("2026-01-17 11:00", "2026-01-17 13:00")
    assert several.at(utc("2026-01-17 07:30")) == opening("2026-01-16 23:00", "2026-01-17 08:00")


def test_a_weekend_is_told_from_its_beginning_and_so_is_a_month() -> None:
    weekend = parse_windows("23:00-07:00 Europe/London mon-fri; 00:00-00:00 Europe/London sat-sun")
    assert weekend.at(utc("2026-01-18 23:30")) == opening("2026-01-16 23:00", "2026-01-19 00:00")
    month = parse_windows("00:00-00:00 UTC -2026-01-01 -2026-02-10")
    assert month.at(utc("2026-02-09 12:00")) == opening("2026-01-02 00:00", "2026-02-10 00:00")
    assert month.at(utc("2026-01-03 12:00")) == opening("2026-01-02 00:00", "2026-02-10 00:00")


def test_between_tells_openings_whole_and_only_those_that_share_an_instant() -> None:
    one, two = opening("2026-01-15 23:00", "2026-01-16 07:00"), opening("2026-01-16 23:00", "2026-01-17 07:00")
    assert NIGHT.between(utc("2026-01-16 06:59:59"), utc("2026-01-16 23:00:01")) == [one, two]
    assert NIGHT.between(one.closes, two.opens) == []
    assert NIGHT.between(one.opens, one.opens) == NIGHT.between(two.opens, one.opens) == []


def test_open_seconds_are_real_ones_within_the_two_moments() -> None:
    assert NIGHT.open_s(utc("2026-03-28 12:00"), utc("2026-03-29 12:00")) == 7 * 3600
    assert NIGHT.open_s(utc("2026-01-16 06:00"), utc("2026-01-16 23:30")) == 1.5 * 3600
    assert NIGHT.open_s(utc("2026-01-16 12:00"), utc("2026-01-16 13:00")) == 0
    assert NIGHT.open_s(utc("2026-01-16 12:00"), utc("2026-01-14 12:00")) == 0


def test_what_is_always_open_is_told_as_far_as_it_is_followed() -> None:
    moment = utc("2026-01-15 12:00")
    found = ALWAYS.at(moment)
    assert moment - found.opens > timedelta(days=LOOK_DAYS - 2)
    assert found.closes - moment > timedelta(days=LOOK_DAYS - 2)
    assert ALWAYS.next(moment) is None


def test_what_does_not_open_for_400_days_does_not_open() -> None:
    today = date(2026, 1, 15)

    def closed_for(days: int) -> Windows:
        closed = frozenset(today + timedelta(days=number) for number in range(-5, days))
        return Windows((Window(timezone="UTC", closed_dates=closed),))

    moment = utc("2026-01-15 23:00")
    assert closed_for(LOOK_DAYS).next(moment).opens == moment.add(days=LOOK_DAYS)
    assert closed_for(LOOK_DAYS + 1).next(moment) is None
    assert closed_for(LOOK_DAYS + 1).at(moment) is None
    assert closed_for(LOOK_DAYS + 1).beyond(NIGHT, since=moment) is None


@pytest.mark.parametrize(
    ("mine", "other", "expected"),
    [
        ("23:00-07:00 Europe/London", "23:00-07:00 Europe/London", None),
        ("00:00-06:00 Europe/London mon-fri", "23:00-07:00 Europe/London", None),
        ("23:00-07:00 Europe/London", "22:00-23:30 Europe/London; 23:30-07:00 Europe/London", None),
        ("23:00-07:00 Europe/London", "00:00-00:00 Europe/Paris", None),
        ("00:00-00:00 Europe/London", "00:00-00:00 Europe/London", None),
        ("22:00-07:00 Europe/London", "23:00-07:00 Europe/London", ("2026-01-14 22:00", "2026-01-15 07:00")),
        ("23:00-07:00 Europe/London", "23:00-07:00 Europe/London mon-fri", ("2026-01-17 23:00", "2026-01-18 07:00")),
        # The same times of day until London's clocks change: seen in January, not on the night itself.
        ("23:00-07:00 Europe/London", "23:00-07:00 UTC", ("2026-03-29 22:00", "2026-03-30 06:00")),
        ("23:00-07:00 Europe/London +2026-12-25", "23:00-07:00 Europe/London -2026-12-25",
         ("2026-12-25 23:00", "2026-12-26 07:00")),
    ],
)  # fmt: skip
def test_where_windows_are_wider_than_others(mine: str, other: str, expected: tuple[str, str] | None) -> None:
    found = parse_windows(mine).beyond(parse_windows(other), since=utc("2026-01-15 05:00"))
    assert found == (opening(*expected) if expected else None)


def test_always_is_beyond_any_night() -> None:
    assert ALWAYS.beyond(NIGHT, since=utc("2026-01-15 05:00")) is not None
    assert NIGHT.beyond(ALWAYS, since=utc("2026-01-15 05:00")) is None


@pytest.mark.parametrize("moment", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 12, tzinfo=UTC)])
def test_the_ends_of_the_calendar_are_survived(moment: datetime) -> None:
    for windows in (NIGHT, ALWAYS):
        assert windows.at(moment) is None
        assert windows.next(moment) is None or moment.year == 1


def test_a_moment_without_a_zone_is_refused() -> None:
    naive, aware = datetime(2026, 1, 15, 12), utc("2026-01-15 12:00")  # noqa: DTZ001 - the point
    for ask in (
        lambda: NIGHT.at(naive),
        lambda: NIGHT.next(naive),
        lambda: NIGHT.between(naive, aware),
        lambda: NIGHT.open_s(aware, naive),
        lambda: NIGHT.beyond(NIGHT, since=pendulum.naive(2026, 1, 15, 12)),
    ):
        with pytest.raises(ConfigurationError, match="2026-01-15 12:00:00 has no time zone"):
            ask()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timezone": "Europe/Londn"}, "'Europe/Londn' is unknown; use an IANA name such as 'Europe/London'"),
        ({"timezone": "Europe"}, "'Europe' is unknown"),
        ({"timezone": ""}, "'' is unknown"),
        ({"timezone": "../../etc/passwd"}, "passwd' is unknown"),
        ({"opens": time(23, tzinfo=UTC)}, "without a zone of their own"),
        ({"closes": time(7, 0, 0, 1)}, "whole seconds.*07:00:00.000001"),
        ({"days": frozenset()}, "no days and never opens"),
        ({"days": frozenset({1, 7})}, r"0 \(Monday\) to 6 \(Sunday\), not \[7\]"),
        ({"open_dates": frozenset({datetime(2026, 1, 1, tzinfo=UTC)})}, "not moments like 2026-01-01"),
        (
            {"open_dates": frozenset({date(2026, 12, 25)}), "closed_dates": frozenset({date(2026, 12, 25)})},
            "both open and closed on 2026-12-25",
        ),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Window(**values)


def test_no_window_at_all_and_openings_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one window"):
        Windows(())
    with pytest.raises(ConfigurationError, match="close after it opens"):
        opening("2026-01-15 23:00", "2026-01-15 23:00")
    with pytest.raises(ConfigurationError, match="told in UTC"):
        Opening(utc("2026-07-15 22:00").in_tz("Europe/London"), utc("2026-07-16 06:00"))


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("23:00-07:00 Europe/London", Window()),
        ("23:00–07:00 Europe/London", Window()),
        ("  9:05-17:30:15   Etc/GMT-14 ", Window(opens=time(9, 5), closes=time(17, 30, 15), timezone="Etc/GMT-14")),
        ("16:00-24:00 UTC", Window(opens=time(16), closes=time(0), timezone="UTC")),
        ("23:00-07:00 Europe/London mon-fri", Window(days=frozenset(range(5)))),
        ("23:00-07:00 Europe/London MON, Wed,sat-sun", Window(days=frozenset({0, 2, 5, 6}))),
        ("23:00-07:00 Europe/London sat-mon", Window(days=frozenset({5, 6, 0}))),
        ("23:00-07:00 Europe/London tue", Window(days=frozenset({1}))),
        (
            "23:00-07:00 Europe/London +2026-12-25 mon-fri -2026-12-31 -2027-01-01",
            Window(
                days=frozenset(range(5)),
                open_dates=frozenset({date(2026, 12, 25)}),
                closed_dates=frozenset({date(2026, 12, 31), date(2027, 1, 1)}),
            ),
        ),
    ],
)
def test_what_is_written_is_what_is_meant(text: str, window: Window) -> None:
    windows = parse_windows(text)
    assert windows == Windows((window,))
    assert parse_windows(format_windows(windows)) == windows


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE,
        "23:00-07:00 Europe/London",
        "23:00-07:00:30 UTC mon,wed,sat-sun",
        "23:00-07:00 Europe/London mon-fri; 00:00-00:00 Europe/London sat-sun +2026-12-25",
    ],
)
def test_windows_are_written_as_people_write_them(text: str) -> None:
    assert format_windows(parse_windows(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is empty"),
        ("23:00-07:00 UTC;", "'' is empty"),
        ("23:00-07:00", "'23:00-07:00' is incomplete: it needs its times and its time zone"),
        ("23:00 07:00 UTC", "'23:00' is not two times"),
        ("23:00-01:00-07:00 UTC", "'23:00-01:00-07:00' is not two times"),
        ("11pm-07:00 UTC", "'11pm' is no time of day"),
        ("23:00-25:00 UTC", "'25:00' is no time of day"),
        ("24:00-07:00 UTC", "'24:00' is no time of day"),
        ("23:00- UTC", "'' is no time of day"),
        ("٢٣:00-07:00 UTC", "is no time of day"),
        ("23:00-07:00 Europe/Londn", "'Europe/Londn' is unknown"),
        ("23:00-07:00 mon-fri Europe/London", "'Europe/London' in 'Europe/London' is no day"),
        ("23:00-07:00 UTC mon-fry", "'mon-fry' in 'mon-fry' is no day"),
        ("23:00-07:00 UTC mon,,fri", "'' in 'mon,,fri' is no day"),
        ("23:00-07:00 UTC mon-wed-fri", "'mon-wed-fri' in 'mon-wed-fri' joins more than two days"),
        ("23:00-07:00 UTC mon fri", "'fri' is neither a date nor belongs to the days 'mon'"),
        ("23:00-07:00 UTC 2026-12-25", "'2026-12-25' is no day"),
        ("23:00-07:00 UTC +20261225", r"'\+20261225' is no date"),
        ("23:00-07:00 UTC -2026-02-30", "'-2026-02-30' is no date"),
        ("23:00-07:00 UTC +", r"'\+' is no date"),
        ("23:00-07:00 UTC +2026-12-25 -2026-12-25", "both open and closed on 2026-12-25"),
        ("23:00-07:00 UTC; 23:00-07:00 Mars/Base", "window '23:00-07:00 Mars/Base' cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named_beside_a_right_example(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        parse_windows(text)
    assert EXAMPLE in str(caught.value)
