"""Every hour, beside chat on the same GPUs: label the tickets that came in, with what real-time leaves free.

The connection `vllm_shared` says what real-time was promised; `docs/how-to/shared-gpu.md` says what to write there.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, CronTriggerTimetable, ObjectStoragePath, Param, get_current_context, task

from airflow_llm_provider.operators.llm_batch import LLMBatchOperator

# [START dag]
with DAG(
    dag_id="shared_gpu_priority",
    schedule=CronTriggerTimetable("0 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    params={"tickets": Param("file:///tmp/tickets", type="string", description="Folders like 2026-11-24T15 lie here")},
    doc_md=__doc__,
) as dag:
    # [START files]
    @task
    def files_of_the_hour(tickets: str) -> list[str]:
        """One file for each team that had tickets in the hour before this run; without any, nothing is mapped."""
        run = get_current_context()["dag_run"]
        hour = pendulum.instance(run.logical_date or run.run_after).in_timezone("UTC").subtract(hours=1)
        return sorted(map(str, ObjectStoragePath(f"{tickets}/{hour:YYYY-MM-DDTHH}").glob("*.jsonl")))

    # [END files]

    # [START label]
    LLMBatchOperator.partial(
        task_id="label",
        vllm_conn_id="vllm_shared",
        prompt="{{ row.text }}\n\nIs this about billing, delivery, a fault or something else? Answer in one word.",
        temperature=0.0,
        max_tokens=4,
        on_truncated="accept",  # a word is enough
        workload="scheduled-batch",  # the default: last in every queue
        placement="shared",  # keeps slots free for real-time, gives way to it, waits while it is not well
        pool_slots=1,  # each team's task counts so much against the pool that all DAGs share
    ).expand(source=files_of_the_hour("{{ params.tickets }}"))
    # [END label]
# [END dag]
