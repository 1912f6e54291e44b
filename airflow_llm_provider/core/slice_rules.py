"""Which rows may run in token slices: the allow-list of request fields, and what must be known of a server.

Owns the rule. Does not know how a row is continued (`core.slices`), nor how a server's terms are found out
(`endpoint.slice_terms`).

A row is sliced where it may run longer than `WORTH` slices and every field of its request is named here: each was seen
on a real vLLM to leave the answer of a row in slices what it is whole (`tests/vllm/test_slices.py`). What is not named
runs whole. Known to differ, among others: ``presence_penalty`` and ``frequency_penalty`` (they count a row's own tokens
only), ``seed`` (each slice begins its random numbers anew), ``stop`` and ``bad_words`` (they may lie across a
boundary), ``logprobs``, ``n``, ``echo``, tools, grammars and everything that a chat parser reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"

SLICE_TOKENS = 256
"""A slice's length while the server's pace is not known.

What slices cost is their starts: the step in which one begins has prefill beside decode, takes two to three times as
long, and all rows wait for it. On a real vLLM on a CPU, with 8 rows, that is the time of ten to twenty tokens: 7 to 8 %
of the tokens per second with slices of 128, 3 to 4 % with 512."""

LEAST_SLICE_TOKENS = 128
"""Half as many would cost twice as much, about 15 %: however slow a server is, giving way is not worth that."""

MOST_SLICE_TOKENS = 512
"""Twice as many would save two tokens of a hundred at most, and lose twice as many with each row that gives way."""

SLICE_STEP = 64
"""Lengths go by so much, so that a pace that wavers a little changes none; a part so short says little of the pace."""

SLICE_S = 0.35
"""How long a slice should last: what is lost, or waited for, where a row gives way."""

CALM_SLICE_S = 1.0
"""The same while real-time is quiet, and rows give way once in a while: as a slice's start costs the same however long
the slice is, the rarer one is lost, the longer it should be, as the root of the time between (Young 1974)."""

EASE = 0.2
"""A new slice's weight in the pace."""

WORTH = 1.5
"""A row is sliced where it may take more than so many slices, and what is left at its end runs in one where it takes no
more: a rest of less than half a slice would cost a start, as a whole slice does, and save half of one at most."""

CARRIED = frozenset(
    {
        "model", "priority", "user", "cache_salt",
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "allowed_token_ids",
        "stop_token_ids", "ignore_eos", "skip_special_tokens",
    }
)  # fmt: skip
"""Said of every slice. ``repetition_penalty`` counts the prompt's tokens, too, so it sees the same in every slice."""

FIRST = frozenset(
    {"messages", "prompt", "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
     "add_special_tokens", "documents"}
)  # fmt: skip
"""They make the prompt, and later slices have that as token ids."""

COUNTED = frozenset({"max_tokens", "max_completion_tokens", "min_tokens"})
"""Shared out among the slices."""

SHORT = "it is short"
"""Why a row runs whole that has no other reason to."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "n": (1, None),
        "stream": (False, None),
        "stream_options": (None,),
        "echo": (False, None),
        "seed": (None,),
        "stop": (None, []),
        "bad_words": ([],),
        "presence_penalty": (0, 0.0, None),
        "frequency_penalty": (0, 0.0, None),
        "logprobs": (False, None),
        "top_logprobs": (0, None),
        "prompt_logprobs": (None,),
        "response_format": (None, {"type": "text"}),
        "tools": (None, []),
        "tool_choice": ("none", None),
        "include_stop_str_in_output": (False,),
        "spaces_between_special_tokens": (True,),
        "return_token_ids": (False, None),
    }
)
"""Fields that are harmless while they say what holds without them, type and value; only the first slice says them."""

NEUTRAL_IN_COMPLETIONS: Mapping[str, tuple[Any, ...]] = MappingProxyType({**NEUTRAL, "logprobs": (None,)})
"""The same on ``/v1/completions``, where ``logprobs`` is how many likelier tokens are told beside each one that was
taken: 0, and vLLM makes 0 of false, asks for that one alone."""

DEFAULT_COMPLETION_TOKENS = 16
"""vLLM's ``max_tokens`` of a ``/v1/completions`` request that names none; a chat request has what room there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTerms:
    """What must be known of a server before a row is sliced on it.

    Attributes:
        max_model_len: tokens of prompt and answer at most.
        most_tokens: tokens of an answer at most, where the server bounds them: for requests that name no ``max_tokens``
            (its ``generation_config.json``) or for all (``--override-generation-config``). None: as many as there is
            room for.
        slice_tokens: tokens of a slice.

    Raises:
        ConfigurationError: when a number is none of its kind.
    """

    max_model_len: int
    most_tokens: int | None = None
    slice_tokens: int = SLICE_TOKENS

    def __post_init__(self) -> None:
        if self.max_model_len < 1 or self.slice_tokens < 1 or (self.most_tokens is not None and self.most_tokens < 1):
            raise ConfigurationError(f"These are no terms to slice rows by: {self}")

    @property
    def worth_tokens(self) -> float:
        """A row is sliced where it may take more."""
        return WORTH * self.slice_tokens


