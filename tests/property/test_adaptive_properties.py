"""The adaptive limit with the loop closed around the simulator's engine: nobody tells it what the server holds."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_llm_provider.core.limit import FixedLimit
from airflow_llm_provider.core.limit_adaptive import AdaptiveLimit
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.simulator.engine import LARGE_GPU, TINY_ON_CPU, Engine, EngineSpec, StepModel
from benchmarks.dedicated_loop import ClosedLoop, Row, Simulated, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_llm_provider.core.limit import Limit

STEPS = {8: TINY_ON_CPU, 64: LARGE_GPU, 256: LARGE_GPU}
EVERYTHING = 1_000_000


def rows_of(number: int, shortest: int, longest: int, *, prompts: tuple[int, int] = (50, 400)) -> list[Row]:
    rng = Random(number)
    return [
        Row(prompt_tokens=rng.randint(*prompts), answer_tokens=rng.randint(shortest, longest)) for _ in range(number)
    ]


def play(
    spec: EngineSpec,
    rows: Sequence[Row],
    limit: Callable[[], Limit] = AdaptiveLimit,
    *,
    tasks: int = 1,
    late_s: float = 0.0,
    readable: bool = True,
    refuses: Callable[[float], bool] = lambda _: False,
    until_s: float = 1e6,
) -> ClosedLoop:
    """All tasks but the first begin `late_s` after it."""
    made = [
        Task(rows[number::tasks], limit(), starts_s=late_s if number else 0.0, most=EVERYTHING)
        for number in range(tasks)
    ]
    loop = ClosedLoop(Simulated(Engine(spec, seed=3), readable=readable), made, Random(1), refuses)
    loop.run(until_s)
    return loop


def all_at_once(spec: EngineSpec, rows: Sequence[Row]) -> float:
    """The list schedule: every row in the server's queue from the first moment, each slot takes the next. Seconds."""
    return play(spec, rows, lambda: FixedLimit(EVERYTHING)).now


def quiet(slots: int) -> EngineSpec:
    """A server whose steps have no jitter: two schedules of the same rows can be compared."""
    step = STEPS[slots]
    step = StepModel(
        base_s=step.base_s,
        per_seq_s=step.per_seq_s,
        per_prefill_token_s=step.per_prefill_token_s,
        per_kv_token_s=step.per_kv_token_s,
    )
    return EngineSpec(max_num_seqs=slots, step=step)


