"""``airflow llm-batch check-pools``.

Owns reading pools, provider configuration and serialised DAGs from Airflow's database, and printing. The judgement is
`core.pools`'.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow.cli.simple_table import AirflowConsole
from airflow.models.dag import DagModel
from airflow.models.pool import Pool as AirflowPool
from airflow.models.serialized_dag import SerializedDagModel
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_llm_provider.core.pools import Pool, PoolUse, pool_problems
from airflow_llm_provider.core.workload import POLICIES
from airflow_llm_provider.operators.effective import configured

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

_PACKAGE = __name__.partition(".")[0]
_CONNECTION_FIELD = "vllm_conn_id"
_NO_BOUND = -1  # slots, in Airflow's words


@suppress_logs_and_warning
@providers_configuration_loaded
def check_pools(args: Namespace) -> None:
    """Print what is wrong.

    Raises:
        SystemExit: with 1, if anything is.
    """
    configured_uses = list(_configured_uses())
    with create_session() as session:
        pools = [
            Pool(
                name=pool.pool or "",
                slots=None if pool.slots == _NO_BOUND else pool.slots,
                include_deferred=pool.include_deferred,
            )
            for pool in session.scalars(select(AirflowPool))
        ]
        uses = list(_task_uses(session, {use.pool for use in configured_uses}))
    problems = pool_problems(pools, configured_uses + uses)
    if problems or args.output in {"json", "yaml"}:
        AirflowConsole().print_as(data=[asdict(each) for each in problems], output=args.output)
    else:
        named = sorted({use.pool for use in configured_uses + uses})
        print(f"{len(uses)} batch tasks, pools {', '.join(named) or 'none'}: nothing is wrong")  # noqa: T201
    if problems:
        raise SystemExit(1)


def _configured_uses() -> Iterator[PoolUse]:
    for option in sorted({policy.pool_option for policy in POLICIES.values() if policy.pool_option is not None}):
        name, _ = configured(option, str)
        if name is not None:
            yield PoolUse(pool=name, slots=1, by=f"provider configuration {option}")  # brackets are the table's markup


def _task_uses(session: Session, configured_pools: set[str]) -> Iterator[PoolUse]:
    """The batch tasks of every DAG that is not gone, one DAG in memory at a time."""
    for dag_id in session.scalars(select(DagModel.dag_id).where(~DagModel.is_stale).order_by(DagModel.dag_id)).all():
        dag = SerializedDagModel.get_dag(dag_id, session=session)
        for task in dag.tasks if dag is not None else ():
            if task.pool in configured_pools or _ours(task):
                yield PoolUse(pool=task.pool, slots=task.pool_slots, by=f"task {dag_id}.{task.task_id}")
        session.expunge_all()


def _ours(task: Any) -> bool:
    """Whether the task is of this package, or of a subclass elsewhere: those still name a vLLM connection."""
    return task._task_module.startswith(f"{_PACKAGE}.") or _CONNECTION_FIELD in task.template_fields  # noqa: SLF001
