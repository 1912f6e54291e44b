"""What the end of a slice means for its row, its place in the queue and the endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from dispatch_model import dispatcher, request

from airflow_llm_provider.core.circuit import State
from airflow_llm_provider.core.commands import Send, Wait
from airflow_llm_provider.core.drain import RowDurations
from airflow_llm_provider.core.retry import Failure, FailureKind

if TYPE_CHECKING:
    from airflow_llm_provider.core.commands import Command
    from airflow_llm_provider.core.dispatch import Dispatcher
    from airflow_llm_provider.core.row_queue import Ticket

DIED = Failure(FailureKind.UNREACHABLE, "refused")


def fed(rows: int, **settings: int) -> Dispatcher:
    made = dispatcher(**settings)
    made.feed(request(index) for index in range(rows))
    return made


def sent(command: Command) -> list[Ticket]:
    assert isinstance(command, Send), command
    return command.tickets


def indices(command: Command) -> list[int]:
    return [ticket.request.index for ticket in sent(command)]


def test_the_row_goes_on_before_all_others() -> None:
    made = fed(4, limit=2)
    first, _ = sent(made.next(0))
    made.sliced(first, 1)
    assert made.in_flight == 1
    assert indices(made.next(1)) == [0]


def test_the_end_of_a_slice_is_a_moment_to_give_way() -> None:
    made = fed(4, limit=2)
    first, _ = sent(made.next(0))
    made.limit = 1
    made.sliced(first, 1)
    assert made.next(1) == Wait(None)
    made.limit = 2
    assert indices(made.next(2)) == [0]


def test_all_slices_together_are_one_attempt_and_one_duration() -> None:
    made = fed(1)
    for begun in (0, 10, 30):
        (ticket,) = sent(made.next(begun))
        made.sliced(ticket, begun + 2)
    (ticket,) = sent(made.next(40))
    made.yielded(ticket, 0.0)
    (ticket,) = sent(made.next(50))
    assert made.answered(ticket, 53)
    assert (ticket.attempts, ticket.sends, ticket.yields) == (1, 5, 1)
    made.durations._new = 1
    assert made.durations.predicted_s() == (3 * 2 + 3) * 1.25


def test_a_slice_that_is_kept_makes_yields_fruitful() -> None:
    made = fed(1)
    for _ in range(3):
        (ticket,) = sent(made.next(0))
        made.yielded(ticket, 0.0)
    assert ticket.fruitless == 3
    (ticket,) = sent(made.next(0))
    made.sliced(ticket, 1)
    assert ticket.fruitless == 0


@pytest.mark.parametrize("answered", [True, False])
def test_a_row_that_begins_anew_has_thrown_its_slices_away(*, answered: bool) -> None:
    made = fed(2, limit=1)
    for begun in (0, 10):
        (ticket,) = sent(made.next(begun))
        made.sliced(ticket, begun + 2)
    (ticket,) = sent(made.next(20))
    made.yielded(ticket, 21)
    (ticket,) = sent(made.next(30))
    made.begun_anew(ticket, 32, answered=answered)
    assert (made.in_flight, ticket.fruitless, ticket.took_s, ticket.begun) == (0, 1, 0.0, False)
    (ticket,) = sent(made.next(40))
    assert ticket.request.index == 0, "before others"
    assert made.answered(ticket, 47)
    assert ticket.attempts == 2, "the slices, and the whole row"
    made.durations._new = 1
    assert made.durations.predicted_s() == 7 * 1.25


@pytest.mark.parametrize(("answered", "state"), [(True, State.UP), (False, State.TRIAL)])
def test_a_row_that_begins_anew_unanswered_says_nothing_of_the_endpoint(*, answered: bool, state: State) -> None:
    made = fed(2, limit=1)
    (ticket,) = sent(made.next(0))
    made.failed(ticket, DIED, 1)
    made.next(100)
    made.probed(None, 100)
    (ticket,) = sent(made.next(100))
    made.begun_anew(ticket, 101, answered=answered)
    assert made.circuit.state is state
    assert indices(made.next(101)) == [0], "the next trial, if it takes one"


def test_before_the_window_closes_a_row_that_began_anew_is_a_new_one() -> None:
    made = fed(4, limit=2)
    made.durations = RowDurations(10)
    made.release(limit=2, closes_s=20)
    first, _ = sent(made.next(0))
    made.sliced(first, 14)
    assert indices(made.next(14)) == [0]
    made.begun_anew(first, 15, answered=True)
    assert isinstance(made.next(15), Wait)


def test_a_slice_shows_that_the_endpoint_works() -> None:
    made = fed(2, limit=1)
    (ticket,) = sent(made.next(0))
    made.failed(ticket, DIED, 1)
    made.next(100)
    made.probed(None, 100)
    (ticket,) = sent(made.next(100))
    assert made.circuit.state is State.TRIAL
    made.sliced(ticket, 101)
    assert made.circuit.state is State.UP


def test_before_the_window_closes_rows_that_have_begun_go_on_and_no_others_begin() -> None:
    made = fed(4, limit=2)
    made.durations = RowDurations(10)
    made.release(limit=2, closes_s=20)
    first, second = sent(made.next(0))
    made.sliced(first, 15)
    assert indices(made.next(15)) == [0], "a new row would not end in time"
    made.answered(second, 16)
    assert isinstance(made.next(16), Wait)
    made.sliced(first, 19)
    assert indices(made.next(19.5)) == [0]
    made.sliced(first, 20)
    assert isinstance(made.next(20), Wait), "it is closed"
