"""Whatever is asked of the simulated engine: nothing is lost, no limit is passed, and all of it happens again."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import pytest
from engine_driver import EVEN, ask, check, play, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_llm_provider.simulator.engine import Engine, EngineSpec, SimRequest, StepModel

MODEL_LEN = 60
MOMENTS_S = st.floats(0, 30).map(lambda at_s: round(at_s, 2))


MODELS = [
    EVEN,
    StepModel(base_s=0.1, per_seq_s=0.05, per_prefill_token_s=0.01, per_kv_token_s=0.001, jitter=0.4, request_s=0.2),
    StepModel(
        base_s=0.1, per_seq_s=0.0, per_prefill_token_s=0.0, request_s=0.1, delay_s=0.3, token_s=0.02, chunk_s=0.1
    ),
]


@st.composite
def specs(draw: st.DrawFn, **fixed: Any) -> EngineSpec:
    block_size = draw(st.sampled_from([1, 4, 16]))
    least = -(-MODEL_LEN // block_size) + 1
    drawn = {
        "max_num_seqs": draw(st.integers(1, 6)),
        "max_num_batched_tokens": draw(st.integers(6, 80)),
        "max_model_len": MODEL_LEN,
        "block_size": block_size,
        "num_blocks": draw(st.integers(least, 3 * least)),
        "policy": draw(st.sampled_from(["fcfs", "priority"])),
        "prefix_caching": draw(st.booleans()),
        "async_scheduling": draw(st.booleans()),
        "step": draw(st.sampled_from(MODELS)),
    }
    return EngineSpec(**{**drawn, **fixed})


@st.composite
def requests(draw: st.DrawFn, name: str) -> SimRequest:
    prompt = draw(st.integers(1, MODEL_LEN - 1))
    length = MODEL_LEN - prompt
    family = draw(st.sampled_from(["x", "y", name]))
    alike = draw(st.integers(0, 20))
    return SimRequest(
        request_id=name,
        prompt_tokens=prompt,
        max_tokens=draw(st.integers(1, length)),
        stop_after=draw(st.one_of(st.none(), st.integers(1, MODEL_LEN))),
        priority=draw(st.integers(-2, 2)),
        block_keys=tuple((family if block < alike else name, block) for block in range(draw(st.integers(0, 70)))),
        every_token=draw(st.booleans()),
    )


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[float, SimRequest]]:
    moments = draw(st.lists(MOMENTS_S, min_size=1, max_size=25))
    return [(at_s, draw(requests(f"r{index}"))) for index, at_s in enumerate(moments)]


ABORTS = st.lists(st.tuples(MOMENTS_S, st.integers(0, 24).map(lambda index: f"r{index}")), max_size=10)


@settings(max_examples=150, deadline=None)
@given(spec=specs(), arrivals=arrivals(), aborts=ABORTS, seed=st.integers(0, 3))
def test_all_end_and_all_is_given_back(spec, arrivals, aborts, seed):
    engine = Engine(spec, seed=seed, tell_steps=True)
    story = play(engine, arrivals, aborts)  # checks slots and blocks at every moment
    asked = {request.request_id: (at_s, request) for at_s, request in arrivals}
    ends, totals = story.ends, engine.totals

    assert (engine.running, engine.waiting, engine.unfinished, engine.kv_usage) == (0, 0, 0, 0.0)
    assert len(ends) + totals.finished["abort"] == len(asked)
    assert {name for name in asked if name not in ends} <= {name for _, name in aborts}
    for name, end in ends.items():
        arrived_s, request = asked[name]
        last = min(request.max_tokens, request.stop_after or request.max_tokens)
        assert end.generated_tokens == last
        assert end.reason == ("stop" if request.stop_after == last else "length")
        if request.every_token:
            assert story.tokens[name] == last
        assert arrived_s + spec.step.request_s <= story.firsts[name] <= end.at_s
        assert min(end.queued_s, end.prefill_s, end.decode_s) >= 0
        assert end.cached_tokens < request.prompt_tokens
        if spec.step is EVEN:  # with an API server that takes no time
            assert end.ttft_s + end.decode_s == pytest.approx(end.e2e_s)
        assert end.queued_s + end.inference_s <= end.e2e_s + 1e-9
    made = sum(step.generated_tokens for step in story.steps)
    told = sum(story.tokens[name] if asked[name][1].every_token else end.generated_tokens for name, end in ends.items())
    assert told <= totals.generation_tokens <= made
    if not totals.finished["abort"]:
        assert told == made
        assert totals.prompt_tokens == sum(request.prompt_tokens for _, request in asked.values())
        assert totals.preemptions == len(story.preempted) == sum(end.preemptions for end in ends.values())
    assert all(step.decoding + step.prefill_tokens <= spec.max_num_batched_tokens for step in story.steps)


@settings(max_examples=150, deadline=None)
@given(spec=specs(), arrivals=arrivals(), aborts=ABORTS, seed=st.integers(0, 3), looks=st.lists(MOMENTS_S, max_size=20))
def test_the_same_happens_again_however_often_one_looks(spec, arrivals, aborts, seed, looks):
    once = play(Engine(spec, seed=seed), arrivals, aborts)
    looking = [(at_s, "nobody") for at_s in looks]  # an abort of nobody makes time pass
    assert play(Engine(spec, seed=seed), arrivals, [*aborts, *looking]) == once
    moments = [event.at_s for event in once.events]
    assert moments == sorted(moments)


@settings(max_examples=150, deadline=None)
@given(spec=specs(policy="fcfs", step=EVEN), arrivals=arrivals())
def test_first_come_first_served(spec, arrivals):
    ends = play(Engine(spec), arrivals).ends
    order = [request.request_id for _, request in sorted(arrivals, key=lambda arrival: arrival[0])]
    starts = [ends[name].arrived_s + ends[name].queued_s for name in order]
    assert all(after >= before - 1e-9 for before, after in pairwise(starts))


@settings(max_examples=150, deadline=None)
@given(spec=specs(policy="priority", async_scheduling=False, step=EVEN), arrivals=arrivals())
def test_nobody_starts_before_one_who_waits_and_is_more_urgent(spec, arrivals):
    ends = play(Engine(spec), arrivals).ends
    urgency = {request.request_id: request.priority for _, request in arrivals}
    started = {name: end.arrived_s + end.queued_s for name, end in ends.items()}
    for name, other in permutations(ends, 2):
        if ends[other].arrived_s < started[name] - 1e-9 and started[other] > started[name] + 1e-9:
            assert urgency[other] >= urgency[name]


@settings(max_examples=50, deadline=None)
@given(spec=specs(), arrivals=arrivals())
def test_one_step_at_a_time(spec, arrivals):
    story = play(Engine(spec, tell_steps=True), arrivals)
    for before, after in pairwise(story.steps):
        assert after.at_s - after.duration_s >= before.at_s - 1e-6


def test_the_check_itself_sees_a_leak():
    engine = Engine(EngineSpec())
    engine._scheduler.kv._blank -= 1
    with pytest.raises(AssertionError, match="a block was lost or made"):
        check(engine)


def test_a_sequence_that_gives_way_to_itself_leaves_the_others_to_go_on():
    """The first that runs needs a block, and is the least urgent: its step holds nothing, the next one the others."""
    requests = [ask("long", 13, 21), ask("urgent", 1, 19, priority=-1)]
    engine = Engine(spec(max_num_batched_tokens=7, max_model_len=60, block_size=16, num_blocks=5, policy="priority"))
    story = play(engine, [(0.0, requests[0]), (3.0, requests[1])])
    assert story.preempted == ["long"]
    assert {name: end.generated_tokens for name, end in story.ends.items()} == {"long": 21, "urgent": 19}
