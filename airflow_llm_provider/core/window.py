"""When batch may run: daily windows in civil time, and the UTC instants they come to.

Owns the rules of civil time: midnight, days of the week, extra dates, and the nights on which the clocks change. Does
not know the windows' text form (`core.window_text`), nor what becomes of a run at a close (`core.release`).

A window says what the clock on the wall shows; the answers are UTC instants, so that 23:00-07:00 in London is 7 hours
long on one night of the year and 9 on another. Inside, all is stdlib `datetime` in UTC: pendulum's arithmetic is
tens of times slower, and is left to the callers.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import pendulum

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pendulum import DateTime

LOOK_DAYS = 400
"""How far windows are followed: more than a year, so that both changes of the clocks are met."""

EVERY_DAY = frozenset(range(7))

# An opening touches no instant earlier than 16 h before, and none later than 64 h after, 00:00 UTC of the date of its
# evening: no zone was ever as far as 16 h from UTC, and 48 h is when the next day ends. Hence whole days of margin:
_MARGIN_DAYS = 3

_Span: TypeAlias = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Opening:
    """One stretch of time in which batch may run: `opens` <= t < `closes`, both in UTC.

    Raises:
        ConfigurationError: when it is empty, or not in UTC.
    """

    opens: DateTime
    closes: DateTime

    def __post_init__(self) -> None:
        if self.opens.utcoffset() != timedelta(0) or self.closes.utcoffset() != timedelta(0):
            raise ConfigurationError(f"an opening is told in UTC, not as {self.opens!r} to {self.closes!r}")
        if self.opens >= self.closes:
            raise ConfigurationError(f"an opening must close after it opens, not at {self.closes} after {self.opens}")

    @property
    def duration_s(self) -> float:
        """How long it is, in real seconds."""
        return (self.closes - self.opens).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A daily window in civil time.

    It crosses midnight when `closes` is not after `opens`; when they are equal, it is a whole civil day. A time that
    the clocks skip that night counts as the first instant after the gap. A time that they show twice opens at its
    first and closes at its second occurrence. What a gap swallows whole does not open.

    Attributes:
        opens: what the clock shows when it opens; whole seconds.
        closes: what the clock shows when it closes; whole seconds.
        timezone: IANA name.
        days: weekdays of the evenings on which it opens, 0 for Monday.
        open_dates: evenings on which it opens, whatever their weekday.
        closed_dates: evenings on which it does not open, whatever their weekday.

    Raises:
        ConfigurationError: when the zone is unknown, a time has a zone or a fraction of a second, a day is no weekday
            or there is none, or a date is said to be both open and closed.
    """

    opens: time = time(23)
    closes: time = time(7)
    timezone: str = "Europe/London"
    days: frozenset[int] = EVERY_DAY
    open_dates: frozenset[date] = frozenset()
    closed_dates: frozenset[date] = frozenset()

    def __post_init__(self) -> None:
        for moment in (self.opens, self.closes):
            if moment.tzinfo is not None or moment.microsecond:
                raise ConfigurationError(
                    f"a window's times are whole seconds without a zone of their own, such as 23:00, not {moment}"
                )
        try:
            _zone(self.timezone)
        except (ValueError, KeyError, OSError) as error:  # a name may also be found to be a folder, or no zone's file
            raise ConfigurationError(
                f"a window's time zone {self.timezone!r} is unknown; use an IANA name such as 'Europe/London'"
            ) from error
        if not self.days:
            raise ConfigurationError("a window has no days and never opens; give weekdays, 0 (Monday) to 6 (Sunday)")
        if not self.days <= EVERY_DAY:
            raise ConfigurationError(
                f"a window's days are weekdays from 0 (Monday) to 6 (Sunday), not {sorted(self.days - EVERY_DAY)}"
            )
        for evening in self.open_dates | self.closed_dates:
            if isinstance(evening, datetime):
                raise ConfigurationError(f"a window's dates are dates such as 2026-12-25, not moments like {evening}")
        if both := self.open_dates & self.closed_dates:
            raise ConfigurationError(
                f"a window is said to be both open and closed on {', '.join(map(str, sorted(both)))}; "
                "keep each date in one of the two lists"
            )

    def opens_on(self, evening: date) -> bool:
        """Whether it opens on this date of its own zone."""
        return evening not in self.closed_dates and (evening.weekday() in self.days or evening in self.open_dates)