def slice_tokens_at(pace: float | None, *, calm: bool = False) -> int:
    """The tokens of the next slice: ``SLICE_S * pace``, to the nearest multiple of 64, 128 at least and 512 at most.

    Args:
        pace: of one row in slices, tokens/s; None: not known, and a slice has `SLICE_TOKENS`.
        calm: whether real-time is quiet: `CALM_SLICE_S` instead of `SLICE_S` then.
    """
    if pace is None:
        return SLICE_TOKENS
    tokens = (CALM_SLICE_S if calm else SLICE_S) * pace
    tokens = min(max(tokens, LEAST_SLICE_TOKENS), MOST_SLICE_TOKENS)
    return round(tokens / SLICE_STEP) * SLICE_STEP


def eased_pace(pace: float | None, *, tokens: int, seconds: float) -> float | None:
    """The pace, tokens/s, after another slice: an average whose last slice weighs `EASE`.

    Args:
        pace: before it; None: not known.
        tokens: the slice's. One of fewer than `SLICE_STEP` says nothing: most of its time is its start.
        seconds: from its request to its answer.
    """
    if tokens < SLICE_STEP or seconds <= 0:
        return pace
    seen = tokens / seconds
    return seen if pace is None else pace + EASE * (seen - pace)


def why_whole(path: str, body: Mapping[str, Any], terms: SliceTerms) -> str | None:
    """Why a row's request runs whole; None where it may be sliced.

    Args:
        path: its route.
        body: its JSON body, parsed.
        terms: the server's.
    """
    return why_whole_anywhere(path, body, slice_tokens=terms.slice_tokens) or _why_here(path, body, terms)


def why_whole_anywhere(path: str, body: Mapping[str, Any], *, slice_tokens: int) -> str | None:
    """Why a row's request runs whole, whatever the server's terms are; None where that depends on them.

    Args:
        path: its route.
        body: its JSON body, parsed.
        slice_tokens: tokens of a slice.
    """
    neutral = NEUTRAL_IN_COMPLETIONS if path == COMPLETIONS_PATH else NEUTRAL
    for name, value in body.items():
        if name in CARRIED or name in FIRST or name in COUNTED:
            continue
        if name not in neutral:
            return f"{name} is not known to leave its answer as it is"
        if not _says(value, neutral[name]):
            return f"{name} would change its answer"
    if body.get("skip_special_tokens", True) is not True:
        return "skip_special_tokens would change its answer"
    if (path == CHAT_PATH and not _is_text(body.get("messages"))) or (
        path == COMPLETIONS_PATH and not _is_one_prompt(body.get("prompt"))
    ):
        return "its prompt is not one text"
    asked = asked_tokens(path, body)
    if (asked is not None and type(asked) is not int) or type(body.get("min_tokens", 0)) is not int:
        return "its number of tokens is none"
    return SHORT if asked is not None and asked <= WORTH * slice_tokens else None


def asked_tokens(path: str, body: Mapping[str, Any]) -> int | None:
    """The tokens that a request asks for at most; None where it leaves that to the server."""
    asked = body.get("max_tokens")
    if path == CHAT_PATH and body.get("max_completion_tokens") is not None:
        asked = body["max_completion_tokens"]
    if asked is None and path == COMPLETIONS_PATH:
        return DEFAULT_COMPLETION_TOKENS
    return asked


def _says(value: Any, harmless: tuple[Any, ...]) -> bool:
    """Whether it is one of these: 0 is not false, which a server may take for something else."""
    return any(type(value) is type(each) and value == each for each in harmless)


def _why_here(path: str, body: Mapping[str, Any], terms: SliceTerms) -> str | None:
    asked, most = asked_tokens(path, body), terms.most_tokens
    if asked is None:
        asked = terms.max_model_len if most is None else most
    elif most is not None and asked > most:
        return f"the server may end it after {most} tokens"
    if body.get("min_tokens", 0) > asked:
        return "its min_tokens is above what it may take"
    return None if asked > terms.worth_tokens else SHORT


def _is_text(messages: Any) -> bool:
    """Whether messages are text alone: what is more does not fit into token ids."""
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict) and message.keys() <= {"role", "content", "name"} and _is_content(message)
            for message in messages
        )
    )


def _is_content(message: Mapping[str, Any]) -> bool:
    match message.get("content"):
        case str():
            return True
        case list(parts):
            return all(isinstance(part, dict) and part.get("type") == "text" for part in parts)
        case _:
            return False


def _is_one_prompt(prompt: Any) -> bool:
    return isinstance(prompt, str) or (
        isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)
    )
