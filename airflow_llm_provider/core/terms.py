"""What a DAG asks for meets what the platform promised real-time: the terms that a run is released under.

Owns the rule that the connection's values are ceilings: a DAG may ask for less than the connection allows, and is
refused what is more. Does not decide whether batch may run at a given moment (`core.release`).

The same function serves the operator, the trigger and the sensors: what waits and what runs obey the same terms.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from airflow_llm_provider.core.control_law import FIXED, ControlLaw
from airflow_llm_provider.core.effective import Effective
from airflow_llm_provider.core.limits import limit_in_force
from airflow_llm_provider.core.release import Terms
from airflow_llm_provider.core.window import Window, Windows
from airflow_llm_provider.core.window_text import format_windows, parse_windows
from airflow_llm_provider.core.workload import (
    POLICIES,
    Placement,
    Policy,
    Workload,
    batch_workload,
    implied_placement,
    placement_of,
)
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.core.window import Opening

DEFAULT_WINDOWS = Windows((Window(),))
"""23:00-07:00 Europe/London, of a time-shifted placement whose connection names no window."""

OnUnknown = Literal["hold", "cap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What the platform says on the connection; all of it is a ceiling or, for `headroom`, a floor.

    Attributes:
        placement: whose GPUs these are; None: follows from window and objective.
        windows: when batch may run; None: follows from the placement.
        servers: how many servers there are.
        slots: ``max_num_seqs`` of each.
        max_in_flight: requests in flight at most, per task.
        headroom: sequences of each server always left free for real-time, and no fewer while its load can't be read;
            None: none, and the table's.
        priority: vLLM's, the most urgent that batch may ask for; None: the table's.
        early_for_deadline: whether a burst's deadline may open the window early.
        hold: why batch is held now; None while the hold switch is off.
        objective: what real-time was promised, as text; None: nothing.
        on_unknown: see `Terms`.
        unknown_limit: see `Terms`.
        sampling_period_s: how far back latency looks; see `Terms.unknown_grace_s`.
    """

    placement: Placement | None = None
    windows: Windows | None = None
    servers: int = 1
    slots: int | None = None
    max_in_flight: int | None = None
    headroom: int | None = None
    priority: int | None = None
    early_for_deadline: bool = False
    hold: str | None = None
    objective: str | None = None
    on_unknown: OnUnknown = "hold"
    unknown_limit: int = 1
    sampling_period_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the DAG and the provider configuration ask for, in JSON values: a trigger keeps it.

    Attributes:
        workload: `Workload`.
        placement: `Placement`; None: the connection's.
        window: text as `parse_windows` reads it; None: the connection's, else the placement's.
        deadline: when the results are wanted, ISO 8601; None: whenever.
        max_in_flight: requests in flight at most; None: what the connection allows.
        pool_in_flight: so many more the task's pool slots stand for; None: pool slots cap nothing.
        default_in_flight: where nobody says; None: neither does the provider configuration.
        default_set_by: who set that.
        headroom: as in `Promise`; None: the connection's.
        priority: vLLM's; None: the table's.
        gates: what is obeyed beside the hold switch. A task obeys both; a sensor may wait for one of them.
    """

    workload: str = Workload.SCHEDULED_BATCH
    placement: str | None = None
    window: str | None = None
    deadline: str | None = None
    max_in_flight: int | None = None
    pool_in_flight: int | None = None
    default_in_flight: int | None = None
    default_set_by: str = "default"
    headroom: int | None = None
    priority: int | None = None
    gates: tuple[str, ...] = ("window", "objective")

    def as_dict(self) -> dict[str, Any]:
        """What a trigger keeps."""
        return {name: str(value) if name == "workload" else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Asked:
        """The inverse of `as_dict`; of what an older or newer version of this package kept, it takes what it knows."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        return cls(**{**values, "gates": tuple(values.get("gates", ("window", "objective")))})


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds for a run.

    Attributes:
        terms: what it is released under.
        priority: vLLM's; None: not sent.
        outage_patience_s: the workload's.
        control: what the limit on each server learns from its load.
        advice: what to set on the connection, for batch to do what its placement promises; None: nothing is amiss.
        values: everything that holds and who set it, for the log and the manifest.
    """

    terms: Terms
    priority: int | None
    outage_patience_s: float
    control: ControlLaw
    advice: str | None
    values: tuple[Effective[Any], ...]


def agree(asked: Asked, promise: Promise, *, connection: str, now: datetime) -> Agreement:
    """What holds, of what was asked and what was promised.

    Args:
        asked: the DAG's side.
        promise: the platform's.
        connection: the id of the connection that carries the promise, for words.
        now: aware; windows are compared from here on.

    Raises:
        ConfigurationError: the DAG asks for more than the connection allows, a word is unknown, or a text unreadable.
    """
    workload = batch_workload(asked.workload)
    placement = _placement(asked, promise, connection)
    policy = POLICIES[workload, placement.value]
    windows = _windows(asked, promise, policy, now, connection)
    deadline = _deadline(asked, workload)
    headroom = _headroom(asked, promise, connection)
    blind = _blind(asked, promise, policy, headroom)
    control = _control(promise, policy, headroom.value, blind.value)
    priority = _priority(asked, promise, policy, connection)
    limit = limit_in_force(
        asked=asked.max_in_flight,
        connection=connection,
        ceiling=promise.max_in_flight,
        slots=promise.slots,
        headroom=headroom.value,
        law=control,
        servers=promise.servers,
        pool_in_flight=asked.pool_in_flight,
        default=None if asked.default_in_flight is None else (asked.default_in_flight, asked.default_set_by),
    )
    gated = policy.gated and promise.objective is not None and "objective" in asked.gates
    terms = Terms(
        limit=limit.value,
        limit_each=_limit_each(promise, control, headroom.value),
        windows=windows.value if "window" in asked.gates else None,
        deadline=deadline,
        deadline_opens=policy.deadline_opens and promise.early_for_deadline,
        gated=gated,
        on_unknown=promise.on_unknown if "window" in asked.gates else "hold",  # a sensor caps nothing that follows it
        unknown_limit=promise.unknown_limit,
        unknown_grace_s=promise.sampling_period_s,
    )
    shown = Effective("window", format_windows(windows.value) if windows.value else None, windows.set_by)
    objective_by = f"connection {connection}" if promise.objective else "default"
    objective = Effective("objective", promise.objective if gated else None, objective_by)
    values = (
        Effective("workload", str(workload), "default" if workload is Workload.SCHEDULED_BATCH else "DAG"),
        Effective("placement", str(placement.value), placement.set_by),
        shown,
        Effective("deadline", asked.deadline, "DAG" if asked.deadline else "default"),
        objective,
        limit,
        Effective("limit_law", control.kind, "placement" if control.kind == policy.law else f"connection {connection}"),
        headroom,
        blind,
        priority,
    )
    advice = None
    if control.kind != policy.law:
        advice = (
            f"Connection {connection!r} says no slots (vLLM's --max-num-seqs), so batch can't tell how many real-time "
            f"leaves free: it has at most {limit.value} in flight, whatever real-time needs, and keeps no headroom. "
            "Set slots on the connection"
        )
    return Agreement(terms, priority.value, policy.outage_patience_s, control, advice, values)


def _placement(asked: Asked, promise: Promise, connection: str) -> Effective[Placement]:
    """The placement in force: the connection's, or a stricter one that the DAG asks for."""
    by = f"connection {connection}"
    if promise.placement is not None:
        ceiling = Effective("placement", promise.placement, by)
        if promise.objective is not None and promise.placement is Placement.DEDICATED:
            raise ConfigurationError(
                f"Connection {connection!r} says what real-time was promised (objective), and that its GPUs are "
                "batch's own (placement dedicated), where no objective is obeyed. Name placement shared or "
                "time-shifted, or no objective"
            )
    else:
        implied = implied_placement(window=promise.windows is not None, objective=promise.objective is not None)
        follows = implied is not Placement.DEDICATED
        ceiling = Effective("placement", implied, f"{by} (it names a window or an objective)" if follows else "default")
    if asked.placement is None:
        return ceiling
    placement = placement_of(asked.placement)
    if ceiling.value.stricter_than(placement):
        raise _more_than_allowed("placement", str(placement), str(ceiling.value), connection)
    return Effective("placement", placement, "DAG")


