"""A request's body becomes what is asked for, or the refusal that a real vLLM 0.32 has for it.

Owns which values make sense, and the order in which they are looked at. Pure. Does not know in which forms fields come
(`simulator.given`), whether there is room (`simulator.engine`), nor how a refusal travels.

Fields that change nothing about time and length, such as penalties, are checked for their range and have no effect.
Grammars and tools have none either: the simulated model knows nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from airflow_llm_provider.simulator import bodies, fields, tokenizer
from airflow_llm_provider.simulator.fields import RefusedError
from airflow_llm_provider.simulator.given import read_fields
from airflow_llm_provider.simulator.model import Ends

if TYPE_CHECKING:
    from collections.abc import Callable

_COMPLETION_TOKENS: Final = 16
"""What ``/v1/completions`` generates at most where the request says nothing."""

_MAX_LOGPROBS: Final = 20
"""``--max-logprobs`` of a vLLM that is told nothing."""

_MAX_COUNT: Final = 16384
"""``VLLM_MAX_N_SEQUENCES`` of such a one."""

_MAX_MADE: Final = 1 << 20
"""What is made of a request of several choices at most: prompt tokens, answer tokens and logprobs, of all together. A
real vLLM has no such limit; here, one request would take all memory, and for minutes the time of all others."""

_CHOICE_TOKENS: Final = 32
"""As many tokens as a choice costs by being there."""

_GREEDY_BELOW: Final = 1e-5


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
    given = read_fields(request, is_chat=is_chat)
    if given["model"] and given["model"] not in models:
        raise RefusedError(bodies.unknown_model(given["model"], ", ".join(models)), 404)
    prompts = [chat_ids(request)] if is_chat else _prompts(request.get("prompt"))
    longest = max(map(len, prompts))
    if longest > max_model_len:
        raise RefusedError(bodies.too_long(max_model_len, max_model_len + 1))
    max_tokens = _max_tokens(given, is_chat=is_chat, longest=longest, max_model_len=max_model_len)
    _ranges(given, max_tokens)
    include_usage, usage_each = given["stream_options"]
    greedy = given["temperature"] is not None and given["temperature"] < _GREEDY_BELOW
    asked = Asked(
        is_chat=is_chat,
        prompts=prompts,
        count=given["n"],
        max_tokens=max_tokens,
        ends=_ends(given),
        seed=None if greedy else given["seed"],
        priority=given["priority"],
        streamed=given["stream"],
        usage=include_usage,
        usage_each=usage_each,
        token_ids=given["return_token_ids"],
        logprobs=_logprobs(given, is_chat=is_chat),
        echo=not is_chat and given["echo"],
    )
    if greedy and asked.count > 1:
        raise RefusedError(bodies.bad_request(f"n must be 1 when using greedy sampling, got {asked.count}."))
    _affordable(asked)
    return asked


def chat_ids(request: dict[str, Any]) -> list[int]:
    """The prompt that a conversation becomes, whose messages have the right form.

    Raises:
        RefusedError: the template cannot be applied to it.
    """
    messages = request["messages"]
    generate = fields.flag(request, "add_generation_prompt", default=True)
    unfinished = fields.flag(request, "continue_final_message")
    if generate and unfinished:
        message = (
            "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you "
            "want the model to continue the final message, and add_generation_prompt when you want to add a header "
            "that will prompt it to start a new assistant message instead."
        )
        raise RefusedError(bodies.bad_request(message))
    if not messages:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise RefusedError(bodies.bad_request(message))
    return tokenizer.chat(messages, generate=generate, unfinished=unfinished)


def _prompts(prompt: Any) -> list[list[int]]:
    """The prompts of a completion, each as ids: text, ids, or a list of one of them."""
    if prompt is None or prompt == "":
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise RefusedError(bodies.bad_request(message, "prompt"))
    if prompt == []:
        raise RefusedError(bodies.bad_request("You must pass at least one prompt"))
    if isinstance(prompt, str):
        return [tokenizer.tokens(prompt)]
    match fields.listed(prompt, "prompt")[0]:
        case str():
            prompts = [tokenizer.tokens(fields.text(one, f"prompt.{at}")) for at, one in enumerate(prompt)]
        case list():
            prompts = [fields.ids(one, f"prompt.{at}", least=0) for at, one in enumerate(prompt)]
        case _:
            prompts = [fields.ids(prompt, "prompt", least=0)]
    if not all(prompts):
        raise RefusedError(bodies.bad_request("The decoder prompt cannot be empty"))
    for token in map(max, prompts):
        if token >= tokenizer.VOCABULARY:
            raise RefusedError(bodies.bad_request(f"Token id {token} is out of vocabulary"))
    return prompts


def _max_tokens(given: dict[str, Any], *, is_chat: bool, longest: int, max_model_len: int) -> int:
    """VLLM 0.32 refuses more than the context holds, and cuts what the prompt leaves no room for."""
    room = max_model_len - longest
    asked = given["max_tokens"] if given["max_completion_tokens"] is None else given["max_completion_tokens"]
    if asked is None:
        asked = room if is_chat else _COMPLETION_TOKENS
    if asked > max_model_len:
        message = (
            f"max_tokens={asked} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens."
        )
        raise RefusedError(bodies.bad_request(message, "max_tokens", asked))
    tokens: int = min(asked, room)
    if tokens < 1:
        message = f"max_tokens must be at least 1, got {tokens}."
        raise RefusedError(bodies.bad_request(message, "max_tokens", tokens))
    return tokens


_MANY: Final = (
    f"n must be at most {_MAX_COUNT}, got {{}}. "
    "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
)
_RANGES: Final[tuple[tuple[str, Callable[[Any], bool], str, bool], ...]] = (
    ("n", lambda value: value >= 1, "n must be at least 1, got {}.", False),
    ("n", lambda value: value <= _MAX_COUNT, _MANY, False),
    ("presence_penalty", lambda value: abs(value) <= 2, "presence_penalty must be in [-2, 2], got {}.", False),  # noqa: PLR2004
    ("frequency_penalty", lambda value: abs(value) <= 2, "frequency_penalty must be in [-2, 2], got {}.", False),  # noqa: PLR2004
    ("repetition_penalty", isfinite, "repetition_penalty must be a finite number, got {}.", False),
    ("repetition_penalty", lambda value: value > 0, "repetition_penalty must be greater than zero, got {}.", False),
    ("temperature", isfinite, "temperature must be a finite number, got {}.", True),
    ("temperature", lambda value: value >= 0, "temperature must be non-negative, got {}.", True),
    ("temperature", lambda value: value <= 2, "temperature must be in [0, 2], got {}.", True),  # noqa: PLR2004
    ("top_p", lambda value: 0 < value <= 1, "top_p must be in (0, 1], got {}.", True),
    ("top_k", lambda value: value >= -1, "top_k must be 0 (disable), or at least 1, got {}.", False),
    ("min_p", lambda value: 0 <= value <= 1, "min_p must be in [0, 1], got {}.", False),
    ("min_tokens", lambda value: value >= 0, "min_tokens must be greater than or equal to 0, got {}.", False),
    ("stop", all, "stop cannot contain an empty string.", False),
)
"""What a field's value must be, what is said if it is not, and whether the error names the field."""


