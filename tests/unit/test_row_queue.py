from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from dispatch_model import request

from airflow_llm_provider.core.row_queue import ALONE_FROM, RowQueue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_llm_provider.core.request import RowRequest
    from airflow_llm_provider.core.row_queue import Ticket


def fed(rows: int) -> RowQueue:
    made = RowQueue()
    made.feed(request(index) for index in range(rows))
    return made


def indices(tickets: Iterable[Ticket]) -> list[int]:
    return [ticket.request.index for ticket in tickets]


def taken(made: RowQueue, amount: int = 100) -> list[int]:
    return indices(made.take(amount))


def with_suspects(suspects: int, others: int) -> tuple[RowQueue, list[Ticket]]:
    """A queue of `others` rows and, numbered from 0, `suspects` that go alone."""
    made = fed(suspects + others)
    tickets = made.take(suspects)
    for ticket in tickets:
        ticket.suspicions = ALONE_FROM
        made.last(ticket)
    return made, tickets


def test_rows_go_in_the_order_in_which_they_came() -> None:
    made = fed(5)
    assert (taken(made, 0), taken(made, 2), len(made)) == ([], [0, 1], 3)
    made.feed([request(9)])
    assert taken(made) == [2, 3, 4, 9]


def test_a_row_may_go_again_before_or_after_the_others() -> None:
    made = fed(4)
    first, second = made.take(2)
    made.last(first)
    made.first(second)
    assert taken(made) == [1, 2, 3, 0]


def test_a_row_that_backs_off_comes_after_those_that_wait_when_its_time_has_come() -> None:
    made = fed(4)
    for ticket, due_s in zip(made.take(3), (9.0, 5.0, 5.0), strict=True):
        made.later(ticket, due_s)
    assert (len(made), made.due_s(4.9)) == (4, 5.0)
    assert (len(made), made.due_s(5.0)) == (4, 9.0)
    assert taken(made) == [3, 1, 2]
    assert made.due_s(9.0) is None
    assert taken(made) == [0]


def test_of_those_that_go_alone_one_is_taken_at_a_time_beside_all_others() -> None:
    made, suspects = with_suspects(3, 2)
    assert taken(made) == [0, 3, 4]
    assert taken(made) == []
    made.landed(suspects[0])
    assert (taken(made), len(made)) == ([1], 1)


@pytest.mark.parametrize("again", ["first", "last", "later"])
def test_one_that_goes_alone_keeps_its_lane_whatever_it_meets(again: str) -> None:
    made, (first, second) = with_suspects(2, 1)
    assert made.take(1) == [first]
    made.landed(first)
    if again == "later":
        made.later(first, 1.0)
        made.due_s(1.0)
    else:
        getattr(made, again)(first)
    assert indices(made.take(3)) == [first.request.index if again == "first" else second.request.index, 2]


def test_one_that_goes_alone_is_the_head_only_where_there_is_no_other() -> None:
    made, (suspect,) = with_suspects(1, 1)
    assert made.head is not None
    assert made.head.request.index == 1
    assert indices(made.take_head()) == [1]
    assert made.head is suspect
    assert made.take_head() == [suspect]
    assert made.head is None
    assert made.take_head() == []


def test_there_is_no_head_while_one_that_goes_alone_is_in_flight_and_only_such_are_left() -> None:
    made, (first, second) = with_suspects(2, 0)
    assert made.take_head() == [first]
    assert made.head is None
    assert made.take_head() == []
    made.landed(first)
    assert made.head is second


def wide(index: int, sequences: int) -> RowRequest:
    return replace(request(index), sequences=sequences)


def test_a_request_for_several_answers_takes_as_much_room() -> None:
    made = RowQueue()
    made.feed([wide(0, 4), wide(1, 3), wide(2, 2)])
    assert taken(made, 8) == [0, 1]
    assert taken(made, 1) == [], "it waits until there is room, and nobody passes it"
    assert taken(made, 2) == [2]


def test_one_that_is_wider_than_all_the_room_goes_alone() -> None:
    made = RowQueue()
    made.feed([wide(0, 9), wide(1, 1)])
    assert taken(made, 8) == []
    assert indices(made.take(8, idle=True)) == [0]
    assert indices(made.take(8, idle=True)) == [1]


def test_what_has_begun_is_taken_as_far_as_it_stands_first() -> None:
    made = fed(4)
    tickets = made.take(3)
    for ticket, begun in zip(tickets, (True, False, True), strict=True):
        ticket.parts, ticket.begun = 2, begun
    for ticket in (tickets[1], tickets[0], tickets[2]):
        made.first(ticket)
    assert indices(made.take(4, begun=True)) == [2, 0], "what began anew has not, whatever slices it had"


def test_bytes_of_ready_rows_are_counted_wherever_a_row_goes() -> None:
    made, suspects = with_suspects(2, 3)
    each = len(suspects[0].request.body)
    assert made.ready_bytes == 5 * each
    alone, *others = made.take(3)
    assert made.ready_bytes == 2 * each
    made.landed(alone)
    made.first(alone)
    made.later(others[0], due_s=5)
    made.last(others[1])
    assert made.ready_bytes == 4 * each
    assert made.due_s(5) is None
    assert made.ready_bytes == 5 * each
    made.take_head()
    while tickets := made.take(1):
        made.landed(tickets[0])
    assert made.ready_bytes == 0
    assert len(made) == 0
