"""Who gets how many tokens in the next step: vLLM's V1 scheduler, without what a text model alone does not need.

Owns running and waiting sequences and their blocks. Does not know how long a step takes, nor when it ends
(`simulator.engine`).

The order of things is `vllm/v1/core/sched/scheduler.py`'s (0.32): running sequences first, in the order they were
started, each for all its tokens that are not computed yet, within the step's budget; where one finds no block, the last
one started (policy ``fcfs``) or the least urgent (``priority``) loses all of its own. Then, if nobody lost any, waiting
sequences, as long as slots, budget and blocks for the whole of their tokens allow; the first that does not fit ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.kv_cache import KVCache
from airflow_llm_provider.simulator.waiting import waiting_queue

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.sequence import Sequence
    from airflow_llm_provider.simulator.spec import EngineSpec


@dataclass(slots=True)
class Plan:
    """What a step computes.

    Attributes:
        tokens: of each sequence in it, how many.
        preempted: sequences that lost their blocks while it was put together.
        started: sequences that got a slot.
        yielding: sequences that get a token from it.
        decoding: how many of its sequences decode.
        prefill_tokens: prompt tokens it computes, or tokens computed again after a preemption.
        context_tokens: what its sequences had computed before.
        prefix_queries: tokens that were looked for in the prefix cache, by sequences that start for the first time.
        prefix_hits: those found.
    """

    tokens: dict[Sequence, int] = field(default_factory=dict)
    preempted: list[Sequence] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    yielding: list[Sequence] = field(default_factory=list)
    decoding: int = 0
    prefill_tokens: int = 0
    context_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class Scheduler:
    """Running and waiting sequences.

    Args:
        spec: the server's limits.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self.running: list[Sequence] = []
        self.waiting = waiting_queue(spec.policy)
        self.kv = KVCache(blocks=spec.usable_blocks, block_size=spec.block_size, prefix_caching=spec.prefix_caching)

    def plan(self) -> Plan:
        """Put the next step together. Its tokens count as computed and generated from here on.

        Returns:
            the step; without tokens if there is nothing to do.
        """
        plan = Plan()
        budget = self._plan_running(plan, self._spec.max_num_batched_tokens)
        if not plan.preempted:
            self._plan_waiting(plan, budget)
        self._account(plan)
        return plan

    def leave(self, gone: list[Sequence]) -> None:
        """Take away the slots and blocks of sequences that have ended."""
        for sequence in gone:
            sequence.running = False
            self.kv.release(sequence.held)
        self.running = [sequence for sequence in self.running if sequence.running]

    def _plan_running(self, plan: Plan, budget: int) -> int:
        """Returns what is left of the budget."""
        kv, block_size, tokens = self.kv, self._spec.block_size, plan.tokens
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            if sequence.complete:  # its last token is in the step under way
                index += 1
                continue
            new = min(sequence.tokens - sequence.computed, budget)
            held = sequence.held
            while held.blocks * block_size < sequence.computed + new and not kv.grow(held, sequence.computed + new):
                victim = self._victim()
                if victim.complete:  # its blocks are free in a moment anyhow
                    return 0
                at = self.running.index(victim)
                index -= at < index
                budget += tokens.pop(victim, 0)
                self._preempt(victim, at, plan)
                if victim is sequence:
                    return 0
            self._give(sequence, new, plan)
            budget -= new
            index += 1
        return budget

    def _plan_waiting(self, plan: Plan, budget: int) -> None:
        kv = self.kv
        while budget > 0 and self.waiting and len(self.running) < self._spec.max_num_seqs:
            sequence = self.waiting.peek()
            keys = sequence.request.block_keys
            found = kv.find(keys, sequence.tokens)
            if not kv.fits(keys, found, sequence.tokens):
                return
            self.waiting.pop()
            hit = found * self._spec.block_size
            new = min(sequence.tokens - hit, budget)
            kv.adopt(sequence.held, keys, found)
            kv.grow(sequence.held, hit + new)
            sequence.computed = hit
            sequence.running = True
            if not sequence.preemptions:
                sequence.cached = hit
                if self._spec.prefix_caching:
                    plan.prefix_queries += sequence.tokens
                    plan.prefix_hits += hit
            self.running.append(sequence)
            plan.started.append(sequence)
            self._give(sequence, new, plan)
            budget -= new

    def _give(self, sequence: Sequence, new: int, plan: Plan) -> None:
        """Put tokens into the step. Blocks they fill are known to who starts in the same step, as in vLLM."""
        plan.tokens[sequence] = new
        computed = sequence.computed + new
        if computed // self._spec.block_size > len(sequence.held.known):
            self.kv.offer(sequence.held, sequence.request.block_keys, computed)

    def _account(self, plan: Plan) -> None:
        """Count the step's tokens as done."""
        context = decoding = prefill = 0
        for sequence, new in plan.tokens.items():
            context += sequence.computed
            if new == 1 and sequence.generated:
                decoding += 1
            else:
                prefill += new
            computed = sequence.computed = sequence.computed + new
            if computed == sequence.tokens:
                sequence.tokens += 1
                sequence.generated += 1
                plan.yielding.append(sequence)
        plan.context_tokens, plan.decoding, plan.prefill_tokens = context, decoding, prefill

    def _victim(self) -> Sequence:
        """Who loses its blocks next."""
        if self._spec.policy == "priority":
            return max(self.running, key=lambda sequence: sequence.rank)
        return self.running[-1]

    def _preempt(self, victim: Sequence, at: int, plan: Plan) -> None:
        del self.running[at]
        self.kv.release(victim.held)
        victim.running = False
        victim.preemptions += 1
        self.waiting.push_preempted(victim)
        plan.preempted.append(victim)
