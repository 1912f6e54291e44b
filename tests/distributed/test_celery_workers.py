"""A group on CeleryExecutor, Redis, PostgreSQL and four workers, of which one is lost half-way and one is stopped.

`LLM_TEST_ROWS` says how many rows; what was measured is printed.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from evidence import journalled, kept, landed, manifest_of, share_folder, token_of, wait_until

from benchmarks.bench import write_rows
from benchmarks.scale_out.group import DAG_ID

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from evidence import Asked

    from tools.celery_airflow import CeleryAirflow

WORKERS = ("w0", "w1", "w2", "w3")
HEARTBEAT_S = 20
SETTINGS = {
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_S),
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}
ROWS = int(os.environ.get("LLM_TEST_ROWS", "20000"))
SHARES = 16 if ROWS < 100_000 else 40
CHUNKS_A_SHARE = 2
CHUNK_ROWS = ROWS // (SHARES * CHUNKS_A_SHARE)
FEW_CHUNKS = SHARES if ROWS < 100_000 else 4
IN_FLIGHT = 64
LONG_S = 2.5 * HEARTBEAT_S * IN_FLIGHT / CHUNK_ROWS
"""Of an answer, so that a share of one chunk lasts for two and a half of the heartbeat's time-outs."""

SIZES = {"shares": SHARES, "chunk_rows": CHUNK_ROWS, "in_flight": IN_FLIGHT}
PATIENCE_S = 300 + ROWS / 100  # a busy machine does a hundred rows a second at the least


@dataclass
class Working:
    """A worker in the middle of a share.

    Attributes:
        worker: its name.
        share: which.
        token: its try's.
    """

    worker: str
    share: int
    token: str


@pytest.fixture(scope="module", autouse=True)
def sizes_fit() -> None:
    assert ROWS == SHARES * CHUNKS_A_SHARE * CHUNK_ROWS, (
        f"LLM_TEST_ROWS must be a multiple of {SHARES * CHUNKS_A_SHARE}"
    )


