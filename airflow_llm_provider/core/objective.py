"""What real-time was promised, and whether it is kept: objectives, readings, verdicts, and how long they have stood.

Owns the text form of objectives, the judgement of a reading against its threshold, and the hysteresis. Does not know
where latency is read (`endpoint.latency`), nor what follows from a verdict (`core.release`).

    every bound well below its threshold ──► healthy      (no real-time request at all is healthy, too)
    not well below, or nobody can say ─────► at risk      keeps what runs, releases nothing that waits
    the lower bound above the threshold ───► violated
    could not be read ─────────────────────► unknown
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from math import inf, isfinite
from typing import TYPE_CHECKING, Final

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AT_RISK_SHARE: Final = 0.8
"""A latency of this share of its threshold is at risk: batch that starts there would push it over."""

_EXAMPLE = "write for example: ttft p95 < 2 s; itl p99 < 100 ms"
_FORM = re.compile(r"(?P<metric>\w+)\s+p(?P<percent>[\d.]+)\s*<\s*(?P<number>[\d.]+)\s*(?P<unit>\w+)")
_UNITS: Final = {"s": 1, "ms": 1000}


class Metric(StrEnum):
    """The latencies that can be promised."""

    TTFT = "ttft"  # time to the first token, waiting in the server's queue included
    ITL = "itl"  # inter-token latency: between two tokens of one answer
    E2E = "e2e"  # the whole request


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One promise: a share of requests is faster than a threshold.

    Attributes:
        metric: which latency.
        quantile: the share, above 0 and below 1; 0.95 is p95.
        threshold_s: seconds, above 0.

    Raises:
        ConfigurationError: when a value is invalid.
    """

    metric: Metric
    quantile: float
    threshold_s: float

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ConfigurationError(
                f"The objective's quantile must be above p0 and below p100, not p{_percent(self.quantile)}; {_EXAMPLE}"
            )
        if not (isfinite(self.threshold_s) and self.threshold_s > 0):
            raise ConfigurationError(
                f"The objective's threshold must be above 0 s, not {self.threshold_s} s; {_EXAMPLE}"
            )

    @property
    def name(self) -> str:
        """The promise without its threshold, such as ``ttft p95``."""
        return f"{self.metric} p{_percent(self.quantile)}"

    def __str__(self) -> str:
        seconds = Decimal(repr(self.threshold_s))
        number, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
        return f"{self.name} < {_plain(number)} {unit}"


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Read objectives such as ``ttft p95 < 2 s; itl p99 < 100 ms``, in the order written.

    Raises:
        ConfigurationError: nothing is written, a part is none, or a metric's quantile is promised twice.
    """
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if not parts:
        raise ConfigurationError(f"No objective is written; {_EXAMPLE}")
    objectives = tuple(_parse(part) for part in parts)
    names = [objective.name for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"{name} is promised twice; keep one of the two")
    return objectives


def format_objectives(objectives: Sequence[Objective]) -> str:
    """The text that `parse_objectives` reads back to the same objectives."""
    return "; ".join(str(objective) for objective in objectives)


class Health(StrEnum):
    """How real-time does, from best to worst."""

    HEALTHY = "healthy"
    AT_RISK = "at_risk"
    UNKNOWN = "unknown"
    VIOLATED = "violated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A quantile that was read, as precisely as its source knows it.

    Attributes:
        lower_s: the quantile is at least this.
        upper_s: the quantile is at most this; infinite where nothing bounds it.
        samples: real-time requests behind it, at least; None where the source does not tell.
    """

    lower_s: float
    upper_s: float
    samples: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lower_s <= self.upper_s:
            raise ValueError(f"no bounds of a latency: {self.lower_s} to {self.upper_s} s")


@dataclass(frozen=True, slots=True)
class Idle:
    """Read successfully, and there was no real-time request."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Could not be read, which is never "nothing there".

    Attributes:
        reason: what went wrong and, where it helps, what to do.
    """

    reason: str


Reading = Measured | Idle | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How real-time does at one look.

    Attributes:
        health: the worst over all objectives.
        reason: the readings that make it so.
    """

    health: Health
    reason: str


def judge(objectives: Sequence[Objective], readings: Mapping[Objective, Reading]) -> Verdict:
    """The worst of all objectives, each by its own reading; one without a reading is unknown."""
    verdicts = [_judge_one(objective, readings.get(objective)) for objective in objectives]
    if not verdicts:
        return Verdict(health=Health.HEALTHY, reason="no objective is set")
    order = list(Health)
    worst = max((verdict.health for verdict in verdicts), key=order.index)
    reasons = dict.fromkeys(verdict.reason for verdict in verdicts if verdict.health is worst)
    return Verdict(health=worst, reason="; ".join(reasons))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How real-time does, and for how long.

    Attributes:
        health: as last observed.
        reason: as last observed.
        since: since when this health has lasted, UTC.
        recovered: healthy, and either nothing bad was ever seen or it has been healthy for long enough.
        unknown_since: since when an unreadable latency has kept batch waiting, UTC; short spells of health in
            between do not end it, so that a metric that comes and goes is noticed, too. None while nothing does.
    """

    health: Health
    reason: str
    since: datetime
    recovered: bool
    unknown_since: datetime | None


