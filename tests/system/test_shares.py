"""One run shared out to mapped tasks, on a real scheduler: they run side by side, and two of them are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from test_kills import indices_on_disk, wait_for

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 600
SHARES = 6


@pytest.mark.timeout(420)
def test_a_group_lands_each_row_once_though_two_of_its_tasks_are_killed(llm_airflow, llm_stub, tmp_path: Path) -> None:
    airflow, stub, rest = llm_airflow, llm_stub, llm_airflow.rest
    stub.state(delay_s=0.25)
    source, results = tmp_path / "rows.jsonl", tmp_path / "results"
    source.write_text("".join(f'{{"custom_id": "r{n}", "text": "row {n}"}}\n' for n in range(ROWS)))
    seen = len(stub.requested())
    rest.wait_for_dag("shared_out")
    run_id = rest.trigger("shared_out", conf={"source": str(source), "result_path": str(results)})

    kept_at_kill: list[tuple[int, set[int]]] = []
    for _ in range(2):
        at = len(stub.requested())
        wait_for("forty requests", lambda at=at: len(stub.requested()) > at + 40)
        victim = airflow.task_processes()[0]
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
        wait_for("the death", lambda victim=victim: not victim.is_running())
        kept_at_kill.append((len(stub.requested()), indices_on_disk(results)[1] | journalled(results)))
        time.sleep(1)
    stub.state(delay_s=0.0)
    assert rest.wait_for_run("shared_out", run_id, timeout_s=240) == "success"

    landed, _ = indices_on_disk(results)
    assert landed == Counter(range(ROWS))
    log = stub.requested()
    for position, kept in kept_at_kill:
        again = kept & set(log[position:])
        assert not again, f"rows {sorted(again)[:5]} were kept at a kill and requested again"
    assert ROWS <= len(log) - seen <= ROWS + 2 * (4 + 100)
    manifest = json.loads((results / "manifest.json").read_text())
    assert manifest["counts"] == {"total": ROWS, "succeeded": ROWS, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert manifest["identity"]["task_id"] == "batch"
    assert rest.xcom("shared_out", run_id, "batch.assemble")["counts"] == manifest["counts"]
    assert rest.xcom("shared_out", run_id, "after") == ROWS
    line = json.loads(next(iter(results.glob("part-*.jsonl"))).read_text().splitlines()[0])
    assert line["output"].endswith("for batch"), "a prompt knows the group, and not the task that asked"
    shares = [rest.xcom("shared_out", run_id, "batch.work", map_index=share) for share in range(SHARES)]
    assert [share["share"] for share in shares] == list(range(SHARES))
    assert sum(share["counts"]["total"] for share in shares) == ROWS
    assert not (results / "_run" / "shares").exists() or not list((results / "_run" / "shares").rglob("*.json*"))
    tries = [rest.task("shared_out", run_id, "batch.work", map_index=share).try_number for share in range(SHARES)]
    assert sum(tries) >= SHARES + 1


def journalled(results: Path) -> set[int]:
    found = set()
    for journal in results.glob("_run/shares/*/_run/journal/*/*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # a chunk was committed meanwhile
            found |= {json.loads(line)["index"] for line in journal.read_text().splitlines()}
    return found
