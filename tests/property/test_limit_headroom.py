"""The headroom limit: rules one by one, and the loop closed around one, two and six tasks."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_llm_provider.core.arrivals import CALM_S
from airflow_llm_provider.core.limit_headroom import AT_ONCE, MOST_GROWTH, SPARE, HeadroomLimit, most_at_once
from airflow_llm_provider.core.load import CHOSEN_COST_S, Load
from airflow_llm_provider.core.looks import JITTER, LONGEST_WAIT_S
from airflow_llm_provider.endpoint.load import WHOLE_COST_S
from airflow_llm_provider.exceptions import ConfigurationError
from tests.headroom_model import GPU_RATE, Model, bursts


def laws(number: int, *, slots: int = 8, floor: int = 0, seed: int = 0) -> list[HeadroomLimit]:
    return [HeadroomLimit(slots, floor=floor, rng=Random(1000 * seed + each)) for each in range(number)]


def law(slots: int = 8, floor: int = 0) -> HeadroomLimit:
    return HeadroomLimit(slots, floor=floor, rng=Random(0))


def load(total: int, slots: int = 8) -> Load:
    return Load(running=min(total, slots), waiting=max(0, total - slots))


def settle(limit: HeadroomLimit, *, others: int = 0, until_s: float = 5.0) -> tuple[float, int]:
    """The task comes, and takes what it may beside so many who stay; when that was, and how many it has in flight."""
    now, own = 0.0, 0
    while now < until_s:
        own = limit.look(now, load(own + others, limit.slots), own).limit
        now += 0.02
    return now, own


@pytest.mark.parametrize("number", [1, 2, 6])
def test_real_time_in_bursts_hardly_waits_and_batch_has_the_rest(number: int) -> None:
    model = Model(8, laws(number), bursts(1, 300.0)).run(300.0)
    assert len(model.waits) > 700
    assert model.waited(0.95) < 0.045  # a slice takes 330 ms; saturated, they would wait for about as long
    assert model.waited(0.99) < 0.08
    assert model.oracle_share > 0.80
    assert model.lost_tokens < 0.08 * model.batch_tokens


def test_without_the_law_real_time_waits() -> None:
    """The model can show it: eight rows and a queue, whatever comes."""

    class Saturated(HeadroomLimit):
        def look(self, now: float, load: Load, own: int, *, needs: int = 1):  # type: ignore[no-untyped-def]
            verdict = super().look(now, load, own, needs=needs)
            return type(verdict)(limit=10, look_in_s=verdict.look_in_s)

    model = Model(8, [Saturated(8, rng=Random(0))], bursts(1, 300.0)).run(300.0)
    assert model.waited(0.95) > 0.06


@pytest.mark.parametrize("number", [1, 2, 6])
def test_in_the_quiet_the_slots_are_full_and_shared_fairly(number: int) -> None:
    model = Model(8, laws(number, seed=5)).run(900.0)
    assert model.oracle_share > 0.90
    assert model.jain > 0.90


@pytest.mark.parametrize("number", [2, 6])
def test_bursts_leave_it_fair(number: int) -> None:
    """Over many turns: of six tasks each has one in half a minute, and some of them meet a burst."""
    assert Model(8, laws(number, seed=2), bursts(2, 1200.0)).run(1200.0).jain > 0.90


def test_a_task_that_comes_later_gets_its_share() -> None:
    model = Model(8, laws(2), joins_s=[0.0, 30.0]).run(60.0)
    before = [task.held_s for task in model.tasks]
    model.run(200.0)
    first, second = (task.held_s - held for task, held in zip(model.tasks, before, strict=True))
    assert second > 0.3 * (first + second)


def test_a_big_server_is_shared_with_those_who_come_later() -> None:
    model = Model(256, laws(6, slots=256), joins_s=[0.0, *[5.0] * 5], rate=GPU_RATE).run(300.0)
    assert model.jain > 0.90
    assert model.oracle_share > 0.93


@pytest.mark.parametrize("number", [1, 6])
def test_a_big_server(number: int) -> None:
    arrivals = bursts(3, 120.0, per_s=25.0, burst_s=20.0, quiet_s=20.0)
    model = Model(256, laws(number, slots=256), arrivals, rate=GPU_RATE).run(120.0)
    assert model.waited(0.99) < 0.005
    assert model.oracle_share > 0.90
    assert model.lost_tokens < 0.01 * model.batch_tokens
    assert model.looks / 120 * load(0).cost_s < 0.05


@pytest.mark.parametrize("arrivals", [[], bursts(1, 200.0)], ids=["quiet", "bursts"])
@pytest.mark.parametrize(
    ("number", "cost_s", "promised"),
    [
        *((number, CHOSEN_COST_S, 0.05) for number in (1, 3, 12)),
        *((number, WHOLE_COST_S, 0.05) for number in (1, 3, 6)),
        (40, CHOSEN_COST_S, 0.07),  # five tasks to a slot
        (40, WHOLE_COST_S, 0.085),
    ],
)
def test_looks_cost_a_server_little_however_many_tasks_run(
    number: int, cost_s: float, promised: float, arrivals: list[tuple[float, int]]
) -> None:
    """Once they have got to know how many they are."""
    model = Model(8, laws(number), arrivals, look_cost_s=cost_s).run(100.0)
    before = model.looks
    model.run(200.0)
    assert (model.looks - before) / 100 * cost_s < promised


def test_nothing_is_left_waiting_by_a_floor() -> None:
    model = Model(8, laws(1, floor=2)).run(30.0)
    assert model.total <= 6
    assert model.tasks[0].held_s / 30 > 5


def test_an_arrival_in_a_calm_is_given_its_slot_at_once() -> None:
    limit = law()
    now, own = settle(limit, until_s=4.0)
    assert own == 9  # eight run, one waits
    verdict = limit.look(now, load(10), own)
    assert verdict.give_up >= 2
    assert verdict.limit <= 9 - (10 - 7)  # and a slot is kept free from now on


def test_whoever_holds_nothing_gives_nothing_up() -> None:
    limit = law()
    settle(limit, others=9)
    verdict = limit.look(5.0, load(12), own=0)
    assert (verdict.limit, verdict.give_up) == (0, 0)


def test_headroom_follows_the_peaks() -> None:
    limit = law(slots=64)
    now, own = settle(limit, others=10)
    for step in range(200):
        now += 0.05
        others = 20 if step % 10 == 0 else 10  # ten come at once, twice a second
        own = limit.look(now, load(own + others, 64), own).limit
    assert limit.headroom == 10


def test_of_many_slots_a_few_are_always_free() -> None:
    limit = law(slots=256)
    _, own = settle(limit, until_s=20.0)
    assert own == most_at_once(256, 0) == 256 - 256 // SPARE
    assert most_at_once(8, 0) == 9
    assert most_at_once(256, 16) == 240


def test_it_grows_once_a_step_whatever_it_looks_at_meanwhile() -> None:
    """Many looks at one step would each send what only the next step shows."""

    def beside(own: int, step: int) -> Load:
        return Load(running=own, waiting=0, generated=1000.0 + own * step)

    limit = law(slots=256)
    now, own = settle(limit, until_s=2.0)
    for step in range(1, 6):
        seen = [limit.look(now + step / 20 + look / 100, beside(own, step), own).limit for look in range(5)]
        assert seen == [own + 256 // MOST_GROWTH] * 5
        own = seen[-1]


def test_nothing_is_given_up_twice_for_one_step() -> None:
    limit = law()
    now, own = settle(limit, until_s=4.0)
    full = Load(running=8, waiting=3, generated=1000.0)
    first = limit.look(now, full, own)
    assert first.give_up > 0
    limit.gave_up(now, first.give_up)
    again = limit.look(now + 0.01, full, own - first.give_up)
    assert (again.give_up, again.limit) == (0, first.limit)


def test_memory_bounds_the_slots() -> None:
    limit = law()
    now, own = settle(limit)
    for step in range(10):
        verdict = limit.look(now + step / 50, Load(running=4, waiting=own - 4, kv_usage=0.97), own)
        own = verdict.limit
    assert own <= 4 + 1
    for step in range(10, 100):
        own = limit.look(now + step / 50, load(own), own).limit
    assert own == 8 + 1


def test_a_load_that_cannot_be_read_leaves_a_quarter_free() -> None:
    limit = law()
    now, own = settle(limit)
    limits = [limit.unread(now + step, own).limit for step in range(5)]
    assert limits[-1] == 6
    assert max(limits) < 8


@pytest.mark.parametrize("floor", [-1, 8, 9])
def test_a_floor_that_leaves_nothing(floor: int) -> None:
    with pytest.raises(ConfigurationError, match="leaves batch nothing"):
        law(floor=floor)


@pytest.mark.parametrize("cancel_s", [0.012, 0.05, 0.1, 0.25])
def test_a_cancelled_row_that_the_server_still_shows_is_nobody_elses(cancel_s: float) -> None:
    arrivals = bursts(1, 90.0, per_s=60.0)
    model = Model(64, laws(1, slots=64), arrivals, cancel_s=cancel_s).run(90.0)
    assert model.yields < 1.5 * len(arrivals)
    assert model.oracle_share > 0.80


def test_what_is_given_up_once_is_not_given_up_again_while_it_is_still_shown() -> None:
    limit = law(slots=64)
    (now, own), given = settle(limit), 0
    for step in range(6):  # four come at once; the server takes its time to drop what we cancel
        verdict = limit.look(now + step / 50, load(own + given + 4, 64), own)
        gone = verdict.give_up
        limit.gave_up(now + step / 50, gone)
        own, given = own - gone, given + gone
    assert given <= 4 + AT_ONCE + 64 // SPARE
    assert limit.headroom <= 4


def test_prompts_that_wait_to_be_computed_are_no_shortage_of_memory() -> None:
    limit = law(slots=64)
    now, own = 0.0, 0
    while own < 20:
        now += 0.02
        own = limit.look(now, load(own, 64), own).limit
    before = own
    for step in range(10):
        verdict = limit.look(now + step / 50, Load(running=10, waiting=own - 10, kv_usage=0.2), own)
        assert verdict.give_up == 0
        own = verdict.limit
    assert own > before


def test_a_load_that_cannot_be_read_for_once_lets_nothing_grow() -> None:
    limit = law(slots=64)
    limit.look(0.0, load(60, 64), own=10)
    assert limit.unread(0.1, 10).limit <= 10


def test_after_a_rest_a_calm_is_not_taken_for_granted() -> None:
    limit = law(slots=64)
    now, own = settle(limit)
    limit.rested()
    own, began = 0, now + 600
    while own + 34 < 63:
        now += 0.02
        own = limit.look(600 + now, load(own + 34, 64), own).limit
        assert own + 34 <= 63 or now > began + CALM_S


def test_a_row_that_asks_for_several_sequences_gets_them_at_once_and_nothing_more() -> None:
    limit = law(slots=64)
    limits = {limit.look(step / 20, load(36, 64), 0, needs=12).limit for step in range(120)}
    assert limits == {0, 12}  # 28 are free, and some are kept so
    assert {limit.look(step / 20, load(36, 64), 0, needs=40).limit for step in range(120, 140)} <= set(range(28))


def test_what_it_does_not_use_does_not_pile_up() -> None:
    """Whatever else holds the rows back: all of them would begin in one step when that ends."""
    limit = law(slots=256)
    assert {limit.look(step / 20, load(40, 256), own=0).limit for step in range(200)} == {0, 256 // MOST_GROWTH}


def test_where_memory_leaves_few_seats_an_empty_server_is_not_divided_by() -> None:
    limit = law(slots=256)
    now = 0.0
    for running, waiting, kv_usage in [*[(1, 2, 0.95)] * 4, (0, 0, 0.0)]:
        now += 0.1
        verdict = limit.look(now, Load(running=running, waiting=waiting, kv_usage=kv_usage), own=0)
        assert verdict.limit >= 0


@pytest.mark.parametrize(("slots", "blind"), [(64, 16), (8, None)])
def test_rows_that_end_while_the_load_is_unread_are_replaced(slots: int, blind: int | None) -> None:
    limit = HeadroomLimit(slots, rng=Random(0), blind=blind)
    assert limit.unread(0.0, 0).limit > 0
    assert limit.ended(0.1, 0.1)
    now, own = settle(limit, others=slots, until_s=4.0)
    assert not limit.ended(now, 0.1)  # whoever is away leaves its places to others
    limit.unread(now, own)
    assert limit.ended(now, 0.1)


def test_herds_as_large_as_the_server_leave_batch_something() -> None:
    herds = [(10 + second + each / 100, 100) for second in range(100) for each in range(8)]
    model = Model(8, laws(1), herds).run(110.0)
    assert model.oracle_share > 0.25


def test_the_reason_says_what_is_kept_free_and_whose_turn_it_is() -> None:
    limit = law(slots=256)
    verdict = limit.look(0.0, load(0, 256), 0)
    assert verdict.reason == "real-time and others 0, 6 kept free, and whether others want the room is looked at first"
    now, own = settle(limit, others=20, until_s=6.0)
    assert limit.look(now, load(own + 20, 256), own).reason == "real-time and others 20, calm, 4 kept free"
    own = limit.look(now + 0.02, load(own + 24, 256), own).limit
    verdict = limit.look(now + 0.04, load(own + 24, 256), own)
    kept = int(verdict.reason.removeprefix("real-time and others 24, ").removesuffix(" kept free"))
    assert own + 24 == 256 - kept


@settings(deadline=None)  # the machine may be busy
@given(
    st.integers(1, 300),
    st.lists(
        st.tuples(
            st.integers(0, 400),
            st.integers(0, 400),
            st.integers(0, 80),
            st.floats(0.001, 5.0),
            st.sampled_from([None, 0.0, 0.95]),
            st.one_of(st.none(), st.floats(0, 1e6)),
        ),
        max_size=60,
    ),
    st.integers(0, 2**32),
)
def test_whatever_is_read_a_verdict_is_possible(
    slots: int, looks: list[tuple[int, int, int, float, float | None, float | None]], seed: int
) -> None:
    """Never below nothing, never above the brim, nothing given up that is not there, always looked again."""
    limit = HeadroomLimit(slots, rng=Random(seed))
    now = 0.0
    for running, waiting, own, seconds, kv_usage, generated in looks:
        now += seconds
        seen = Load(running=running, waiting=waiting, kv_usage=kv_usage, generated=generated)
        verdict = limit.look(now, seen, own)
        assert 0 <= verdict.limit <= max(own, most_at_once(slots, 0))
        assert 0 <= verdict.give_up <= own
        assert 0 < verdict.look_in_s <= LONGEST_WAIT_S * (1 + JITTER)
        limit.gave_up(now, verdict.give_up)
        limit.ended(now, seconds)