class HealthTrack:
    """Verdicts over time. Never forgets that something bad was seen, so recovery is always waited for after it.

    Args:
        healthy_for_s: how long it must be healthy without interruption after it was violated or unknown.
    """

    def __init__(self, healthy_for_s: float) -> None:
        self._healthy_for_s = healthy_for_s
        self._health: Health | None = None
        self._since: datetime | None = None
        self._unknown_since: datetime | None = None
        self._bad_seen = False

    def observe(self, verdict: Verdict, *, now: datetime) -> Standing:
        """Take in a verdict.

        Args:
            verdict: as just judged.
            now: aware; a clock that was set back restarts the time of the present health.

        Raises:
            ValueError: `now` has no time zone.
        """
        if now.tzinfo is None:
            raise ValueError("`now` must be aware: a local time cannot be compared across a clock change")
        now = now.astimezone(UTC)
        if self._since is None or verdict.health is not self._health or now < self._since:
            self._health, self._since = verdict.health, now
        self._bad_seen |= verdict.health in (Health.VIOLATED, Health.UNKNOWN)
        long_enough = (now - self._since).total_seconds() >= self._healthy_for_s
        recovered = verdict.health is Health.HEALTHY and (not self._bad_seen or long_enough)
        if verdict.health is Health.UNKNOWN:
            self._unknown_since = min(self._unknown_since or now, now)
        elif recovered or verdict.health is not Health.HEALTHY:
            self._unknown_since = None
        return Standing(
            health=verdict.health,
            reason=verdict.reason,
            since=self._since,
            recovered=recovered,
            unknown_since=self._unknown_since,
        )


def _judge_one(objective: Objective, reading: Reading | None) -> Verdict:
    name = objective.name
    match reading:
        case None:
            return Verdict(health=Health.UNKNOWN, reason=f"{name} was not read")
        case Failed(reason):
            return Verdict(health=Health.UNKNOWN, reason=reason)
        case Idle():
            return Verdict(health=Health.HEALTHY, reason="no real-time request in the sampling period")
        case Measured(lower_s=lower_s, upper_s=upper_s):
            words = f"{name} is {_span(reading)}, and {seconds(objective.threshold_s)} was promised"
            if lower_s > objective.threshold_s:
                return Verdict(health=Health.VIOLATED, reason=words)
            if upper_s < objective.threshold_s * AT_RISK_SHARE:
                return Verdict(health=Health.HEALTHY, reason=words)
            return Verdict(health=Health.AT_RISK, reason=words)


def _span(reading: Measured) -> str:
    lower_s, upper_s = reading.lower_s, reading.upper_s
    known = "" if reading.samples is None else f" ({reading.samples} requests)"
    if lower_s == inf:
        return f"infinite: nothing was answered{known}"
    if upper_s == inf:
        return f"{seconds(lower_s)} or more{known}"
    if lower_s == upper_s:
        return f"{seconds(lower_s)}{known}"
    return f"between {seconds(lower_s)} and {seconds(upper_s)}{known}"


def seconds(value_s: float) -> str:
    """A latency for people: ``2.5 s``, ``40 ms``."""
    return f"{value_s:.3g} s" if value_s >= 1 or value_s == 0 else f"{value_s * 1000:.3g} ms"


def _parse(part: str) -> Objective:
    found = _FORM.fullmatch(part)
    if found is None:
        raise ConfigurationError(f"{part!r} is no objective; {_EXAMPLE}")
    metric, unit = found["metric"].lower(), found["unit"].lower()
    if metric not in list(Metric):
        raise ConfigurationError(f"{part!r}: {metric!r} is none of {', '.join(Metric)}; {_EXAMPLE}")
    if unit not in _UNITS:
        raise ConfigurationError(f"{part!r}: the unit {unit!r} is none of {', '.join(_UNITS)}; {_EXAMPLE}")
    try:
        quantile = float(Decimal(found["percent"]) / 100)
        threshold_s = float(Decimal(found["number"]) / _UNITS[unit])
    except InvalidOperation:
        raise ConfigurationError(f"{part!r} has a number that is none; {_EXAMPLE}") from None
    return Objective(metric=Metric(metric), quantile=quantile, threshold_s=threshold_s)


def _percent(quantile: float) -> str:
    return _plain(Decimal(repr(quantile)) * 100)


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
