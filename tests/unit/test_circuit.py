from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from airflow_llm_provider.core.circuit import PAUSE_SHARE, PAUSES, TRANSITIONS, TRIAL_S, Circuit, Event, State
from airflow_llm_provider.core.retry import REACTIONS, Failure, FailureKind, Reaction

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY = Failure(FailureKind.BUSY, "engine is currently busy", 503)
LOST = Failure(FailureKind.UNREACHABLE, "connection refused")

# The whole life of an endpoint; a state that an event does not move stands here too, so that the table is complete.
LIFE = {
    State.UP: {Event.CAPACITY: State.PAUSED, Event.LOST: State.DOWN},
    State.PAUSED: {Event.LOST: State.DOWN, Event.DUE: State.UP},
    State.DOWN: {Event.DUE: State.PROBING},
    State.PROBING: {Event.PROBE_OK: State.TRIAL, Event.PROBE_FAILED: State.DOWN},
    State.TRIAL: {
        Event.ANSWERED: State.UP,
        Event.DUE: State.UP,
        Event.CAPACITY: State.PAUSED,
        Event.LOST: State.DOWN,
    },
}
AFTER = {(state, event): LIFE[state].get(event, state) for state, event in itertools.product(State, Event)}


def circuit(*, wait_s: Callable[[int], float] = float, patience_s: float = 100.0) -> Circuit:
    return Circuit(wait_s=wait_s, patience_s=patience_s)


def circuit_in(state: State) -> Circuit:
    """A circuit that came to `state` at moment 0 by its own transitions."""
    made = circuit()
    if state is State.PAUSED:
        made.failed(BUSY, 0)
    elif state is not State.UP:
        made.failed(LOST, -1)
        if state is not State.DOWN:
            made.look(0)
        if state is State.TRIAL:
            made.probed(None, 0)
            made.tried(0, by_answer=False)
        if state is State.DOWN:
            made.until = 1.0
    assert made.state is state
    return made


def happen(made: Circuit, event: Event) -> None:
    match event:
        case Event.ANSWERED:
            made.answered()
        case Event.CAPACITY:
            made.failed(BUSY, 0.5)
        case Event.LOST:
            made.failed(LOST, 0.5)
        case Event.PROBE_OK:
            made.probed(None, 0.5)
        case Event.PROBE_FAILED:
            made.probed(LOST, 0.5)
        case Event.DUE:
            made.look(1000.0)


@pytest.mark.parametrize(("state", "event"), AFTER)
def test_every_event_in_every_state(state: State, event: Event) -> None:
    made = circuit_in(state)
    happen(made, event)
    assert made.state is AFTER[state, event]


def test_the_table_lists_only_what_changes_the_state() -> None:
    assert dict(TRANSITIONS) == {pair: after for pair, after in AFTER.items() if pair[0] is not after}


def test_every_state_but_up_comes_back_up() -> None:
    def reaches_up(state: State, seen: frozenset[State] = frozenset()) -> bool:
        return state is State.UP or any(
            reaches_up(after, seen | {state}) for after in LIFE[state].values() if after not in seen
        )

    assert all(reaches_up(state) for state in State)


@pytest.mark.parametrize("kind", [kind for kind, reaction in REACTIONS.items() if reaction is Reaction.HOLD])
def test_every_kind_that_holds_is_a_loss(kind: FailureKind) -> None:
    made = circuit()
    made.failed(Failure(kind, "x"), 0)
    assert made.state is State.DOWN


def test_waits_grow_from_look_to_look_and_start_again_after_an_answer() -> None:
    made = circuit(wait_s=lambda look: 10.0 * look)
    made.failed(BUSY, 0)
    assert made.until == 10
    assert made.look(9.9) is State.PAUSED
    assert made.look(10) is State.UP
    made.failed(BUSY, 10)
    assert made.until == 30
    made.look(30)
    made.answered()
    made.failed(BUSY, 40)
    assert made.until == 50


def test_a_pause_is_no_longer_than_a_share_of_the_trouble_so_far() -> None:
    made = circuit(wait_s=lambda look: 2.0**look)
    waits = []
    now = 0.0
    for _ in range(12):
        made.failed(BUSY, now)
        assert made.until is not None
        waits.append(made.until - now)
        now = made.until
        made.look(now)
    first = [2.0, 4.0, 8.0, 16.0]
    assert waits[:5] == [*first, 16.0]  # the sixth, after 46 s, would be 32 s long, and the trouble allows 16
    assert all(wait == max(16.0, PAUSE_SHARE * sum(waits[:number])) for number, wait in enumerate(waits) if number > 3)
    assert waits[-1] > 20.0


