"""What a simulated server is like: its limits, and how long its steps take.

Owns the parameters and what makes them valid. Does not know how they are found (`simulator.fit`) nor what they lead to
(`simulator.engine`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

Policy = Literal["fcfs", "priority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """How long the engine takes for a step, and the API server before and after it.

    ::

        step_s = (base_s + per_seq_s × sequences that decode + per_prefill_token_s × prompt tokens computed
                  + per_kv_token_s × tokens of context read + mixed_s if it computes prompts and decodes) × jitter

    The jitter is lognormal with mean 1. The form is that of a transformer: weights are read once a step, each sequence
    costs its share of sampling and bookkeeping, prompts cost arithmetic, and attention reads the context.

    Attributes:
        base_s: of every step.
        per_seq_s: more for each sequence that gets a token by decoding.
        per_prefill_token_s: more for each prompt token computed; those found in the prefix cache are not.
        per_kv_token_s: more for each token of context of the sequences in the step.
        mixed_s: more for a step that does both, which is two passes for some attention kernels.
        jitter: standard deviation of the logarithm of a step's duration.
        request_s: the API server's work on a request before the engine sees it. It does one thing at a time.
        delay_s: what passes besides until the engine has it, while the API server is free for other things.
        token_s: the API server's work on a token.
        chunk_s: its work on sending something, besides: each token of a stream, or a whole answer.

    Raises:
        ValueError: a time is negative, or no step would take any time.
    """

    base_s: float
    per_seq_s: float
    per_prefill_token_s: float
    per_kv_token_s: float = 0.0
    mixed_s: float = 0.0
    jitter: float = 0.0
    request_s: float = 0.0
    delay_s: float = 0.0
    token_s: float = 0.0
    chunk_s: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not isfinite(value) or value < 0:
                raise ValueError(f"A step model's {name} is a finite number of 0 or more, not {value!r}.")
        if self.base_s == 0:
            raise ValueError("A step model's base_s is more than 0: a step takes time, else the engine never waits.")

    def mean_s(self, *, decoding: int, prefill_tokens: int, context_tokens: int) -> float:
        """How long such a step takes on average."""
        return (
            self.base_s
            + self.per_seq_s * decoding
            + self.per_prefill_token_s * prefill_tokens
            + self.per_kv_token_s * context_tokens
            + (self.mixed_s if decoding and prefill_tokens else 0.0)
        )


TINY_ON_CPU = StepModel(
    base_s=1.23e-3,
    per_seq_s=2.8e-5,
    per_prefill_token_s=4.8e-6,
    per_kv_token_s=2.1e-8,
    mixed_s=1.6e-3,
    jitter=0.215,
    request_s=1.1e-3,
    delay_s=3.4e-3,
    token_s=1.3e-4,
    chunk_s=1.2e-4,
)
"""The tiny model of `tools/vllm` on two CPU cores, as `python -m benchmarks.simulator_fit` found it."""

LARGE_GPU = StepModel(
    base_s=8e-3, per_seq_s=3e-5, per_prefill_token_s=4e-5, per_kv_token_s=2e-8, jitter=0.05, request_s=1e-3
)
"""An 8-billion-parameter model on a data-centre GPU: the order of magnitude of published figures (about 100 tokens/s
alone, 12,000 at 256 in flight, 25,000 prompt tokens/s). An assumption, fitted to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """A simulated server. Names and defaults are vLLM's, where it has them.

    Attributes:
        max_num_seqs: slots.
        max_num_batched_tokens: tokens computed in a step at most; longer prompts are computed in chunks.
        max_model_len: prompt and answer together, in tokens, at most.
        block_size: tokens in a KV block.
        num_blocks: KV blocks; one of them is never used, as in vLLM.
        policy: who waits first: ``fcfs`` by arrival, ``priority`` by priority (lower first), then arrival.
        prefix_caching: whether computed blocks are found again.
        async_scheduling: whether a step is put together when the one before it starts. vLLM does so on GPUs and not on
            CPUs. A request that arrives in between then waits a step longer.
        max_num_queued_reqs: unfinished requests, running ones included, above which new ones are refused; None: never.
        max_num_queued_tokens: prompt tokens of requests without a first token, from which on new ones are refused.
        step: how long things take.

    Raises:
        ValueError: no such server would start.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 4096
    block_size: int = 16
    num_blocks: int = 65_536
    policy: Policy = "fcfs"
    prefix_caching: bool = True
    async_scheduling: bool = False
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    step: StepModel = field(default=TINY_ON_CPU)

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a whole number of 1 or more, not {getattr(self, name)!r}.")
        for name in ("max_num_queued_reqs", "max_num_queued_tokens"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name} is a whole number of 0 or more, or None for no limit, not {value!r}.")
        if self.policy not in ("fcfs", "priority"):
            raise ValueError(f"policy is 'fcfs' or 'priority', not {self.policy!r}.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence needs a token in a step."
            )
        if self.usable_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"num_blocks ({self.num_blocks}, one of them unused) of {self.block_size} tokens hold less than one "
                f"sequence of max_model_len ({self.max_model_len}). Raise num_blocks or lower max_model_len."
            )

    @property
    def usable_blocks(self) -> int:
        """Blocks that sequences can have: vLLM keeps one as a placeholder."""
        return self.num_blocks - 1