@pytest.mark.timeout(PATIENCE_S + 600)
def test_a_worker_is_lost_and_one_is_stopped_and_each_row_lands_once(
    celery: CeleryAirflow, asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest, results = celery.rest, tmp_path / "results"
    run_id = begin(celery, tmp_path, results, rows=ROWS)
    wait_until("half of the rows", lambda: asked.read().total >= ROWS // 2, timeout_s=PATIENCE_S)

    lost = freeze_one_at_work(celery, run_id, results, asked, of=ROWS // SHARES)
    celery.lose_worker(lost.worker)
    lost_at = time.monotonic()
    at_death = kept(results, lost.share)
    stopped = freeze_one_at_work(celery, run_id, results, asked, of=ROWS // SHARES)
    worker = celery.workers[stopped.worker]
    worker.thaw()
    os.kill(worker.pid, signal.SIGTERM)  # its leader's alone: a warm shutdown
    wait_until("the end of the worker", lambda: worker.exit_code is not None, timeout_s=PATIENCE_S)
    assert worker.exit_code == 0
    work = rest.task(DAG_ID, run_id, "batch.work", map_index=stopped.share)
    assert (work.state, work.try_number) == ("success", 1), "a worker that is stopped ends its share"
    celery.forget_worker(stopped.worker)
    wait_until(
        "the second try of the lost share",
        lambda: rest.task(DAG_ID, run_id, "batch.work", map_index=lost.share).try_number > 1,
        timeout_s=PATIENCE_S,
    )
    noticed_s = time.monotonic() - lost_at
    assert noticed_s > HEARTBEAT_S - 2, "somebody saw it die: it was no loss of a machine"
    assert rest.wait_for_run(DAG_ID, run_id, timeout_s=PATIENCE_S) == "success"

    manifest = check_landed(celery, run_id, results, rows=ROWS)
    shares = [rest.xcom(DAG_ID, run_id, "batch.work", map_index=share) for share in range(SHARES)]
    assert [share["counts"]["total"] for share in shares] == [ROWS // SHARES] * SHARES
    again = asked.read().by_try[lost.token] - at_death
    assert asked.twice == again, "asked twice is what the lost worker had in flight or not journalled, and nothing else"
    assert asked.total == ROWS + len(again)
    assert tries(celery, run_id) == {share: 2 if share == lost.share else 1 for share in range(SHARES)}
    with capsys.disabled():
        print(
            f"\n{ROWS:,} rows on {len(WORKERS)} workers in {manifest['duration_s']:.0f} s, two of them to the end; "
            f"{len(again)} rows asked twice; the loss was noticed after {noticed_s:.0f} s"
        )


@pytest.mark.timeout(600)
def test_a_worker_whose_tasks_are_told_to_stop_too_journals_what_it_has(
    celery: CeleryAirflow, asked: Asked, stub_url: str, tmp_path: Path
) -> None:
    """As the init of a container does, unless it is told otherwise, that hands SIGTERM on to a whole group."""
    rows, results = FEW_CHUNKS * CHUNK_ROWS, tmp_path / "results"
    set_state(stub_url, delay_s=LONG_S)  # a share must not end before its supervisor has handed the signal on
    try:
        run_id = begin(celery, tmp_path, results, rows=rows)
        told = freeze_one_at_work(celery, run_id, results, asked, of=rows // min(SHARES, FEW_CHUNKS))
        worker = celery.workers[told.worker]
        os.killpg(worker.pid, signal.SIGTERM)  # the supervisor is in its group, and tells the task
        worker.thaw()
        wait_until("the end of the worker", lambda: worker.exit_code is not None, timeout_s=60)
        wait_until("the end of its task", lambda: not worker.processes(), timeout_s=5)
    finally:
        set_state(stub_url, delay_s=0.0)
    at_end = kept(results, told.share)
    celery.forget_worker(told.worker)
    assert celery.rest.wait_for_run(DAG_ID, run_id, timeout_s=240) == "success"

    check_landed(celery, run_id, results, rows=rows)
    again = asked.read().by_try[told.token] - at_end
    assert asked.twice == again
    assert len(again) <= IN_FLIGHT, "all that had settled was journalled"
    assert tries(celery, run_id)[told.share] == 2


@pytest.mark.timeout(600)
def test_a_task_that_outlives_its_worker_gives_way_to_its_successor(
    celery: CeleryAirflow, asked: Asked, stub_url: str, tmp_path: Path
) -> None:
    """Where a worker's main process alone is killed, its supervisors die with it; their tasks are told by nobody."""
    rows, results = FEW_CHUNKS * CHUNK_ROWS, tmp_path / "results"
    celery.start_workers(["w4"])
    # A share takes longer than the heartbeat's time-out; the others' end in time for its successor to get a worker.
    set_state(stub_url, delay_s=LONG_S)
    try:
        run_id = begin(celery, tmp_path, results, rows=rows)
        orphaned = freeze_one_at_work(celery, run_id, results, asked, of=rows // min(SHARES, FEW_CHUNKS))
        worker, orphan = celery.workers[orphaned.worker], celery.task_of(orphaned.worker)
        os.kill(worker.pid, signal.SIGKILL)
        worker.thaw()
        wait_until("the successor", lambda: token_of(results, orphaned.share) != orphaned.token, timeout_s=180)
    finally:
        set_state(stub_url, delay_s=0.0)
    wait_until("the orphan's end", lambda: not orphan.is_running(), timeout_s=60)
    celery.forget_worker(orphaned.worker)
    assert celery.rest.wait_for_run(DAG_ID, run_id, timeout_s=240) == "success"

    check_landed(celery, run_id, results, rows=rows)
    assert tries(celery, run_id)[orphaned.share] == 2
    asked.read()
    assert asked.twice <= asked.by_try[orphaned.token]
    assert len(asked.twice) <= 3 * IN_FLIGHT, "what was in flight, and what had settled since the last flush"


def begin(celery: CeleryAirflow, folder: Path, results: Path, *, rows: int) -> str:
    source = folder / "rows.jsonl"
    write_rows(source, rows)
    celery.rest.wait_for_dag(DAG_ID)
    return celery.rest.trigger(DAG_ID, conf={"source": str(source), "result_path": str(results)})


def freeze_one_at_work(celery: CeleryAirflow, run_id: str, results: Path, asked: Asked, *, of: int) -> Working:
    """A worker in the middle of a share `of` so many rows, of which some are journalled; frozen there."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        work = [task for task in celery.rest.tasks(DAG_ID, run_id) if task.task_id == "batch.work"]
        shares = {task.pid: task.map_index for task in work}
        for worker, program in celery.workers.items():
            process = celery.task_of(worker)
            if process is None or process.pid not in shares:
                continue
            share = shares[process.pid]
            program.freeze()
            token = token_of(results, share)
            done = len(asked.read().by_try[token]) / of if token is not None else 0.0
            if token is not None and 0.1 < done < 0.8 and journalled(results, share):
                return Working(worker, share, token)
            program.thaw()
        time.sleep(0.1)
    pytest.fail("no worker was seen in the middle of a share")


def check_landed(celery: CeleryAirflow, run_id: str, results: Path, *, rows: int) -> dict[str, Any]:
    """Each row once, and nobody says otherwise."""
    assert landed(results) == Counter(range(rows))
    manifest = manifest_of(results)
    assert manifest["counts"] == {"total": rows, "succeeded": rows, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert celery.rest.xcom(DAG_ID, run_id, "batch.assemble")["counts"] == manifest["counts"]
    assert not share_folder(results, 0).parent.exists() or not list(share_folder(results, 0).parent.rglob("*.json*"))
    return manifest


def tries(celery: CeleryAirflow, run_id: str) -> dict[int, int]:
    """Tries by share."""
    work = [task for task in celery.rest.tasks(DAG_ID, run_id) if task.task_id == "batch.work"]
    return {task.map_index: task.try_number for task in work}


def set_state(url: str, **fields: object) -> None:
    """Set fields of the stub's `Behaviour`."""
    request = urllib.request.Request(f"{url}/_state", data=json.dumps(fields).encode(), method="PATCH")
    with urllib.request.urlopen(request, timeout=30):
        pass
