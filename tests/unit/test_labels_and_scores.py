"""Texts classified, and pairs of texts scored: the wire's forms, what lands, and what is written of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_fakes import job_of, part_lines, run, texts

from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.request import Completion, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.pooled import CLASSIFY_PATH, SCORE_PATH
from airflow_llm_provider.endpoint.wire import decode
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError
from airflow_llm_provider.results import read_results
from airflow_llm_provider.storage.sink_openai import OpenAISink
from airflow_llm_provider.storage.sink_parquet import ParquetSink
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_llm_provider.testing import StubVLLM

CLASSIFY = RequestSpec(endpoint="classify", prompt="mail: {{ row.text }}")
SCORE = RequestSpec(endpoint="score", prompt="a question", document="{{ row.text }}", parameters={"truncate_prompt": 9})


def answer(path: str, *items: Any) -> Completion | Failure:
    body = {"object": "list", "data": list(items), "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    kind = "application/json"
    return decode(path=path, status=200, content_type=kind, retry_after=None, body=orjson.dumps(body))


@pytest.mark.parametrize(
    ("path", "item", "value"),
    [
        (CLASSIFY_PATH, {"index": 0, "label": "spam", "probs": [0.25, 0.75], "num_classes": 2}, ("spam", [0.25, 0.75])),
        (CLASSIFY_PATH, {"index": 0, "label": None, "probs": [1], "num_classes": 1}, (None, [1])),
        (SCORE_PATH, {"index": 0, "object": "score", "score": 0.5}, 0.5),
        (SCORE_PATH, {"index": 0, "object": "score", "score": 0}, 0),
    ],
)
def test_the_forms_that_they_have_on_the_wire(path: str, item: dict[str, Any], value: Any) -> None:
    if isinstance(value, tuple):
        value = dict(zip(("label", "probs"), value, strict=True))
    assert answer(path, item) == Completion(None, None, Usage(3, 0, 0), value=value)
    assert answer(path, item, item) == Completion(None, None, Usage(3, 0, 0), value=[value, value])


@pytest.mark.parametrize(
    ("path", "items"),
    [
        (CLASSIFY_PATH, []),
        (CLASSIFY_PATH, [{"label": "a", "probs": []}]),
        (CLASSIFY_PATH, [{"label": "a"}]),
        (CLASSIFY_PATH, [{"label": 1, "probs": [1.0]}]),
        (CLASSIFY_PATH, [{"label": "a", "probs": ["1"]}]),
        (CLASSIFY_PATH, [{"label": "a", "probs": [1.0]}, None]),
        (SCORE_PATH, [{"score": None}]),
        (SCORE_PATH, [{"score": "0.5"}]),
        (SCORE_PATH, [{"score": True}]),
        (SCORE_PATH, [{"embedding": [0.5]}]),
    ],
)
def test_what_is_none(path: str, items: list[Any]) -> None:
    found = answer(path, *items)
    assert isinstance(found, Failure)
    assert found.kind is FailureKind.GARBLED
    assert path in found.message


def written(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The Parquet table, and the bodies of the Batch API's file."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("results-*"))])
    (path,) = folder.glob("output-*")
    return table, [json.loads(line)["response"]["body"] for line in path.read_text().splitlines()]


def test_rows_land_with_their_labels(stub: StubVLLM, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    stub.behaviour.fault = lambda body, _: bodies.append(body)
    sinks = (ParquetSink(), OpenAISink())
    job = job_of(stub, ListSource(texts(30)), requests=CLASSIFY, sinks=sinks)
    manifest = run(job, RunStore(str(tmp_path / "run")))
    assert manifest["counts"]["succeeded"] == 30
    assert min(bodies, key=lambda body: body["input"]) == {"model": "stub", "input": "mail: text 0"}
    lines = part_lines(tmp_path / "run")
    assert {line["parsed"]["label"] for line in lines} == {"LABEL_0", "LABEL_1"}
    assert {(line["output"], line["finish_reason"]) for line in lines} == {(None, None)}
    assert next(read_results(manifest)).parsed == lines[0]["parsed"]
    table, answers = written(tmp_path / "run")
    kind = table.schema.field("parsed").type
    assert kind == pa.struct([("label", pa.string()), ("probs", pa.list_(pa.float64(), 2))])
    assert table.column("parsed").to_pylist() == [line["parsed"] for line in lines]
    assert [each["data"] for each in answers] == [[{"index": 0, **line["parsed"], "num_classes": 2}] for line in lines]


def test_rows_land_with_their_scores(stub: StubVLLM, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    stub.behaviour.fault = lambda body, _: bodies.append(body)
    job = job_of(stub, ListSource(texts(9)), requests=SCORE, sinks=(ParquetSink(), OpenAISink()))
    manifest = run(job, RunStore(str(tmp_path / "run")))
    assert manifest["counts"]["succeeded"] == 9
    first = {"model": "stub", "text_1": "a question", "text_2": "text 0", "truncate_prompt": 9}
    assert min(bodies, key=lambda body: body["text_2"]) == first
    lines = part_lines(tmp_path / "run")
    assert all(0 <= line["parsed"] < 1 for line in lines)
    assert len({line["parsed"] for line in lines}) > 5
    table, answers = written(tmp_path / "run")
    assert table.schema.field("parsed").type == pa.float64()
    assert table.column("parsed").to_pylist() == [line["parsed"] for line in lines]
    assert [each["data"][0]["score"] for each in answers] == [line["parsed"] for line in lines]


def test_lines_of_the_batch_apis_shape_with_several_texts(stub: StubVLLM, tmp_path: Path) -> None:
    rows = [
        {"url": SCORE_PATH, "body": {"text_1": "a", "text_2": ["b", "c"]}},
        {"url": CLASSIFY_PATH, "body": {"input": ["b", "c"]}},
        {"url": SCORE_PATH, "body": {"text_1": "a", "text_2": "b"}},
    ]
    job = job_of(stub, ListSource(rows), requests=RequestSpec(), sinks=(OpenAISink(),), max_in_flight=2)
    assert run(job, RunStore(str(tmp_path / "run")))["counts"]["succeeded"] == 3
    scores, labels, score = part_lines(tmp_path / "run")
    assert scores["parsed"][0] == score["parsed"]
    assert [each.keys() for each in labels["parsed"]] == [{"label", "probs"}] * 2
    (path,) = (tmp_path / "run").glob("output-*")
    answers = [json.loads(line)["response"]["body"] for line in path.read_text().splitlines()]
    assert [len(each["data"]) for each in answers] == [2, 2, 1]


@pytest.mark.parametrize(
    "words",
    [
        {"endpoint": "score", "prompt": "a"},
        {"endpoint": "chat", "prompt": "a", "document": "b"},
        {"document": "b"},
    ],
)
def test_a_document_goes_with_scores_and_with_nothing_else(words: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="takes prompt and document"):
        RequestSpec(**words)


def test_another_document_is_another_run(stub: StubVLLM, tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    run(job_of(stub, ListSource(texts(2)), requests=SCORE), store)
    other = RequestSpec(endpoint="score", prompt="a question", document="{{ row.text }}!", parameters=SCORE.parameters)
    with pytest.raises(LLMBatchError, match="document"):
        run(job_of(stub, ListSource(texts(2)), requests=other, epoch=1), store)
