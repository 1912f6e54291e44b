"""Texts embedded by a real vLLM: what lands is what it answers whoever asks it."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_fakes import job_of, part_lines, run, texts
from conftest import API_KEY

from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.storage.sink_parquet import ParquetSink
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import RealVLLM

ROWS = 40


@pytest.mark.timeout(600)
@pytest.mark.parametrize("parameters", [{}, {"encoding_format": "base64"}], ids=["numbers", "base64"])
def test_vectors_are_those_that_the_server_has(
    start: Callable[..., AbstractContextManager[RealVLLM]], tmp_path: Path, parameters: dict[str, str]
) -> None:
    spec = RequestSpec(endpoint="embeddings", prompt="{{ row.text }}", parameters=parameters)
    rows = [*texts(ROWS), {"custom_id": "long", "text": "word " * 20_000}]
    with start("--served-model-name", "tiny", "--runner", "pooling", "--convert", "embed") as server:
        endpoint = EndpointSettings(base_urls=(server.url,), api_key=API_KEY)
        job = job_of(server.url, ListSource(rows), requests=spec, endpoint=endpoint, sinks=(ParquetSink(),))
        manifest = run(job, RunStore(str(tmp_path / "run")))

        async def asked() -> list[float]:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
                answer = await client.embeddings.create(model="tiny", input="text 7", encoding_format="float")
                return answer.data[0].embedding

        theirs = asyncio.run(asked())
    assert (manifest["counts"]["succeeded"], manifest["counts"]["errored"]) == (ROWS, 1)
    lines = part_lines(tmp_path / "run")
    assert lines[-1]["error"]["kind"] == "bad_request"
    assert lines[7]["parsed"] == pytest.approx(theirs, rel=0.05, abs=0.02)  # bfloat16, in batches of other sizes
    assert math.hypot(*lines[7]["parsed"]) == pytest.approx(1.0, abs=0.01)
    assert lines[7]["usage"]["prompt_tokens"] > 0
    tables = [pq.read_table(path) for path in sorted((tmp_path / "run").glob("results-*"))]
    kind = pa.concat_tables(tables).schema.field("parsed").type
    assert kind == pa.list_(pa.float32(), len(theirs))
