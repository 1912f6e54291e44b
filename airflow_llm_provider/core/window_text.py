"""Windows as people write them in a connection or a DAG.

Owns the text form: ``opens-closes zone [days] [+date …] [-date …]``, several joined by ``;``. Does not know what a
window means (`core.window`).
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date, time
from typing import TYPE_CHECKING

from airflow_llm_provider.core.window import EVERY_DAY, Window, Windows
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

EXAMPLE = "23:00-07:00 Europe/London mon-fri +2026-12-25 -2026-12-31"

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DASH = re.compile("[-–]")


def parse_windows(text: str) -> Windows:
    """Windows from text such as ``23:00-07:00 Europe/London mon-fri; 00:00-00:00 Europe/London sat-sun``.

    Days and dates name the evening of the opening. Without days it is every day. ``24:00`` may be said for a close at
    midnight.

    Raises:
        ConfigurationError: names what could not be read, and shows a right example.
    """
    return Windows(tuple(_parse_window(part) for part in text.split(";")))


def format_windows(windows: Windows) -> str:
    """The text that `parse_windows` makes the same windows of."""
    return "; ".join(map(_format_window, windows.windows))


def _parse_window(text: str) -> Window:
    words = re.sub(r"\s*,\s*", ",", text).split()
    if len(words) < 2:  # noqa: PLR2004 - times and zone
        what = "is incomplete: it needs its times and its time zone" if words else "is empty"
        raise ConfigurationError(f"the window {text.strip()!r} {what}; write it like {EXAMPLE!r}")
    times, zone, *rest = words
    try:
        opens, closes = _parse_times(times)
        dates = [word for word in rest if word[0] in "+-"]
        days = [word for word in rest if word not in dates]
        return Window(
            opens=opens,
            closes=closes,
            timezone=zone,
            days=_parse_days(*days) if days else EVERY_DAY,
            open_dates=frozenset(_parse_date(word) for word in dates if word[0] == "+"),
            closed_dates=frozenset(_parse_date(word) for word in dates if word[0] == "-"),
        )
    except ConfigurationError as error:
        message = f"the window {text.strip()!r} cannot be read: {error}; write it like {EXAMPLE!r}"
        raise ConfigurationError(message) from error


def _parse_times(word: str) -> tuple[time, time]:
    opens, *closes = _DASH.split(word)
    if len(closes) != 1:
        raise ConfigurationError(f"{word!r} is not two times joined by '-'")
    return _parse_time(opens), time(0) if closes[0] == "24:00" else _parse_time(closes[0])


def _parse_time(word: str) -> time:
    if match := _TIME.fullmatch(word):
        with suppress(ValueError):
            hour, minute, second = (int(number or 0) for number in match.groups())
            return time(hour, minute, second)
    raise ConfigurationError(f"{word!r} is no time of day such as 23:00")


def _parse_days(word: str, *more: str) -> frozenset[int]:
    if more:
        raise ConfigurationError(f"{more[0]!r} is neither a date nor belongs to the days {word!r}; join days with ','")
    return frozenset(day for part in word.split(",") for day in _parse_day_range(part, word))


def _parse_day_range(part: str, word: str) -> Iterable[int]:
    try:
        first, *last = (_DAYS.index(name) for name in _DASH.split(part.lower()))
    except ValueError as error:
        raise ConfigurationError(f"{part!r} in {word!r} is no day such as 'sat' or 'mon-fri'") from error
    if len(last) > 1:
        raise ConfigurationError(f"{part!r} in {word!r} joins more than two days; join days with ','")
    length = (last[0] - first) % 7 if last else 0  # 'sat-mon' goes round the end of the week
    return ((first + step) % 7 for step in range(length + 1))


def _parse_date(word: str) -> date:
    if _DATE.fullmatch(word[1:]):
        with suppress(ValueError):
            return date.fromisoformat(word[1:])
    raise ConfigurationError(f"{word!r} is no date such as +2026-12-25 or -2026-12-31")


def _format_window(window: Window) -> str:
    words = [f"{_format_time(window.opens)}-{_format_time(window.closes)}", window.timezone]
    if window.days != EVERY_DAY:
        words.append(_format_days(window.days))
    words += [f"+{evening.isoformat()}" for evening in sorted(window.open_dates)]
    words += [f"-{evening.isoformat()}" for evening in sorted(window.closed_dates)]
    return " ".join(words)


def _format_time(moment: time) -> str:
    return moment.isoformat("seconds" if moment.second else "minutes")


def _format_days(days: frozenset[int]) -> str:
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ",".join(_DAYS[run[0]] if len(run) == 1 else f"{_DAYS[run[0]]}-{_DAYS[run[-1]]}" for run in runs)