def _windows(
    asked: Asked, promise: Promise, policy: Policy, now: datetime, connection: str
) -> Effective[Windows | None]:
    ceiling = promise.windows
    if ceiling is None and promise.placement is Placement.TIME_SHIFTED:
        ceiling = DEFAULT_WINDOWS
    if asked.window is not None:
        wanted = parse_windows(asked.window)
        if ceiling is not None and (beyond := _beyond(wanted, ceiling, now.astimezone(UTC).date())) is not None:
            night = f"{asked.window!r}, which is open from {beyond.opens} to {beyond.closes}"
            raise _more_than_allowed("window", night, repr(format_windows(ceiling)), connection)
        return Effective("window", wanted, "DAG")
    if promise.windows is None and policy.default_window:
        return Effective("window", DEFAULT_WINDOWS, f"placement {Placement.TIME_SHIFTED}")
    return Effective("window", promise.windows, f"connection {connection}" if promise.windows else "default")


@lru_cache(maxsize=256)
def _beyond(wanted: Windows, allowed: Windows, day: date) -> Opening | None:
    """Where `wanted` is wider than `allowed`; kept for the day, since every waiting task asks every few seconds."""
    return wanted.beyond(allowed, since=datetime(day.year, day.month, day.day, tzinfo=UTC))


