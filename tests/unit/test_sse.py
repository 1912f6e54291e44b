from __future__ import annotations

from typing import Any

import orjson
import pytest

from airflow_llm_provider.core.request import Completion, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.sse import assemble
from airflow_llm_provider.endpoint.wire import decode

DONE = b"data: [DONE]\n\n"


def events(*values: Any, end: bytes = DONE) -> bytes:
    return b"".join(b"data: " + orjson.dumps(value) + b"\n\n" for value in values) + end


def delta(index: int = 0, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish_reason, "logprobs": None}]}


def streamed(body: bytes, path: str = "/v1/chat/completions") -> Completion | Failure:
    kind = "text/event-stream; charset=utf-8"
    return decode(path=path, status=200, content_type=kind, retry_after=None, body=body)


def test_stream_of_a_real_vllm() -> None:
    body = b"""data: {"id":"chatcmpl-a9","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null}

data: {"id":"chatcmpl-a9","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,"delta":{"content":" open"},"logprobs":null,"finish_reason":null,"token_ids":null}]}

data: {"id":"chatcmpl-a9","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,"delta":{"content":"annel"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}

data: {"id":"chatcmpl-a9","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[],"usage":{"prompt_tokens":13,"total_tokens":16,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}}

data: [DONE]

"""  # noqa: E501 - as it came
    assert streamed(body) == Completion(" openannel", "length", Usage(13, 3, 5))


def test_stream_of_completions() -> None:
    chunks = [
        {"choices": [{"index": 0, "text": text, "finish_reason": end}]} for text, end in (("a", None), ("b", "stop"))
    ]
    assert streamed(events(*chunks), "/v1/completions") == Completion("ab", "stop", Usage())


def test_reasoning_and_tool_calls_are_joined() -> None:
    def call(index: int, **fields: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, **fields}])

    body = events(
        delta(role="assistant", reasoning="h"),
        delta(reasoning="m"),
        call(0, id="c0", type="function", function={"name": "f", "arguments": ""}),
        call(0, function={"arguments": '{"a":'}),
        call(1, id="c1", type="function", function={"name": "g", "arguments": "{}"}),
        call(0, function={"arguments": "1}"}),
        delta(finish_reason="tool_calls"),
    )
    assert streamed(body) == Completion(
        None,
        "tool_calls",
        Usage(),
        reasoning="hm",
        tool_calls=[
            {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    )


def test_choices_come_interleaved_and_are_kept() -> None:
    body = events(
        delta(1, content="y1"), delta(0, content="x1"), delta(1, "stop", content="y2"), delta(0, "length", content="x2")
    )
    completion = streamed(body)
    assert isinstance(completion, Completion)
    assert (completion.output, completion.finish_reason) == ("x1x2", "length")
    assert completion.choices is not None
    assert [choice["message"]["content"] for choice in completion.choices] == ["x1x2", "y1y2"]


def test_logprobs_are_joined() -> None:
    chunks = [
        {
            "choices": [
                {"index": 0, "delta": {"content": t}, "logprobs": {"content": [{"token": t}]}, "finish_reason": end}
            ]
        }
        for t, end in (("a", None), ("b", "stop"))
    ]
    completion = streamed(events(*chunks))
    assert isinstance(completion, Completion)
    assert completion.choices is not None
    assert completion.choices[0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


ENGINE_DEAD = {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (events(delta(content="x"), ENGINE_DEAD), FailureKind.ENGINE_DEAD),
        (events(ENGINE_DEAD, end=b""), FailureKind.ENGINE_DEAD),
        (events(delta(0, "stop", content="x"), ENGINE_DEAD), FailureKind.ENGINE_DEAD),
        (events({"error": {"message": "too long", "code": 400}}), FailureKind.BAD_REQUEST),
        (events({"error": {"message": "cannot schedule new futures after shutdown"}}), FailureKind.DRAINING),
        (events({"object": "error", "message": "odd"}), FailureKind.SERVER_ERROR),
        (events(delta(content="half"), delta(0, "abort", content="")), FailureKind.DRAINING),
        (events(delta(content="x")), FailureKind.GARBLED),
        (events(delta(content="x"), end=b""), FailureKind.GARBLED),
        (events(delta(0, "stop", content="x"), end=b""), FailureKind.GARBLED),
        (events(delta(0, "stop", content="x"), delta(1, content="y")), FailureKind.GARBLED),
        (events(delta(0, "stop", content="x"), end=b"data: [DONE]"), FailureKind.GARBLED),
        (b'data: {"choices": [{"ind', FailureKind.GARBLED),
        (b'data: {"choices": [{"ind\n\n', FailureKind.GARBLED),
        (events([1]), FailureKind.GARBLED),
        (events({"choices": ["x"]}), FailureKind.GARBLED),
        (events(), FailureKind.GARBLED),
        (b": ping\n\n", FailureKind.GARBLED),
        (b"", FailureKind.GARBLED),
    ],
)
def test_streams_that_are_no_answer(body: bytes, kind: FailureKind) -> None:
    failure = streamed(body)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.http_status) == (kind, 200)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_framing(newline: bytes) -> None:
    lines = [
        b": comment",
        b"event: x",
        b'data:{"choices":[{"delta":{"content":"a"},',
        b'data: "finish_reason":"stop"}]}',
    ]
    body = newline.join([*lines, b"", b"data: [DONE]", b"", b""])
    assembled = assemble(body)
    assert assembled is not None
    assert assembled["choices"][0]["message"]["content"] == "a"


def test_line_separators_of_unicode_do_not_split_events() -> None:
    assert streamed(events(delta(0, "stop", content="a\u2028b\x85c\x0bd"))) == Completion(
        "a\u2028b\x85c\x0bd", "stop", Usage()
    )
