"""An HTTP answer becomes a `Completion` or a `Failure`.

Owns the shape of a good answer of the routes we drive. Pure: bytes in, values out; no clock, no socket.
Does not know how errors are classified (`endpoint.failure`), how a stream is put together (`endpoint.sse`),
or who asked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.core.redaction import KEEP, Redaction
from airflow_llm_provider.core.request import Completion, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint import pooled, sse
from airflow_llm_provider.endpoint.failure import Answer, classify, classify_inside, garbled, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"

MOST_TOKENS = 10**12
"""No request has more: a count above is nonsense, and sums of such would not fit into 64 bits, as what lands must."""

_OURS = re.compile(r"([0-9a-f]{12})-[0-9a-f]{8}-(\d+)-\d+")
"""A row's request id: run, try, row, request. vLLM makes it the end of its answer's ``id``; others make one up."""

_GIVEN_UP = {"abort": FailureKind.DRAINING, "error": FailureKind.SERVER_ERROR}
"""Finish reasons that come with a 200 and half a text. A vLLM told to stop (SIGTERM) ends what is in flight so."""


def decode(
    *,
    path: str,
    status: int,
    content_type: str,
    retry_after: str | None,
    body: bytes,
    date: str | None = None,
    location: str | None = None,
    secrets: tuple[str, ...] = (),
    redaction: Redaction = KEEP,
    request_id: str | None = None,
    asked: bytes | None = None,
) -> Completion | Failure:
    """What an answer to a POST means. Takes `Answer`'s fields; never raises.

    Where the answer's id bears a request id of ours that is of another row than `request_id`, something on the way has
    answered a request twice.

    Where `asked`, the request's body, is given, an answer of values must have one for each of its texts.

    A whole ``text/event-stream`` body is as good as a JSON one: rows may say ``"stream": true``.
    """
    if status == 200:  # noqa: PLR2004 - the one that carries completions; the hot path makes no `Answer`
        parsed = sse.assemble(body) if "event-stream" in content_type else read_json(body)
        completion = _completion(path, parsed, asked)
        if completion is not None:
            answers = None if request_id is None else _another_row(parsed, request_id)
            if answers is None:
                return completion
            message = f"it is the answer to request {answers}, and not to {request_id}"
            return Failure(FailureKind.GARBLED, message, status)
    answer = Answer(
        path=path,
        status=status,
        content_type=content_type,
        body=body,
        retry_after=retry_after,
        date=date,
        location=location,
        secrets=secrets,
        redaction=redaction,
    )
    if not 200 <= status < 300:  # noqa: PLR2004
        return classify(answer)
    return _why_not(answer)


def _completion(path: str, parsed: Any, asked: bytes | None = None) -> Completion | None:
    """The completion in a parsed body, or None where there is no usable one."""
    if type(parsed) is not dict or parsed.get("error"):
        return None
    if path in pooled.READERS:
        value = pooled.value_in(path, parsed, asked)
        return None if value is None else Completion(None, None, _usage(parsed.get("usage")), value=value)
    choices = parsed.get("choices")
    if type(choices) is not list or not choices or type(choices[0]) is not dict:
        return None
    if _given_up(choices) is not None:
        return None
    first = choices[0]
    finish_reason = _word(first.get("finish_reason"))
    usage = _usage(parsed.get("usage"))
    metrics = parsed.get("metrics")
    ttft_s, generation_s = _timing(metrics) if type(metrics) is dict else (None, None)
    kept = choices if len(choices) > 1 or _has_more_than_text(first) else None
    if kept is not None and not _can_be_written(kept):
        return None
    if path == COMPLETIONS_PATH:
        text = first.get("text")
        if type(text) is not str:
            return None
        return Completion(
            text,
            finish_reason,
            usage,
            choices=kept,
            ttft_s=ttft_s,
            generation_s=generation_s,
            token_ids=_ids(first.get("token_ids")),
            prompt_token_ids=_ids(first.get("prompt_token_ids")),
        )
    message = first.get("message")
    if type(message) is not dict:
        return None
    tool_calls = message.get("tool_calls") or None
    if tool_calls is not None and not _can_be_written(tool_calls):
        return None
    return Completion(
        _text(message.get("content")),
        finish_reason,
        usage,
        _word(message.get("reasoning_content") or message.get("reasoning")) or None,
        tool_calls,
        kept,
        ttft_s,
        generation_s,
        _ids(first.get("token_ids")),
        _ids(parsed.get("prompt_token_ids")),
    )


def _another_row(parsed: Any, request_id: str) -> str | None:
    """The request of another row that it says that it answers; None where it says nothing of the kind."""
    answer_id = parsed.get("id")
    if type(answer_id) is not str or answer_id.endswith(request_id):
        return None
    found, asked = _OURS.search(answer_id), _OURS.fullmatch(request_id)
    return found[0] if found and asked and found.groups() != asked.groups() else None


def _has_more_than_text(choice: dict[str, Any]) -> bool:
    """Whether the request asked for fields that are null otherwise."""
    return (
        choice.get("logprobs") is not None
        or choice.get("token_ids") is not None
        or choice.get("prompt_logprobs") is not None
    )


def _word(value: Any) -> str | None:
    return value if type(value) is str else None


def _can_be_written(value: Any) -> bool:
    """Whether it can stand in a part's line: orjson reads deeper nesting than it writes."""
    try:
        orjson.dumps([[[value]]])
    except TypeError:
        return False
    return True