def _deadline(asked: Asked, workload: Workload) -> datetime | None:
    if asked.deadline is None:
        return None
    if workload is not Workload.BURST_BATCH:
        raise ConfigurationError(f"deadline is for workload {str(Workload.BURST_BATCH)!r}; this is {str(workload)!r}")
    try:
        deadline = datetime.fromisoformat(asked.deadline)
        if deadline.tzinfo is not None:
            return deadline.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"deadline is {asked.deadline!r}; write a moment in ISO 8601 with its zone, like 2026-11-24T18:00:00+00:00"
        ) from error
    raise ConfigurationError(f"deadline {asked.deadline!r} has no time zone; write one like 2026-11-24T18:00:00+00:00")


def _headroom(asked: Asked, promise: Promise, connection: str) -> Effective[int]:
    """What always stays free. What real-time needs beyond is learned."""
    least = promise.headroom or 0
    if asked.headroom is not None:
        if asked.headroom < 0:
            raise ConfigurationError(f"headroom must be 0 or more sequences, not {asked.headroom}")
        if asked.headroom < least:
            raise _more_than_allowed("headroom", str(asked.headroom), f"at least {least}", connection)
        return Effective("headroom", asked.headroom, "DAG")
    return Effective("headroom", least, "default" if promise.headroom is None else f"connection {connection}")


def _blind(asked: Asked, promise: Promise, policy: Policy, headroom: Effective[int]) -> Effective[int | None]:
    """What stays free while the load can't be read: whoever says a headroom means then, too."""
    if promise.slots is None or policy.law != "headroom":
        return Effective("headroom_unread", None, "default")
    if asked.headroom is None and promise.headroom is None:
        return Effective("headroom_unread", policy.headroom_of(promise.slots), "workload and placement")
    return Effective("headroom_unread", headroom.value, headroom.set_by)


def _control(promise: Promise, policy: Policy, floor: int, blind: int | None) -> ControlLaw:
    if policy.law == "headroom" and promise.slots is not None and floor < promise.slots:
        return ControlLaw(kind="headroom", slots=promise.slots, floor=floor, blind=blind)
    return ControlLaw(kind="adaptive") if policy.law == "adaptive" else FIXED


def _limit_each(promise: Promise, control: ControlLaw, headroom: int) -> int | None:
    return promise.slots - headroom if promise.slots is not None and headroom else control.most


def _priority(asked: Asked, promise: Promise, policy: Policy, connection: str) -> Effective[int | None]:
    most_urgent = promise.priority
    if asked.priority is not None:
        floor = most_urgent if most_urgent is not None else policy.priority
        if floor is not None and asked.priority < floor:
            raise _more_than_allowed("priority", f"{asked.priority} (lower runs earlier)", f"{floor}", connection)
        return Effective("priority", asked.priority, "DAG")
    if most_urgent is not None and (policy.priority is None or most_urgent > policy.priority):
        return Effective("priority", most_urgent, f"connection {connection}")
    return Effective("priority", policy.priority, "workload and placement")


def _more_than_allowed(name: str, asked: str, allowed: str, connection: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name}: the DAG asks for {asked}, and connection {connection!r} allows {allowed}. A DAG may ask for "
        f"less than the platform allows, not for more: leave {name} out, or have the connection changed"
    )
