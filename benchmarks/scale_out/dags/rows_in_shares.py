"""What the benchmark and `tests/distributed` run: a group over the rows of a file, of sizes from the environment."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_llm_provider.operators.batch_group import LLMBatchGroup

for dag_id, tasks_at_once in {"rows_in_shares": None, "rows_in_shares_one_by_one": 1}.items():
    with DAG(
        dag_id=dag_id,
        schedule=None,
        params={"source": Param("", type="string"), "result_path": Param("", type="string")},
    ):
        LLMBatchGroup(
            "batch",
            source="{{ params.source }}",
            prompt="{{ row.text }}",
            result_path="{{ params.result_path }}",
            shares=int(os.environ["SCALE_OUT_SHARES"]),
            tasks_at_once=tasks_at_once,
            chunk_rows=int(os.environ["SCALE_OUT_CHUNK_ROWS"]),
            max_in_flight=int(os.environ["SCALE_OUT_IN_FLIGHT"]),
            retries=5,
            retry_delay=timedelta(seconds=1),
        )
