"""How a run's requests are spread over several servers: by the values alone, and over real sockets."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import pytest
from batch_fakes import job_of, part_lines, run, texts, write_rows

from airflow_llm_provider.batch import watch as watch_module
from airflow_llm_provider.batch.gate import RunHeld
from airflow_llm_provider.batch.runner import soonest
from airflow_llm_provider.core.circuit import Circuit
from airflow_llm_provider.core.commands import Probe, Send, Stop, Wait
from airflow_llm_provider.core.dispatch import Dispatcher
from airflow_llm_provider.core.limit import FixedLimit, Learnt
from airflow_llm_provider.core.objective import Failed, Measured, parse_objectives
from airflow_llm_provider.core.release import Cause, Hold, Terms
from airflow_llm_provider.core.request import Position, RowRequest
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.core.row_queue import RowQueue
from airflow_llm_provider.core.spread import Spread
from airflow_llm_provider.endpoint.settings import LatencySettings, Source
from airflow_llm_provider.exceptions import EndpointDownError, EndpointRefusedError
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import StubVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOST = Failure(FailureKind.UNREACHABLE, "connection refused")


def spread_of(servers: int, *, limit: int, each: int | None = None, rows: int = 100) -> Spread:
    queue = RowQueue()
    dispatchers = [
        Dispatcher(
            limit=limit if each is None else each,
            max_attempts=3,
            wait_s=lambda _: 1.0,
            circuit=Circuit(wait_s=lambda _: 1.0, patience_s=100.0),
            queue=queue,
        )
        for _ in range(servers)
    ]
    spread = Spread(dispatchers, queue, limit=limit)
    where = Position(file="", line=0)
    spread.feed(RowRequest(number, f"row-{number}", "/v1/chat/completions", b"{}", where) for number in range(rows))
    return spread


def sent(spread: Spread, number: int, now: float = 0.0) -> list[Any]:
    command = spread.next(number, now)
    return command.tickets if isinstance(command, Send) else []


def test_each_gets_an_equal_share() -> None:
    spread = spread_of(3, limit=10)
    shares = [len(sent(spread, number)) for number in spread.order()]
    assert shares == [4, 4, 2]
    assert spread.in_flight == 10
    assert [sent(spread, number) for number in spread.order()] == [[], [], []]


def test_never_more_than_its_own_limit() -> None:
    spread = spread_of(2, limit=10, each=3)
    assert [len(sent(spread, number)) for number in (0, 1)] == [3, 3]


@pytest.mark.parametrize(
    ("learnt", "expected"), [([0, 10], [0, 10]), ([1, 10], [1, 9]), ([3, 2, 10], [3, 2, 5]), ([9, 1, 9], [5, 1, 4])]
)
def test_what_a_full_server_has_no_room_for_goes_to_the_others(learnt: list[int], expected: list[int]) -> None:
    spread = spread_of(len(learnt), limit=10)
    for dispatcher, limit in zip(spread.dispatchers, learnt, strict=True):
        dispatcher.learnt = Learnt(FixedLimit(1))
        dispatcher.learnt.limit = limit
    assert [len(sent(spread, number)) for number in range(len(learnt))] == expected


def test_what_a_server_may_not_be_sent_goes_to_the_others() -> None:
    spread = spread_of(2, limit=10)
    spread.dispatchers[0].limit = 2
    assert [len(sent(spread, number)) for number in (0, 1)] == [2, 8]


def test_a_server_that_has_room_again_gets_its_part_back_as_rows_end() -> None:
    spread = spread_of(2, limit=10)
    full, other = spread.dispatchers
    full.learnt = Learnt(FixedLimit(1))
    tickets = sent(spread, 1)
    assert len(tickets) == 10
    full.learnt.limit = 64
    for ticket in tickets[:7]:
        other.answered(ticket, 1.0)
        sent(spread, 1, 1.0)
        sent(spread, 0, 1.0)
    assert (full.in_flight, other.in_flight) == (5, 5)


@pytest.mark.parametrize("how", ["held", "down"])
def test_one_that_takes_nothing_leaves_its_part_to_the_others(how: str) -> None:
    spread = spread_of(2, limit=10)
    idle, working = spread.dispatchers
    if how == "held":
        idle.hold()
    else:
        (first, *_) = sent(spread, 0)
        idle.failed(first, LOST, 0.0)
    before = idle.in_flight
    assert sent(spread, 0) == []
    assert len(sent(spread, 1)) == 10 - before
    assert working.in_flight + before == 10


def test_what_one_gives_back_goes_first_elsewhere() -> None:
    spread = spread_of(2, limit=4)
    tickets = sent(spread, 0)
    spread.dispatchers[0].hold()
    for ticket in tickets:
        spread.dispatchers[0].yielded(ticket, 0.0)
    assert {ticket.request.index for ticket in sent(spread, 1)} == {0, 1, 2, 3}


def test_the_least_loaded_is_asked_first() -> None:
    spread = spread_of(2, limit=8)
    sent(spread, 0)
    assert spread.order() == [1, 0]


def test_the_run_gives_up_only_when_every_server_is_lost() -> None:
    spread = spread_of(2, limit=4)
    for number in (0, 1):
        for ticket in sent(spread, number):
            spread.dispatchers[number].failed(ticket, LOST, float(number))
    assert isinstance(spread.next(0, 100.5), Probe)
    spread.dispatchers[0].probed(LOST, 100.5)
    assert not isinstance(spread.next(0, 100.6), Stop), "the other one has half a second left"
    assert isinstance(spread.next(1, 101.5), Probe)
    assert not isinstance(spread.next(0, 101.5), Stop), "the other one is being asked"
    spread.dispatchers[1].probed(LOST, 101.5)
    command = spread.next(1, 101.6)
    assert isinstance(command, Stop)
    assert isinstance(command.error, EndpointDownError)


def test_a_server_on_hold_is_not_lost() -> None:
    spread = spread_of(2, limit=4)
    spread.dispatchers[1].hold()
    for ticket in sent(spread, 0):
        spread.dispatchers[0].failed(ticket, LOST, 0.0)
    assert not isinstance(spread.next(0, 1000.0), Stop)
    assert isinstance(spread.next(1, 1000.0), Wait)


def test_a_request_wider_than_a_share_goes_while_nothing_else_is_in_flight_anywhere() -> None:
    spread = spread_of(2, limit=10, rows=0)
    where = Position(file="", line=0)
    spread.feed(RowRequest(number, f"row-{number}", "/v1/chat/completions", b"{}", where, 8) for number in range(2))
    (ticket,) = sent(spread, 0)
    assert (sent(spread, 1), sent(spread, 0), spread.in_flight) == ([], [], 8)
    spread.dispatchers[0].answered(ticket, 1.0)
    assert len(sent(spread, 1, 1.0)) == 1


def test_a_lull_is_no_pace() -> None:
    spread = spread_of(2, limit=4)
    assert spread.sending(0.0)
    spread.dispatchers[0].hold()
    assert spread.sending(0.0)
    (first, *_) = sent(spread, 1)
    spread.dispatchers[1].failed(first, LOST, 0.0)
    assert not spread.sending(0.0)
    spread.dispatchers[0].release(limit=4, closes_s=10.0)
    assert not spread.sending(9.0), "nothing fits any more"


def test_several_holds_are_told_of_as_one() -> None:
    night, noon = datetime(2026, 11, 25, 23, tzinfo=UTC), datetime(2026, 11, 25, 7, tzinfo=UTC)
    drained = RunHeld(Hold(cause=Cause.WINDOW, reason="closed", until=night), drained_until=noon, released=True)
    violated = RunHeld(Hold(cause=Cause.OBJECTIVE, reason="violated"))
    told = soonest([drained, violated])
    assert told is violated
    assert (told.drained_until, told.released) == (noon, True)


# -- over sockets


@pytest.fixture
def other() -> Iterator[StubVLLM]:
    with StubVLLM() as server:
        yield server


def job_over(servers: list[str], source: str, **changes: Any) -> Any:
    job = job_of(servers[0], source, **changes)
    return replace(job, endpoint=replace(job.endpoint, base_urls=tuple(servers)))


def test_both_servers_work_and_rows_land_in_order(stub: StubVLLM, other: StubVLLM, tmp_path: Path) -> None:
    stub.behaviour.delay_s = other.behaviour.delay_s = 0.01
    source = write_rows(tmp_path / "rows.jsonl", texts(100))
    manifest = run(job_over([stub.url, other.url], source), RunStore(f"file://{tmp_path}/run"))
    assert manifest["counts"]["succeeded"] == 100
    assert [line["index"] for line in part_lines(tmp_path / "run")] == list(range(100))
    assert stub.received + other.received == 100
    assert min(stub.received, other.received) >= 30
    assert max(stub.peak_in_flight, other.peak_in_flight) <= 2, "half of the run's limit each"


def test_one_that_drains_is_left_out(stub: StubVLLM, other: StubVLLM, tmp_path: Path) -> None:
    stub.behaviour.delay_s = other.behaviour.delay_s = 0.01
    source = write_rows(tmp_path / "rows.jsonl", texts(200))
    draining = threading.Timer(0.3, stub.drain)
    draining.start()
    manifest = run(job_over([stub.url, other.url], source), RunStore(f"file://{tmp_path}/run"))
    draining.join()
    assert manifest["counts"]["succeeded"] == 200
    assert other.peak_in_flight > 2, "the other one takes its part"


def test_one_that_is_away_from_the_beginning_is_left_out(stub: StubVLLM, tmp_path: Path) -> None:
    with StubVLLM() as gone:
        url = gone.url
    source = write_rows(tmp_path / "rows.jsonl", texts(20))
    manifest = run(job_over([url, stub.url], source), RunStore(f"file://{tmp_path}/run"))
    assert manifest["counts"]["succeeded"] == 20


def test_servers_that_serve_different_models_are_refused(stub: StubVLLM, other: StubVLLM, tmp_path: Path) -> None:
    other.swap_model("other-weights")
    source = write_rows(tmp_path / "rows.jsonl", texts(2))
    with pytest.raises(EndpointRefusedError, match="do not serve the same model"):
        run(job_over([stub.url, other.url], source), RunStore(f"file://{tmp_path}/run"))
    assert stub.received == other.received == 0


class FakeSource:
    """Says of each server what it is told to."""

    def __init__(self, reading: Any) -> None:
        self._reading = reading

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)

    async def read(self) -> Any:
        return {OBJECTIVES[0]: self._reading}


OBJECTIVES = parse_objectives("ttft p95 < 2 s")


@pytest.mark.parametrize("reading", [Measured(lower_s=5.0, upper_s=6.0), Failed("no answer")])
def test_one_that_is_unwell_or_unknown_gets_nothing_and_the_other_goes_on(
    stub: StubVLLM, other: StubVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: Any
) -> None:
    well = Measured(lower_s=0.1, upper_s=0.1)

    def source_of(_settings: Any, _own: Any, *, base_url: str) -> FakeSource:
        return FakeSource(reading if base_url == stub.url else well)

    monkeypatch.setattr(watch_module, "latency_source", source_of)
    latency = LatencySettings(objectives=OBJECTIVES, source=Source.CANARY)
    job = job_over([stub.url, other.url], write_rows(tmp_path / "rows.jsonl", texts(50)))
    job = replace(job, terms=Terms(limit=4, gated=True), endpoint=replace(job.endpoint, latency=latency))
    manifest = run(job, RunStore(f"file://{tmp_path}/run"))
    assert manifest["counts"]["succeeded"] == 50
    assert (stub.received, other.received) == (0, 50)
