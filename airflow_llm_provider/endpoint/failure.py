"""An answer that is no completion, classified.

Owns the reading of error bodies – OpenAI's, FastAPI's, a gateway's HTML – and the tables from HTTP status and the
server's words to a `FailureKind`. Does not know what a failure leads to (`core.retry`), nor the failures that come
without an answer (`endpoint.client`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from airflow_llm_provider.core.redaction import KEEP, Redaction
from airflow_llm_provider.core.retry import Failure, FailureKind

MESSAGE_CHARS = 500
"""Longest `Failure.message`: a server may quote a whole prompt in its error."""

_KIND_BY_STATUS = {
    401: FailureKind.UNAUTHORISED,
    403: FailureKind.UNAUTHORISED,
    407: FailureKind.UNAUTHORISED,
    404: FailureKind.ROUTE_NOT_FOUND,  # unless it names the model
    405: FailureKind.ROUTE_NOT_FOUND,
    501: FailureKind.ROUTE_NOT_FOUND,  # vLLM: the model does not support this API
    408: FailureKind.TIMEOUT,
    504: FailureKind.TIMEOUT,
    524: FailureKind.TIMEOUT,  # Cloudflare's 504
    429: FailureKind.BUSY,
    503: FailureKind.BUSY,
    529: FailureKind.BUSY,  # "overloaded"
    502: FailureKind.GATEWAY_LOST,
    521: FailureKind.GATEWAY_LOST,  # Cloudflare: origin down, unreachable
    522: FailureKind.GATEWAY_LOST,
    523: FailureKind.GATEWAY_LOST,
    409: FailureKind.SERVER_ERROR,  # conflict, too early, client closed: gateways' ways to say "again"
    425: FailureKind.SERVER_ERROR,
    499: FailureKind.SERVER_ERROR,
}

# What a 5xx (or an error inside a 200) says outranks its number. Never applied to 4xx: those may quote the row.
_KIND_BY_WORDS = (
    ("cannot schedule new futures", FailureKind.DRAINING),
    ("EngineCore encountered an issue", FailureKind.ENGINE_DEAD),
    ("EngineDeadError", FailureKind.ENGINE_DEAD),
    ("no healthy upstream", FailureKind.UNREACHABLE),  # Envoy, Istio
    ("no available server", FailureKind.UNREACHABLE),  # Traefik
    ("reset reason: connection failure", FailureKind.GATEWAY_LOST),  # Envoy could not connect
    ("reset reason: remote connection failure", FailureKind.GATEWAY_LOST),
    ("disconnect/reset before headers", FailureKind.CONNECTION_LOST),  # Envoy lost the server mid-request
)

MOST_RETRY_AFTER_S = 600.0
"""A server that wants to be left alone for longer is asked again all the same: what it says may be nonsense, and a row
that waits for a year holds its task for a year."""

_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_STATUS = re.compile(r"[1-9][0-9]{2}")
_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")
_TEXT_BYTES = 20_000  # as much of a non-JSON error page as is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer as far as it is looked at; all of it values, so that classifying is a function.

    Attributes:
        path: the request's route, such as ``/v1/chat/completions``.
        status: HTTP status.
        content_type: the header, or an empty string.
        body: the whole body, decoded from its transfer encoding.
        retry_after: the header as sent: seconds or an HTTP date.
        date: the answer's own ``Date`` header. A ``Retry-After`` date is read relative to it: no clock is needed
            here, and the two machines' clocks need not agree.
        location: where a redirect points. Redirects are never followed: the body would go to another server.
        secrets: strings that no message may contain, such as the API key.
        redaction: of every message: a server may quote a row, or an answer.
    """

    path: str
    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None
    date: str | None = None
    location: str | None = None
    secrets: tuple[str, ...] = ()
    redaction: Redaction = KEEP


def classify(answer: Answer) -> Failure:
    """What an answer outside 2xx means."""
    if 300 <= answer.status < 400:  # noqa: PLR2004 - the redirects
        return _failure(answer, FailureKind.ROUTE_NOT_FOUND, _redirect_message(answer))
    error = read_json(answer.body)
    message = error_message(error) if error is not None else _page_text(answer)
    kind = _kind(answer.status, error, message)
    return _failure(answer, kind, message or f"HTTP {answer.status} with an empty body")


def classify_inside(answer: Answer, error: Any) -> Failure:
    """What an error object inside a 200 body or stream means. Its `code` is the status it would have had."""
    message = error_message(error) or "an error object without words"
    return _failure(answer, _kind(_code(error) or 500, error, message), message)


