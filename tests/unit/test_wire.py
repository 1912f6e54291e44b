from __future__ import annotations

import json
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.core.request import Completion, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.failure import MESSAGE_CHARS
from airflow_llm_provider.endpoint.wire import decode

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
KEY = "sk-very-secret"


def answer(body: Any = b"", status: int = 200, *, path: str = CHAT, **more: Any) -> Completion | Failure:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    more = {"content_type": "application/json", "retry_after": None, **more}
    return decode(path=path, status=status, body=raw, **more)


def vllm(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def chat(message: dict[str, Any], finish_reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None, **more}]}


class Case(NamedTuple):
    name: str
    status: int
    body: Any
    kind: FailureKind
    words: str
    content_type: str = "application/json"


NGINX = b"<html>\r\n<head><title>%s</title></head>\r\n<body><center><h1>x</h1></center><hr>nginx</body></html>"
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
BUSY = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
TOO_LONG = (
    "This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens"
)

CASES = [
    # a real vLLM 0.32.0's bodies
    Case(
        "unknown model",
        404,
        vllm("The model `nope` does not exist. Valid aliases: tiny.", "NotFoundError", 404, "model"),
        FailureKind.MODEL_NOT_FOUND,
        "Valid aliases: tiny",
    ),
    Case(
        "too long", 400, vllm(TOO_LONG, "BadRequestError", 400, "input_tokens"), FailureKind.BAD_REQUEST, "1025 input"
    ),
    Case(
        "malformed JSON",
        400,
        vllm("1 validation error:\n  {'type': 'json_invalid'}", "Bad Request", 400, "body.42"),
        FailureKind.BAD_REQUEST,
        "1 validation error: {'type'",
    ),
    Case("queue full", 503, vllm(BUSY, "Service Unavailable", 503), FailureKind.BUSY, "currently busy"),
    Case("engine dead", 500, vllm(ENGINE_DEAD, "Internal Server Error", 500), FailureKind.ENGINE_DEAD, "EngineCore"),
    Case(
        "draining",
        500,
        vllm("cannot schedule new futures after shutdown", "InternalServerError", 500),
        FailureKind.DRAINING,
        "cannot schedule",
    ),
    Case(
        "other 500",
        500,
        vllm("Internal server error", "InternalServerError", 500),
        FailureKind.SERVER_ERROR,
        "Internal",
    ),
    Case("key", 401, {"error": "Unauthorized"}, FailureKind.UNAUTHORISED, "Unauthorized"),
    Case("route", 404, {"detail": "Not Found"}, FailureKind.ROUTE_NOT_FOUND, "Not Found"),
    Case("method", 405, {"detail": "Method Not Allowed"}, FailureKind.ROUTE_NOT_FOUND, "Method Not Allowed"),
    Case(
        "api",
        501,
        vllm("The model does not support Chat Completions API", "NotImplementedError", 501),
        FailureKind.ROUTE_NOT_FOUND,
        "does not support",
    ),
    Case(
        "older vLLM",
        404,
        {"object": "error", "message": "The model `nope` does not exist.", "code": 404},
        FailureKind.MODEL_NOT_FOUND,
        "nope",
    ),
    # other servers and gateways
    Case(
        "openai",
        404,
        vllm("no such thing", "invalid_request_error", 0) | {"error": {"message": "no", "code": "model_not_found"}},
        FailureKind.MODEL_NOT_FOUND,
        "no",
    ),
    Case("forbidden", 403, {"message": "no consumer"}, FailureKind.UNAUTHORISED, "no consumer"),
    Case("proxy key", 407, b"", FailureKind.UNAUTHORISED, "HTTP 407 with an empty body"),
    Case(
        "too large",
        413,
        NGINX % b"413 Request Entity Too Large",
        FailureKind.BAD_REQUEST,
        "413 Request Entity Too Large",
        "text/html",
    ),
    Case(
        "fastapi",
        422,
        {"detail": [{"loc": ["body", "top_p"], "msg": "too big", "input": 7}]},
        FailureKind.BAD_REQUEST,
        "body.top_p: too big",
    ),
    Case("teapot", 418, b"", FailureKind.BAD_REQUEST, "418"),
    Case("request timeout", 408, b"", FailureKind.TIMEOUT, "408"),
    Case(
        "gateway timeout",
        504,
        NGINX % b"504 Gateway Time-out",
        FailureKind.TIMEOUT,
        "504 Gateway Time-out",
        "text/html",
    ),
    Case("rate limit", 429, {"error": {"message": "slow down", "code": "429"}}, FailureKind.BUSY, "slow down"),
    Case("bad gateway", 502, NGINX % b"502 Bad Gateway", FailureKind.GATEWAY_LOST, "502 Bad Gateway", "text/html"),
    *[Case(f"cloudflare {status}", status, b"", FailureKind.GATEWAY_LOST, str(status)) for status in (521, 522, 523)],
    Case(
        "html, untitled",
        503,
        b"<h1>503</h1><style>p{}</style><p>No server is available</p>",
        FailureKind.BUSY,
        "503 No server is available",
        "text/html",
    ),
    Case("no upstream", 503, b"no healthy upstream", FailureKind.UNREACHABLE, "no healthy upstream", "text/plain"),
    Case(
        "lost upstream",
        503,
        b"upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        FailureKind.CONNECTION_LOST,
        "termination",
        "text/plain",
    ),
    *[
        Case(
            f"{words} to upstream",
            503,
            f"upstream connect error or disconnect/reset before headers. reset reason: {words}".encode(),
            FailureKind.GATEWAY_LOST,
            words,
            "text/plain",
        )
        for words in ("connection failure", "remote connection failure")
    ],
    Case("conflict", 409, b"", FailureKind.SERVER_ERROR, "409"),
    Case("unknown 5xx", 599, b"oops", FailureKind.SERVER_ERROR, "oops"),
    Case("redirect", 307, b"", FailureKind.ROUTE_NOT_FOUND, "redirects to"),
    Case("404 page", 404, NGINX % b"404 Not Found: the model page", FailureKind.ROUTE_NOT_FOUND, "404", "text/html"),
    Case("null error", 500, {"error": None}, FailureKind.SERVER_ERROR, "null"),
    Case("list error", 500, [1, 2], FailureKind.SERVER_ERROR, "[1,2]"),
    # a row may be quoted in the refusal of that row: its words decide nothing
    Case(
        "quoting row",
        400,
        vllm("input: 'EngineCore encountered an issue. EngineDeadError'", "Bad Request", 400),
        FailureKind.BAD_REQUEST,
        "input",
    ),
    # 200s that are no answer
    Case("error in a 200", 200, vllm(ENGINE_DEAD, "InternalServerError", 500), FailureKind.ENGINE_DEAD, "EngineCore"),
    Case("400 in a 200", 200, vllm("bad top_p", "BadRequestError", 400), FailureKind.BAD_REQUEST, "bad top_p"),
    Case("429 in a 200, as text", 200, {"error": {"message": "slow", "code": "429"}}, FailureKind.BUSY, "slow"),
    Case("worded error in a 200", 200, {"error": "overheated"}, FailureKind.SERVER_ERROR, "overheated"),
    Case(
        "older error in a 200", 200, {"object": "error", "message": "bad", "code": 400}, FailureKind.BAD_REQUEST, "bad"
    ),
    Case("told to stop", 200, chat({"content": "half a te"}, "abort"), FailureKind.DRAINING, "'abort'"),
    Case("empty", 200, b"", FailureKind.GARBLED, "empty body"),
    Case("no content", 204, b"", FailureKind.GARBLED, "empty body"),
    Case("truncated", 200, json.dumps(chat({"content": "x"})).encode()[:-9], FailureKind.GARBLED, "not JSON"),
    Case("garbage", 200, b"\x00\xff\xfe", FailureKind.GARBLED, "not JSON"),
    Case("login page", 200, NGINX % b"Sign in", FailureKind.GARBLED, "'Sign in'", "text/html"),
    Case("no choices", 200, {"choices": []}, FailureKind.GARBLED, "no choices"),
    Case("another shape", 200, {"object": "list", "data": []}, FailureKind.GARBLED, "not the shape"),
    Case("choice is no object", 200, {"choices": ["x"]}, FailureKind.GARBLED, "not the shape"),
    Case(
        "no message", 200, {"choices": [{"text": "x", "finish_reason": "stop"}]}, FailureKind.GARBLED, "not the shape"
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_classification(case: Case) -> None:
    failure = answer(case.body, case.status, content_type=case.content_type)
    assert isinstance(failure, Failure)
    assert failure.kind is case.kind
    assert case.words in failure.message
    assert failure.http_status == case.status
    assert failure.retry_after_s is None


def test_every_kind_an_answer_can_have_is_in_the_table() -> None:
    without_an_answer = {FailureKind.UNTRUSTED, FailureKind.STALE_CONNECTION}
    assert {case.kind for case in CASES} == set(FailureKind) - without_an_answer


@pytest.mark.parametrize(
    ("retry_after", "date", "expected_s"),
    [
        ("7", None, 7.0),
        (" 0.5 ", None, 0.5),
        ("Wed, 21 Oct 2026 07:28:30 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", None, None),
        ("Wed, 21 Oct 2026 07:28:30 GMT", "yesterday", None),
        ("Wed, 21 Oct 2026 07:28:30 GMT", "Wed, 21 Oct 2026 07:28:00 -0000", None),
        ("soon", "Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", None, None),
        ("nan", None, None),
        ("", None, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(status: int, retry_after: str, date: str | None, expected_s: float | None) -> None:
    failure = answer(b"", status, retry_after=retry_after, date=date)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.retry_after_s) == (FailureKind.BUSY, expected_s)


def test_messages_are_short_and_single_line() -> None:
    failure = answer(vllm("line\n" * 10_000, "x", 400), 400)
    assert isinstance(failure, Failure)
    assert len(failure.message) == MESSAGE_CHARS
    assert failure.message.endswith("…")
    assert "\n" not in failure.message


@pytest.mark.parametrize("before", range(MESSAGE_CHARS - len(KEY) - 2, MESSAGE_CHARS + 2))
@pytest.mark.parametrize("status", [200, 401])
def test_no_message_shows_the_key_nor_a_piece_of_it(status: int, before: int) -> None:
    for body in (vllm("x" * before + KEY, "x", 401), b"x" * before + KEY.encode()):
        failure = answer(body, status, secrets=(KEY,))
        assert isinstance(failure, Failure)
        assert KEY[:4] not in failure.message


def test_a_redirect_names_its_target_without_the_query() -> None:
    failure = answer(b"", 302, location="https://login.corp/sso?token=abc")
    assert isinstance(failure, Failure)
    assert "https://login.corp/sso:" in failure.message


def test_chat_answer_of_a_real_vllm() -> None:
    body = b"""{"id":"chatcmpl-row-7","object":"chat.completion","created":1795346392,"model":"tiny","choices":[
    {"index":0,"message":{"role":"assistant","content":" appropriate","refusal":null,"annotations":null,"audio":null,
    "function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,
    "routed_experts":null}],"service_tier":null,"usage":{"prompt_tokens":13,"total_tokens":17,"completion_tokens":4,
    "prompt_tokens_details":{"cached_tokens":12,"created_cache_tokens":0,"multimodal_tokens":null}},"metrics":null}"""
    assert answer(body) == Completion(" appropriate", "length", Usage(13, 4, 12))


def test_completions_answer() -> None:
    body = {
        "choices": [{"index": 0, "text": "abc", "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": None},
    }
    assert answer(body, path=COMPLETIONS) == Completion("abc", "stop", Usage(3, 4))


def test_the_routes_answers_are_not_mistaken_for_each_other() -> None:
    failure = answer(chat({"content": "x"}), path=COMPLETIONS)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.GARBLED


def test_counts_that_are_no_numbers_are_none() -> None:
    usage = {"prompt_tokens": "13", "completion_tokens": None, "prompt_tokens_details": {"cached_tokens": 1.5}}
    assert answer(chat({"content": "x"}) | {"usage": usage}) == Completion("x", "stop", Usage())


@pytest.mark.parametrize("absurd", [-1, 2**63 - 1, 2**63, 10**12 + 1, 10**30, True, 1e3])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_counts_that_no_request_can_have_are_none(absurd: float, path: str) -> None:
    """They are added up, and the sum is written: one row's nonsense must not cost the run."""
    body = chat({"content": "x"}) if path == CHAT else {"choices": [{"text": "x", "finish_reason": "stop"}]}
    usage = b'{"prompt_tokens":3,"completion_tokens":%s,"prompt_tokens_details":{"cached_tokens":%s}}'
    said = str(absurd).lower().encode()
    raw = orjson.dumps(body)[:-1] + b',"usage":' + usage % (said, said) + b"}"
    assert answer(raw, path=path) == Completion("x", "stop", Usage(prompt_tokens=3))
    assert orjson.dumps(Usage(10**12, 10**12).as_dict())


TIMES = {
    "time_to_first_token_ms": 14.5,
    "generation_time_ms": 3000.0,
    "queue_time_ms": 500,
    "mean_itl_ms": 30.0,
    "tokens_per_second": 33.1,
    "speculative_decoding": None,
}


def test_time_to_first_token_counts_the_servers_queue() -> None:
    completion = answer(chat({"content": "x"}) | {"metrics": TIMES})
    assert isinstance(completion, Completion)
    assert (completion.ttft_s, completion.generation_s) == (0.5145, 3.0)
    body = {"choices": [{"index": 0, "text": "abc", "finish_reason": "stop"}], "metrics": TIMES}
    completion = answer(body, path=COMPLETIONS)
    assert isinstance(completion, Completion)
    assert (completion.ttft_s, completion.generation_s) == (0.5145, 3.0)


def test_time_to_first_token_of_a_stream_comes_with_its_usage() -> None:
    chunk = chat({}) | {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    last = {"choices": [], "usage": {"prompt_tokens": 1}, "metrics": TIMES}
    raw = b"".join(b"data: " + orjson.dumps(part) + b"\n\n" for part in (chunk, last)) + b"data: [DONE]\n\n"
    completion = answer(raw, content_type="text/event-stream")
    assert isinstance(completion, Completion)
    assert (completion.ttft_s, completion.generation_s) == (0.5145, 3.0)


@pytest.mark.parametrize(
    "metrics",
    [
        None,
        {},
        [],
        "x",
        {"time_to_first_token_ms": 14.5},
        TIMES | {"queue_time_ms": None},
        TIMES | {"queue_time_ms": -1},
    ],
)
def test_half_of_the_time_to_first_token_is_none(metrics: Any) -> None:
    completion = answer(chat({"content": "x"}) | {"metrics": metrics})
    assert isinstance(completion, Completion)
    assert completion.ttft_s is None


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_text(name: str) -> None:
    completion = answer(chat({"content": None, name: "hm"}, "length"))
    assert completion == Completion(None, "length", Usage(), reasoning="hm")


def test_tool_calls_without_text() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    completion = answer(chat({"content": None, "tool_calls": calls}, "tool_calls"))
    assert completion == Completion(None, "tool_calls", Usage(), tool_calls=calls)
    assert answer(chat({"content": "x", "tool_calls": []})) == Completion("x", "stop", Usage())


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"}]
    assert answer(chat({"content": parts})) == Completion("ab", "stop", Usage())


@pytest.mark.parametrize("extra", ["logprobs", "token_ids", "prompt_logprobs"])
def test_choices_are_kept_where_more_than_text_was_asked(extra: str) -> None:
    body = chat({"content": "x"}, **{extra: [1]})
    completion = answer(body)
    assert isinstance(completion, Completion)
    assert completion.choices == body["choices"]


def test_choices_are_kept_where_several_were_asked() -> None:
    body = {"choices": [*chat({"content": "x"})["choices"], *chat({"content": "y"})["choices"]]}
    completion = answer(body)
    assert isinstance(completion, Completion)
    assert (completion.output, completion.choices) == ("x", body["choices"])


def test_one_aborted_choice_spoils_the_answer() -> None:
    failure = answer({"choices": [*chat({"content": "x"})["choices"], *chat({"content": "y"}, "abort")["choices"]]})
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.DRAINING


WORDS = st.sampled_from(
    [
        "choices",
        "message",
        "delta",
        "content",
        "text",
        "finish_reason",
        "index",
        "usage",
        "prompt_tokens",
        "error",
        "prompt_tokens_details",
        "cached_tokens",
        "tool_calls",
        "function",
        "code",
        "detail",
        "logprobs",
        "object",
        "metrics",
        "queue_time_ms",
        "x",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 999) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(body=JSON, status=st.sampled_from([200, 204, 307, 400, 404, 500]), stream=st.booleans())
def test_no_body_whatsoever_raises(body: Any, status: int, *, stream: bool) -> None:
    raw = orjson.dumps(body)
    raw = b"data: " + raw + b"\n\ndata: [DONE]\n\n" if stream else raw
    kind = "text/event-stream" if stream else "application/json"
    result = answer(raw, status, content_type=kind)
    assert isinstance(result, Completion | Failure)
    if isinstance(result, Completion):
        assert isinstance(result.usage + Usage(1, 1, 1), Usage)


@given(st.binary(max_size=60), st.sampled_from(["application/json", "text/event-stream", "text/html", ""]))
def test_no_bytes_whatsoever_raise(raw: bytes, kind: str) -> None:
    assert isinstance(answer(raw, 200, content_type=kind), Completion | Failure)
    assert isinstance(answer(raw, 500, content_type=kind), Failure)


@pytest.mark.parametrize(
    ("answer_id", "is_ours"),
    [
        ("chatcmpl-0123456789ab-01234567-5-1", True),
        ("cmpl-0123456789ab-01234567-5-1", True),
        ("chatcmpl-0123456789ab-01234567-5-1-of-a-proxy", True),
        ("chatcmpl-0123456789ab-01234567-5-2", True),
        ("chatcmpl-0123456789ab-01234567-6-1", False),
        ("chatcmpl-0123456789ab-76543210-5-1", True),
        ("chatcmpl-ba9876543210-01234567-5-1", False),
        ("chatcmpl-b7d3f0", True),
        (None, True),
        (5, True),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_bears_another_requests_id_is_none(answer_id: Any, *, is_ours: bool, streamed: bool) -> None:
    choice = {"index": 0, "finish_reason": "stop"}
    body = orjson.dumps({"id": answer_id, "choices": [{**choice, "message": {"content": "x"}}]})
    if streamed:
        body = b"data: " + orjson.dumps({"id": answer_id, "choices": [{**choice, "delta": {"content": "x"}}]})
        body += b"\n\ndata: [DONE]\n\n"
    decoded = decode(
        path="/v1/chat/completions",
        status=200,
        content_type="text/event-stream" if streamed else "application/json",
        retry_after=None,
        body=body,
        request_id="0123456789ab-01234567-5-1",
    )
    if is_ours:
        assert isinstance(decoded, Completion)
        return
    assert isinstance(decoded, Failure)
    assert decoded.kind is FailureKind.GARBLED
    assert decoded.message.startswith("it is the answer to request ")
