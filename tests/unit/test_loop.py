"""What a signal handler raises in the main thread, as Airflow's execution time-out does, ends a try in order."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import job_of, kept_indices, run, texts, write_rows

from airflow_llm_provider.batch.loop import run_apart
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import StubVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class TimeUpError(BaseException):
    """As Airflow's: nothing that catches `Exception` catches it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def raise_it(_signal: int, _frame: Any) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seconds", [0.5, 0.61, 0.72])
def test_a_time_out_loses_nothing_that_was_answered(tmp_path: Path, seconds: float) -> None:
    """No flush is due before the end, so only an orderly end journals anything."""
    with StubVLLM(delay_s=0.05) as stub:
        source = write_rows(tmp_path / "rows.jsonl", texts(2000))
        job = job_of(stub, source, chunk_rows=2000, flush_rows=10**6, flush_interval_s=1000.0)
        with pytest.raises(TimeUpError), time_limit(seconds):
            run(job, RunStore(f"file://{tmp_path}/run"))
        kept = kept_indices(tmp_path / "run")
        assert kept
        assert stub.received - len(kept) <= job.terms.limit


def test_hands_out_what_the_work_returns_or_raises() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def fail() -> None:
        raise ValueError("mine")

    stop = StopSwitch()
    assert run_apart(answer(), stop) == 42
    with pytest.raises(ValueError, match="mine"):
        run_apart(fail(), stop)
    assert stop.reason is None
