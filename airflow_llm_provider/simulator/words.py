"""The words between the engine and whoever drives it: requests in, events out.

Owns the values. Does not know what happens to a request in between (`simulator.engine`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

Refusal = Literal["max_num_queued_reqs", "max_num_queued_tokens"]
"""Why a request was refused, in the words of vLLM's `admission_rejections_total`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """A request, as far as its tokens' number and place in the prefix cache go.

    Attributes:
        request_id: by which it is known; no two unfinished ones share it.
        prompt_tokens: the prompt's length, 1 or more.
        max_tokens: tokens to generate at most, 1 or more.
        stop_after: the token that ends it by itself, counted from 1; None if only `max_tokens` ends it.
        priority: lower goes first, where the engine's policy says so.
        block_keys: what identifies each full KV block of the sequence from its beginning, prompt first and then what
            will be generated, as far as known. Equal keys mean equal tokens after equal blocks. `block_keys` makes
            them of token ids; any hashable values will do. Blocks beyond them are never found again.
        every_token: whether each token makes an event; else only the first one.

    Raises:
        ValueError: a number is out of range.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    stop_after: int | None = None
    priority: int = 0
    block_keys: tuple[Hashable, ...] = ()
    every_token: bool = True

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Request {self.request_id}: {name} is 1 or more, not {getattr(self, name)!r}.")
        if self.stop_after is not None and self.stop_after < 1:
            raise ValueError(f"Request {self.request_id}: stop_after is 1 or more, not {self.stop_after!r}.")


class Rejected(NamedTuple):
    """The request was refused: the server's 503.

    Attributes:
        reason: which limit it met.
    """

    reason: Refusal


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens reach the client.

    Attributes:
        request_id: whose.
        at_s: when.
        count: how many: more than 1 where the API server had no time for each.
        first: whether the request's first is among them.
    """

    request_id: str
    at_s: float
    count: int
    first: bool


class Finished(NamedTuple):
    """A request ended. Durations are those of vLLM's histograms and per-request metrics.

    Attributes:
        request_id: which.
        at_s: when its last token reaches the client.
        reason: as in the answer's ``finish_reason``.
        prompt_tokens: of its prompt.
        cached_tokens: of those, the ones found in the prefix cache at the first try.
        generated_tokens: of its answer.
        arrived_s: when it was submitted.
        queued_s: from reaching the engine to its first step.
        prefill_s: from its first step to the first token, in the engine.
        decode_s: from the first token to the last, in the engine.
        ttft_s: from submission to the first token reaching the client.
        preemptions: how often it lost its blocks.
    """

    request_id: str
    at_s: float
    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    arrived_s: float
    queued_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    preemptions: int

    @property
    def e2e_s(self) -> float:
        """From submission to the end."""
        return self.at_s - self.arrived_s

    @property
    def inference_s(self) -> float:
        """From its first step to the last token, in the engine."""
        return self.prefill_s + self.decode_s

    @property
    def mean_itl_s(self) -> float:
        """Between two tokens, on average; 0 if there was one only."""
        return self.decode_s / (self.generated_tokens - 1) if self.generated_tokens > 1 else 0.0


class Preempted(NamedTuple):
    """A running request lost its blocks for want of KV memory, and waits to be computed again.

    Attributes:
        request_id: which.
        at_s: when.
    """

    request_id: str
    at_s: float


class Stepped(NamedTuple):
    """A step ended. Only told where the engine was asked for them.

    Attributes:
        at_s: when it ended.
        duration_s: how long it took.
        decoding: sequences that got a token by decoding.
        prefill_tokens: prompt tokens computed.
        context_tokens: tokens of context its sequences had before it.
        generated_tokens: tokens it made, first tokens included.
        prompt_tokens: of the prompts it completed, whole: what vLLM counts.
    """

    at_s: float
    duration_s: float
    decoding: int
    prefill_tokens: int
    context_tokens: int
    generated_tokens: int
    prompt_tokens: int


Event = Tokens | Finished | Preempted | Stepped


def block_keys(token_ids: Iterable[int], block_size: int) -> tuple[int, ...]:
    """Keys of the full blocks of these tokens: each is a hash of its own and of the key before it.

    Args:
        token_ids: the sequence's, from its beginning.
        block_size: the engine's.
    """
    ids = tuple(token_ids)
    keys = []
    key = 0
    for end in range(block_size, len(ids) + 1, block_size):
        key = hash((key, ids[end - block_size : end]))
        keys.append(key)
    return tuple(keys)
