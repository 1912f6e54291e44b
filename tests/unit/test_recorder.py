from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import HookedStore

from airflow_llm_provider.batch.recorder import Recorder
from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.core.ledger import Ledger
from airflow_llm_provider.core.request import BadRow, Completion, Landing, Position, RowError, RowRequest, Status, Usage
from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage.journal import Journal
from airflow_llm_provider.storage.parts import Parts
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FINGERPRINT = "0123456789ab"
NEVER_S = 3600.0


def request(index: int) -> RowRequest:
    return RowRequest(index, f"doc-{index}", "/v1/chat/completions", b"{}", Position(file="f", line=index + 1))


def answer(index: int) -> Landing:
    return Landing(Status.SUCCEEDED, Completion(f"answer {index}", "stop", Usage(1, 2, 0)))


class SlowStore(HookedStore):
    """Each write waits for leave, so that a test decides what happens meanwhile."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.writing = threading.Event()
        self.leave = threading.Event()

    def before(self, name: str) -> None:
        self.writing.set()
        assert self.leave.wait(30)


def recorder_of(store: RunStore, *, rows: int, chunk_rows: int, **flush: Any) -> tuple[Recorder, Ledger]:
    plan = ChunkPlan(chunk_rows, rows, tuple((0, first, first) for first in range(0, rows, chunk_rows)))
    ledger = Ledger(plan, {})
    for chunk in list(ledger.pending_chunks()):
        ledger.open_chunk(chunk, {})
    parts = Parts(store, FINGERPRINT, "try")
    flush = {"flush_rows": 100, "flush_interval_s": NEVER_S, **flush}
    return Recorder(ledger, Journal(store, FINGERPRINT, "try", ()), parts, **flush), ledger


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a thread
            await asyncio.sleep(0.001)


async def test_what_settles_while_a_flush_is_in_the_thread_is_flushed_at_the_close(tmp_path: Path) -> None:
    store = SlowStore(str(tmp_path))
    recorder, ledger = recorder_of(store, rows=4, chunk_rows=2)
    running = asyncio.create_task(recorder.run())
    for index in (0, 1):
        recorder.landed(request(index), answer(index), 1)
    await until(store.writing.is_set)
    recorder.landed(request(2), answer(2), 1)  # one chunk is being committed in the thread
    recorder.landed(request(3), answer(3), 1)
    recorder.close()
    store.leave.set()
    await asyncio.wait_for(running, 30)
    assert ledger.finished
    assert ledger.unjournalled_rows == 0


async def test_a_row_that_settles_while_its_chunk_is_being_journalled_is_journalled_next(tmp_path: Path) -> None:
    store = SlowStore(str(tmp_path))
    recorder, ledger = recorder_of(store, rows=4, chunk_rows=4, flush_rows=1)
    running = asyncio.create_task(recorder.run())
    recorder.landed(request(1), answer(1), 1)
    await until(store.writing.is_set)
    recorder.landed(request(0), answer(0), 1)
    store.leave.set()
    recorder.close()
    await asyncio.wait_for(running, 30)
    assert ledger.unjournalled_rows == 0
    names = await asyncio.to_thread(store.list, "_run/journal")
    assert sorted(await asyncio.to_thread(Journal(store, FINGERPRINT, "next", names).load, 0)) == [0, 1]


@pytest.mark.parametrize(
    ("flush", "settled"),
    [({"flush_rows": 3}, 3), ({"flush_interval_s": 0.01}, 1)],
    ids=["by rows", "by time"],
)
async def test_a_flush_is_due(tmp_path: Path, flush: dict[str, Any], settled: int) -> None:
    recorder, ledger = recorder_of(RunStore(str(tmp_path)), rows=10, chunk_rows=10, **flush)
    running = asyncio.create_task(recorder.run())
    for index in range(settled):
        recorder.landed(request(index), answer(index), 1)
    await until(lambda: ledger.unjournalled_rows == 0)
    assert ledger.open[0].settled.keys() == set(range(settled))
    recorder.close()
    await asyncio.wait_for(running, 30)


async def test_a_complete_chunk_is_committed_at_once_and_its_journal_dropped(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    recorder, ledger = recorder_of(store, rows=3, chunk_rows=2, flush_rows=1)
    running = asyncio.create_task(recorder.run())
    recorder.landed(request(0), answer(0), 1)
    await until(lambda: ledger.unjournalled_rows == 0)
    bad = BadRow(1, "doc-1", Position(file="f", line=2), "f, line 2: the line is no JSON", "{no")
    recorder.errored(bad, RowError("malformed_row", bad.message), 0)
    async with asyncio.timeout(30):
        await recorder.committed.wait()
    recorder.close()
    await asyncio.wait_for(running, 30)
    listing = await asyncio.to_thread(store.list, "")
    assert f"part-00000-{FINGERPRINT}.jsonl" in listing
    assert [name for name in listing if name.startswith(f"_run/dead/00000-{FINGERPRINT}-")]
    assert not [name for name in listing if name.startswith("_run/journal")]
    assert (ledger.totals.succeeded, ledger.totals.errored) == (1, 1)


async def test_a_storage_failure_ends_the_recorder(tmp_path: Path) -> None:
    class Full(RunStore):
        def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
            raise StorageError("full")

    recorder, ledger = recorder_of(Full(str(tmp_path)), rows=2, chunk_rows=2)
    running = asyncio.create_task(recorder.run())
    recorder.landed(request(0), answer(0), 1)
    recorder.close()
    with pytest.raises(StorageError, match="full"):
        await asyncio.wait_for(running, 30)
    assert ledger.unjournalled_rows == 1


async def test_closed_with_nothing_settled_writes_nothing(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    recorder, _ = recorder_of(store, rows=2, chunk_rows=2)
    running = asyncio.create_task(recorder.run())
    recorder.close()
    await asyncio.wait_for(running, 30)
    assert await asyncio.to_thread(store.list, "") == {}
