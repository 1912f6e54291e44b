"""What is made of a usable answer: it lands, or its row is asked once more in other words.

Owns the rules for answers that are cut off or are not what the DAG wants, and the request that a row becomes then.
Pure. Does not know what is no usable answer at all (`core.retry`), nor when a row goes again (`core.dispatch`).

- **Cut off** (``finish_reason`` is ``length``): asked again, once, with `retry_max_tokens`, where that is set; else it
  lands as ``truncated``. It is never taken for a success, unless the DAG says that it is one.
- **No instance of the schema**: the same conversation, with the answer and what is wrong with it at its end, at most
  `repair_attempts` times; then it lands as ``invalid_output``. One that is cut off is none either, and is asked again
  with `retry_max_tokens` from then on.

Nothing of the rows' budget for failures is spent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from airflow_llm_provider.core.output_schema import NotValid, OutputSchema, Parsed
from airflow_llm_provider.core.request import Completion, Landing, RowError, Status
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from airflow_llm_provider.core.request import RowRequest, Usage

TRUNCATED: Final = "truncated"
INVALID_OUTPUT: Final = "invalid_output"
"""Kinds of a row's error, beside `core.retry.FailureKind`'s."""

_SHOWN_CHARS = 4_000
"""Of an answer that is not valid, as the model is shown it: what rambles must not fill the next prompt."""

_SCHEMA_CHARS = 8_000
"""A schema that is longer is not shown."""

_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(slots=True)
class Asked:
    """What a row has been asked so far, kept with its ticket.

    Attributes:
        first: its own request.
        repairs: how often it was asked again for the schema's sake.
        extended: whether it is asked with `retry_max_tokens`.
        usage: of the answers that did not land.
        rejected: the last of these, which lands where nothing better comes.
    """

    first: RowRequest
    repairs: int = 0
    extended: bool = False
    usage: Usage | None = None
    rejected: Landing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRules:
    """See the module.

    Attributes:
        schema: what answers must be; None: any text.
        repair_attempts: how often a row may be asked again because of it, 0 or more.
        accept_truncated: a text that was cut off is a success.
        retry_max_tokens: completion tokens of the second request where the first was cut off; None: there is none.

    Raises:
        ConfigurationError: a value cannot be meant.
    """

    schema: OutputSchema | None = None
    repair_attempts: int = 2
    accept_truncated: bool = False
    retry_max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("repair_attempts", 0), ("retry_max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ConfigurationError(f"{name} must be a whole number of {least} or more, not {value!r}")
        if self.accept_truncated and self.retry_max_tokens is not None:
            raise ConfigurationError(
                "on_truncated='accept' takes a text that is cut off, so leave out retry_max_tokens"
            )

    def shaping(self) -> dict[str, Any]:
        """What of it shapes the results; nothing where it is as it was before there were such rules."""
        words: dict[str, Any] = {}
        if self.schema is not None:
            words |= {"schema": self.schema.schema, "repair_attempts": self.repair_attempts}
        if self.accept_truncated:
            words["on_truncated"] = "accept"
        if self.retry_max_tokens is not None:
            words["retry_max_tokens"] = self.retry_max_tokens
        return words

    def judge(self, asked: Asked, completion: Completion) -> Landing | RowRequest:
        """What lands of an answer, or what its row asks next; `asked` is brought up to date."""
        if completion.value is not None:
            if self.schema is None:
                return Landing(Status.SUCCEEDED, completion, parsed=completion.value)
            error = RowError(INVALID_OUTPUT, f"{asked.first.path} answers with no text, which is what a schema is of")
            return Landing(Status.INVALID_OUTPUT, completion, error=error)
        cut_off = completion.finish_reason == "length"
        spent = completion.usage if asked.usage is None else asked.usage + completion.usage
        completion = replace(completion, usage=spent) if asked.usage is not None else completion
        if self.schema is None:
            if not cut_off or self.accept_truncated:
                return Landing(Status.SUCCEEDED, completion)
            landing = _cut_off(completion)
            again = self._extend(asked)
        else:
            found = self.schema.parse(completion.output) if completion.checked is None else completion.checked
            if cut_off and isinstance(found, Parsed) and type(found.value) in (int, float):
                found = NotValid("More digits may have followed")
            if not isinstance(found, NotValid):
                return Landing(Status.SUCCEEDED, completion, parsed=found.value)
            message = f"It was cut off at the limit of its tokens. {found.message}" if cut_off else found.message
            landing = Landing(Status.INVALID_OUTPUT, completion, error=RowError(INVALID_OUTPUT, message))
            again = self._repair(asked, completion.output or "", message, cut_off=cut_off)
        if again is None:
            return landing
        asked.usage, asked.rejected = spent, landing
        return again

    def _extend(self, asked: Asked) -> RowRequest | None:
        if asked.extended or self.retry_max_tokens is None:
            return None
        body = orjson.loads(asked.first.body)
        if not _has_less(body, self.retry_max_tokens):
            return None
        asked.extended = True
        return replace(asked.first, body=orjson.dumps(_limited(body, self.retry_max_tokens)))

    def _repair(self, asked: Asked, answer: str, why: str, *, cut_off: bool) -> RowRequest | None:
        if asked.repairs >= self.repair_attempts:
            return None
        asked.repairs += 1
        body = orjson.loads(asked.first.body)
        if self.retry_max_tokens is not None and (cut_off or asked.extended) and _has_less(body, self.retry_max_tokens):
            asked.extended = True
            body = _limited(body, self.retry_max_tokens)
        shown = answer if len(answer) <= _SHOWN_CHARS else f"{answer[:_SHOWN_CHARS]}…"
        words = self._words(why)
        if isinstance(body.get("messages"), list):
            said = [{"role": "assistant", "content": shown}] if shown.strip() else []
            body["messages"] = [*body["messages"], *said, {"role": "user", "content": words}]
        elif isinstance(body.get("prompt"), str):
            body["prompt"] = f"{body['prompt']}{shown}\n\n{words}\n"
        else:  # a prompt of token ids
            return None
        return replace(asked.first, body=orjson.dumps(body))

    def _words(self, why: str) -> str:
        schema = orjson.dumps(None if self.schema is None else self.schema.schema).decode()
        shown = f" It must fit this JSON schema: {schema}" if len(schema) <= _SCHEMA_CHARS else ""
        return f"That answer is not valid. {why}.{shown} Answer again with the corrected JSON and nothing else."


def _cut_off(completion: Completion) -> Landing:
    tokens = completion.usage.completion_tokens
    message = (
        f"The answer was cut off at the limit of its tokens ({tokens:,} in all). Raise max_tokens, set "
        "retry_max_tokens, or say on_truncated='accept'"
    )
    return Landing(Status.TRUNCATED, completion, error=RowError(TRUNCATED, message))


def _has_less(body: dict[str, Any], tokens: int) -> bool:
    """Whether a body allows fewer than that; without a limit it was the context that ended."""
    limits = [body[name] for name in _LIMITS if isinstance(body.get(name), int)]
    return bool(limits) and min(limits) < tokens


def _limited(body: dict[str, Any], tokens: int) -> dict[str, Any]:
    return {**body, **{name: tokens for name in _LIMITS if name in body}}
