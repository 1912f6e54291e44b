"""The loop that reads a server's load and has the run obey what its limit makes of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from airflow_llm_provider.batch import control
from airflow_llm_provider.batch.backoff import exponential
from airflow_llm_provider.batch.control import LimitControl
from airflow_llm_provider.core.circuit import Circuit
from airflow_llm_provider.core.control_law import ControlLaw
from airflow_llm_provider.core.dispatch import Dispatcher
from airflow_llm_provider.core.limit import Learnt, Verdict
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.request import Position, RowRequest
from airflow_llm_provider.core.retry import Failure, FailureKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HIDDEN = Failure(FailureKind.ROUTE_NOT_FOUND, "404 Not Found at /metrics")
QUIET = Load(running=0, waiting=0)


class Law:
    """Its verdicts in turn, the last one for ever; it takes note of what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.asked: list[tuple[Load | None, int | None]] = []

    def look(self, _now: float, load: Load, own: int, *, needs: int = 1) -> Verdict:
        self.asked.append((load, own))
        self.needs = needs
        return self._next()

    def unread(self, _now: float, _own: int) -> Verdict:
        self.asked.append((None, None))
        return self._next()

    def rested(self) -> None:
        pass

    def gave_up(self, _now: float, _sequences: int) -> None:
        pass

    def _next(self) -> Verdict:
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]


class World:
    def __init__(self, *verdicts: Verdict, reads: Any = (QUIET,), slots: int | None = None) -> None:
        self.slots = slots
        self.law = Law(*(verdicts or (Verdict(limit=4, look_in_s=0.0),)))
        self.learnt = Learnt(self.law)  # type: ignore[arg-type]
        self.reads = list(reads)
        self.looks = 0
        self.obeyed: list[Verdict] = []
        self.dispatcher = Dispatcher(
            limit=64, max_attempts=3, wait_s=exponential(first_s=1, max_s=2), circuit=circuit(), learnt=self.learnt
        )

    async def read(self) -> Any:
        self.looks += 1
        await asyncio.sleep(0)
        return self.reads.pop(0) if len(self.reads) > 1 else self.reads[0]

    def obey(self, verdict: Verdict) -> None:
        assert self.dispatcher.most == min(64, verdict.limit), "the dispatcher knows before anything is sent"
        self.obeyed.append(verdict)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        control = LimitControl(
            self.learnt,
            self,  # type: ignore[arg-type]
            dispatcher=self.dispatcher,
            runner=self,
            name="http://gpu1",
            slots=self.slots,
        )
        task = asyncio.create_task(control.run())
        try:
            yield
        finally:
            assert not task.done()
            task.cancel()

    async def until_looks(self, amount: int) -> None:
        await until(lambda: self.looks > amount)  # that many have been carried out when the next one is read


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not done():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0)


async def turns(amount: int) -> None:
    for _ in range(amount):
        await asyncio.sleep(0)


def circuit() -> Circuit:
    return Circuit(wait_s=exponential(first_s=1, max_s=2), patience_s=60)


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


async def test_a_look_is_obeyed_and_the_next_one_comes_when_the_law_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    busy = Load(running=6, waiting=1)
    verdicts = Verdict(limit=3, give_up=2, reason="why", look_in_s=0.0), Verdict(limit=0, look_in_s=3600)
    world = World(*verdicts, reads=[QUIET, busy])
    world.dispatcher.in_flight = 5
    async with world.running():
        await until(lambda: len(world.obeyed) == 2)
        await turns(50)
    assert world.obeyed == list(verdicts)
    assert world.law.asked == [(QUIET, 5), (busy, 5)]
    assert (world.learnt.load, world.learnt.others, world.dispatcher.most) == (busy, 2, 0)
    assert lines(caplog, logging.INFO) == ["At most 3 in flight on http://gpu1: why"]  # and no more often


async def test_nothing_is_sent_before_the_first_look() -> None:
    assert World().dispatcher.most == 0


async def test_on_hold_nothing_is_read_and_what_was_learned_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "UNUSED_LOOK_S", 0.0)
    world = World()
    async with world.running():
        await world.until_looks(2)
        assert world.dispatcher.most == 4
        world.dispatcher.in_flight = 1
        world.dispatcher.hold()
        await world.until_looks(world.looks + 2)  # what is in flight is still looked after
        world.dispatcher.in_flight = 0
        await turns(5)
        looks = world.looks
        await turns(50)
        assert world.looks == looks
        world.dispatcher.release(limit=64, closes_s=None)
        assert world.dispatcher.most == 0, "what is free now is not known yet"
        await world.until_looks(looks + 1)
        assert world.dispatcher.most == 4


