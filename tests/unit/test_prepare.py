from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_llm_provider.batch.prepare import Preparer
from airflow_llm_provider.core.prompt import RequestSpec, RequestTemplate
from airflow_llm_provider.core.request import BadRow, Outcome, Position, RowError, RowRequest, Status
from airflow_llm_provider.storage.lines import encode_dead_letter, encode_outcome
from airflow_llm_provider.storage.source import SourceRow

WHERE = Position(file="s3://docs/a.jsonl", line=8)


def prepare(raw: Any, prompt: str | None = "{{ row.a }}", **spec: Any) -> RowRequest | BadRow:
    preparer = Preparer(RequestTemplate(RequestSpec(prompt=prompt, **spec), model="m"))
    return preparer.prepare(SourceRow(7, WHERE, raw))


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        (b'{"custom_id": "x", "a": 1}', "x"),
        (b'{"custom_id": 5, "a": 1}', "5"),
        (b'{"custom_id": null, "a": 1}', "row-7"),
        (b'{"a": 1}', "row-7"),
        (b'{"a": 1}\r', "row-7"),
        (b'\xef\xbb\xbf{"a": 1}', "row-7"),
        ({"custom_id": "x", "a": 1}, "x"),
    ],
)
def test_a_row_becomes_a_request(raw: Any, label: str) -> None:
    request = prepare(raw)
    assert isinstance(request, RowRequest)
    assert (request.index, request.custom_id, request.path) == (7, label, "/v1/chat/completions")
    assert json.loads(request.body) == {"model": "m", "messages": [{"role": "user", "content": "1"}]}


@pytest.mark.parametrize(
    ("raw", "label", "words"),
    [
        (b"{no", "row-7", "the line is no JSON"),
        (b"", "row-7", "the line is no JSON"),
        (b'{"a": NaN}', "row-7", "the line is no JSON"),
        (b"\xff\xfe", "row-7", "the line is no JSON"),
        (b"[" * 5000, "row-7", "the line is no JSON"),
        (b"[1]", "row-7", "a JSON list, not an object"),
        (b"null", "row-7", "a JSON NoneType, not an object"),
        (b'{"custom_id": "x"}', "x", "'a'.*the row's fields are: custom_id"),
        (b'{"custom_id": true, "a": 1}', "row-7", "custom_id is a bool"),
        (b'{"custom_id": {}, "a": 1}', "row-7", "custom_id is a dict"),
        ({"a": "\ud800", "custom_id": "x"}, "x", "surrogate"),
        ({"a": 1, "custom_id": "\ud800"}, "row-7", "custom_id.*UTF-8"),
        ({"\ud800": 1}, "row-7", "the row's fields are"),
    ],
)
def test_a_row_that_cannot_is_a_bad_row_with_its_place_and_can_be_kept(raw: Any, label: str, words: str) -> None:
    bad = prepare(raw)
    assert isinstance(bad, BadRow)
    assert (bad.index, bad.custom_id, bad.position) == (7, label, WHERE)
    assert bad.message.startswith("s3://docs/a.jsonl, line 8: ")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(bad.message)
    outcome = Outcome(7, bad.custom_id, Status.ERRORED, 0, error=RowError("malformed_row", bad.message))
    assert json.loads(encode_outcome(outcome).line)["error"]["message"] == bad.message
    assert json.loads(encode_dead_letter(outcome, bad))["index"] == 7


def test_a_body_that_json_cannot_say_is_a_bad_row() -> None:
    row = {"url": "/v1/completions", "body": {"prompt": "x", "seed": 2**70}}
    bad = prepare(row, prompt=None)
    assert isinstance(bad, BadRow)
    assert "64-bit" in bad.message


def test_the_raw_row_is_kept_from_its_beginning() -> None:
    bad = prepare(b"{" + b"x" * 100_000)
    assert isinstance(bad, BadRow)
    assert bad.raw == "{" + "x" * 9_999


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({"stream": True}, {"include_usage": True}),
        ({"stream": True, "stream_options": {"include_usage": False}}, {"include_usage": False}),
        ({"stream": False}, None),
        ({}, None),
    ],
)
def test_a_streamed_answer_is_asked_for_its_usage(body: dict[str, Any], sent: Any) -> None:
    request = prepare({"url": "/v1/completions", "body": {"prompt": "x", **body}}, prompt=None)
    assert isinstance(request, RowRequest)
    assert json.loads(request.body).get("stream_options") == sent


@pytest.mark.parametrize(
    ("body", "sequences"),
    [
        ({"messages": []}, 1),
        ({"messages": [], "n": 3}, 3),
        ({"prompt": "one"}, 1),
        ({"prompt": ["one", "two"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),  # one prompt, in token ids
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"messages": [], "n": "many"}, 1),
        ({"input": ["one", "two"]}, 2),
        ({"text_1": "one", "text_2": ["two", "three"]}, 2),
        ({"queries": ["a", "b", "c"], "documents": "one"}, 3),
        ({"data_1": "a", "data_2": [{"content": []}, {"content": []}]}, 2),
        ({"messages": [], "documents": [{}, {}]}, 1),
    ],
)
def test_how_many_answers_a_request_asks_for(body: Any, sequences: int) -> None:
    scored = "/v1/score" if {"text_1", "queries", "data_1"} & body.keys() else "/v1/chat/completions"
    url = "/v1/completions" if "prompt" in body else scored
    request = prepare(json.dumps({"body": body, "url": url}).encode(), prompt=None)
    assert isinstance(request, RowRequest)
    assert request.sequences == sequences


@pytest.mark.parametrize(("own", "sent"), [(None, 100), (100, 100), (150, 150)])
def test_the_runs_priority_is_sent_and_a_line_may_ask_for_a_later_one(own: int | None, sent: int) -> None:
    body = {"messages": []} | ({} if own is None else {"priority": own})
    line = json.dumps({"body": body, "url": "/v1/chat/completions"}).encode()
    preparer = Preparer(RequestTemplate(RequestSpec(), model="m"), priority=100)
    request = preparer.prepare(SourceRow(7, WHERE, line))
    assert isinstance(request, RowRequest)
    assert json.loads(request.body)["priority"] == sent


@pytest.mark.parametrize("own", [99, "1", 100.5])
def test_an_earlier_priority_is_a_bad_row(own: Any) -> None:
    line = json.dumps({"body": {"messages": [], "priority": own}, "url": "/v1/chat/completions"}).encode()
    bad = Preparer(RequestTemplate(RequestSpec(), model="m"), priority=100).prepare(SourceRow(7, WHERE, line))
    assert isinstance(bad, BadRow)
    assert "priority" in bad.message
