"""Requests in flight: each ticket is reported once, however its request ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_llm_provider.batch.flights import Flights, Yielded
from airflow_llm_provider.core.request import Completion, Position, RowRequest, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.core.row_queue import Ticket

GONE = Failure(FailureKind.UNREACHABLE, "refused", refused=True)
ANSWER = Completion("x", "stop", Usage(), ttft_s=0.5, generation_s=1.5)


class Client:
    """Answers when told to."""

    def __init__(self) -> None:
        self.answers: dict[int, asyncio.Future[Any]] = {}

    async def send(self, _path: str, _body: bytes, *, request_id: str) -> Any:
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
