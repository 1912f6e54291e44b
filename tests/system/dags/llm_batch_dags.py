"""DAGs of the system tests. What they work on comes through each run's conf or the environment."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, ObjectStoragePath, Param, task

from airflow_llm_provider.operators.batch_group import LLMBatchGroup
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.sources import Files

WORK = os.environ.get("LLM_TEST_WORK", "")

with DAG(
    dag_id="killed",
    schedule=None,
    params={"source": Param("", type="string"), "result_path": Param("", type="string")},
    default_args={"retries": 40, "retry_delay": timedelta(seconds=0.1)},
):
    LLMBatchOperator(
        task_id="batch",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        max_tokens=8,
        result_path="{{ params.result_path }}",
        chunk_rows=150,
        max_in_flight=16,
    )

with DAG(dag_id="from_files", schedule=None, params={"folder": Param("", type="string")}):
    LLMBatchOperator(
        task_id="table",
        source=Files("{{ params.folder }}/*.csv", columns=["text"], custom_id="id", limit=5),
        prompt="Say {{ row.text }}",
    )
    LLMBatchGroup(
        "packed",
        source=Files("{{ params.folder }}/*.jsonl.gz", custom_id="{{ 'i' }}d"),
        prompt="Say {{ row.text }}",
        shares=3,
        chunk_rows=4,
    )

with DAG(
    dag_id="shared_out",
    schedule=None,
    params={"source": Param("", type="string"), "result_path": Param("", type="string")},
):

    @task
    def before() -> None:
        """A task upstream of the group."""

    @task
    def after(manifest: dict) -> int:
        return manifest["counts"]["total"]

    group = LLMBatchGroup(
        "batch",
        source="{{ params.source }}",
        prompt="Say {{ row.text }} for {{ task_id }}",
        max_tokens=8,
        result_path="{{ params.result_path }}",
        shares=6,
        tasks_at_once=3,
        chunk_rows=25,
        max_in_flight=4,
        retries=10,
        retry_delay=timedelta(seconds=0.1),
    )
    before() >> group
    after(group.output)

with DAG(
    dag_id="in_shifts",
    schedule=None,
    params={"source": Param("", type="string"), "result_path": Param("", type="string")},
):
    in_shifts = LLMBatchOperator(
        task_id="batch",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        result_path="{{ params.result_path }}",
        max_in_flight=4,
        retries=0,  # a shift that ends is no failure
    )
    in_shifts.shift = timedelta(seconds=4)  # shorter than a DAG may say

with DAG(dag_id="kept_in_airflow", schedule=None):
    kept = LLMBatchOperator(
        task_id="batch",
        source=[{"custom_id": f"k{number}", "text": f"value {number}"} for number in range(60)],
        prompt="Say {{ row.text }}",
        checkpoint="xcom",
        max_in_flight=2,
        retries=5,
        retry_delay=timedelta(seconds=0.1),
    )

    @task
    def ids(results: list[dict]) -> list[str]:
        return [row["custom_id"] for row in results if row["status"] == "succeeded"]

    ids(kept.output["results"])

with DAG(
    dag_id="timed", schedule=None, params={"source": Param("", type="string"), "result_path": Param("", type="string")}
):
    LLMBatchOperator(
        task_id="batch",
        source="{{ params.source }}",
        prompt="Say {{ row.text }}",
        result_path="{{ params.result_path }}",
        max_in_flight=16,
        execution_timeout=timedelta(seconds=8),
        retries=20,
        retry_delay=timedelta(seconds=0.1),
    )

with DAG(dag_id="values", schedule=None):

    @task
    def rows() -> list[dict[str, str]]:
        return [{"custom_id": f"v{number}", "text": f"value {number}"} for number in range(7)]

    batch = LLMBatchOperator(
        task_id="batch", source=rows(), prompt="Say {{ row.text }} for {{ params.get('whom', 'me') }}"
    )

    @task
    def read(manifest: dict) -> int:
        parts = ObjectStoragePath(manifest["result_path"]).glob("part-*.jsonl")
        return sum(len(part.read_bytes().splitlines()) for part in parts)

    read(batch.output)

with DAG(dag_id="mapped", schedule=None):
    LLMBatchOperator.partial(task_id="batch", prompt="Say {{ row.text }}", retry_delay=timedelta(seconds=0.1)).expand(
        source=[[{"text": "a"}, {"text": "b"}], [{"text": "c"}]]
    )

with DAG(dag_id="mistaken", schedule=None, default_args={"retry_delay": timedelta(seconds=0.1)}):
    LLMBatchOperator(
        task_id="missing_connection", source=f"{WORK}/good.jsonl", prompt="{{ row.text }}", vllm_conn_id="nowhere"
    )
    LLMBatchOperator(task_id="wrong_model", source=f"{WORK}/good.jsonl", prompt="{{ row.text }}", model="gpt-9")
    LLMBatchOperator(task_id="absent_field", source=f"{WORK}/good.jsonl", prompt="{{ row.txt }}")
    LLMBatchOperator(task_id="malformed_line", source=f"{WORK}/malformed.jsonl", prompt="{{ row.text }}")
    LLMBatchOperator(task_id="empty_source", source=f"{WORK}/empty.jsonl", prompt="{{ row.text }}", on_empty="fail")
    LLMBatchOperator(task_id="skipped_source", source=f"{WORK}/empty.jsonl", prompt="{{ row.text }}", on_empty="skip")
    LLMBatchOperator(task_id="no_file", source=f"{WORK}/none-*.jsonl", prompt="{{ row.text }}")
    LLMBatchOperator(task_id="duplicate_ids", source=f"{WORK}/duplicates.jsonl", prompt="{{ row.text }}")
    first = LLMBatchOperator(
        task_id="owner", source=f"{WORK}/good.jsonl", prompt="{{ row.text }}", result_path="shared/{{ run_id }}"
    )
    first >> LLMBatchOperator(
        task_id="foreign", source=f"{WORK}/good.jsonl", prompt="{{ row.text }}", result_path="shared/{{ run_id }}"
    )

with DAG(dag_id="changing", schedule=None):
    LLMBatchOperator(
        task_id="batch",
        source=f"{WORK}/good.jsonl",
        # What a person does by editing the DAG between two tries: the file changes the prompt.
        prompt=open(f"{WORK}/prompt.txt").read() if WORK and os.path.exists(f"{WORK}/prompt.txt") else "{{ row.text }}",  # noqa: PTH110, PTH123, SIM115
    )