def garbled(answer: Answer, why: str) -> Failure:
    """A 2xx whose body is no usable answer."""
    seen = shorten(_page_text(answer), answer.secrets)
    return _failure(answer, FailureKind.GARBLED, f"{why}; the body begins {seen[:120]!r}" if seen else why)


def read_json(body: bytes) -> Any | None:
    """The body as JSON, or None when it is none (or ``null``)."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def error_message(error: Any) -> str:
    """The words in an error body: ``{"error": {...}}``, ``{"message": ...}``, ``{"detail": ...}`` or whatever it is."""
    match error:
        case {"error": {"message": str(message)}} | {"message": str(message)}:
            return message
        case {"error": str(message)} | {"detail": str(message)}:
            return message
        case {"detail": list(details)}:
            return "; ".join(_detail(detail) for detail in details)
        case str(message):
            return message
        case _:
            return _dumped(error)


def _dumped(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # orjson reads deeper nesting than it writes
        return "an error body that is nested too deeply to be shown"


def shorten(text: str, secrets: tuple[str, ...] = ()) -> str:
    """One line of at most `MESSAGE_CHARS`, without what would steer a terminal or turn the text around.

    Secrets go first: a cut in the middle of one would hide it.
    """
    for secret in secrets:
        text = text.replace(secret, "***")
    line = " ".join(text[: 10 * MESSAGE_CHARS].split())
    if not line.isprintable():
        line = "".join(char if char.isprintable() else "\ufffd" for char in line)
    return line if len(line) <= MESSAGE_CHARS else f"{line[: MESSAGE_CHARS - 1]}…"


def retry_after_s(retry_after: str | None, date: str | None) -> float | None:
    """Seconds to wait by a ``Retry-After`` header, or None where it can't be told.

    Args:
        retry_after: seconds or an HTTP date.
        date: the same answer's ``Date`` header, which an HTTP date is relative to.
    """
    if retry_after is None:
        return None
    text = retry_after.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MOST_RETRY_AFTER_S)
    if date is None:
        return None
    try:
        wait_s = (parsedate_to_datetime(text) - parsedate_to_datetime(date)).total_seconds()
        return min(max(0.0, wait_s), MOST_RETRY_AFTER_S)
    except (ValueError, TypeError, OverflowError):  # not a date, or one with a zone and one without
        return None


def _failure(answer: Answer, kind: FailureKind, message: str) -> Failure:
    return Failure(
        kind=kind,
        message=answer.redaction.text(shorten(message, answer.secrets)),
        http_status=answer.status,
        retry_after_s=retry_after_s(answer.retry_after, answer.date),
    )


def _kind(status: int, error: Any, message: str) -> FailureKind:
    if status == 404 and _names_the_model(error):  # noqa: PLR2004 - HTTP statuses are their own names
        return FailureKind.MODEL_NOT_FOUND
    if status >= 500:  # noqa: PLR2004
        for words, kind in _KIND_BY_WORDS:
            if words in message:
                return kind
    default = FailureKind.BAD_REQUEST if 400 <= status < 500 else FailureKind.SERVER_ERROR  # noqa: PLR2004
    return _KIND_BY_STATUS.get(status, default)


def _names_the_model(error: Any) -> bool:
    match error:
        case {"error": {"code": "model_not_found"} | {"param": "model"}}:
            return True
        case {"error": _} | {"object": "error"}:
            return _MODEL.search(error_message(error)) is not None
        case _:
            return False


def _code(error: Any) -> int | None:
    match error:
        case {"error": {"code": code}} | {"code": code}:
            return int(code) if isinstance(code, int | str) and _STATUS.fullmatch(str(code)[:4]) else None
        case _:
            return None


def _detail(detail: Any) -> str:
    """One of FastAPI's validation errors, ``{"loc": ["body", "top_p"], "msg": ..., "input": ...}``."""
    match detail:
        case {"loc": list(loc), "msg": str(msg)}:
            return f"{'.'.join(map(str, loc))}: {msg}"
        case str(text):
            return text
        case _:
            return _dumped(detail)


def _page_text(answer: Answer) -> str:
    text = answer.body[:_TEXT_BYTES].decode("utf-8", "replace")
    if "html" not in answer.content_type and not text.lstrip().startswith("<"):
        return text.strip()
    title = _TITLE.search(text)
    return " ".join((title.group(1) if title else _TAG.sub(" ", text)).split())


def _redirect_message(answer: Answer) -> str:
    target = (answer.location or "nowhere").partition("?")[0]
    return f"the server redirects to {target}: redirects are not followed, set the base URL to the right root"
