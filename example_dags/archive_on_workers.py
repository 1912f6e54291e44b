"""Every Sunday night: classify an archive, with the rows shared out to as many workers as there are.

The connection `vllm_batch` is that of servers which nobody else uses; `docs/how-to/scale-out.md` says what each task of
the group does, and `docs/how-to/spot-workers.md` how it outlives workers that come and go.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param, task

from airflow_llm_provider.operators.batch_group import LLMBatchGroup

# [START dag]
with DAG(
    dag_id="archive_on_workers",
    schedule=CronTriggerTimetable("0 23 * * sun", timezone="Europe/London"),
    params={
        "archive": Param(
            "file:///tmp/archive/*.jsonl", type="string", description="JSONL files whose rows have a text"
        ),
    },
    doc_md=__doc__,
) as dag:
    # [START classify]
    classify = LLMBatchGroup(
        "classify",
        vllm_conn_id="vllm_batch",
        source="{{ params.archive }}",
        prompt="{{ row.text }}\n\nOne of invoice, letter, contract, other:",
        temperature=0.0,
        max_tokens=4,
        on_truncated="accept",  # a word is enough
        placement="dedicated",
        shares=64,  # many more than workers: Airflow's own queue balances them
        tasks_at_once=8,
        shift=timedelta(minutes=30),  # no worker is needed, or waited for, all night
        retries=50,  # a killed worker spends one
        fruitless_retries=3,  # in a row
        retry_delay=timedelta(minutes=1),
    )
    # [END classify]

    # [START count]
    @task
    def count(manifest: Any) -> int:
        """The manifest is the group's output, as it is an operator's."""
        return int(manifest["counts"]["succeeded"])

    count(classify.output)
    # [END count]
# [END dag]
