"""The values that travel: a row's request, what came back, what it cost, and what became of the row.

Owns their shapes. Does not know how they are encoded (`endpoint.wire`), where they are kept (`storage`)
or when they are sent (`core.dispatch`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """What became of a row; never a silent nothing."""

    SUCCEEDED = "succeeded"
    TRUNCATED = "truncated"  # a text that was cut off at the limit of its tokens
    INVALID_OUTPUT = "invalid_output"  # an answer that is not what the DAG wants, however often it was asked for
    ERRORED = "errored"  # no answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where in the source a row stands, for people: a file and a line, or an item of a list.

    Attributes:
        file: the file's path as the source names it; empty for rows that came as a list.
        line: 1-based line number in the file; for a list, the 0-based item number.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" if self.file else f"item {self.line}"


@dataclass(frozen=True, slots=True)
class RowRequest:
    """The HTTP request a row becomes.

    Attributes:
        index: the row's position in the input, from 0: its identity.
        custom_id: the row's label.
        path: route below the server's root, such as ``/v1/chat/completions``.
        body: the JSON body, encoded.
        position: where the row stands in the source.
        sequences: answers it asks for, each of which the server runs and counts by itself (``n``, several prompts).
    """

    index: int
    custom_id: str
    path: str
    body: bytes
    position: Position
    sequences: int = 1


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a request: malformed JSON, a missing field, an unsupported route.

    Attributes:
        index: the row's position in the input, from 0.
        custom_id: the row's label, or one made from `index` where the row's own cannot be read.
        position: where the row stands in the source.
        message: what is wrong with it.
        raw: the beginning of the row's text as it stands in the source; it lands in the dead letter.
    """

    index: int
    custom_id: str
    position: Position
    message: str
    raw: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the server counted them. Sums with ``+``, and ``-`` takes back what was added."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens - other.prompt_tokens,
            self.completion_tokens - other.completion_tokens,
            self.cached_tokens - other.cached_tokens,
        )

    def as_dict(self) -> dict[str, int]:
        """The form that lands in parts, progress and manifest."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """A usable answer.

    Attributes:
        output: the first choice's text; None when the model only called tools.
        finish_reason: the first choice's, e.g. ``stop`` or ``length``.
        usage: tokens of the whole request.
        reasoning: the first choice's reasoning text, where a reasoning parser gave one.
        tool_calls: the first choice's tool calls as the server sent them.
        choices: all choices as the server sent them, kept only when the request asked for more than one
            or for more than text (``n``, ``logprobs``).
        ttft_s: from the server's queue to the first token, by its own word; None where it says nothing (vLLM does with
            ``--enable-per-request-metrics``, for a single choice). Lands nowhere, and so does `generation_s`.
        generation_s: from the first token to the last one, by the server's own word.
        token_ids: the first choice's, where the request asked for them (``return_token_ids``). They land nowhere by
            themselves, and nor do `prompt_token_ids`.
        prompt_token_ids: the prompt's.
        value: what a text was embedded to, classified as or scored; a list, where one request had several texts. There
            is no output then.
        checked: what `core.output_schema` says of the output, where somebody has looked already.
    """

    output: str | None
    finish_reason: str | None
    usage: Usage
    reasoning: str | None = None
    tool_calls: list[Any] | None = None
    choices: list[Any] | None = None
    ttft_s: float | None = None
    generation_s: float | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    value: Any = None
    checked: Any = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row; encoded, it is the row's one line in a part."""

    index: int
    custom_id: str
    status: Status
    attempts: int
    completion: Completion | None = None
    error: RowError | None = None
    parsed: Any = None


@dataclass(frozen=True, slots=True)
class Landing:
    """What is made of an answer: an outcome without its row.

    Attributes:
        status: never ``errored``.
        completion: the answer; its usage is that of all answers to the row.
        parsed: the value that it is, where a schema was asked for.
        error: what is wrong with it, where it is no success.
    """

    status: Status
    completion: Completion
    parsed: Any = None
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row did not succeed.

    Attributes:
        kind: a `core.retry.FailureKind` value, one of `core.answers`, or ``malformed_row`` for a row that could not
            become a request.
        message: for people.
        http_status: the HTTP status, where there was an answer.
    """

    kind: str
    message: str
    http_status: int | None = None

    def as_dict(self) -> dict[str, str | int | None]:
        """The form that lands in parts and dead letters."""
        return {"kind": self.kind, "message": self.message, "http_status": self.http_status}