@pytest.mark.parametrize(
    ("answer", "why"), [(HIDDEN, "404 Not Found at /metrics"), (None, "its /metrics has no vllm:num_requests_running")]
)
async def test_a_load_that_cannot_be_read_is_told_once_and_the_law_falls_back(
    answer: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(reads=[answer])
    async with world.running():
        await world.until_looks(10)
    assert set(world.law.asked) == {(None, None)}
    (warning,) = lines(caplog, logging.WARNING)
    assert warning.startswith(
        f"The load of http://gpu1 can't be read, so at most 4 are in flight there for now: {why}."
    )
    assert "let /metrics through" in warning
    assert len(world.obeyed) >= 10


async def test_one_that_is_lost_for_a_moment_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World(reads=[HIDDEN, HIDDEN, QUIET] * 5 + [QUIET])
    async with world.running():
        await world.until_looks(17)
    assert lines(caplog, logging.WARNING) == []
    assert not [line for line in lines(caplog, logging.INFO) if "read again" in line]


async def test_that_it_is_back_is_told_and_the_next_loss_anew(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World(reads=[*[HIDDEN] * 5, QUIET, *[HIDDEN] * 5, QUIET])
    async with world.running():
        await world.until_looks(14)
    assert len(lines(caplog, logging.WARNING)) == 2
    assert lines(caplog, logging.INFO).count("The load of http://gpu1 is read again") == 2


async def test_of_a_server_that_is_down_that_much_is_known(caplog: pytest.LogCaptureFixture) -> None:
    world = World(reads=[HIDDEN])
    world.dispatcher.circuit.lost(Failure(FailureKind.UNREACHABLE, "refused"), 0.0)
    async with world.running():
        await world.until_looks(10)
    assert lines(caplog, logging.WARNING) == []


async def test_slots_that_are_fewer_than_the_server_runs_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """As where a server has several data-parallel engines, and the connection says the slots of one."""
    world = World(
        Verdict(limit=0, look_in_s=0.0), reads=[Load(running=8, waiting=3), Load(running=13, waiting=0)], slots=8
    )
    async with world.running():
        await world.until_looks(10)
    (warning,) = lines(caplog, logging.WARNING)
    assert warning.startswith("http://gpu1 runs 13 sequences at once, and its connection says slots = 8")
    assert "--max-num-seqs, times --data-parallel-size" in warning


async def test_the_law_is_told_how_many_sequences_the_next_row_asks_for() -> None:
    world = World()
    async with world.running():
        await world.until_looks(2)
        assert world.law.needs == 1
        position = Position(file="", line=0)
        world.dispatcher.feed([RowRequest(0, "row-0", "/v1/completions", b"{}", position, sequences=5)])
        await world.until_looks(world.looks + 2)
        assert world.law.needs == 5


TOO_MANY = Load(running=8, waiting=3)


async def test_slots_that_are_more_than_the_server_runs_are_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "QUEUES_S", 0.02)
    world = World(Verdict(limit=0, look_in_s=0.01), reads=[TOO_MANY], slots=64)
    async with world.running():
        await world.until_looks(10)
    (warning,) = lines(caplog, logging.WARNING)
    assert "3 now, while 8 run, and its connection says slots = 64" in warning


@pytest.mark.parametrize(
    "between",
    [
        Load(running=8, waiting=0),
        Load(running=64, waiting=3),
        Load(running=8, waiting=3, kv_usage=control.SHORT_OF_MEMORY),
    ],
)
async def test_requests_that_wait_for_a_moment_or_for_memory_say_nothing_of_slots(
    between: Load, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "QUEUES_S", 0.02)
    reads = [TOO_MANY, between] * 5 + [between]
    world = World(Verdict(limit=0, look_in_s=0.01), reads=reads, slots=64)
    async with world.running():
        await world.until_looks(12)
    assert lines(caplog, logging.WARNING) == []


@pytest.mark.parametrize("slots", [None, 13])
async def test_slots_that_are_enough_are_not_told_of(slots: int | None, caplog: pytest.LogCaptureFixture) -> None:
    world = World(reads=[Load(running=13, waiting=50)], slots=slots)
    async with world.running():
        await world.until_looks(10)
    assert lines(caplog, logging.WARNING) == []


async def test_without_a_load_the_real_law_leaves_free_what_was_agreed_on() -> None:
    law = ControlLaw(kind="headroom", slots=64, floor=0, blind=16)
    learnt = law.learnt(65, Random(1))
    assert learnt is not None
    world = World(reads=[None])
    world.learnt = world.dispatcher.learnt = learnt
    async with world.running():
        await until(lambda: bool(world.obeyed))
        assert world.dispatcher.most == 48
