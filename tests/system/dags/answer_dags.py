"""DAGs of functions whose rows are the batch, of answers that are data, and of sinks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import DAG, Asset, Param, task
from pydantic import BaseModel

from airflow_llm_provider.operators.batch_group import LLMBatchGroup
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.results import read_results
from airflow_llm_provider.sinks import OpenAIBatch, Parquet

if TYPE_CHECKING:
    from collections.abc import Iterator


class Complaint(BaseModel):
    """What the stub answers with the least instance of."""

    severity: Literal["low", "high"]
    words: int


def note(folder: str) -> int:
    """Write down that a function was called; how often it was."""
    calls = Path(folder) / "calls"
    with calls.open("a") as file:
        file.write("x")
    return calls.stat().st_size


with DAG(
    dag_id="answers",
    schedule=None,
    params={"folder": Param("", type="string")},
    default_args={"retry_delay": timedelta(seconds=0.1)},
):

    @task
    def words() -> list[str]:
        """What the batch is mapped over."""
        return ["one", "two"]

    @task.vllm_batch(
        prompt="Say {{ row.text }}",
        output_schema=Complaint,
        sinks=[Parquet(columns=["text"]), OpenAIBatch()],
        max_in_flight=2,
        chunk_rows=10,
    )
    def structured(folder: str, ds: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows that are others at each call."""
        call = note(folder)
        for number in range(40):
            yield {"custom_id": f"c{call}-{number}", "text": f"{ds} {number}"}

    @task.vllm_batch(prompt="Say {{ row.text }}", max_tokens=8)
    def mapped(word: str) -> list[dict[str, str]]:
        """A run for each word."""
        return [{"text": word}, {"text": f"{word} again"}]

    @task
    def typed(manifest: Any) -> list[int]:
        """How many of each status there are, and what the values sum up to."""
        rows = list(read_results(manifest, Complaint))
        return [sum(row.succeeded for row in rows), sum(row.parsed.words for row in rows if row.parsed is not None)]

    typed(structured("{{ params.folder }}"))
    mapped.expand(word=words())
    LLMBatchOperator(
        task_id="an_asset",
        source=Asset("file:///nowhere/*.jsonl"),
        prompt="Say {{ row.text }}",
        retries=0,
    )
    LLMBatchGroup(
        "group",
        source=[{"text": f"{number}"} for number in range(20)],
        prompt="Say {{ row.text }}",
        output_schema=Complaint,
        sinks=Parquet(columns=["text"]),
        shares=3,
        chunk_rows=4,
    )
