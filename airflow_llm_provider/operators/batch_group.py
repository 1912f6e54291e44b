"""`LLMBatchGroup`: one run, worked off by several tasks on as many workers.

Owns the group and its three kinds of tasks. Does not know what each does of a run (`batch.shares`); what they say and
may say is `LLMBatchOperator`'s.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup

from airflow_llm_provider.batch.shares import assemble, plan_shares, work_share
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.operators.metrics import RunMetrics
from airflow_llm_provider.storage.manifest import for_xcom

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_llm_provider.batch.stop import StopSwitch

SHARES = 32
MOST_SHARES = 1024
"""Airflow's own ``max_map_length``, by default."""

_OF_A_TASK = re.compile(
    r"\{\{[^}]*?\b((?:ti|task_instance|task)(?:\.|\[['\"])(?:task_id|map_index|try_number|key|id)\b|task_instance_key_str)"
)

_OF_GROUP = ("tooltip", "doc_md", "ui_color", "ui_fgcolor", "group_display_name")
_OF_FIRST = ("trigger_rule",)
"""What is meant for the group's beginning: of what comes before it."""

_OF_LAST = ("outlets", "on_success_callback")
"""What is meant for the group's end: results that are there."""


class LLMBatchGroup(TaskGroup):
    """Runs a prompt over rows as `LLMBatchOperator` does, with the rows shared out to mapped tasks.

    ::

        batch = LLMBatchGroup("summarise", source="s3://docs/*.jsonl", prompt="...", shares=64)
        batch >> report(batch.output)

    ``plan`` reads the source and writes down what the run is; ``work`` is mapped over the shares, which whatever
    executor there is hands to its workers as they become free; ``assemble`` writes the manifest. Each share is resumed
    by itself: a worker that is lost costs its own rows that were not journalled. Where results lie and what they look
    like is as of one task: the group goes by its own id.

    Args:
        group_id: the group's, and the run's.
        shares: how many there are: more than workers, since rows differ in cost, and no more than Airflow's
            ``max_map_length``. Of a run that has begun they stay as they were.
        tasks_at_once: how many shares are worked at in one DAG run at most; None: as many as pool and workers take.
        **arguments: `LLMBatchOperator`'s. ``max_in_flight`` is each share's, and so is ``pool_slots``. ``trigger_rule``
            is the first task's, ``outlets`` and ``on_success_callback`` are the last one's; ``tooltip`` and what else
            a `TaskGroup` shows are the group's.

    Attributes:
        output: the manifest, as the last task's XCom.

    Raises:
        ConfigurationError: when the arguments contradict each other; Airflow shows it as a DAG import error.
    """

    output: XComArg

    def __init__(
        self, group_id: str, *, shares: int = SHARES, tasks_at_once: int | None = None, **arguments: Any
    ) -> None:
        if not isinstance(shares, int) or isinstance(shares, bool) or not 1 <= shares <= MOST_SHARES:
            raise ConfigurationError(f"shares must be a whole number from 1 to {MOST_SHARES}, not {shares!r}")
        if tasks_at_once is not None and (
            not isinstance(tasks_at_once, int) or isinstance(tasks_at_once, bool) or tasks_at_once < 1
        ):
            raise ConfigurationError(f"tasks_at_once must be a whole number of 1 or more, not {tasks_at_once!r}")
        result_path = arguments.get("result_path")
        if isinstance(result_path, str) and (own := _OF_A_TASK.search(result_path)):
            raise ConfigurationError(
                f"result_path uses {own[1]}, which differs from task to task of the group, and all of them need one "
                "path. {{ run_id }} and dates do not differ"
            )
        if arguments.get("do_xcom_push", True) is not True:
            raise ConfigurationError("do_xcom_push: the group's tasks tell each other of shares by XCom; leave it out")
        if taken := arguments.keys() & {"task_id", "share", "run_task_id"}:
            raise ConfigurationError(f"{', '.join(sorted(taken))}: the group sets that itself")
        of_group = {name: arguments.pop(name) for name in _OF_GROUP if name in arguments}
        default_args: dict[str, Any] = arguments.pop("default_args", None) or {}
        super().__init__(group_id=group_id, default_args=default_args, **of_group)  # type: ignore[arg-type] # attrs' converter
        first = {name: arguments.pop(name) for name in _OF_FIRST if name in arguments}
        end = {name: arguments.pop(name) for name in _OF_LAST if name in arguments}
        at_once = {} if tasks_at_once is None else {"max_active_tis_per_dagrun": tasks_at_once}
        with self:
            common = {**arguments, "run_task_id": self.group_id}
            plan = _PlanOperator(task_id="plan", shares=shares, **common, **first)
            work = _ShareOperator.partial(task_id="work", **common, **at_once).expand(share=plan.output)
            last = _AssembleOperator(task_id="assemble", **common, **end)
            [plan, work] >> last
        self.output = last.output


class _GroupOperator(LLMBatchOperator):
    """A task of the group.

    Args:
        run_task_id: the group's id, by which the run goes.
        **kwargs: the operator's.
    """

    def __init__(self, *, run_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run_task_id = run_task_id
        if self.checkpoint != "storage":
            raise ConfigurationError("checkpoint: tasks that share a run keep it on object storage; leave it out")
        if self.replay is not None:
            raise ConfigurationError(
                "replay: a run that tasks share is not opened again; leave it out, or set rerun=True"
            )


class _PlanOperator(_GroupOperator):
    """Plans; see `batch.shares.plan_shares`.

    Args:
        shares: how many.
        **kwargs: the operator's.
    """

    def __init__(self, *, shares: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shares = shares

    def _run(self, context: Context, switch: StopSwitch) -> Any:
        job, store, begun = self._read(context)
        return plan_shares(job, store, switch, shares=self.shares, begun=begun)


class _ShareOperator(_GroupOperator):
    """Works at a share; see `batch.shares.work_share`.

    Args:
        share: which.
        **kwargs: the operator's.
    """

    def __init__(self, *, share: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.share = share

    def _run(self, context: Context, switch: StopSwitch) -> Any:
        job, store, begun = self._read(context)
        return work_share(job, store, switch, share=self.share, begun=begun, told=RunMetrics(context))


class _AssembleOperator(_GroupOperator):
    """Assembles; see `batch.shares.assemble`."""

    def _run(self, context: Context, switch: StopSwitch) -> Any:
        job, store, _ = self._read(context)
        return for_xcom(assemble(job, store, switch))
