"""One task's turns: when it takes room, when it leaves it, and how it finds out that nobody else is there."""

from __future__ import annotations

from random import Random

import pytest

from airflow_llm_provider.core.turns import (
    AGAIN_S,
    BUSY_S,
    BUSY_TURNS,
    CONFIRM_S,
    FRESH_S,
    JITTER,
    LEFT_S,
    LONGER,
    LONGEST_TURN_S,
    LOOK_S,
    MOST_PATIENT,
    OFFER_S,
    REST_S,
    SPREAD,
    TURN_S,
    State,
    Turns,
)

STEP_S = 0.01
LONGEST_CONFIRM_S = SPREAD[1] * MOST_PATIENT * BUSY_S


class Task:
    """Turns, and what they see."""

    def __init__(self, *, seed: int = 0, calm: bool = True) -> None:
        self.turns = Turns(Random(seed))
        self.now = 100.0
        self.calm = calm

    def for_s(
        self, seconds: float, *, room: bool = False, own: int = 8, others: int = 0, open_place: bool = True
    ) -> State:
        """See the same for so long; the state after it."""
        until_s = self.now + seconds
        while self.now < until_s:
            self.now += STEP_S
            self.turns.look(self.now, room=room, own=own, others=others, calm=self.calm, open_place=open_place)
        return self.turns.state

    def until(self, state: State, *, at_most_s: float, **seen: int | bool) -> float:
        """See the same until it is in that state; how long that took."""
        began_s = self.now
        while self.turns.state is not state:
            assert self.now < began_s + at_most_s, f"{self.turns.state} for {at_most_s} s"
            self.for_s(STEP_S / 2, **seen)  # type: ignore[arg-type]
        return self.now - began_s

    def holding(self) -> Task:
        """Has it take room."""
        self.until(State.HOLDING, at_most_s=2 * LONGEST_CONFIRM_S, room=True, own=0)
        self.for_s(FRESH_S + STEP_S)
        return self


def test_room_that_is_there_for_a_moment_is_somebody_elses() -> None:
    task = Task()
    for _ in range(20):
        task.for_s(0.9 * SPREAD[0] * CONFIRM_S, room=True, own=0)
        assert task.for_s(STEP_S, room=False, own=0) is State.AWAY


@pytest.mark.parametrize(("calm", "confirm_s"), [(True, CONFIRM_S), (False, BUSY_S)])
def test_room_that_stays_is_taken_later_where_it_is_not_calm(*, calm: bool, confirm_s: float) -> None:
    task = Task(calm=calm)
    took_s = task.until(State.HOLDING, at_most_s=10, room=True, own=0)
    assert SPREAD[0] * MOST_PATIENT * confirm_s <= took_s <= SPREAD[1] * MOST_PATIENT * confirm_s + 2 * STEP_S


def test_the_longer_it_has_waited_the_less_it_hesitates() -> None:
    def took_s(waited_s: float) -> float:
        times = []
        for seed in range(20):
            task = Task(seed=seed)
            task.for_s(waited_s, own=0)
            times.append(task.until(State.HOLDING, at_most_s=10, room=True, own=0))
        return sum(times) / len(times)

    assert took_s(40.0) < 0.6 * took_s(20.0) < 0.4 * took_s(5.0)


def test_it_looks_again_soon_while_it_sees_room_and_never_too_rarely() -> None:
    task = Task()
    for waited in range(300):
        task.for_s(1.0, own=0)
        look_in_s = task.turns.look_in_s
        assert look_in_s is not None, waited
        assert 0.1 < look_in_s <= LOOK_S * (1 + JITTER)
        assert task.turns.waited_s(task.now) == pytest.approx(waited + 1 + REST_S, abs=0.1, rel=0.01)
    task.for_s(STEP_S, room=True, own=0)
    assert task.turns.sees_room
    assert task.turns.look_in_s == AGAIN_S
    task.until(State.HOLDING, at_most_s=10, room=True, own=0)
    assert task.turns.look_in_s is None
    assert not task.turns.sees_room


def test_in_a_calm_it_offers_and_leaves_where_somebody_takes_it() -> None:
    task = Task().holding()
    task.until(State.OFFERING, at_most_s=TURN_S * (1 + JITTER))
    task.for_s(OFFER_S / 2)
    assert task.for_s(STEP_S, others=1) is State.AWAY


def test_an_offer_counts_from_when_the_place_is_free() -> None:
    task = Task().holding()
    task.until(State.OFFERING, at_most_s=TURN_S * (1 + JITTER))
    assert task.for_s(3 * OFFER_S, open_place=False) is State.OFFERING
    assert task.for_s(OFFER_S + 2 * STEP_S) is State.HOLDING


def test_the_turns_of_who_is_alone_grow_longer() -> None:
    task = Task().holding()
    for turn in range(1, 12):
        task.until(State.OFFERING, at_most_s=LONGEST_TURN_S * (1 + JITTER))
        task.until(State.HOLDING, at_most_s=OFFER_S + 2 * STEP_S)
        usual_s = min(LONGEST_TURN_S, TURN_S * LONGER**turn)
        assert task.for_s(usual_s * (1 - JITTER) - 2 * STEP_S) is State.HOLDING


def test_an_offer_is_off_when_real_time_comes() -> None:
    task = Task().holding()
    task.until(State.OFFERING, at_most_s=TURN_S * (1 + JITTER))
    task.calm = False
    assert task.for_s(STEP_S) is State.HOLDING


def test_where_it_is_not_calm_a_turn_is_longer_and_ends_without_an_offer() -> None:
    task = Task(calm=False).holding()
    lasted_s = task.until(State.AWAY, at_most_s=BUSY_TURNS * TURN_S * (1 + JITTER))
    assert lasted_s > (BUSY_TURNS - 1) * TURN_S


def test_room_that_it_has_left_is_others_for_a_while() -> None:
    task = Task(calm=False).holding()
    task.until(State.AWAY, at_most_s=BUSY_TURNS * TURN_S * (1 + JITTER))
    assert task.for_s(LEFT_S - 2 * STEP_S, room=True) is State.AWAY
    assert task.for_s(4 * STEP_S, room=True) is State.HOLDING


def test_who_left_room_that_others_took_waits_as_all_do() -> None:
    task = Task().holding()
    task.until(State.OFFERING, at_most_s=TURN_S * (1 + JITTER))
    task.for_s(STEP_S, others=1)
    task.for_s(REST_S, room=False, others=8, own=0)
    assert task.until(State.HOLDING, at_most_s=10, room=True, own=0) < SPREAD[1] * MOST_PATIENT * CONFIRM_S + 2 * STEP_S
    assert task.for_s(FRESH_S) is State.HOLDING


def test_who_comes_second_waits_on_as_if_it_had_not_come() -> None:
    task = Task()
    task.until(State.HOLDING, at_most_s=10, room=True, own=0)
    assert task.for_s(FRESH_S - STEP_S, room=False, own=0) is State.HOLDING
    assert task.for_s(3 * STEP_S, room=False, own=0) is State.AWAY
