"""The comparison in virtual time: it conserves, it repeats itself, and it tells good policies from bad ones."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from airflow_llm_provider.simulator.engine import Engine
from benchmarks.colocation.policies import ALONE, NONE, policy_of
from benchmarks.colocation.shapes import bursts
from benchmarks.colocation.virtual import World
from benchmarks.colocation.virtual_task import engine_spec

SPEC = engine_spec(8)
TRAFFIC = bursts(45.0, Random(5))


def played(name, processes=1):
    return World(SPEC, TRAFFIC, policy_of(name), processes=processes, seed=1).run()


arm = cache(played)


@pytest.fixture(scope="module")
def none():
    return World(SPEC, TRAFFIC, NONE, processes=0).run()


@pytest.fixture(scope="module")
def alone():
    return World(SPEC, TRAFFIC, ALONE, processes=1).run()


def p95_s(arm):
    return sorted(arm.ttft_s())[int(0.95 * len(arm.ttft_s()))]


@pytest.mark.parametrize("name", ["saturated", "fixed-7", "aimd-errors", "ours", "ideal"])
def test_realtime_is_answered_whatever_batch_does(name):
    done = arm(name)
    assert len(done.samples) == len(TRAFFIC.arrivals)
    assert not done.failed
    assert all(each.sent_s < each.first_s <= each.ended_s for each in done.samples)


def test_the_same_seed_gives_the_same_figures():
    first, second = arm("ours"), played("ours")
    assert (first.ttft_s(), first.batch, first.looks) == (second.ttft_s(), second.batch, second.looks)


def test_no_more_than_the_slots_are_ever_held():
    done = arm("ours", processes=2)
    stretches = [each for of in done.batch for each in of] + done.realtime
    for at_s in range(1, 45):
        # real-time is taken to hold its slot a little earlier than it does, hence a moment's tolerance
        assert sum(1 for each in stretches if each.from_s + 0.01 < at_s < each.to_s) <= SPEC.max_num_seqs


@pytest.mark.parametrize(
    ("name", "processes"),
    [("alone", 1), ("saturated-priority", 1), ("ours", 1), ("ours", 6), ("ours-whole", 6), ("ideal", 1)],
)
def test_what_the_engine_generated_was_landed_or_given_up(name, processes):
    """The given-up tokens are counted by the engine, request for request: nothing is a remainder of anything."""
    world = World(SPEC, TRAFFIC, policy_of(name), processes=processes, seed=1)
    engine, lost = world._engine, []

    def abort(now, request_id):
        sequence = engine._sequences.get(request_id)
        if there := Engine.abort(engine, now, request_id):
            lost.append((now, sequence.told))
        return there

    engine.abort = abort
    done = world.run()
    assert bool(lost) == (name in {"ours", "ours-whole", "ideal"})
    landed = sum(each.amount for of in done.batch for each in of)
    landed += sum(each.arrival.max_tokens for each in done.samples)
    given_up = sum(tokens for _, tokens in lost)
    under_way = sum(sequence.told for sequence in engine._sequences.values())
    generated = engine.totals.generation_tokens
    assert landed + given_up + under_way == pytest.approx(generated, rel=0.01)  # some ended as they were given up
    inside = sum(tokens for at_s, tokens in lost if 0 <= at_s < TRAFFIC.duration_s)
    assert done.thrown_away_tokens == pytest.approx(inside, abs=0.01 * generated)


def test_saturation_ruins_realtime_and_giving_way_does_not(none, alone):
    saturated, ours = arm("saturated"), arm("ours")
    assert p95_s(saturated) > 20 * p95_s(none)
    assert p95_s(ours) < p95_s(saturated) / 10
    assert ours.endings["given-up"] > 0
    assert ours.batch_per_s > 0.7 * ours.oracle_per_s(alone.batch_per_s)


def test_the_peers_control_on_errors_has_no_signal(none):
    assert p95_s(arm("aimd-errors")) > 10 * p95_s(none)


def test_ideal_control_keeps_realtime_and_takes_the_rest(none, alone):
    ideal = arm("ideal")
    assert p95_s(ideal) < p95_s(none) + 0.005
    assert ideal.batch_per_s > 0.9 * ideal.oracle_per_s(alone.batch_per_s)


def test_processes_share():
    assert arm("ours", processes=2).fairness > 0.8


def test_what_is_given_up_is_cancelled_in_the_server():
    world = World(SPEC, bursts(30.0, Random(5)), policy_of("ours"), processes=1, seed=1)
    done = world.run()
    assert done.endings["given-up"] > 0
    assert world._engine.totals.finished["abort"] >= done.endings["given-up"] - 1  # one may be on its way at the end
