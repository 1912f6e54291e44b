"""Workers that come and go: a run in shifts, and a run that is kept in Airflow itself, on a real scheduler."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from test_kills import indices_on_disk, wait_for

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 100


@pytest.mark.timeout(300)
def test_a_run_in_shifts_spends_no_retry_and_asks_nothing_twice(llm_airflow, llm_stub, tmp_path: Path) -> None:
    """Rows of 0.4 s, four at a time, are ten seconds: three shifts of four."""
    rest = llm_airflow.rest
    llm_stub.state(delay_s=0.4)
    source, results = tmp_path / "rows.jsonl", tmp_path / "results"
    source.write_text("".join(f'{{"custom_id": "r{n}", "text": "row {n}"}}\n' for n in range(ROWS)))
    seen = len(llm_stub.requested())
    rest.wait_for_dag("in_shifts")
    run_id = rest.trigger("in_shifts", conf={"source": str(source), "result_path": str(results)})
    assert rest.wait_for_run("in_shifts", run_id, timeout_s=240) == "success"
    llm_stub.state(delay_s=0.0)
    assert indices_on_disk(results)[0] == Counter(range(ROWS))
    assert len(llm_stub.requested()) - seen == ROWS
    assert rest.task("in_shifts", run_id, "batch").try_number == 1
    assert len(set(llm_stub.tries()[seen:])) >= 2, "there was one shift only"
    log = rest.task_log_text("in_shifts", run_id, "batch", try_number=1)
    assert "the shift was over at" in log
    assert "Waiting in the triggerer, without a worker or a pool slot" in log


@pytest.mark.timeout(300)
def test_a_run_that_is_kept_in_airflow_survives_its_task(llm_airflow, llm_stub) -> None:
    rest = llm_airflow.rest
    llm_stub.state(delay_s=0.5)
    seen = len(llm_stub.requested())
    rest.wait_for_dag("kept_in_airflow")
    run_id = rest.trigger("kept_in_airflow")
    wait_for("thirty requests", lambda: len(llm_stub.requested()) >= seen + 30)
    victim = llm_airflow.task_processes()[0]
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim.pid, signal.SIGKILL)
    llm_stub.state(delay_s=0.0)
    assert rest.wait_for_run("kept_in_airflow", run_id, timeout_s=240) == "success"
    assert rest.xcom("kept_in_airflow", run_id, "ids") == [f"k{number}" for number in range(60)]
    assert rest.task("kept_in_airflow", run_id, "batch").try_number == 2
    asked = len(llm_stub.requested()) - seen
    assert 60 <= asked < 60 + 2 + 25, "what it had journalled was asked again"
    manifest = rest.xcom("kept_in_airflow", run_id, "batch")
    assert manifest["counts"] == {"total": 60, "succeeded": 60, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert manifest["result_path"].startswith("xcom://kept_in_airflow/")
    assert "sk-very-secret-key" not in json.dumps(manifest)
