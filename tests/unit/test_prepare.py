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
