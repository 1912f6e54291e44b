"""The one release brain: may batch work run at this moment, and if not, why and when to look again?

Owns the order in which hold switch, window and objective are asked, and what a hold means for requests in flight. The
operator asks it between rows, the trigger while a task is deferred, the sensors instead of a task: nowhere else are
these things combined. Does not know how any of them was found out, nor what is sent.

    switch set ────────────► hold, in-flight rows are yielded
    window closed ─────────► hold until it opens, in-flight rows are yielded    (unless a deadline opens it early)
    latency violated ──────► hold, in-flight rows are yielded
    latency unknown ───────► hold, in-flight rows finish for a while and are then yielded   (or a small limit: `cap`)
    latency at risk ───────► what runs goes on, what waits goes on waiting
    otherwise ─────────────► release, until the window closes
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from airflow_llm_provider.core.objective import Health
from airflow_llm_provider.core.progress import duration
from airflow_llm_provider.core.window import LOOK_DAYS

if TYPE_CHECKING:
    from airflow_llm_provider.core.objective import Standing
    from airflow_llm_provider.core.window import Opening, Windows

ESTIMATE_MARGIN = 1.25
"""What is left is taken to need a quarter more time than the pace so far says, where a deadline hangs on it."""

SOON = timedelta(days=3)

NO_END_IN_SIGHT = timedelta(days=LOOK_DAYS - 1)
"""A window that is open for as long as windows look ahead has no close to drain before."""


class Cause(StrEnum):
    """What holds batch work."""

    SWITCH = "switch"  # a person said so, on the connection
    WINDOW = "window"  # it is closed
    LOOKING = "looking"  # the first look at real-time's latency is under way
    OBJECTIVE = "objective"  # real-time is not well, or not well for long enough yet
    UNKNOWN = "unknown"  # nobody knows how real-time is
    SHIFT = "shift"  # the worker is given back for a moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Batch may run, on the server whose standing was asked for.

    Attributes:
        limit: requests in flight there at most.
        until: when that ends, UTC; None while no window bounds it. Whatever is in flight then is yielded.
        reason: for the log.
        capped: nobody knows that real-time is well, so it is less than the terms allow. It does not count as running:
            what is at risk next is held.
    """

    limit: int
    until: datetime | None
    reason: str
    capped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Batch may not run.

    Attributes:
        cause: what holds it.
        reason: for the log.
        until: the next moment at which looking again can help, UTC; None where nobody knows it beforehand.
        yields: whether requests in flight are given up now; otherwise they may finish.
    """

    cause: Cause
    reason: str
    until: datetime | None = None
    yields: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the DAG asked for and the platform allows, for one run.

    Attributes:
        limit: requests in flight at most, over all servers.
        limit_each: the same for each server; None: only `limit` counts.
        windows: when batch may run; None: always.
        deadline: when the results are wanted; None: whenever.
        deadline_opens: whether the deadline may open the window early.
        gated: whether an objective is obeyed.
        on_unknown: what a latency that can't be read leads to: ``hold``, or ``cap`` to `unknown_limit` in flight.
        unknown_limit: see `on_unknown`.
        unknown_grace_s: how long requests in flight may go on finishing after the latency became unknown.
    """

    limit: int
    limit_each: int | None = None
    windows: Windows | None = None
    deadline: datetime | None = None
    deadline_opens: bool = False
    gated: bool = False
    on_unknown: Literal["hold", "cap"] = "hold"
    unknown_limit: int = 1
    unknown_grace_s: float = 30.0

    @property
    def limit_here(self) -> int:
        """Requests in flight at most on one server."""
        return self.limit if self.limit_each is None else min(self.limit, self.limit_each)


