"""A request's body becomes what is asked for, or the refusal that a real vLLM 0.32 has for it.

Owns the checks and their order. Pure. Does not know whether there is room (`simulator.engine`), nor how a refusal
travels.

Fields that change nothing about time and length, such as penalties, are checked for their range and have no effect.
Grammars and tools have none either: the simulated model knows nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from airflow_llm_provider.simulator import bodies, tokenizer
from airflow_llm_provider.simulator.model import Ends

if TYPE_CHECKING:
    from collections.abc import Callable

_COMPLETION_TOKENS: Final = 16
"""What ``/v1/completions`` generates at most where the request says nothing."""


class RefusedError(Exception):
    """The request gets an error.

    Args:
        status: of the answer.
        body: of the answer.
    """

    def __init__(self, body: dict[str, Any], status: int = 400) -> None:
        super().__init__(body["error"]["message"])
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A valid request.

    Attributes:
        is_chat: the route.
        prompts: token ids of each: one, or several that ``/v1/completions`` was given.
        count: answers to each prompt.
        max_tokens: of each answer, with what the context leaves for the longest prompt.
        ends: what ends an answer sooner.
        seed: of sampling; None where it is greedy, or nothing was said.
        priority: lower goes first.
        streamed: as chunks.
        usage: whether a stream ends with the usage.
        usage_each: whether each of its chunks has one.
        token_ids: whether ids are told.
        logprobs: how many of the likeliest tokens are told at each; None: nothing of the kind.
        echo: whether the prompt's text comes first.
    """

    is_chat: bool
    prompts: list[list[int]]
    count: int
    max_tokens: int
    ends: Ends
    seed: int | None
    priority: int
    streamed: bool
    usage: bool
    usage_each: bool
    token_ids: bool
    logprobs: int | None
    echo: bool

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts together, each counted once."""
        return sum(map(len, self.prompts))


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
            f"body.{error.pos}", "json_invalid", "JSON decode error", given={}, context=error.msg.partition(":")[0]
        )
        raise RefusedError(told) from None
    if not isinstance(request, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise RefusedError(bodies.invalid("body", "model_attributes_type", message, given=request))
    return request


def read(request: dict[str, Any], *, is_chat: bool, models: tuple[str, ...], max_model_len: int) -> Asked:
    """What a request asks for.

    Args:
        request: its body.
        is_chat: the route.
        models: names that are served.
        max_model_len: prompt and answer together, in tokens, at most.

    Raises:
        RefusedError: it has something that vLLM refuses.
    """
    _types(request, is_chat=is_chat)
    stream_options = request.get("stream_options") or {}
    streamed = bool(request.get("stream"))
    if stream_options and not streamed:
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise RefusedError(bodies.bad_request(message, "stream_options"))
    if request.get("model") is not None and request["model"] not in models:
        raise RefusedError(bodies.unknown_model(request["model"], ", ".join(models)), 404)
    prompts = [_chat(request)] if is_chat else _prompts(request.get("prompt"))
    longest = max(map(len, prompts))
    if longest > max_model_len:
        raise RefusedError(bodies.too_long(max_model_len, max_model_len + 1))
    max_tokens = _max_tokens(request, is_chat=is_chat, longest=longest, max_model_len=max_model_len)
    _ranges(request, max_tokens)
    logprobs = request.get("logprobs")
    if is_chat:
        logprobs = _whole(request, "top_logprobs", 0) if logprobs else None
    greedy = request.get("temperature") == 0
    return Asked(
        is_chat=is_chat,
        prompts=prompts,
        count=_whole(request, "n", 1),
        max_tokens=max_tokens,
        ends=_ends(request),
        seed=None if greedy or request.get("seed") is None else _whole(request, "seed", 0),
        priority=_whole(request, "priority", 0),
        streamed=streamed,
        usage=bool(stream_options.get("include_usage")),
        usage_each=bool(stream_options.get("continuous_usage_stats")),
        token_ids=bool(request.get("return_token_ids")),
        logprobs=logprobs,
        echo=not is_chat and bool(request.get("echo")),
    )


def _types(request: dict[str, Any], *, is_chat: bool) -> None:
    """What pydantic looks at: the form of the fields, before anything is known of their meaning."""
    if is_chat:
        if "messages" not in request:
            raise RefusedError(bodies.invalid("body.messages", "missing", "Field required", given=request))
        _listed(request, "messages")
        for number, message in enumerate(request["messages"]):
            if not isinstance(message, dict) or "role" not in message:
                raise RefusedError(
                    bodies.invalid(f"body.messages.{number}.role", "missing", "Field required", given=message)
                )
    elif not isinstance(request.get("prompt", ""), str):
        _listed(request, "prompt")
    for name in ("max_tokens", "max_completion_tokens", "n", "priority", "seed", "min_tokens", "top_k", "top_logprobs"):
        _whole(request, name, 0)
    for name in _RANGES:
        _number(request, name)


def _listed(request: dict[str, Any], name: str) -> None:
    if not isinstance(request[name], list):
        raise RefusedError(
            bodies.invalid(f"body.{name}", "list_type", "Input should be a valid list", given=request[name])
        )


def not_a_list(name: str, given: object) -> RefusedError:
    """The refusal of a field that must be a list."""
    return RefusedError(bodies.invalid(f"body.{name}", "list_type", "Input should be a valid list", given=given))


def _whole(request: dict[str, Any], name: str, default: int) -> int:
    value = request.get(name)
    if value is None:
        return default
    try:
        if isinstance(value, str | int) or (isinstance(value, float) and value.is_integer()):
            return int(value)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise RefusedError(bodies.invalid(f"body.{name}", "int_parsing", message, given=value)) from None
    raise RefusedError(bodies.invalid(f"body.{name}", "int_type", "Input should be a valid integer", given=value))


def _number(request: dict[str, Any], name: str) -> float | None:
    value = request.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, str | int | float):
            return float(value)
    except ValueError:
        message = "Input should be a valid number, unable to parse string as a number"
        raise RefusedError(bodies.invalid(f"body.{name}", "float_parsing", message, given=value)) from None
    raise RefusedError(bodies.invalid(f"body.{name}", "float_type", "Input should be a valid number", given=value))


def _chat(request: dict[str, Any]) -> list[int]:
    messages = request["messages"]
    if not messages:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise RefusedError(bodies.bad_request(message))
    return chat_ids(request)


def chat_ids(request: dict[str, Any]) -> list[int]:
    """The prompt that a conversation becomes."""
    return tokenizer.chat(
        request["messages"],
        generate=bool(request.get("add_generation_prompt", True)),
        unfinished=bool(request.get("continue_final_message")),
    )


def _prompts(prompt: Any) -> list[list[int]]:
    """The prompts of a completion, each as ids: text, ids, or a list of either."""
    if prompt is None or prompt == "":
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise RefusedError(bodies.bad_request(message, "prompt"))
    if prompt == []:
        raise RefusedError(bodies.bad_request("You must pass at least one prompt"))
    if isinstance(prompt, str):
        return [tokenizer.tokens(prompt)]
    several = prompt if isinstance(prompt[0], str | list) else [prompt]
    return [tokenizer.tokens(one) if isinstance(one, str) else _ids(one) for one in several]


def _ids(prompt: Any) -> list[int]:
    if not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
        raise not_a_list("prompt", prompt)
    for token in prompt:
        if not 0 <= token < tokenizer.VOCABULARY:
            raise RefusedError(bodies.bad_request(f"Token id {token} is out of vocabulary"))
    if not prompt:
        raise RefusedError(bodies.bad_request("You must pass at least one prompt"))
    return prompt


def _max_tokens(request: dict[str, Any], *, is_chat: bool, longest: int, max_model_len: int) -> int:
    """VLLM 0.32 refuses more than the context holds, and cuts what the prompt leaves no room for."""
    room = max_model_len - longest
    default = room if is_chat else _COMPLETION_TOKENS
    name = "max_completion_tokens" if request.get("max_completion_tokens") is not None else "max_tokens"
    asked = _whole(request, name, default)
    if asked > max_model_len:
        message = (
            f"max_tokens={asked} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens."
        )
        raise RefusedError(bodies.bad_request(message, "max_tokens", asked))
    tokens = min(asked, room)
    if tokens < 1:
        message = f"max_tokens must be at least 1, got {tokens}."
        raise RefusedError(bodies.bad_request(message, "max_tokens", tokens))
    return tokens


_RANGES: Final[dict[str, tuple[Callable[[float], bool], str, bool]]] = {
    "temperature": (lambda value: value >= 0, "temperature must be non-negative, got {}.", True),
    "top_p": (lambda value: 0 < value <= 1, "top_p must be in (0, 1], got {}.", True),
    "min_p": (lambda value: 0 <= value <= 1, "min_p must be in [0, 1], got {}.", False),
    "presence_penalty": (lambda value: abs(value) <= 2, "presence_penalty must be in [-2, 2], got {}.", False),  # noqa: PLR2004
    "frequency_penalty": (lambda value: abs(value) <= 2, "frequency_penalty must be in [-2, 2], got {}.", False),  # noqa: PLR2004
    "repetition_penalty": (lambda value: value > 0, "repetition_penalty must be greater than zero, got {}.", False),
}
"""What a field's value must be, what is said if it is not, and whether the error names the field."""


def _ranges(request: dict[str, Any], max_tokens: int) -> None:
    for name, (is_valid, message, named) in _RANGES.items():
        value = _number(request, name)
        if value is not None and not is_valid(value):
            told = message.format(value)
            raise RefusedError(bodies.bad_request(told, name, value) if named else bodies.bad_request(told))
    count = _whole(request, "n", 1)
    if count < 1:
        raise RefusedError(bodies.bad_request(f"n must be at least 1, got {count}."))
    top_k = _whole(request, "top_k", 0)
    if top_k < -1:
        raise RefusedError(bodies.bad_request(f"top_k must be 0 (disable), or at least 1, got {top_k}."))
    min_tokens = _whole(request, "min_tokens", 0)
    if min_tokens > max_tokens:
        message = f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
        raise RefusedError(bodies.bad_request(message))


def _ends(request: dict[str, Any]) -> Ends:
    stop = request.get("stop") or ()
    return Ends(
        eos=not request.get("ignore_eos"),
        tokens=frozenset(request.get("stop_token_ids") or ()),
        strings=(stop,) if isinstance(stop, str) else tuple(stop),
        not_before=_whole(request, "min_tokens", 0),
        keep_string=bool(request.get("include_stop_str_in_output")),
    )