def _ids(ids: Any) -> list[int] | None:
    return ids if type(ids) is list and all(type(each) is int for each in ids) else None


def _given_up(choices: list[Any]) -> str | None:
    """The finish reason of the first choice that ended halfway."""
    for choice in choices:
        reason = choice.get("finish_reason") if type(choice) is dict else None
        if type(reason) is str and reason in _GIVEN_UP:
            return reason
    return None


def _why_not(answer: Answer) -> Failure:
    """Names what is wrong with a 2xx that held no completion; only ever runs for those."""
    if not answer.body.strip():
        return garbled(answer, f"HTTP {answer.status} with an empty body")
    if "event-stream" in answer.content_type:
        parsed = sse.assemble(answer.body)
        if parsed is None:
            return garbled(answer, "the stream ended before its answer was complete")
    else:
        parsed = read_json(answer.body)
    match parsed:
        case {"error": error} if error:
            return classify_inside(answer, parsed)
        case {"object": "error"}:  # older vLLM
            return classify_inside(answer, parsed)
        case {"choices": list(choices)} if (reason := _given_up(choices)) is not None:
            message = f"the server gave up on the request: finish_reason {reason!r}"
            return Failure(_GIVEN_UP[reason], message, answer.status)
        case {"choices": []}:
            return garbled(answer, "the answer has no choices")
        case None:
            return garbled(answer, "the answer is not JSON")
        case _:
            return garbled(answer, f"the answer has not the shape of {answer.path}")


def _text(content: Any) -> str | None:
    if type(content) is str or content is None:
        return content
    if type(content) is list:  # content parts
        return "".join(part["text"] for part in content if type(part) is dict and type(part.get("text")) is str)
    return None


def _usage(usage: Mapping[str, Any] | None) -> Usage:
    if type(usage) is not dict:
        return Usage()
    details = usage.get("prompt_tokens_details")
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _count(details.get("cached_tokens")) if type(details) is dict else 0,
    )


def _timing(metrics: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Time to the first token and generation time, in seconds.

    vLLM's ``time_to_first_token_ms`` begins when the request leaves its queue, unlike its histogram of that name, which
    begins when it arrives: the two differ by ``queue_time_ms``, and without it nothing is known.
    """
    queue_s, first_s = _seconds(metrics.get("queue_time_ms")), _seconds(metrics.get("time_to_first_token_ms"))
    ttft_s = None if queue_s is None or first_s is None else queue_s + first_s
    return ttft_s, _seconds(metrics.get("generation_time_ms"))


def _seconds(ms: Any) -> float | None:
    return ms / 1000 if isinstance(ms, float | int) and ms >= 0 else None


def _count(tokens: Any) -> int:
    return tokens if type(tokens) is int and 0 <= tokens <= MOST_TOKENS else 0
