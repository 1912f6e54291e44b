"""DAGs that people and Airflow act on; what they work on comes through each run's conf."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_llm_provider.operators.batch_group import LLMBatchGroup
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator

NOTHING = -1
"""What the task downstream returns where there is no manifest."""


@task
def after(manifest: dict | None) -> int:
    return NOTHING if manifest is None else manifest["counts"]["total"]


def acted(dag_id: str, **arguments: Any) -> None:
    """A DAG of one batch task and one downstream of it."""
    params = {name: Param("", type="string") for name in ("source", "result_path", "vllm_conn_id")}
    defaults = {"vllm_conn_id": "vllm_default", "retry_delay": timedelta(seconds=0.1), "max_in_flight": 8}
    with DAG(dag_id=dag_id, schedule=None, params=params, max_active_runs=32, max_active_tasks=32):
        batch = LLMBatchOperator(
            task_id="batch",
            source="{{ params.source }}",
            prompt="Say {{ row.text }}",
            max_tokens=8,
            result_path="{{ params.result_path }}",
            chunk_rows=40,
            **{**defaults, **arguments},
        )
        after(batch.output)


acted("acted")
acted("acted_once", retries=0)
acted("acted_rerun", rerun=True)
acted("acted_replay", replay="errored")
acted("acted_held", vllm_conn_id="{{ params.vllm_conn_id }}", max_in_flight=4)

with DAG(
    dag_id="acted_group",
    schedule=None,
    params={"source": Param("", type="string"), "result_path": Param("", type="string")},
):
    group = LLMBatchGroup(
        "batch",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        max_tokens=8,
        result_path="{{ params.result_path }}",
        shares=4,
        tasks_at_once=2,
        chunk_rows=20,
        max_in_flight=2,
        retry_delay=timedelta(seconds=0.1),
    )
    after(group.output)