def decide(
    now: datetime,
    terms: Terms,
    *,
    switch: str | None,
    standing: Standing | None,
    running: bool,
    remaining_s: float | None = None,
) -> Release | Hold:
    """Whether batch may run at `now`.

    Args:
        now: aware.
        terms: what was agreed on.
        switch: the hold switch's reason; None while it is off.
        standing: how real-time does; None before the first look. Not asked where `terms` are not gated.
        running: whether batch has been released already, and not capped: what is at risk keeps it, and does not start
            it.
        remaining_s: how long the rest of the run would take at the pace measured; None before there is one.
    """
    if switch is not None:
        return Hold(cause=Cause.SWITCH, reason=f"the connection's hold switch is set: {switch}")
    until: datetime | None = None
    why = "no window is set"
    if terms.windows is not None:
        opening = terms.windows.at(now)
        until, why = (opening.closes, "the window is open") if opening else (None, "")
        if until is not None and until >= now + NO_END_IN_SIGHT:
            until, why = None, "the window is always open"
        if opens_early(now, terms, opening=opening, remaining_s=remaining_s):
            ends = [moment for moment in (until, terms.deadline) if moment is not None]
            until, why = max(ends), f"the deadline, {_utc(terms.deadline)}, would be missed otherwise"
        elif opening is None:
            return _closed(now, terms.windows)
    if not terms.gated:
        return Release(limit=terms.limit_here, until=until, reason=f"{why}; no objective is set")
    return _by_health(now, terms, standing, running=running, until=until, why=why)


def opens_early(now: datetime, terms: Terms, *, opening: Opening | None, remaining_s: float | None) -> bool:
    """Whether the run would miss its deadline inside the window alone, and may run outside it therefore.

    A deadline that is past opens nothing, nor does one beyond what windows look ahead. Before any pace is known, only
    a deadline before the next opening does.
    """
    if terms.windows is None or terms.deadline is None or not terms.deadline_opens or terms.deadline <= now:
        return False
    if remaining_s is None:
        upcoming = terms.windows.next(now)
        return opening is None and (upcoming is None or upcoming.opens >= terms.deadline)
    needed_s = remaining_s * ESTIMATE_MARGIN
    for horizon in SOON, timedelta(days=LOOK_DAYS):  # asked every second: most runs fit into the next nights
        if terms.windows.open_s(now, min(terms.deadline, now + horizon)) >= needed_s:
            return False
    return terms.deadline <= now + timedelta(days=LOOK_DAYS)


def _closed(now: datetime, windows: Windows) -> Hold:
    upcoming = windows.next(now)
    if upcoming is None:
        return Hold(cause=Cause.WINDOW, reason="the window is closed and never opens again")
    opens = upcoming.opens
    wait = duration(opens.timestamp() - now.timestamp())
    return Hold(cause=Cause.WINDOW, reason=f"the window is closed until {_utc(opens)}, for {wait}", until=opens)


def _by_health(
    now: datetime, terms: Terms, standing: Standing | None, *, running: bool, until: datetime | None, why: str
) -> Release | Hold:
    if standing is None:
        return Hold(cause=Cause.LOOKING, reason="the first look at real-time latency is under way")
    words = str(standing.health).replace("_", " ")
    release = Release(limit=terms.limit_here, until=until, reason=f"{why}; real-time is {words}: {standing.reason}")
    capped = replace(release, limit=min(terms.limit_here, terms.unknown_limit), capped=True)
    match standing.health:
        case Health.HEALTHY if standing.recovered or running:
            return release
        case Health.HEALTHY if terms.on_unknown == "cap" and standing.unknown_since is not None:
            return capped  # it was unknown a moment ago, and capped then, too
        case Health.HEALTHY:
            since = _utc(standing.since)
            reason = f"real-time is healthy again since {since}, not yet long enough: {standing.reason}"
            return Hold(cause=Cause.OBJECTIVE, reason=reason)
        case Health.AT_RISK if running:
            return release
        case Health.UNKNOWN if terms.on_unknown == "cap":
            return capped
        case Health.UNKNOWN:
            grace_over = standing.since <= now - timedelta(seconds=terms.unknown_grace_s)
            reason = f"real-time latency is unknown: {standing.reason}"
            return Hold(cause=Cause.UNKNOWN, reason=reason, yields=grace_over)
        case _:
            return Hold(cause=Cause.OBJECTIVE, reason=f"real-time's objective is {words}: {standing.reason}")


def _utc(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
