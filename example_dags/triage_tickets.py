"""Every morning: sort yesterday's tickets, of a Parquet export, into kinds.

The connection `vllm_batch` says where the model is; `docs/sources.md` says what else a run may read.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param, task

from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.sources import Files

# [START dag]
with DAG(
    dag_id="triage_tickets",
    schedule=CronTriggerTimetable("0 5 * * *", timezone="Europe/London"),
    params={"export": Param("file:///tmp/tickets/*.parquet", type="string", description="Parquet files")},
    doc_md=__doc__,
) as dag:
    # [START triage]
    triage = LLMBatchOperator(
        task_id="triage",
        vllm_conn_id="vllm_batch",
        source=Files(
            "{{ params.export }}",
            columns=["subject", "body"],  # of Parquet, nothing else is read
            custom_id="ticket_id",
            # limit=100,  for a trial
        ),
        prompt="One of billing, bug, praise, other:\n\n{{ row.subject }}\n{{ row.body }}",
        temperature=0.0,
        max_tokens=4,
        on_truncated="accept",  # a word is enough
        on_empty="skip",
    )
    # [END triage]

    @task
    def report(manifest: Any) -> str:
        """What the results' reader wants to know."""
        return f"{manifest['counts']['succeeded']} tickets at {manifest['parts']}"

    report(triage.output)
# [END dag]