@dataclass(frozen=True, slots=True)
class Windows:
    """Several windows as one: openings that touch or overlap are one opening.

    Moments may be in any zone, but must have one. An opening is followed for `LOOK_DAYS` before and after what is
    asked about: one that is longer, as of a window that is always open, is told as if it began or ended there.

    Raises:
        ConfigurationError: when there is no window (None says that, where windows are optional); from every method,
            when a moment has no time zone.
    """

    windows: tuple[Window, ...]

    def __post_init__(self) -> None:
        if not self.windows:
            raise ConfigurationError("there must be at least one window; leave windows out to have none")

    def at(self, moment: datetime) -> Opening | None:
        """The opening that `moment` lies in: already at the very instant it opens, no more at that of its close."""
        start = _utc(moment)
        span = next(self._spans(start, start + timedelta.resolution), None)
        return None if span is None else _opening(span)

    def next(self, moment: datetime) -> Opening | None:
        """The first opening that opens at `moment` or later; None if none does within `LOOK_DAYS`."""
        start = _utc(moment)
        coming = _merged(self.windows, _ordinal(start, -_MARGIN_DAYS), _ordinal(start, 2 * LOOK_DAYS))
        span = next((span for span in coming if span[0] >= start), None)
        if span is None or span[0] - start > timedelta(days=LOOK_DAYS):
            return None
        return _opening(span)

    def between(self, start: datetime, end: datetime) -> list[Opening]:
        """All openings that share an instant with `start` <= t < `end`, whole, in order."""
        return [_opening(span) for span in self._spans(_utc(start), _utc(end))]

    def open_s(self, start: datetime, end: datetime) -> float:
        """How many seconds of `start` <= t < `end` are open."""
        first, last = _utc(start), _utc(end)
        spans = self._spans(first, last)
        return sum((min(closes, last) - max(opens, first)).total_seconds() for opens, closes in spans)

    def beyond(self, other: Windows, *, since: datetime) -> Opening | None:
        """The first opening that is not wholly inside one of `other`: where these windows are wider than those.

        Openings that are under way at `since`, and those that open in the `LOOK_DAYS` after it, are looked at.
        """
        start = _utc(since)
        mine = list(self._spans(start, start + timedelta(days=LOOK_DAYS)))
        if not mine:
            return None
        theirs = other._spans(mine[0][0], mine[-1][1])
        cover = next(theirs, None)
        for opens, closes in mine:
            while cover is not None and cover[1] < closes:
                cover = next(theirs, None)
            if cover is None or cover[0] > opens:
                return _opening((opens, closes))
        return None

    def _spans(self, start: datetime, end: datetime) -> Iterator[_Span]:
        if start >= end:
            return
        spans = _merged(self.windows, self._first_evening(start), _ordinal(end, LOOK_DAYS))
        for span in spans:
            if span[0] >= end:
                return
            if span[1] > start:
                yield span

    def _first_evening(self, start: datetime) -> int:
        """From which evening on to merge, so that an opening under way at `start` is told from its beginning."""
        back = 2 * _MARGIN_DAYS
        while back < LOOK_DAYS:
            first = _ordinal(start, -back)
            spans = _merged(self.windows, first, _ordinal(start, 1))
            opens = next((opens for opens, closes in spans if closes > start), start)
            if opens.toordinal() >= first + _MARGIN_DAYS:  # nothing from before `first` reaches this far
                return first
            back *= 2
        return _ordinal(start, -LOOK_DAYS)


def _merged(windows: tuple[Window, ...], first: int, last: int) -> Iterator[_Span]:
    """The openings of the evenings from `first` to `last` (ordinals), joined where they touch; lazy."""
    spans = heapq.merge(*(_openings_of(window, first, last) for window in windows))
    current = next(spans, None)
    if current is None:
        return
    opens, closes = current
    for span in spans:
        if span[0] > closes:
            yield opens, closes
            opens, closes = span
        else:
            closes = max(closes, span[1])
    yield opens, closes


def _openings_of(window: Window, first: int, last: int) -> Iterator[_Span]:
    zone = _zone(window.timezone)
    for ordinal in range(first, last + 1):
        evening = date.fromordinal(ordinal)
        if not window.opens_on(evening):
            continue
        morning = evening if window.closes > window.opens else date.fromordinal(ordinal + 1)
        opens, _ = _occurrences(datetime.combine(evening, window.opens), zone)
        _, closes = _occurrences(datetime.combine(morning, window.closes), zone)
        if opens < closes:
            yield opens, closes


def _occurrences(wall: datetime, zone: pendulum.Timezone) -> _Span:
    """The first and the last instant at which the clocks of `zone` show `wall`: nearly always the same.

    Where they skip it, it is the first instant after the gap.
    """
    first = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    last = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if first <= last:
        return first, last
    # In a gap the two are by the offset before and the one after (PEP 495), and the clocks change between them.
    before, gap_s = last, int((first - last).total_seconds())

    def is_past(second: int) -> bool:
        return (before + timedelta(seconds=second)).astimezone(zone).replace(tzinfo=None) >= wall

    change = before + timedelta(seconds=bisect_left(range(gap_s), True, key=is_past))
    return change, change


@cache
def _zone(name: str) -> pendulum.Timezone:
    """Read once and kept: windows are asked on the event loop, where no file must be read."""
    return pendulum.Timezone(name)


def _ordinal(moment: datetime, days: int) -> int:
    """The ordinal of the UTC date `days` later, away from both ends of the calendar, where arithmetic overflows."""
    margin = _MARGIN_DAYS
    return min(max(moment.toordinal() + days, date.min.toordinal() + margin), date.max.toordinal() - margin)


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset() is None:
        raise ConfigurationError(f"the moment {moment} has no time zone; give it one, such as pendulum.UTC")
    there = moment.astimezone(UTC)
    return datetime.combine(there.date(), there.time(), UTC)  # of the stdlib's own class, for speed


def _opening(span: _Span) -> Opening:
    opens, closes = span
    return Opening(pendulum.instance(opens), pendulum.instance(closes))
