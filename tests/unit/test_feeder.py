"""How far ahead of need rows are read, and that reading always goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from dispatch_model import dispatcher

from airflow_llm_provider.batch import feeder
from airflow_llm_provider.batch.feeder import BLOCK_ROWS, Feeder
from airflow_llm_provider.batch.prepare import Preparer
from airflow_llm_provider.batch.recorder import Recorder
from airflow_llm_provider.core.commands import Send
from airflow_llm_provider.core.ledger import Ledger
from airflow_llm_provider.core.prompt import RequestSpec, RequestTemplate
from airflow_llm_provider.core.request import Completion, Landing, Status, Usage
from airflow_llm_provider.exceptions import SourceError
from airflow_llm_provider.storage.journal import Journal
from airflow_llm_provider.storage.parts import Parts
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from airflow_llm_provider.core.row_queue import Ticket

FINGERPRINT = "0123456789ab"


class Rig:
    """A feeder with everything around it but a server: `answer` is the server."""

    def __init__(self, folder: Path, *, rows: list[dict[str, Any]], chunk_rows: int, limit: int) -> None:
        store = RunStore(str(folder))
        source = ListSource(rows)
        scan = source.scan(chunk_rows)
        self.ledger = Ledger(scan.plan, {})
        self.dispatcher = dispatcher(limit=limit)
        journal = Journal(store, FINGERPRINT, "try", ())
        parts = Parts(store, FINGERPRINT, "try")
        self.recorder = Recorder(self.ledger, journal, parts, flush_rows=10, flush_interval_s=0.01)
        self.most_queued = self.most_open_rows = self.most_ready_bytes = 0
        self.news = asyncio.Event()
        self.feeder = Feeder(
            source=source,
            snapshot=scan.snapshot,
            preparer=Preparer(RequestTemplate(RequestSpec(prompt="{{ row.text }}"), model="m")),
            ledger=self.ledger,
            journal=journal,
            recorder=self.recorder,
            dispatcher=self.dispatcher,
            fed=self._fed,
        )

    def _fed(self) -> None:
        self.most_queued = max(self.most_queued, self.dispatcher.queued)
        self.most_ready_bytes = max(self.most_ready_bytes, self.dispatcher.ready_bytes)
        self.most_open_rows = max(self.most_open_rows, self.ledger.open_rows)
        self.news.set()

    def take(self) -> list[Ticket]:
        command = self.dispatcher.next(0)
        return command.tickets if isinstance(command, Send) else []

    def answer(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            self.dispatcher.answered(ticket, 0)
            self.recorder.landed(ticket.request, Landing(Status.SUCCEEDED, Completion("x", "stop", Usage())), 1)
        self.feeder.wake_if_low()

    async def until_stuck(self) -> None:
        """Until the feeder has nothing more to do for now."""
        while True:
            self.news.clear()
            try:
                await asyncio.wait_for(self.news.wait(), 0.3)
            except TimeoutError:
                return


@pytest.fixture
async def running() -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def texts(amount: int) -> list[dict[str, Any]]:
    return [{"text": f"t{number}"} for number in range(amount)]


async def test_the_queue_is_filled_just_ahead_of_need(tmp_path: Path, running: list[Any]) -> None:
    rig = Rig(tmp_path, rows=texts(2000), chunk_rows=1000, limit=4)
    running.append(asyncio.create_task(rig.feeder.run()))
    await rig.until_stuck()
    assert BLOCK_ROWS <= rig.most_queued < 2 * BLOCK_ROWS
    assert not rig.feeder.exhausted


@pytest.mark.parametrize(
    ("total", "chunk_rows", "limit"),
    [(20, 1, 1), (50, 3, 2), (400, 50, 4), (400, 130, 8), (400, 1000, 1000)],
)
async def test_everything_is_fed_in_order_while_answers_come(
    tmp_path: Path, running: list[Any], *, total: int, chunk_rows: int, limit: int
) -> None:
    rig = Rig(tmp_path, rows=texts(total), chunk_rows=chunk_rows, limit=limit)
    running += [asyncio.create_task(rig.feeder.run()), asyncio.create_task(rig.recorder.run())]
    order: list[int] = []
    async with asyncio.timeout(60):
        while len(order) < total:
            if tickets := rig.take():
                order += [ticket.request.index for ticket in tickets]
                rig.answer(tickets)
            else:
                await asyncio.sleep(0)
        await running[0]
    assert order == list(range(total))
    assert rig.feeder.exhausted
    assert rig.most_open_rows <= 4 * chunk_rows + 4 * limit


async def test_a_row_that_never_comes_back_does_not_let_memory_grow(tmp_path: Path, running: list[Any]) -> None:
    rig = Rig(tmp_path, rows=texts(1000), chunk_rows=10, limit=2)
    running += [asyncio.create_task(rig.feeder.run()), asyncio.create_task(rig.recorder.run())]
    await rig.until_stuck()
    stuck, *rest = rig.take()
    rig.answer(rest)
    for _ in range(3000):
        rig.answer(rig.take())
        await asyncio.sleep(0)
    await rig.until_stuck()
    rig.answer(rig.take())
    assert rig.most_open_rows <= 4 * 10 + 4 * 2
    rig.answer([stuck])
    async with asyncio.timeout(60):
        while not rig.feeder.exhausted:
            rig.answer(rig.take())
            await asyncio.sleep(0)
    assert rig.ledger.totals.done == 1000 - rig.dispatcher.queued - rig.dispatcher.in_flight


async def test_large_rows_are_read_ahead_by_bytes(
    tmp_path: Path, running: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(feeder, "AHEAD_BYTES", 50_000)
    rows = [*texts(300), *({"text": "x" * 5_000} for _ in range(300)), *texts(300)]
    rig = Rig(tmp_path, rows=rows, chunk_rows=100, limit=8)
    running += [asyncio.create_task(rig.feeder.run()), asyncio.create_task(rig.recorder.run())]
    order: list[int] = []
    async with asyncio.timeout(60):
        while len(order) < len(rows):
            if tickets := rig.take():
                order += [ticket.request.index for ticket in tickets]
                rig.answer(tickets)
            else:
                await asyncio.sleep(0)
            if len(order) == 320:
                await rig.until_stuck()  # by bytes, with ten rows where by their number there would be 128
                assert rig.dispatcher.queued < 20
    assert order == list(range(len(rows)))
    assert 50_000 <= rig.most_ready_bytes < 50_000 + 20_000 + 6_000
    assert rig.dispatcher.ready_bytes == 0


async def test_large_answers_keep_chunks_from_being_opened(
    tmp_path: Path, running: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "OPEN_BYTES", 1_000)  # half a dozen of the rig's answers
    rig = Rig(tmp_path, rows=texts(1000), chunk_rows=50, limit=2)
    running += [asyncio.create_task(rig.feeder.run()), asyncio.create_task(rig.recorder.run())]
    await rig.until_stuck()
    stuck, *rest = rig.take()
    rig.answer(rest)
    for _ in range(3000):
        rig.answer(rig.take())
        await asyncio.sleep(0)
    await rig.until_stuck()
    rig.answer(rig.take())
    assert rig.ledger.totals.done == 149  # of the chunks that were open before there were too many bytes
    rig.answer([stuck])
    async with asyncio.timeout(60):
        while not rig.feeder.exhausted or rig.ledger.open:
            rig.answer(rig.take())
            await asyncio.sleep(0)
    assert rig.ledger.open_bytes == 0


async def test_bad_rows_settle_without_being_sent(tmp_path: Path, running: list[Any]) -> None:
    rig = Rig(tmp_path, rows=[{"no": "text"}] * 300, chunk_rows=7, limit=2)
    recording = asyncio.create_task(rig.recorder.run())
    running += [asyncio.create_task(rig.feeder.run()), recording]
    await asyncio.wait_for(running[0], 60)
    assert rig.dispatcher.queued == 0
    rig.recorder.close()
    await asyncio.wait_for(recording, 60)
    assert rig.ledger.finished
    assert rig.ledger.totals.errored == 300


async def test_a_source_that_fails_ends_the_feeder(tmp_path: Path, running: list[Any]) -> None:
    rig = Rig(tmp_path, rows=texts(10), chunk_rows=5, limit=2)

    def rows(*_: Any) -> Any:
        raise SourceError("gone")
        yield

    rig.feeder._source.rows = rows  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="gone"):
        await asyncio.wait_for(rig.feeder.run(), 30)
    assert not rig.feeder.exhausted
