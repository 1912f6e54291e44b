"""Where a task waits its turn in Airflow: its pool, slots and weight, from workload, provider configuration and DAG.

Owns the order in which they are asked, for plain and for mapped tasks: Airflow does not call ``__init__`` for the
latter when the DAG is parsed, so what the scheduler is to see must stand in what ``.partial()`` returns. Does not know
what pools there are: a task cannot ask (``airflow llm-batch check-pools`` can). Nor what the connection allows, which
is read when the task runs.

Provider configuration is read here, when a DAG is parsed; nothing is read on import.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.core.workload import POLICIES, Placement, batch_workload, placement_of
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.operators.effective import configured

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import DAG, BaseOperator, TaskGroup

DEFAULT_POOL = "default_pool"
WEIGHT_RULE = "absolute"

_PLACING = ("workload", "placement", "pool", "pool_slots", "priority_weight", "weight_rule")


def place(
    *,
    workload: str,
    placement: str | None,
    pool: str | None,
    pool_slots: int,
    priority_weight: int | None,
    weight_rule: Any,
) -> dict[str, Any]:
    """`BaseOperator`'s arguments for a task of this workload; None stands for what follows from the workload.

    A pool is used only where the DAG or the provider configuration names it: a task in a missing one never starts.

    Raises:
        ConfigurationError: when a word is unknown, the workload is real-time's, or a number is impossible.
    """
    policy = POLICIES[batch_workload(workload), placement_of(placement or Placement.DEDICATED)]
    for name, value, least in (("pool_slots", pool_slots, 1), ("priority_weight", priority_weight, None)):
        if value is None and least is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
            raise ConfigurationError(f"{name} must be a whole number{' of 1 or more' if least else ''}, not {value!r}")
    if pool is None and policy.pool_option is not None:
        pool, _ = configured(policy.pool_option, str)
    return {
        "pool": pool or DEFAULT_POOL,
        "pool_slots": pool_slots,
        "priority_weight": policy.priority_weight if priority_weight is None else priority_weight,
        "weight_rule": WEIGHT_RULE if weight_rule is None else weight_rule,
    }


def place_mapped(
    operator_class: type[BaseOperator],
    kwargs: dict[str, Any],
    *,
    given: Mapping[str, Any],
    dag: DAG | None,
    task_group: TaskGroup | None,
) -> None:
    """Put into `kwargs`, which become a mapped task's, what ``__init__`` would have put into a plain one.

    The workload is put there too, so that Airflow refuses to expand over it: there is one pool for all map indexes.

    Args:
        operator_class: whose ``__init__`` declares the defaults; a subclass may declare others.
        kwargs: the mapped task's arguments, changed in place.
        given: what ``.partial()`` was called with, ``default_args`` included.
        dag: the task's DAG, whose ``default_args`` count.
        task_group: the task's group, whose ``default_args`` beat the DAG's.

    Raises:
        ConfigurationError: as `place`.
    """
    said = {
        **(dag.default_args if dag is not None else {}),
        **((task_group.default_args or {}) if dag is not None and task_group is not None else {}),
        **(given.get("default_args") or {}),
        **given,
    }
    values = {name: said[name] if name in said else _declared(operator_class, name) for name in _PLACING}
    kwargs.update(place(**values), workload=str(values["workload"]))
    if "retries" not in said:
        kwargs["retries"] = _declared(operator_class, "retries")


def pool_in_flight(pool_slots: int) -> int | None:
    """Requests in flight that so many pool slots stand for; None where slots do not cap them.

    Raises:
        ConfigurationError: when the provider configuration's number is impossible.
    """
    requests_per_slot, set_by = configured("requests_per_slot", int)
    if requests_per_slot is None:
        return None
    if requests_per_slot < 1:
        raise ConfigurationError(f"{set_by} must be 1 or more, not {requests_per_slot}; leave it empty for no cap")
    return pool_slots * requests_per_slot


def _declared(operator_class: type[BaseOperator], name: str) -> Any:
    """The default of `name` in the nearest ``__init__`` that declares it."""
    for each in operator_class.__mro__:
        init = vars(each).get("__init__")
        parameter = inspect.signature(init).parameters.get(name) if init is not None else None
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return parameter.default
    raise TypeError(f"{operator_class.__name__}.__init__ declares no default of {name}")  # a mistake of ours
