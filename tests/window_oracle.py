"""What `core.window` must answer, found out by watching the clock on the wall, one minute after another.

Slow and simple on purpose, with the stdlib's zoneinfo and nothing of the package. A window of one evening is open at a
minute when the wall clock has already shown its opening time or a later one, and shows a time before its closing time
or has yet to show one not after it. Nothing here knows of gaps, of times shown twice, or of transitions.

Good for whole-minute windows, and for years in which zones were whole minutes from UTC (after 1972).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
MARGIN = timedelta(hours=25)  # watched before and after: no clock was ever put back by more than a day


@dataclass(frozen=True)
class Rule:
    opens: time
    closes: time
    timezone: str
    days: frozenset[int]
    open_dates: frozenset[date]
    closed_dates: frozenset[date]

    def named(self, evening: date) -> bool:
        if evening in self.closed_dates:
            return False
        return evening in self.open_dates or evening.weekday() in self.days


def open_minutes(rules: list[Rule], start: datetime, end: datetime) -> list[bool]:
    """For each minute from `start` to before `end` (whole minutes, UTC): whether one of the windows is open."""
    answers = [False] * int((end - start) / MINUTE)
    for rule in rules:
        for number, is_open in enumerate(_one(rule, start, end)):
            answers[number] |= is_open
    return answers


def runs(minutes: list[bool], start: datetime) -> list[tuple[datetime, datetime]]:
    """The stretches of open minutes."""
    found: list[tuple[datetime, datetime]] = []
    begin: datetime | None = None
    for number, is_open in enumerate([*minutes, False]):
        if is_open and begin is None:
            begin = start + number * MINUTE
        if not is_open and begin is not None:
            found.append((begin, start + number * MINUTE))
            begin = None
    return found


def _one(rule: Rule, start: datetime, end: datetime) -> list[bool]:
    zone = ZoneInfo(rule.timezone)
    count = int((end - start + 2 * MARGIN) / MINUTE)
    wall = [(start - MARGIN + number * MINUTE).astimezone(zone).replace(tzinfo=None) for number in range(count)]
    shown, to_come = list(wall), list(wall)  # the latest time up to each minute, the earliest from it on
    for number in range(1, count):
        shown[number] = max(wall[number], shown[number - 1])
        to_come[-1 - number] = min(wall[-1 - number], to_come[-number])
    minutes = range(int(MARGIN / MINUTE), count - int(MARGIN / MINUTE))
    return [_is_open(rule, shown[number], to_come[number], to_come[number + 1]) for number in minutes]


def _is_open(rule: Rule, shown: datetime, to_come: datetime, to_come_later: datetime) -> bool:
    evening = to_come.date() - timedelta(days=1)
    while evening <= shown.date():
        if rule.named(evening):
            opening = datetime.combine(evening, rule.opens)
            closing = datetime.combine(evening, rule.closes)
            if closing <= opening:
                closing += timedelta(days=1)
            if shown >= opening and (to_come < closing or to_come_later <= closing):
                return True
        evening += timedelta(days=1)
    return False
