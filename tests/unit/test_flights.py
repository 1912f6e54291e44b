"""Requests in flight: each ticket is reported once, however its request ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_llm_provider.batch.flights import Flights, Yielded
from airflow_llm_provider.batch.slicer import BegunAnew, SliceEnded
from airflow_llm_provider.core.request import Completion, Position, RowRequest, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.core.row_queue import Ticket
from airflow_llm_provider.core.yielding import OFTEN

GONE = Failure(FailureKind.UNREACHABLE, "refused", refused=True)
ANSWER = Completion("x", "stop", Usage(), ttft_s=0.5, generation_s=1.5)


class Client:
    """Answers when told to."""

    def __init__(self) -> None:
        self.answers: dict[int, asyncio.Future[Any]] = {}

    async def send(self, _ticket: Ticket, request_id: str) -> Any:
        answer = self.answers[int(request_id.split("-")[1])] = asyncio.get_running_loop().create_future()
        return await answer


class Own:
    def __init__(self) -> None:
        self.notes: list[Any] = []

    def started(self, _key: Any, _now: float, *, sequences: int) -> None:
        self.notes.append(("started", sequences))

    def ended(self, _key: Any, _now: float, *, ttft_s: float, generation_s: float) -> None:
        self.notes.append(("ended", ttft_s, generation_s))

    def abandoned(self, _key: Any, _now: float) -> None:
        self.notes.append(("abandoned",))


class World:
    def __init__(self) -> None:
        self.client, self.own = Client(), Own()
        self.landed: list[tuple[int, Any]] = []
        self.broken: list[BaseException] = []
        self.flights = Flights(
            self.client,  # type: ignore[arg-type]
            "run",
            landed=lambda ticket, ending: self.landed.append((ticket.request.index, ending)),
            broken=self.broken.append,
            own=self.own,  # type: ignore[arg-type]
        )

    def start(self, *indices: int) -> None:
        where = Position(file="", line=0)
        requests = [RowRequest(index, f"row-{index}", "/v1/x", b"{}", where, index + 1) for index in indices]
        self.flights.start(Ticket(request, sends=1) for request in requests)

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> World:
    return World()


async def test_reports_what_comes(world: World) -> None:
    world.start(0, 1)
    await world.turn()
    world.client.answers[0].set_result(ANSWER)
    world.client.answers[1].set_result(GONE)
    await world.turn()
    assert world.landed == [(0, ANSWER), (1, GONE)]
    assert world.own.notes == [("started", 1), ("started", 2), ("ended", 0.5, 1.5), ("abandoned",)]


async def test_of_a_row_that_begins_anew_the_slice_that_was_answered_is_noted(world: World) -> None:
    world.start(0, 1)
    await world.turn()
    world.client.answers[0].set_result(BegunAnew(SliceEnded(0.5, 1.5)))
    world.client.answers[1].set_result(BegunAnew())
    await world.turn()
    assert world.landed == [(0, BegunAnew(SliceEnded(0.5, 1.5))), (1, BegunAnew())]
    assert world.own.notes[2:] == [("ended", 0.5, 1.5), ("abandoned",)]


@pytest.mark.parametrize("ending", [Yielded(), GONE])
@pytest.mark.parametrize("turns", [0, 1])
async def test_what_is_given_up_is_reported_even_before_it_was_really_sent(
    world: World, ending: Any, turns: int
) -> None:
    world.start(0, 1)
    for _ in range(turns):
        await world.turn()
    world.flights.give_up(ending)
    world.flights.give_up(Yielded())  # the first word stands
    await world.turn()
    assert sorted(world.landed, key=lambda each: each[0]) == [(0, ending), (1, ending)]
    assert world.own.notes.count(("abandoned",)) == 2


async def test_an_answer_that_comes_all_the_same_is_kept(world: World) -> None:
    world.start(0)
    await world.turn()
    task = next(iter(world.flights._tickets))
    world.client.answers[0].set_result(ANSWER)
    await asyncio.sleep(0)  # the answer is there, and the task has ended
    assert task.done()
    world.flights.give_up(Yielded())
    await world.turn()
    assert world.landed == [(0, ANSWER)]


async def test_closed_it_reports_nothing(world: World) -> None:
    world.start(0, 1)
    await world.turn()
    await world.flights.close()
    await world.turn()
    assert world.landed == []
    assert world.broken == []


async def test_a_bug_ends_the_run_instead_of_leaving_it_waiting(world: World) -> None:
    world.start(0)
    await world.turn()
    world.client.answers[0].set_exception(ZeroDivisionError())
    await world.turn()
    assert [type(error) for error in world.broken] == [ZeroDivisionError]

    def fail(*_: Any) -> None:
        raise ValueError("settled twice")

    world.flights._landed = fail
    world.start(1)
    await world.turn()
    world.client.answers[1].set_result(ANSWER)
    await world.turn()
    assert [type(error) for error in world.broken] == [ZeroDivisionError, ValueError]


# ── giving some up ───────────────────────────────────────────────────────────────────────────────────────────────────


def fly(world: World, *ages_s: float, sequences: int = 1, fruitless: int = 0, first: int = 0) -> None:
    """Sends one request for each age."""
    now, where = asyncio.get_running_loop().time(), Position(file="", line=0)
    for index, age_s in enumerate(ages_s, start=first):
        request = RowRequest(index, f"row-{index}", "/v1/x", b"{}", where, sequences)
        world.flights.start([Ticket(request, sends=1, sent_s=now - age_s, fruitless=fruitless)])


async def given_up(world: World, sequences: int) -> list[int]:
    await world.turn()
    world.flights.give_up_some(sequences)
    await world.turn()
    assert all(ending == Yielded() for _, ending in world.landed)
    return sorted(index for index, _ in world.landed)


@pytest.mark.parametrize(("sequences", "gone"), [(0, []), (1, [3]), (2, [1, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
async def test_the_youngest_are_given_up_first(world: World, sequences: int, gone: list[int]) -> None:
    fly(world, 40, 20, 30, 10)
    assert await given_up(world, sequences) == gone
    assert world.own.notes.count(("abandoned",)) == len(gone)


async def test_a_request_for_several_answers_counts_as_several(world: World) -> None:
    fly(world, 30, 20, 10, sequences=3)
    assert await given_up(world, 4) == [1, 2]


async def test_a_row_given_up_too_often_is_finished_and_another_one_goes_instead(world: World) -> None:
    fly(world, 10, fruitless=OFTEN)
    fly(world, 20, fruitless=OFTEN - 1, first=1)
    fly(world, 30, first=2)
    assert await given_up(world, 1) == [1]
    assert await given_up(world, 2) == [1, 2]
    assert await given_up(world, 5) == [1, 2]


async def test_what_is_given_up_already_is_not_counted_again(world: World) -> None:
    fly(world, 30, 20, 10)
    await world.turn()
    world.flights.give_up_some(1)
    world.flights.give_up_some(1)  # before the first one is reported
    await world.turn()
    assert [index for index, _ in world.landed] == [2, 1]


async def test_one_that_landed_meanwhile_is_left_alone(world: World) -> None:
    fly(world, 20, 10)
    await world.turn()
    world.client.answers[1].set_result(ANSWER)
    await world.turn()
    world.flights.give_up_some(1)
    await world.turn()
    assert world.landed == [(1, ANSWER), (0, Yielded())]