def test_one_that_was_lost_meanwhile_is_looked_for_as_rarely_as_ever() -> None:
    made = circuit()
    for _ in range(PAUSES + 5):
        made.failed(BUSY, 0)
        assert made.until is not None
        made.look(made.until)
    made.failed(LOST, 0)
    assert made.until == PAUSES + 6


@pytest.mark.parametrize(("retry_after_s", "until"), [(None, 1.0), (0.5, 1.0), (60.0, 60.0)])
def test_retry_after_lengthens_the_wait_and_never_shortens_it(retry_after_s: float | None, until: float) -> None:
    made = circuit()
    made.failed(Failure(FailureKind.BUSY, "later", 429, retry_after_s), 0)
    assert made.until == until


def test_a_trial_counts_as_accepted_when_it_outlives_its_grace() -> None:
    made = circuit_in(State.TRIAL)
    assert made.look(TRIAL_S - 0.01) is State.TRIAL
    assert made.look(TRIAL_S) is State.UP


def test_a_trial_by_answer_counts_as_accepted_when_it_is_answered_and_not_before() -> None:
    made = circuit_in(State.TRIAL)
    made.tried(0, by_answer=True)
    assert made.look(1000) is State.TRIAL
    made.answered()
    assert made.look(1000) is State.UP


def test_a_trial_that_says_nothing_does_not_count_as_accepted() -> None:
    made = circuit_in(State.TRIAL)
    made.untried()
    assert made.look(1000) is State.TRIAL
    assert not made.asked


def test_a_loss_is_a_death_only_where_an_answer_came_since_the_last_one() -> None:
    made = circuit()
    made.failed(LOST, 0)
    assert made.was_alive
    made.answered()  # of before the loss
    made.look(2)
    made.probed(LOST, 2)
    made.look(5)
    made.probed(None, 5)
    made.failed(LOST, 6)
    assert not made.was_alive
    made.look(10)
    made.probed(None, 10)
    made.answered()
    assert not made.was_alive  # what fails late was in flight at the loss that was no death
    made.failed(LOST, 12)
    assert made.was_alive


def test_patience_is_measured_from_the_beginning_of_the_trouble() -> None:
    made = circuit(patience_s=100)
    assert made.deadline is None
    made.failed(LOST, 50)
    made.look(51)
    made.probed(LOST, 60)
    assert made.deadline == 150
    assert not made.impatient(149.9)
    assert made.impatient(150)


def test_patience_ends_at_the_very_deadline_it_names_whatever_rounding_does() -> None:
    began = next(since for since in (n / 7 for n in range(3_000, 100_000)) if (since + 600.0) - since < 600.0)
    made = circuit(patience_s=600.0)
    made.failed(BUSY, began)
    assert made.deadline is not None
    assert made.impatient(made.deadline), "whoever waits until the deadline would wait for a moment that is past"


def test_an_answer_ends_the_trouble_but_not_while_the_endpoint_is_lost() -> None:
    made = circuit()
    made.failed(LOST, 0)
    made.answered()  # a draining server still ends what it had
    assert made.deadline == 100
    made.look(2)
    made.probed(None, 2)
    made.answered()
    assert made.deadline is None


def test_an_answer_during_a_pause_ends_the_trouble_and_not_the_pause() -> None:
    made = circuit(wait_s=lambda look: 10.0 * look)
    made.failed(BUSY, 0)
    made.answered()
    assert (made.state, made.until, made.deadline) == (State.PAUSED, 10, None)


def test_each_state_hands_out_one_probe_or_trial() -> None:
    made = circuit_in(State.PROBING)
    made.asked = True
    made.probed(None, 1)
    assert not made.asked


def test_says_why_and_when() -> None:
    made = circuit(wait_s=lambda _: 90.0)
    made.failed(BUSY, 0)
    assert made.describe(10) == "paused: busy (engine is currently busy); next look in 1 min 20 s"
    made.failed(LOST, 10)
    made.look(100)
    assert made.describe(100) == "probing: unreachable (connection refused)"
