"""From the form: one question to many documents, for somebody who waits for the answers until a deadline.

The connection's window holds for this work too, unless it would miss its deadline and the platform lets a deadline
open the window; `docs/how-to/burst.md` says how.
"""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk import DAG, ObjectStoragePath, Param, task

from airflow_llm_provider.operators.llm_batch import LLMBatchOperator

# [START dag]
with DAG(
    dag_id="burst_documents",
    schedule=None,
    # [START params]
    params={
        "source": Param(
            type="string",
            title="Documents",
            description="JSONL files whose rows have a text: s3://docs/contracts/*.jsonl",
        ),
        "question": Param(type="string", minLength=5, description="Asked of every document by itself"),
        "deadline": Param(
            None,
            type=["null", "string"],
            format="date-time",
            description="When the answers are wanted; empty: when there is room",
        ),
    },
    # [END params]
    doc_md=__doc__,
) as dag:
    # [START ask]
    ask = LLMBatchOperator(
        task_id="ask",
        source="{{ params.source }}",
        prompt="{{ row.text }}\n\n{{ params.question }}",  # a value: a question with {{ }} in it is only a question
        max_tokens=300,
        workload="burst-batch",  # before the nightly work, behind real-time
        deadline="{{ params.deadline or '' }}",
    )
    # [END ask]

    # [START answers]
    @task
    def answers(manifest: Any) -> str:
        """Put all answers into one file beside the parts, for whoever asked; return where it lies."""
        folder = ObjectStoragePath(manifest["result_path"])
        parts = sorted(folder.glob("part-*.jsonl"), key=str)
        rows = [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]
        texts = [f"{row['custom_id']}\n{row['error']['message'] if row['error'] else row['output']}\n" for row in rows]
        (folder / "answers.txt").write_text("\n".join(texts))
        return str(folder / "answers.txt")

    answers(ask.output)
    # [END answers]
# [END dag]
