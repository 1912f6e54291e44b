"""By hand or by another DAG: work through an archive on GPUs that are batch's own, as fast as they go.

The connection `vllm_batch` is that of a vLLM which nobody else uses; `docs/how-to/dedicated-gpu.md` says how to run it.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_llm_provider.operators.llm_batch import LLMBatchOperator

# [START dag]
with DAG(
    dag_id="dedicated_gpu",
    schedule=None,
    params={
        "archive": Param(
            "file:///tmp/archive/*.jsonl", type="string", description="JSONL files whose rows have a text"
        ),
    },
    doc_md=__doc__,
) as dag:
    # [START keywords]
    LLMBatchOperator(
        task_id="keywords",
        vllm_conn_id="vllm_batch",
        source="{{ params.archive }}",
        prompt="{{ row.text }}\n\nFive keywords for this document, separated by commas:",
        temperature=0.0,
        max_tokens=40,
        on_truncated="accept",  # so many keywords will do
        chunk_rows=5000,
        placement="dedicated",  # no window, no objective, and a limit that fills the server
    )
    # [END keywords]
# [END dag]