def _ranges(given: dict[str, Any], max_tokens: int) -> None:
    for name, is_valid, message, named in _RANGES:
        value = given[name]
        if value is not None and not is_valid(value):
            told = message.format(value)
            raise RefusedError(bodies.bad_request(told, name, value) if named else bodies.bad_request(told))
    if given["min_tokens"] > max_tokens:
        message = f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {given['min_tokens']}."
        raise RefusedError(bodies.bad_request(message))
    if strange := [token for token in given["stop_token_ids"] if not 0 <= token < tokenizer.VOCABULARY]:
        message = (
            f"token_id(s) {strange} in stop_token_ids contain out-of-vocab token ids. "
            f"Vocabulary size: {tokenizer.VOCABULARY}"
        )
        raise RefusedError(bodies.bad_request(message, "stop_token_ids", strange))


def _logprobs(given: dict[str, Any], *, is_chat: bool) -> int | None:
    """How many of the likeliest tokens are told; -1 are all."""
    likely: int | None = given["logprobs"]
    if is_chat:
        likely = (given["top_logprobs"] or 0) if likely else None
    asked = tokenizer.VOCABULARY if likely == -1 else likely
    if asked is not None and asked > _MAX_LOGPROBS:
        message = f"Requested sample logprobs of {asked}, which is greater than max allowed: {_MAX_LOGPROBS}"
        raise RefusedError(bodies.bad_request(message, "logprobs", asked))
    return asked


def _ends(given: dict[str, Any]) -> Ends:
    return Ends(
        eos=not given["ignore_eos"],
        tokens=frozenset(given["stop_token_ids"]),
        strings=given["stop"],
        not_before=given["min_tokens"],
        keep_string=given["include_stop_str_in_output"],
    )


def _affordable(asked: Asked) -> None:
    choices = asked.count * len(asked.prompts)
    each = _CHOICE_TOKENS + asked.max_tokens * (1 + (asked.logprobs or 0))
    made = asked.count * asked.prompt_tokens + choices * each
    if choices > 1 and made > _MAX_MADE:
        message = (
            f"The simulated server makes {_MAX_MADE} tokens and logprobs of a request with several choices at most, "
            f"prompts included, and these {choices} may come to {made}. Lower n, max_tokens or logprobs, or send fewer "
            "prompts at once."
        )
        raise RefusedError(bodies.bad_request(message))