def jain(values: Sequence[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@pytest.mark.parametrize("slots", [8, 64, 256])
@pytest.mark.parametrize(("shortest", "longest"), [(20, 400), (200, 200)], ids=["mixed", "equal"])
def test_the_slots_of_a_server_of_our_own_are_busy(slots: int, shortest: int, longest: int) -> None:
    rows = rows_of(slots * (60 if slots == 8 else 12), shortest, longest)
    loop = play(quiet(slots), rows)
    assert loop.busy(slots) >= 0.99
    assert loop.now <= 1.05 * all_at_once(quiet(slots), rows)


def test_rows_of_one_token_keep_a_step_full_although_the_gauges_never_show_one_running() -> None:
    spec = EngineSpec(max_num_seqs=64, step=StepModel(base_s=0.02, per_seq_s=0, per_prefill_token_s=0))
    rows = rows_of(64 * 400, 1, 1, prompts=(10, 20))
    assert play(spec, rows).now <= 1.05 * all_at_once(spec, rows)


def test_a_server_that_computes_prompts_all_the_time_is_not_starved_of_them() -> None:
    rows = rows_of(2000, 1, 8, prompts=(500, 1500))
    assert play(quiet(256), rows).now <= 1.02 * all_at_once(quiet(256), rows)


@pytest.mark.parametrize("tasks", [2, 6])
@pytest.mark.parametrize("late_s", [0.0, 20.0])
def test_tasks_share_a_server_fairly_and_fill_it(tasks: int, late_s: float) -> None:
    spec = quiet(64)
    loop = play(spec, rows_of(64 * 25 * tasks, 20, 400), tasks=tasks, late_s=late_s, until_s=45.0)
    before = [task.answered for task in loop.tasks]
    loop.run(75.0)
    assert jain([task.answered - then for task, then in zip(loop.tasks, before, strict=True)]) >= 0.9
    loop.tail_s = loop.now
    assert loop.busy(64) >= 0.99


def test_a_storm_of_refusals_is_one_cut_and_is_forgotten_within_six_looks() -> None:
    spec = EngineSpec(max_num_seqs=128, step=LARGE_GPU)
    loop = play(spec, rows_of(128 * 30, 20, 400), refuses=lambda now: 15 <= now < 25, until_s=80.0)
    task = loop.tasks[0]
    before = max(limit for at, _, limit, _ in task.looks if 10 <= at < 15)
    during = [limit for at, _, limit, _ in task.looks if 15 <= at < 25]
    assert task.refused > 100
    assert min(during) >= 0.7 * before
    taken = next(at for at, own, limit, _ in task.looks if at > 25 and own >= 0.9 * limit)
    after = [limit for at, _, limit, _ in task.looks if at >= taken]
    assert next(number for number, limit in enumerate(after) if limit >= 0.95 * before) <= 6 + 2  # two to see it


@pytest.mark.parametrize(("slots", "queued"), [(8, 9), (64, 66), (64, 50), (256, 281)])
def test_a_server_that_refuses_what_it_would_queue_is_filled_all_the_same(slots: int, queued: int) -> None:
    spec = EngineSpec(max_num_seqs=slots, step=STEPS[slots], max_num_queued_reqs=queued)
    loop = play(spec, rows_of(slots * (150 if slots == 8 else 20), 20, 400))
    # with one place to spare, a request's way through the API server, 5 ms, is an empty slot at each end
    assert loop.busy(min(slots, queued)) >= (0.96 if slots == 8 else 0.98)
    assert loop.tasks[0].refused < 2 * slots


def test_a_server_short_of_kv_memory_is_faster_than_when_it_thrashes() -> None:
    spec = EngineSpec(max_num_seqs=256, step=LARGE_GPU, num_blocks=2500)
    rows = rows_of(256 * 12, 20, 400)
    loop = play(spec, rows)
    assert loop.now < 0.96 * all_at_once(spec, rows)


@pytest.mark.parametrize(("slots", "patience_s"), [(8, 1.0), (64, 30.0), (256, 60.0)])
def test_a_gateway_that_shows_no_load_is_filled_by_the_pace_of_rows(slots: int, patience_s: float) -> None:
    loop = play(quiet(slots), rows_of(slots * (150 if slots == 8 else 30), 20, 400), readable=False)
    assert loop.ramp_s(slots) < patience_s
    assert loop.busy(slots) >= 0.99
    assert max(limit for _, _, limit, _ in loop.tasks[0].looks) <= 4 * slots


LOADS = st.one_of(
    st.none(), st.builds(Load, running=st.integers(0, 300), waiting=st.integers(0, 300), preemptions=st.integers(0, 99))
)
HAPPENINGS = st.tuples(st.sampled_from(["look", "capacity", "ended"]), st.floats(0, 30), LOADS, st.integers(0, 600))


@settings(max_examples=200)
@given(st.integers(1, 64), st.lists(HAPPENINGS, max_size=60))
def test_whatever_happens_something_may_be_sent_and_it_is_looked_again(start: int, happenings: list[tuple]) -> None:
    limit, now, largest = AdaptiveLimit(start), 0.0, start
    for what, wait_s, load, own in happenings:
        now += wait_s
        largest = max(largest, own)
        match what:
            case "capacity":
                limit.capacity(now)
            case "ended":
                assert limit.ended(now, min(wait_s, now))
            case "look":
                verdict = limit.unread(now, own) if load is None else limit.look(now, load, own)
                assert 1 <= verdict.limit <= 1000 + 4 * largest
                assert verdict.give_up == 0
                assert 0 < verdict.look_in_s <= 5
                assert verdict.reason


@settings(max_examples=5)
@given(st.integers(1, 3000), st.integers(1, 64))
def test_a_server_that_never_queues_again_may_be_looked_at_for_ever(slots: int, queued: int) -> None:
    """As where a step is as long as all the rows in it: their places are empty at every look."""
    limit = AdaptiveLimit()
    own, now, before = slots + queued, 0.0, 0
    limit.look(now, Load(running=slots, waiting=queued), own)
    for _ in range(1100):  # a float ends at 2 ** 1024
        now += 1.1
        before, own = own, limit.look(now, Load(running=slots, waiting=0), own).limit
    assert own == before, "it comes to rest"
