"""Texts embedded: the wire's forms, vectors that land, and what is written of them."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_fakes import job_of, part_lines, run, texts, write_rows
from openai.types import CreateEmbeddingResponse

from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.request import Completion, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.pooled import EMBEDDINGS_PATH
from airflow_llm_provider.endpoint.wire import decode
from airflow_llm_provider.results import read_results
from airflow_llm_provider.storage.sink_openai import OpenAISink
from airflow_llm_provider.storage.sink_parquet import ParquetSink
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM
from airflow_llm_provider.testing.body import VECTOR_LENGTH

if TYPE_CHECKING:
    from pathlib import Path

SPEC = RequestSpec(endpoint="embeddings", prompt="passage: {{ row.text }}")


def answer(*embeddings: Any) -> Completion | Failure:
    data = [{"index": number, "object": "embedding", "embedding": each} for number, each in enumerate(embeddings)]
    body = {"object": "list", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    kind = "application/json"
    return decode(path=EMBEDDINGS_PATH, status=200, content_type=kind, retry_after=None, body=orjson.dumps(body))


def test_the_forms_that_vectors_have_on_the_wire() -> None:
    assert answer([0.5, -1, 2.0]) == Completion(None, None, Usage(3, 0, 0), value=[0.5, -1, 2.0])
    packed = base64.b64encode(struct.pack("<3f", 0.5, -1, 2.0)).decode()
    assert answer(packed) == Completion(None, None, Usage(3, 0, 0), value=[0.5, -1.0, 2.0])
    both = answer([1.0], [2.0])
    assert isinstance(both, Completion)
    assert both.value == [[1.0], [2.0]]


@pytest.mark.parametrize("embeddings", [[], [[]], [None], [["x"]], [[True]], ["!"], ["AAA="], [[1.0], None], [{}]])
def test_what_is_no_vector(embeddings: list[Any]) -> None:
    found = answer(*embeddings)
    assert isinstance(found, Failure)
    assert found.kind is FailureKind.GARBLED


def test_rows_land_with_their_vectors(stub: StubVLLM, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    stub.behaviour.fault = lambda body, _: bodies.append(body)
    source = write_rows(tmp_path / "rows.jsonl", texts(9))
    sinks = (ParquetSink(columns=["text"]), OpenAISink())
    manifest = run(job_of(stub, source, requests=SPEC, sinks=sinks), RunStore(str(tmp_path / "run")))
    assert manifest["counts"]["succeeded"] == 9
    assert min(bodies, key=lambda body: body["input"]) == {"model": "stub", "input": "passage: text 0"}
    lines = part_lines(tmp_path / "run")
    assert {len(line["parsed"]) for line in lines} == {VECTOR_LENGTH}
    assert len({tuple(line["parsed"]) for line in lines}) == 9
    assert {(line["output"], line["finish_reason"]) for line in lines} == {(None, None)}
    assert lines[0]["usage"]["prompt_tokens"] > 0
    assert next(read_results(manifest)).parsed == lines[0]["parsed"]
    tables = [pq.read_table(path) for path in sorted((tmp_path / "run").glob("results-*"))]
    table = pa.concat_tables(tables)
    assert table.schema.field("parsed").type == pa.list_(pa.float32(), VECTOR_LENGTH)
    assert table.column("parsed").to_pylist() == [line["parsed"] for line in lines]
    assert table.column("text").to_pylist() == [f"text {number}" for number in range(9)]
    (path,) = (tmp_path / "run").glob("output-*")
    for line, written in zip(lines, path.read_text().splitlines(), strict=True):
        body = CreateEmbeddingResponse.model_validate(json.loads(written)["response"]["body"], strict=True)
        assert body.data[0].embedding == line["parsed"]


def test_lines_of_the_batch_apis_shape_with_several_texts(stub: StubVLLM, tmp_path: Path) -> None:
    rows = [{"url": EMBEDDINGS_PATH, "body": {"input": ["a", "b"]}}, {"url": EMBEDDINGS_PATH, "body": {"input": "a"}}]
    job = job_of(stub, ListSource(rows), requests=RequestSpec(), sinks=(OpenAISink(),), max_in_flight=2)
    assert run(job, RunStore(str(tmp_path / "run")))["counts"]["succeeded"] == 2
    both, one = part_lines(tmp_path / "run")
    assert both["parsed"][0] == one["parsed"]
    (path,) = (tmp_path / "run").glob("output-*")
    first = json.loads(path.read_text().splitlines()[0])["response"]["body"]
    assert [each["index"] for each in first["data"]] == [0, 1]


def test_a_run_without_a_vector_has_a_table_without_one(tmp_path: Path) -> None:
    with StubVLLM(fault=lambda *_: Fault.bad_request("too long")) as stub:
        job = job_of(stub, ListSource(texts(3)), requests=SPEC, sinks=(ParquetSink(),))
        manifest = run(job, RunStore(str(tmp_path / "run")))
    assert manifest["counts"]["errored"] == 3
    (path,) = (tmp_path / "run").glob("results-*")
    assert pq.read_table(path).column("parsed").null_count == 3
