"""DAGs of the system tests of release: what they wait for stands on the connection, which the tests change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param

from airflow_llm_provider.operators.batch_group import LLMBatchGroup
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.sensors.release import OffPeakWindowSensor

PARAMS = {"source": Param("", type="string"), "result_path": Param("", type="string")}

with DAG(dag_id="nights", schedule=None, params=PARAMS, dagrun_timeout=timedelta(seconds=600)):
    LLMBatchOperator(
        task_id="batch",
        vllm_conn_id="vllm_nights",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        result_path="{{ params.result_path }}",
        max_in_flight=4,
        chunk_rows=50,
        pool="nights",
        retries=0,  # a night that ends is no failure
        execution_timeout=timedelta(seconds=60),  # shorter than the run, longer than any of its nights
    )

with DAG(dag_id="pooled", schedule=None, params=PARAMS, max_active_tasks=16):
    LLMBatchOperator.partial(
        task_id="batch",
        vllm_conn_id="vllm_pooled",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        pool="gpu",
    ).expand(max_error_rate=[0.01, 0.02, 0.03, 0.04, 0.05, 0.06])

with DAG(dag_id="held", schedule=None, params=PARAMS):
    LLMBatchOperator(
        task_id="batch",
        vllm_conn_id="vllm_held",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        result_path="{{ params.result_path }}",
        max_in_flight=4,
        pool="nights",
        retries=0,
    )

with DAG(dag_id="held_group", schedule=None, params=PARAMS):
    LLMBatchGroup(
        "batch",
        shares=4,
        vllm_conn_id="vllm_held_group",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        result_path="{{ params.result_path }}",
        max_in_flight=2,
        chunk_rows=30,
        retries=0,
    )

with DAG(dag_id="sensed", schedule=None):
    OffPeakWindowSensor(task_id="by_connection", vllm_conn_id="vllm_nights")
    OffPeakWindowSensor(task_id="poking", vllm_conn_id="vllm_nights", deferrable=False, poke_interval=2)

with DAG(dag_id="impatient", schedule=None, params=PARAMS, dagrun_timeout=timedelta(seconds=25)):
    LLMBatchOperator(
        task_id="batch",
        vllm_conn_id="vllm_closed",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        result_path="{{ params.result_path }}",
    )

with DAG(dag_id="one_at_a_time", schedule=None, params=PARAMS):
    LLMBatchOperator(
        task_id="batch",
        vllm_conn_id="vllm_closed",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        max_active_tis_per_dag=1,
    )

with DAG(
    dag_id="caught_up",
    schedule=CronTriggerTimetable("0 23 * * *", timezone="Europe/London"),
    start_date=datetime(2026, 3, 27, tzinfo=UTC),
    end_date=datetime(2026, 3, 29, 23, tzinfo=UTC),
    catchup=True,
    is_paused_upon_creation=True,
):
    LLMBatchOperator(
        task_id="batch",
        vllm_conn_id="vllm_closed",
        source=[{"text": "of long ago"}],
        prompt="Say {{ row.text }}",
        workload="burst-batch",
        deadline="{{ dag_run.run_after + macros.timedelta(hours=2) }}",  # past, for every one of them
    )
