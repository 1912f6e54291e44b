"""A group on LocalExecutor and PostgreSQL: it lands, also where one of its tasks is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from evidence import journalled, kept, landed, manifest_of, token_of, wait_until

from benchmarks.bench import write_rows
from benchmarks.scale_out.group import DAG_ID

if TYPE_CHECKING:
    from pathlib import Path

    from evidence import Asked

    from tools.local_airflow import LocalAirflow
    from tools.postgres import Postgres

ROWS = 800
SIZES = {"shares": 4, "chunk_rows": 200, "in_flight": 8}
STUB_DELAY_S = 0.2


@pytest.mark.timeout(600)
def test_a_group_on_postgres_lands_each_row_once_though_a_task_is_killed(
    local_airflow: LocalAirflow, postgres: Postgres, asked: Asked, tmp_path: Path
) -> None:
    rest, source, results = local_airflow.rest, tmp_path / "rows.jsonl", tmp_path / "results"
    write_rows(source, ROWS)
    rest.wait_for_dag(DAG_ID)
    run_id = rest.trigger(DAG_ID, conf={"source": str(source), "result_path": str(results)})
    wait_until("a quarter of the rows", lambda: asked.read().total >= ROWS // 4, timeout_s=180)

    victim = local_airflow.task_processes()[0]
    (share,) = wait_until(
        "the victim's share",
        lambda: [task.map_index for task in rest.tasks(DAG_ID, run_id) if task.pid == victim.pid],
        timeout_s=30,
    )
    wait_until("a journal", lambda: journalled(results, share), timeout_s=30)
    token = token_of(results, share)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim.pid, signal.SIGKILL)
    wait_until("its death", lambda: not victim.is_running(), timeout_s=10)
    at_death = kept(results, share)

    assert rest.wait_for_run(DAG_ID, run_id, timeout_s=240) == "success"
    assert landed(results) == Counter(range(ROWS))
    assert manifest_of(results)["counts"] == {
        "total": ROWS,
        "succeeded": ROWS,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 0,
    }
    assert rest.xcom(DAG_ID, run_id, "batch.assemble")["counts"] == manifest_of(results)["counts"]
    asked.read()
    assert asked.twice == asked.by_try[token] - at_death
    tries = [rest.task(DAG_ID, run_id, "batch.work", map_index=number).try_number for number in range(SIZES["shares"])]
    assert tries == [2 if number == share else 1 for number in range(SIZES["shares"])]
    assert not (local_airflow.home / "airflow.db").exists(), "it ran on SQLite"
