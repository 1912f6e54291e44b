"""The bodies that a real vLLM 0.32.0 sends whoever asks: errors, refusals and the list of models, field by field.

Owns their shape. Pure. Does not know when which one is sent, nor what an answer looks like (`simulator.answer`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
EMBEDDINGS_PATH = "/v1/embeddings"
CLASSIFY_PATH = "/classify"
SCORE_PATH = "/v1/score"

_CREATED = 1795346416
_SKETCHED_CHARS = 200


def error(message: str, *, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    """The error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


BUSY = error(
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
    kind="Service Unavailable",
    code=503,
)
ENGINE_DEAD = error(
    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    kind="Internal Server Error",
    code=500,
)
DRAINING = error("cannot schedule new futures after shutdown", kind="Internal Server Error", code=500)
UNAUTHORISED = {"error": "Unauthorized"}
RATE_LIMITED = {"error": {"message": "rate limit exceeded", "type": "rate_limit_error", "param": None, "code": "429"}}
WRONG_MEDIA = error(
    "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed", kind="Bad Request", code=400
)
NO_ROUTE = {"detail": "Not Found"}
WRONG_METHOD = {"detail": "Method Not Allowed"}


def bad_request(message: str, param: str | None = None, value: object = None) -> dict[str, Any]:
    """400 for a value that makes no sense; with `param` the message tells it and its value, as vLLM does."""
    named = message if value is None else f"{message} (parameter={param}, value={value})"
    return error(named, kind="BadRequestError", code=400, param=param)


def unknown_model(asked: str, served: str) -> dict[str, Any]:
    """404 for a model that is not served."""
    return error(
        f"The model `{asked}` does not exist. Valid aliases: {served}.", kind="NotFoundError", code=404, param="model"
    )


def too_long(limit_tokens: int, tokens: int) -> dict[str, Any]:
    """400 for a prompt beyond the context length."""
    return bad_request(
        f"This model's maximum context length is {limit_tokens} tokens. However, your prompt contains at least "
        f"{tokens} input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
        "of the input prompt.",
        "input_tokens",
        tokens,
    )


def invalid(
    loc: str, kind: str, message: str, *, given: object = ..., context: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """400 for a body that is not valid JSON or of the wrong shape.

    Args:
        loc: which field.
        kind: pydantic's word for what is wrong with it.
        message: the same for people.
        given: what was there; left out, nothing is said of it.
        context: more on what is wrong.
    """
    told = "" if given is ... else f", 'input': {_sketch(given)!r}"
    more = f", 'ctx': {context!r}" if context else ""
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{loc}', 'msg': {message!r}{told}{more}}}"
    return error(text, kind="Bad Request", code=400, param=loc)


def _sketch(value: object) -> str:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    told = str(value)
    return told if len(told) <= _SKETCHED_CHARS else f"{told[:_SKETCHED_CHARS]}...[truncated]"


def models(names: tuple[str, ...], root: str, max_model_len: int) -> dict[str, Any]:
    """The answer of ``/v1/models``."""
    return {"object": "list", "data": [_model(name, root, max_model_len) for name in names]}


def _model(name: str, root: str, max_model_len: int) -> dict[str, Any]:
    permission = {
        "id": "modelperm-a9ab9253e452ce3e",
        "object": "model_permission",
        "created": _CREATED,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": _CREATED,
        "owned_by": "vllm",
        "root": root,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
