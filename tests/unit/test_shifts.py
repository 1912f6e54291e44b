"""A shift: after so long the worker is given back, and nothing of what was begun is lost."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import Try, job_of, part_lines, texts, write_rows
from dispatch_model import dispatcher, request
from test_runner import runner_of

from airflow_llm_provider.batch import gate
from airflow_llm_provider.batch.gate import RunHeld
from airflow_llm_provider.core.commands import Send, Wait
from airflow_llm_provider.core.release import Cause, Hold
from airflow_llm_provider.storage.store import RunStore

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
            assert ended["counts"] == {"total": ROWS, "succeeded": ROWS, "errored": 0}
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
