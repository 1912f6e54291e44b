"""Texts classified, and pairs of texts scored: the wire's forms, what lands, and what is written of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_fakes import job_of, part_lines, run, texts

from airflow_llm_provider.core.answers import AnswerRules
from airflow_llm_provider.core.output_schema import OutputSchema
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.request import Completion, Status, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.pooled import CLASSIFY_PATH, SCORE_PATH
from airflow_llm_provider.endpoint.wire import decode
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError, StaleRunError
from airflow_llm_provider.results import read_results
from airflow_llm_provider.storage.sink_openai import OpenAISink
from airflow_llm_provider.storage.sink_parquet import ParquetSink
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from pathlib import Path

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
    both = answer(path, {**item, "index": 1}, item)
    assert both == Completion(None, None, Usage(3, 0, 0), value=[value, value])


def test_items_are_told_apart_by_their_index() -> None:
    found = answer(SCORE_PATH, {"index": 1, "score": 0.1}, {"index": 0, "score": 0.9})
    assert isinstance(found, Completion)
    assert found.value == [0.9, 0.1]


@pytest.mark.parametrize(
    "items",
    [
        [{"index": 0, "score": 0.1}],
        [{"index": 0, "score": 0.1}, {"index": 0, "score": 0.2}],
        [{"index": 0, "score": 0.1}, {"index": 2, "score": 0.2}],
        [{"index": 0, "score": 0.1}, {"score": 0.2}],
        [{"index": "0", "score": 0.1}, {"index": "1", "score": 0.2}],
        [{"index": number, "score": 0.1} for number in range(3)],
    ],
)
def test_an_answer_without_an_item_for_each_text_costs_its_request(stub: StubVLLM, tmp_path: Path, items: Any) -> None:
    wrong = [Fault.answer(200, {"data": items, "usage": {}})]
    stub.behaviour.fault = lambda *_: wrong.pop() if wrong else None
    rows = [{"url": SCORE_PATH, "body": {"text_1": "a", "text_2": ["b", "c"]}}]
    run(job_of(stub, ListSource(rows), requests=RequestSpec()), RunStore(str(tmp_path / "run")))
    (line,) = part_lines(tmp_path / "run")
    assert (line["status"], line["attempts"], len(line["parsed"])) == ("succeeded", 2, 2)


@pytest.mark.parametrize("spec", [CLASSIFY, SCORE, RequestSpec(endpoint="embeddings", prompt="{{ row.text }}")])
def test_two_answers_to_one_text_are_none(stub: StubVLLM, tmp_path: Path, spec: RequestSpec) -> None:
    item = {"label": "a", "probs": [1.0], "score": 0.5, "embedding": [0.5]}
    wrong = [Fault.answer(200, {"data": [item, item], "usage": {}})]
    stub.behaviour.fault = lambda *_: wrong.pop() if wrong else None
    job = job_of(stub, ListSource(texts(4)), requests=spec, sinks=(ParquetSink(), OpenAISink()), max_in_flight=1)
    run(job, RunStore(str(tmp_path / "run")))
    table, _ = written(tmp_path / "run")
    assert table.column("parsed").null_count == 0


def test_labels_of_another_model_are_written_too(stub: StubVLLM, tmp_path: Path) -> None:
    other = [Fault.answer(200, {"data": [{"index": 0, "label": "a", "probs": [0.1, 0.2, 0.7]}], "usage": {}})]
    stub.behaviour.fault = lambda *_: other.pop() if other else None
    job = job_of(stub, ListSource(texts(4)), requests=CLASSIFY, sinks=(ParquetSink(), OpenAISink()))
    run(job, RunStore(str(tmp_path / "run")))
    table, _ = written(tmp_path / "run")
    assert sorted(len(each["probs"]) for each in table.column("parsed").to_pylist()) == [2, 2, 2, 3]


def test_a_schema_is_of_texts(stub: StubVLLM, tmp_path: Path) -> None:
    rows = [{"url": CLASSIFY_PATH, "body": {"input": "a"}}]
    rules = AnswerRules(schema=OutputSchema({"type": "object"}), repair_attempts=1)
    job = job_of(stub, ListSource(rows), requests=RequestSpec(), answers=rules)
    run(job, RunStore(str(tmp_path / "run")))
    (line,) = part_lines(tmp_path / "run")
    assert (line["status"], line["parsed"], line["attempts"]) == ("invalid_output", None, 1)
    assert "/classify answers with no text" in line["error"]["message"]


def test_a_replay_is_of_the_same_kind_of_endpoint(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    with StubVLLM(fault=lambda *_: Fault.bad_request("no")) as stub:
        run(job_of(stub, ListSource(texts(2))), store)
        job = job_of(stub, ListSource(texts(2)), requests=CLASSIFY, replay=(Status.ERRORED,), epoch=1)
        with pytest.raises(StaleRunError, match="whose endpoint is 'chat', and the task says 'classify' now"):
            run(job, store)


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
    assert kind == pa.struct([("label", pa.string()), ("probs", pa.list_(pa.float64()))])
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


def test_what_is_scored_has_no_other_name() -> None:
    with pytest.raises(ConfigurationError, match="extra_body may not hold documents"):
        RequestSpec(endpoint="score", prompt="a", document="b", parameters={"documents": ["c"]})
    assert RequestSpec(prompt="a", parameters={"documents": ["c"]}).parameters


def test_another_document_is_another_run(stub: StubVLLM, tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    run(job_of(stub, ListSource(texts(2)), requests=SCORE), store)
    other = RequestSpec(endpoint="score", prompt="a question", document="{{ row.text }}!", parameters=SCORE.parameters)
    with pytest.raises(LLMBatchError, match="document"):
        run(job_of(stub, ListSource(texts(2)), requests=other, epoch=1), store)
