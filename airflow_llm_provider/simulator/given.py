"""A request's fields in the forms that a real vLLM 0.32 reads: what is looked at before their meaning is.

Owns which fields there are, on which route, and in which form. Pure. Does not know what a form is (`simulator.fields`)
nor which values make sense (`simulator.asked`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from airflow_llm_provider.simulator import bodies, fields
from airflow_llm_provider.simulator.fields import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_OBJECT: Final = ("model_attributes_type", "Input should be a valid dictionary or object to extract fields from")


def parse(raw: bytes) -> dict[str, Any]:
    """The body as an object.

    Raises:
        RefusedError: it is none.
    """
    if not raw.strip():
        raise RefusedError(bodies.invalid("body", "missing", "Field required", given=None))
    try:
        request = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        told = bodies.invalid(
            f"body.{error.pos}",
            "json_invalid",
            "JSON decode error",
            given={},
            context={"error": error.msg.partition(":")[0]},
        )
        raise RefusedError(told) from None
    if not isinstance(request, dict):
        raise RefusedError(bodies.invalid("body", *_NO_OBJECT, given=request))
    return request


def conversation(value: object, loc: str = "messages") -> list[Any]:
    """The messages of a chat, each with a role and, as a rule, something said.

    Args:
        value: what the field holds.
        loc: which field.

    Raises:
        RefusedError: they are none.
    """
    messages = fields.listed(value, loc)
    for place, message in enumerate(messages):
        at = f"{loc}.{place}"
        if not isinstance(message, dict):
            raise fields.refused(at, "dict_type", "Input should be a valid dictionary", message)
        if "role" not in message:
            raise fields.refused(f"{at}.role", "missing", "Field required", message)
        role = fields.text(message["role"], f"{at}.role")
        _content(message.get("content", ""), f"{at}.content", may_be_none=role == "assistant")
    return messages


def _content(value: object, loc: str, *, may_be_none: bool) -> None:
    """Text, or parts. Where an assistant called for something, there may be nothing to read."""
    if not isinstance(value, list):
        if not (value is None and may_be_none):
            fields.text(value, loc)
        return
    for place, part in enumerate(value):
        at = f"{loc}.{place}"
        if not isinstance(part, dict):
            raise fields.refused(at, "dict_type", "Input should be a valid dictionary", part)
        if "type" not in part:
            raise fields.refused(f"{at}.type", "missing", "Field required", part)
        if part["type"] == "text":
            fields.text(part.get("text"), f"{at}.text")


def _stops(value: object, loc: str) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(fields.text(one, f"{loc}.{place}") for place, one in enumerate(value))
    return (fields.text(value, loc),)


def _stream_options(value: object, loc: str) -> tuple[bool, bool]:
    """Whether a stream ends with the usage, and whether each chunk has one."""
    if not isinstance(value, dict):
        raise fields.refused(loc, *_NO_OBJECT, value)
    return fields.flag(value, "include_usage", within=loc), fields.flag(value, "continuous_usage_stats", within=loc)


class _Field(NamedTuple):
    form: Callable[[object, str], Any]
    default: Any = None
    may_be_none: bool = True


_NUMBER: Final = _Field(fields.number)
_COUNT: Final = _Field(fields.whole)
_FLAG: Final = _Field(fields.truth, default=False)
_ALWAYS_FLAG: Final = _Field(fields.truth, default=False, may_be_none=False)
_FIELDS: Final[dict[str, _Field]] = {
    "model": _Field(fields.text),
    "frequency_penalty": _NUMBER,
    "max_tokens": _COUNT,
    "max_completion_tokens": _COUNT,
    "presence_penalty": _NUMBER,
    "seed": _Field(fields.int64),
    "stop": _Field(_stops, default=()),
    "stream": _FLAG,
    "stream_options": _Field(_stream_options, default=(False, False)),
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": _COUNT,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "stop_token_ids": _Field(fields.ids, default=()),
    "include_stop_str_in_output": _ALWAYS_FLAG,
    "ignore_eos": _ALWAYS_FLAG,
    "min_tokens": _Field(fields.whole, default=0, may_be_none=False),
    "priority": _Field(fields.int64, default=0, may_be_none=False),
    "return_token_ids": _FLAG,
}
_CHAT_FIELDS: Final = {
    **_FIELDS,
    "logprobs": _FLAG,
    "top_logprobs": _Field(fields.whole, default=0),
    "n": _Field(fields.whole, default=1),
    "echo": _ALWAYS_FLAG,
}
_TEXT_FIELDS: Final = {
    **_FIELDS,
    "logprobs": _COUNT,
    "n": _Field(fields.whole, default=1, may_be_none=False),
    "echo": _FLAG,
}


def read_fields(request: dict[str, Any], *, is_chat: bool) -> dict[str, Any]:
    """The fields that mean something here, each in its form; what was not given has its default.

    Args:
        request: the body.
        is_chat: the route.

    Raises:
        RefusedError: a field has no form that vLLM takes, or two contradict each other.
    """
    _together(request, is_chat=is_chat)
    if is_chat and "messages" not in request:
        raise RefusedError(bodies.invalid("body.messages", "missing", "Field required", given=request))
    if is_chat:
        conversation(request["messages"])
    read = {}
    for name, (form, default, may_be_none) in (_CHAT_FIELDS if is_chat else _TEXT_FIELDS).items():
        is_none = name not in request or (may_be_none and request[name] is None)
        read[name] = default if is_none else form(request[name], name)
    return read


def _together(request: dict[str, Any], *, is_chat: bool) -> None:
    """What vLLM looks at before the fields are looked at one by one."""
    if request.get("stream_options") and not request.get("stream"):
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise RefusedError(bodies.bad_request(message, "stream_options"))
    name = "top_logprobs" if is_chat else "logprobs"
    likely = request.get(name)
    if likely is None:
        return
    if not isinstance(likely, int | float):
        raise RefusedError(bodies.bad_request(f"`{name}` must be an integer.", name, likely))
    if likely < 0 and likely != -1:
        raise RefusedError(bodies.bad_request(f"`{name}` must be a positive value or -1.", name, likely))
    if is_chat and likely and not request.get("logprobs"):
        message = "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)"
        raise RefusedError(bodies.bad_request(message, name))
