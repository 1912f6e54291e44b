"""A shift: after so long the worker is given back, and nothing of what was begun is lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import Try, job_of, part_lines, texts, write_rows
from dispatch_model import dispatcher, request
from test_runner import runner_of

from airflow_llm_provider.batch import attempts, gate
from airflow_llm_provider.batch.gate import RunHeld
from airflow_llm_provider.core.commands import Send, Wait
from airflow_llm_provider.core.release import Cause, Hold
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.core.row_queue import RowQueue, Spent
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, FaultKind

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_llm_provider.testing import StubVLLM

ROWS = 40
MOST = 60


@pytest.fixture(autouse=True)
def keen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate looks often, so that shifts may be short."""
    monkeypatch.setattr(gate, "CONTROL_PERIOD_S", 0.02)


def work_in_shifts(stub: StubVLLM, tmp_path: Path, *, shift_s: float, **changes: Any) -> list[list[int]]:
    """The rows that each shift asked for, until the run is done."""
    source = write_rows(tmp_path / "rows.jsonl", texts(ROWS))
    shifts = []
    for _ in range(MOST):
        job = job_of(stub, source, shift=timedelta(seconds=shift_s), **changes)
        one = Try(job, RunStore(str(tmp_path / "run")))
        ended = outcome_of(one)
        shifts.append(one.requested(stub))
        if not isinstance(ended, RunHeld):
            assert ended["counts"] == {
                "total": ROWS,
                "succeeded": ROWS,
                "truncated": 0,
                "invalid_output": 0,
                "errored": 0,
            }
            return shifts
        assert (ended.hold.cause, ended.hold.yields) == (Cause.SHIFT, False)
    raise AssertionError("it never ends")


def outcome_of(one: Try) -> dict[str, Any] | RunHeld:
    try:
        return one()
    except RunHeld as held:
        return held


@pytest.mark.parametrize(
    ("delay_s", "shift_s"),
    [(0.1, 0.4), (0.3, 0.01)],
    ids=["several rows a shift", "rows that outlast a shift"],
)
def test_what_is_begun_ends_and_nothing_is_asked_twice(
    stub: StubVLLM, tmp_path: Path, *, delay_s: float, shift_s: float
) -> None:
    stub.behaviour.delay_s = delay_s
    shifts = work_in_shifts(stub, tmp_path, shift_s=shift_s, max_in_flight=4)
    assert len(shifts) > 1
    assert all(shifts[:-1]), "a shift that settles nothing would go on for ever"
    assert sorted(index for shift in shifts for index in shift) == list(range(ROWS))
    assert [line["index"] for line in part_lines(tmp_path / "run")] == list(range(ROWS))
    assert stub.received == ROWS


def test_rows_in_slices_go_on_to_their_end() -> None:
    made = dispatcher(limit=2)
    made.feed(request(index) for index in range(4))
    first = made.next(0)
    assert isinstance(first, Send)
    made.drain()
    assert made.next(0) == Wait(None)
    made.sliced(first.tickets[0], 1)
    again = made.next(1)
    assert isinstance(again, Send)
    assert again.tickets == [first.tickets[0]]
    made.answered(first.tickets[1], 2)
    assert made.next(2) == Wait(None), "another one would be begun"
    made.release(limit=2, closes_s=None)
    assert isinstance(made.next(3), Send)


def test_slices_do_not_go_on_beyond_the_window() -> None:
    made = dispatcher(limit=2)
    made.feed([request(0)])
    made.release(limit=2, closes_s=10_000.0)
    first = made.next(0)
    assert isinstance(first, Send)
    made.drain()
    made.sliced(first.tickets[0], 10_001)
    assert made.next(10_001) == Wait(None)


async def test_no_server_is_left_while_rows_are_in_flight_at_another() -> None:
    """A row in slices may go on at the one that has nothing in flight just now."""
    made = dispatcher(limit=2)
    made.feed([request(0)])
    runner = runner_of(made)
    sent = made.next(0)
    assert isinstance(sent, Send)
    over = RunHeld(Hold(cause=Cause.SHIFT, reason="the shift was over", yields=False))
    runner.leave(0, over)
    assert not runner._ended.done()
    made.answered(sent.tickets[0], 1)
    runner.leave(0, over)
    assert runner._ended.exception() is over


