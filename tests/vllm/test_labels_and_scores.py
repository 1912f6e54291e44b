"""Texts classified and scored by a real vLLM: what lands is what it answers whoever asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
CLASSIFY = (
    RequestSpec(endpoint="classify", prompt="{{ row.text }}"),
    (),
    ("/classify", {"input": "text 7"}),
)
SCORE = (
    RequestSpec(endpoint="score", prompt="text 1", document="{{ row.text }}"),
    ("--convert", "embed"),
    ("/v1/score", {"text_1": "text 1", "text_2": "text 7"}),
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("spec", "flags", "asked"), [CLASSIFY, SCORE], ids=["classify", "score"])
def test_values_are_those_that_the_server_has(
    start: Callable[..., AbstractContextManager[RealVLLM]],
    model: Path,
    classifier: Path,
    tmp_path: Path,
    *,
    spec: RequestSpec,
    flags: Any,
    asked: Any,
) -> None:
    rows = [*texts(ROWS), {"custom_id": "long", "text": "word " * 20_000}]
    path, body = asked
    folder = classifier if path == "/classify" else model
    with start("--served-model-name", "tiny", "--runner", "pooling", *flags, model_folder=folder) as server:
        endpoint = EndpointSettings(base_urls=(server.url,), api_key=API_KEY)
        job = job_of(server.url, ListSource(rows), requests=spec, endpoint=endpoint, sinks=(ParquetSink(),))
        manifest = run(job, RunStore(str(tmp_path / "run")))
        with openai.OpenAI(base_url=server.url, api_key=API_KEY) as client:
            theirs: Any = client.post(path, body={"model": "tiny", **body}, cast_to=object)
    assert (manifest["counts"]["succeeded"], manifest["counts"]["errored"]) == (ROWS, 1)
    lines = part_lines(tmp_path / "run")
    assert lines[-1]["error"]["kind"] == "bad_request"
    assert lines[7]["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"] > 0
    (item,) = theirs["data"]
    landed = lines[7]["parsed"]
    if path == "/classify":
        assert landed["probs"] == pytest.approx(item["probs"], abs=0.02)  # bfloat16, in batches of other sizes
        assert sum(landed["probs"]) == pytest.approx(1.0, abs=0.01)
        assert landed["label"] == ("calm", "angry")[landed["probs"][1] > landed["probs"][0]]
    else:
        assert landed == pytest.approx(item["score"], abs=0.02)
        assert lines[1]["parsed"] == pytest.approx(1.0, abs=0.02), "a text beside itself"
    table = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "run").glob("results-*"))])
    assert table.column("parsed").to_pylist() == [line["parsed"] for line in lines]
