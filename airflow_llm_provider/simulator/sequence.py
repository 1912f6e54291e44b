"""A request inside the engine: how far it has come.

Owns the state of one sequence. Does not know the others (`simulator.scheduler`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from airflow_llm_provider.simulator.kv_cache import Held
from airflow_llm_provider.simulator.words import Finished

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.front import Delivery
    from airflow_llm_provider.simulator.words import SimRequest


class Sequence:
    """One request's tokens.

    A token counts as generated from the moment its step is put together, since what a step will yield is known then.

    Attributes:
        request: what was asked for.
        rank: its priority and its place in the order of arrival.
        arrived_s: when it was submitted.
        ready_s: when it reaches the engine.
        tokens: prompt and generated tokens.
        computed: of those, how many are in KV blocks.
        generated: tokens of its answer, those being made included.
        told: tokens of its answer that are made.
        last_token: how many there will be.
        held: its blocks.
        running: whether it has a slot.
        aborted: whether nobody wants it any longer.
        started_s: when its first step began; None before.
        first_s: when its first token was made; None before.
        last_s: when its last token so far was.
        first_told_s: when its first token reached the client.
        delivery: its tokens that went to the API server last.
        cached: prompt tokens found in the prefix cache when it was first started.
        preemptions: how often it lost its blocks.
    """

    __slots__ = (
        "aborted",
        "arrived_s",
        "cached",
        "computed",
        "delivery",
        "first_s",
        "first_told_s",
        "generated",
        "held",
        "last_s",
        "last_token",
        "preemptions",
        "rank",
        "ready_s",
        "request",
        "running",
        "started_s",
        "tokens",
        "told",
    )

    def __init__(self, request: SimRequest, *, order: int, arrived_s: float, ready_s: float) -> None:
        self.request = request
        self.rank = (request.priority, order)
        self.arrived_s = arrived_s
        self.ready_s = ready_s
        self.tokens = request.prompt_tokens
        self.computed = 0
        self.generated = 0
        self.told = 0
        self.last_token = min(request.max_tokens, request.stop_after or request.max_tokens)
        self.held = Held()
        self.running = False
        self.aborted = False
        self.started_s: float | None = None
        self.first_s: float | None = None
        self.last_s = 0.0
        self.first_told_s = 0.0
        self.delivery: Delivery | None = None
        self.cached = 0
        self.preemptions = 0

    @property
    def complete(self) -> bool:
        """Whether its last token is made, or being made."""
        return self.generated == self.last_token

    @property
    def reason(self) -> Literal["stop", "length"]:
        """What ends it."""
        return "stop" if self.request.stop_after == self.last_token else "length"

    def finished(self, at_s: float) -> Finished:
        """The event of its end, where its last token reaches the client at `at_s`."""
        started_s, first_s = self.started_s, self.first_s
        assert started_s is not None and first_s is not None  # noqa: S101, PT018 - a token was made
        return Finished(
            request_id=self.request.request_id,
            at_s=at_s,
            reason=self.reason,
            prompt_tokens=self.request.prompt_tokens,
            cached_tokens=self.cached,
            generated_tokens=self.told,
            arrived_s=self.arrived_s,
            queued_s=started_s - self.ready_s,
            prefill_s=first_s - started_s,
            decode_s=self.last_s - first_s,
            ttft_s=self.first_told_s - self.arrived_s,
            preemptions=self.preemptions,
        )
