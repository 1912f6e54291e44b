"""A pure model of vLLM's continuous batching: requests in, tokens out, time passed in.

Owns what happens when. Does not know HTTP or clocks (`simulator.server`), tokens' text, nor who gets what in a step
(`simulator.scheduler`).

::

    submit ──► API server ──► waiting ──► running ──► API server ──► Tokens, Finished
                                 ▲           │ no KV block
                                 └───────────┘

Whoever drives it calls `submit` and `abort` as things happen and `advance` at `next_s`, all with a `now` that never
goes back. The same calls with the same seed give the same events.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from math import inf
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from airflow_llm_provider.simulator.front import Front
from airflow_llm_provider.simulator.scheduler import Plan, Scheduler
from airflow_llm_provider.simulator.sequence import Sequence
from airflow_llm_provider.simulator.spec import LARGE_GPU, TINY_ON_CPU, EngineSpec, Policy, StepModel
from airflow_llm_provider.simulator.totals import Gauges, Totals
from airflow_llm_provider.simulator.words import (
    Event,
    Finished,
    Preempted,
    Refusal,
    Rejected,
    SimRequest,
    Stepped,
    Tokens,
    block_keys,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "LARGE_GPU",
    "TINY_ON_CPU",
    "Engine",
    "EngineSpec",
    "Event",
    "Finished",
    "Gauges",
    "Policy",
    "Preempted",
    "Refusal",
    "Rejected",
    "SimRequest",
    "StepModel",
    "Stepped",
    "Tokens",
    "Totals",
    "block_keys",
]


class _Step(NamedTuple):
    plan: Plan
    starts_s: float
    ends_s: float
    running: int


class Engine:
    """One simulated server.

    Args:
        spec: what it is like.
        seed: of the steps' jitter.
        tell_steps: whether `Stepped` events are told.
    """

    def __init__(self, spec: EngineSpec, *, seed: int = 0, tell_steps: bool = False) -> None:
        self.spec = spec
        self.totals = Totals()
        self.gauges = Gauges()
        self._tell_steps = tell_steps
        self._tokens_cost = spec.step.token_s > 0
        self._rng = Random(seed)
        self._scheduler = Scheduler(spec)
        self._order = count()
        self._now = -inf
        self._front = Front(spec.step)
        self._sequences: dict[str, Sequence] = {}  # those whose clients wait
        self._prefilling = 0  # prompt tokens of those without a first token
        self._arriving: deque[Sequence] = deque()  # in the API server's hands
        self._aborted: list[Sequence] = []  # running, to be freed when the step under way ends
        self._step: _Step | None = None
        self._ahead: Plan | None = None  # the step after it, where those are put together ahead
        self._events: list[Event] = []

    @property
    def running(self) -> int:
        """Sequences with a slot, now."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences without one, now: in the queue, or in the API server on their way to it."""
        return len(self._scheduler.waiting) + len(self._arriving)

    @property
    def unfinished(self) -> int:
        """Requests submitted, and neither answered nor aborted."""
        return len(self._sequences)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, 0 to 1, now."""
        return self._scheduler.kv.usage

    @property
    def preemptions(self) -> int:
        """Losses of blocks so far."""
        return self.totals.preemptions

    @property
    def next_s(self) -> float | None:
        """When `advance` has something to do: a step's end, tokens at a client, a request at the engine; None: idle."""
        next_s = self._front.next_s
        if self._step is not None:
            next_s = min(next_s, self._step.ends_s)
        elif self._arriving:
            next_s = min(next_s, self._arriving[0].ready_s)
        return None if next_s == inf else max(next_s, self._now)

    def submit(self, now: float, request: SimRequest) -> Rejected | None:
        """A request comes in.

        Args:
            now: when, in seconds; not before any `now` of an earlier call.
            request: what it asks for.

        Returns:
            None, or why it was refused.

        Raises:
            ValueError: time goes back, the id is taken, or the request is longer than `max_model_len` (the server's
                400, which is the caller's to answer).
        """
        self._run(now)
        if request.request_id in self._sequences:
            raise ValueError(f"There is an unfinished request {request.request_id} already. Ids must differ.")
        if request.prompt_tokens + request.max_tokens > self.spec.max_model_len:
            raise ValueError(
                f"Request {request.request_id} has {request.prompt_tokens} prompt tokens and asks for "
                f"{request.max_tokens}: more than max_model_len ({self.spec.max_model_len}). Refuse it before."
            )
        if refusal := self._refusal():
            self.totals.rejected[refusal] += 1
            return Rejected(refusal)
        sequence = Sequence(request, order=next(self._order), arrived_s=now, ready_s=self._front.take(now))
        self._sequences[request.request_id] = sequence
        self._prefilling += request.prompt_tokens
        self._arriving.append(sequence)
        self._run(now)  # it may be there at once
        return None

    def abort(self, now: float, request_id: str) -> bool:
        """A request's client went away. No more events are told of it; a slot is free when the step under way ends.

        Args:
            now: when, in seconds; not before any `now` of an earlier call.
            request_id: whose.

        Returns:
            False if there is no such request, or it is answered.

        Raises:
            ValueError: time goes back.
        """
        self._run(now)
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        sequence.aborted = True
        self.totals.finished["abort"] += 1
        if sequence.first_s is None:
            self._prefilling -= sequence.request.prompt_tokens
        if sequence.running:
            self._aborted.append(sequence)
        elif sequence in self._arriving:
            self._arriving.remove(sequence)
        elif sequence.told < sequence.last_token:
            self._scheduler.waiting.discard(sequence)
        self._events = [event for event in self._events if getattr(event, "request_id", None) != request_id]
        return True

    def advance(self, now: float) -> list[Event]:
        """What happened since the last call, up to and with `now`, in order.

        Raises:
            ValueError: time goes back.
        """
        self._run(now)
        events, self._events = self._events, []
        return events

    def _refusal(self) -> Refusal | None:
        """As vLLM's `AsyncLLM.check_admission`: running requests count as queued too, and prompts count whole."""
        spec = self.spec
        if spec.max_num_queued_reqs is not None and len(self._sequences) + 1 > spec.max_num_queued_reqs:
            return "max_num_queued_reqs"
        if spec.max_num_queued_tokens is not None and self._prefilling >= spec.max_num_queued_tokens:
            return "max_num_queued_tokens"
        return None

    def _run(self, now: float) -> None:
        """Let time pass."""
        if now < self._now:
            raise ValueError(f"The engine has come to {self._now} s and cannot go back to {now} s.")
        while True:
            if self._step is not None:
                if self._step.ends_s > now:
                    break
                at_s = self._step.ends_s
                self._deliver(at_s)
                self._end(self._step)
            elif self._arriving and self._arriving[0].ready_s <= now:
                at_s = max(self._arriving[0].ready_s, self._now)
            else:
                break
            self._now = at_s
            while self._arriving and self._arriving[0].ready_s <= at_s:
                self._scheduler.waiting.push(self._arriving.popleft())
            self._begin(at_s)
        self._deliver(now)
        self._now = now

    def _begin(self, at_s: float) -> None:
        """Start the next step, if there is anything to compute."""
        plan = self._ahead or self._planned(at_s)
        self._ahead = None
        if plan is None:
            return
        model = self.spec.step
        duration_s = model.mean_s(
            decoding=plan.decoding, prefill_tokens=plan.prefill_tokens, context_tokens=plan.context_tokens
        )
        if model.jitter:
            duration_s *= self._rng.lognormvariate(-(model.jitter**2) / 2, model.jitter)
        for sequence in plan.started:
            if sequence.started_s is None:
                sequence.started_s = at_s
        self._step = _Step(plan, at_s, at_s + duration_s, len(self._scheduler.running))
        if self.spec.async_scheduling:
            self._ahead = self._planned(at_s)

    def _planned(self, at_s: float) -> Plan | None:
        """The next step put together, with what that did to others; None if there is nothing to do."""
        while True:
            plan = self._scheduler.plan()
            self.totals.prefix_queries += plan.prefix_queries
            self.totals.prefix_hits += plan.prefix_hits
            self.totals.preemptions += len(plan.preempted)
            self._events.extend(
                Preempted(sequence.request.request_id, at_s) for sequence in plan.preempted if not sequence.aborted
            )
            if plan.tokens:
                return plan
            if not plan.preempted:  # else a step without tokens, which takes no time: whoever is left goes next
                return None

    def _end(self, step: _Step) -> None:
        """Hand out what the step made, and free what is no longer needed."""
        self._step = None
        plan, at_s = step.plan, step.ends_s
        gone = self._aborted
        self._aborted = []
        prompt_tokens = self._hand_out(plan.yielding, at_s, gone)
        if gone:
            self._scheduler.leave(gone)
        totals, duration_s = self.totals, at_s - step.starts_s
        totals.steps += 1
        totals.step_s += duration_s
        totals.slot_s += duration_s * step.running
        totals.prompt_tokens += prompt_tokens
        if self._tell_steps:
            self._events.append(
                Stepped(
                    at_s,
                    duration_s,
                    plan.decoding,
                    plan.prefill_tokens,
                    plan.context_tokens,
                    len(plan.yielding),
                    prompt_tokens,
                )
            )
        self.gauges = Gauges(self.running, len(self._scheduler.waiting), self.kv_usage)

    def _hand_out(self, yielding: Iterable[Sequence], at_s: float, gone: list[Sequence]) -> int:
        """Give the step's tokens to the API server. Sequences that are complete go to `gone`.

        Returns:
            the prompt tokens of those whose token was the first.
        """
        hand_out = self._front.hand_out
        prompt_tokens = generated = 0
        for sequence in yielding:
            if sequence.aborted:
                continue
            generated += 1
            sequence.told += 1
            sequence.last_s = at_s
            first, last = sequence.first_s is None, sequence.told == sequence.last_token
            if first:
                sequence.first_s = at_s
                prompt_tokens += sequence.request.prompt_tokens
                self.totals.cached_prompt_tokens += sequence.cached
            if first or last or sequence.request.every_token or self._tokens_cost:
                hand_out(at_s, sequence, first=first, last=last)
            if last:
                gone.append(sequence)
        self._prefilling -= prompt_tokens
        self.totals.generation_tokens += generated
        return prompt_tokens

    def _deliver(self, now: float) -> None:
        """Tell of the tokens that have reached the clients."""
        for delivery in self._front.delivered(now):
            sequence, at_s = delivery.sequence, delivery.at_s
            request = sequence.request
            if delivery.first:
                sequence.first_told_s = at_s
            if delivery.first or request.every_token:
                self._events.append(Tokens(request.request_id, at_s, delivery.tokens, delivery.first))
            if delivery.last:
                self._events.append(sequence.finished(at_s))
                del self._sequences[request.request_id]
                self.totals.finished[sequence.reason] += 1
