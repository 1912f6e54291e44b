"""Drives the simulated engine through a list of arrivals and aborts, and checks what must hold at every moment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.engine import (
    Engine,
    EngineSpec,
    Finished,
    Preempted,
    Rejected,
    SimRequest,
    StepModel,
    Stepped,
    Tokens,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_llm_provider.simulator.engine import Event

EVEN = StepModel(base_s=1.0, per_seq_s=0.0, per_prefill_token_s=0.0)
"""Every step takes one second, whatever is in it."""


def spec(**changes) -> EngineSpec:
    """A server whose steps take a second each, with blocks of four tokens."""
    usual = {"max_num_seqs": 2, "block_size": 4, "num_blocks": 101, "max_model_len": 400, "step": EVEN}
    return EngineSpec(**{**usual, **changes})


def ask(name: str, prompt: int = 4, tokens: int = 3, **more) -> SimRequest:
    return SimRequest(request_id=name, prompt_tokens=prompt, max_tokens=tokens, **more)


@dataclass
class Story:
    """All that happened."""

    events: list[Event] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> Counter[str]:
        tokens: Counter[str] = Counter()
        for event in self.events:
            if isinstance(event, Tokens):
                tokens[event.request_id] += event.count
        return tokens

    @property
    def firsts(self) -> dict[str, float]:
        return {event.request_id: event.at_s for event in self.events if isinstance(event, Tokens) and event.first}

    @property
    def ends(self) -> dict[str, Finished]:
        return {event.request_id: event for event in self.events if isinstance(event, Finished)}

    @property
    def steps(self) -> list[Stepped]:
        return [event for event in self.events if isinstance(event, Stepped)]

    @property
    def preempted(self) -> list[str]:
        return [event.request_id for event in self.events if isinstance(event, Preempted)]


def check(engine: Engine) -> None:
    """What holds at every moment."""
    limits = engine.spec
    scheduler = engine._scheduler
    assert 0 <= engine.running <= limits.max_num_seqs
    assert engine.gauges.running <= limits.max_num_seqs
    aborted = sum(sequence.aborted for sequence in scheduler.running)
    answering = sum(not (s.running or s.told < s.last_token) for s in engine._sequences.values())
    assert engine.running + engine.waiting == engine.unfinished - answering + aborted
    kv = scheduler.kv
    held = [sequence.held for sequence in scheduler.running]
    holders = Counter(block for each in held for block in each.known)
    known = {block for copies in kv._copies.values() for block in copies}
    assert {block: block.holders for block in known if block.holders} == holders
    assert set(kv._unused) == {block for block in known if not block.holders}
    private = sum(each.blocks - len(each.known) for each in held)
    assert 0 <= kv.free <= kv.blocks
    assert private + kv._blank + len(known) == kv.blocks, "a block was lost or made"


def play(
    engine: Engine, arrivals: Iterable[tuple[float, SimRequest]], aborts: Iterable[tuple[float, str]] = ()
) -> Story:
    """Until nothing is left to do."""
    story = Story()
    orders = sorted([*arrivals, *aborts], key=lambda order: order[0])
    while True:
        due = orders[0][0] if orders else None
        end = engine.next_s
        if end is not None and (due is None or end <= due):
            story.events += engine.advance(end)
        elif due is not None:
            at_s, order = orders.pop(0)
            if isinstance(order, str):
                engine.abort(at_s, order)
            elif isinstance(refusal := engine.submit(at_s, order), Rejected):
                story.refused[order.request_id] = refusal.reason
        else:
            return story
        check(engine)
