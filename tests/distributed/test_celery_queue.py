"""More shares than Celery's workers have slots: Airflow fails what waits in the broker for long, so none must.

The first test holds the docs' advice to its word, the second one its reason: where Airflow changes that, it may go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from evidence import landed, manifest_of

from benchmarks.bench import write_rows
from benchmarks.scale_out.group import DAG_ID, ONE_BY_ONE

if TYPE_CHECKING:
    from pathlib import Path

    from tools.celery_airflow import CeleryAirflow

SHARES, SHARE_ROWS, IN_FLIGHT = 4, 64, 8
ROWS = SHARES * SHARE_ROWS
SIZES = {"shares": SHARES, "chunk_rows": SHARE_ROWS, "in_flight": IN_FLIGHT}
STUB_DELAY_S = 1.0  # a share takes eight seconds
WORKERS = ("w0",)
SETTINGS = {"SCHEDULER__TASK_QUEUED_TIMEOUT": "6", "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "1"}


def run(celery: CeleryAirflow, dag_id: str, folder: Path) -> tuple[str, str]:
    """The run's id, and how it ended."""
    source = folder / "rows.jsonl"
    write_rows(source, ROWS)
    celery.rest.wait_for_dag(dag_id)
    run_id = celery.rest.trigger(dag_id, conf={"source": str(source), "result_path": str(folder / "results")})
    return run_id, celery.rest.wait_for_run(dag_id, run_id, timeout_s=240)


@pytest.mark.timeout(400)
def test_shares_that_wait_for_tasks_at_once_may_wait_for_long(celery: CeleryAirflow, tmp_path: Path) -> None:
    _, ended = run(celery, ONE_BY_ONE, tmp_path)
    assert ended == "success"
    assert sum(landed(tmp_path / "results").values()) == ROWS
    assert manifest_of(tmp_path / "results")["counts"]["succeeded"] == ROWS


@pytest.mark.timeout(400)
def test_shares_that_wait_in_the_broker_are_failed_whatever_their_retries(
    celery: CeleryAirflow, tmp_path: Path
) -> None:
    run_id, ended = run(celery, DAG_ID, tmp_path)
    assert ended == "failed"
    work = [task for task in celery.rest.tasks(DAG_ID, run_id) if task.task_id == "batch.work"]
    failed = [task for task in work if task.state == "failed"]
    assert failed
    assert {task.try_number for task in failed} <= {0, 1}, "it was tried again, which the docs deny"