def test_a_row_that_fails_in_each_shift_ends(stub: StubVLLM, tmp_path: Path) -> None:
    """What it has spent is kept from shift to shift, or the run would never end."""

    def slow(body: dict[str, Any], _nth: int) -> Fault | None:
        return Fault(kind=FaultKind.HANG) if "text 3" in body["messages"][0]["content"] else None

    stub.behaviour.fault = slow
    source = write_rows(tmp_path / "rows.jsonl", texts(6))
    endpoint = EndpointSettings(base_urls=(stub.url,), connect_timeout_s=5, request_timeout_s=0.3)
    ended: list[Any] = []
    for number in range(20):
        job = job_of(stub, source, shift=timedelta(seconds=0.05), endpoint=endpoint, max_attempts=3)
        ended.append(outcome_of(Try(job, RunStore(str(tmp_path / "run")))))
        if not isinstance(ended[-1], RunHeld):
            break
        kept = attempts.read(job, RunStore(str(tmp_path / "run")))
        assert {index: each.spent for index, each in kept.items()} == {3: number + 1}
        assert not attempts.read(replace(job, try_number=2), RunStore(str(tmp_path / "run")))
        assert not attempts.read(replace(job, epoch=1), RunStore(str(tmp_path / "run")))
    assert len(ended) == 3
    assert ended[-1]["counts"] == {"total": 6, "succeeded": 5, "truncated": 0, "invalid_output": 0, "errored": 1}
    (errored,) = (line for line in part_lines(tmp_path / "run") if line["status"] == "errored")
    assert (errored["index"], errored["attempts"], errored["error"]["kind"]) == (3, 3, "timeout")
    assert not (tmp_path / "run" / layout.ATTEMPTS).exists()


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"epoch": 0, "try_number": 1, "rows": [{"index": 1}]}'])
def test_attempts_that_cannot_be_understood_are_counted_anew(stub: StubVLLM, tmp_path: Path, data: bytes) -> None:
    store = RunStore(str(tmp_path))
    job = job_of(stub, [])
    attempts.keep(job, store, {1: Spent(attempts=2, spent=1)}, before={})
    assert attempts.read(job, store) == {1: Spent(attempts=2, spent=1)}
    store.write(layout.ATTEMPTS, data)
    assert attempts.read(job, store) == {}


def test_what_rows_have_spent_goes_with_them() -> None:
    queue = RowQueue({1: Spent(attempts=2, spent=2), 2: Spent(attempts=4, suspicions=2), 9: Spent(attempts=1, spent=1)})
    queue.feed(request(index) for index in range(4))
    assert queue.spent() == {
        1: Spent(attempts=2, spent=2),
        2: Spent(attempts=4, suspicions=2),
        9: Spent(attempts=1, spent=1),
    }
    tickets = queue.take(4)
    assert [ticket.request.index for ticket in tickets] == [2, 0, 1, 3], "who may have killed the server goes alone"
    assert [ticket.attempts for ticket in tickets] == [4, 0, 2, 0]
    assert queue.spent() == {9: Spent(attempts=1, spent=1)}
    queue.later(tickets[2], due_s=5)
    assert queue.spent().keys() == {1, 9}


async def test_a_server_that_is_away_keeps_no_shift_from_ending() -> None:
    """The other one begins nothing more, and would stand idle until the patience with this one is over."""
    here, away = dispatcher(limit=2), dispatcher(limit=2)
    runner = runner_of(here, away)
    away.circuit.failed(Failure(FailureKind.UNREACHABLE, "away"), 0)
    over = RunHeld(Hold(cause=Cause.SHIFT, reason="the shift was over", yields=False))
    runner.leave(0, over)
    assert runner._ended.exception() is over
