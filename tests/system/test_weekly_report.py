"""The weekly report over a week whose nights were made by backfill, one of them missing, on a real scheduler.

The DAGs are the examples as they are. The week is one in which the clocks change: its nights begin at 22:00 UTC up to
Saturday, and at 23:00 UTC on Sunday.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from pathlib import Path

NIGHTLY, WEEKLY = "nightly_summarisation", "weekly_report"
DOCUMENTS = 8
DAYS = ("Mon 20", "Tue 21", "Wed 22", "Thu 23", "Fri 24", "Sat 25", "Sun 26")
HOSTILE = "<script>alert('1')</script> [click](javascript:alert(2)) **bold**"


def backfill(airflow: Any, dag_id: str, first: str, last: str, *, conf: dict[str, Any] | None = None) -> None:
    """What a person types; again where SQLite, which has one writer, was somebody else's at that moment."""
    command = [sys.executable, "-m", "airflow", "backfill", "create", "--dag-id", dag_id, "--max-active-runs", "3"]
    command += ["--from-date", first, "--to-date", last, "--dag-run-conf", json.dumps(conf or {})]
    for _ in range(5):
        done = subprocess.run(
            command, env=airflow.environment(), capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode == 0:
            return
        assert "database is locked" in done.stderr, done.stdout + done.stderr
        for left in airflow.rest.call("GET", f"/backfills?dag_id={dag_id}")["backfills"]:
            airflow.rest.call("PUT", f"/backfills/{left['id']}/cancel")  # it has no runs and would be in the way
    pytest.fail(f"no backfill of {dag_id} in five attempts: {done.stderr}")


def wait_for_runs(rest: Any, dag_id: str, run_ids: list[str]) -> None:
    """Wait until runs of these ids, and no other backfilled ones, have succeeded."""
    deadline = time.monotonic() + 120
    while True:
        runs = rest.call("GET", f"/dags/{dag_id}/dagRuns?limit=100&run_type=backfill")["dag_runs"]
        states = {run["dag_run_id"]: run["state"] for run in runs}
        assert "failed" not in states.values(), states
        if sorted(states) == sorted(run_ids) and set(states.values()) == {"success"}:
            return
        assert time.monotonic() < deadline, states
        time.sleep(0.3)


@pytest.fixture
def week(examples_airflow, llm_stub, tmp_path: Path) -> Path:
    """Seven nights made by one backfill, Thursday's run deleted before it begins. The results' base.

    One document is refused the first two times that it is asked about, so that two of the nights have a dead letter.
    """
    rest = examples_airflow.rest
    for dag_id in (NIGHTLY, WEEKLY):
        rest.wait_for_dag(dag_id)
    bad_request = {"kind": "answer", "status": 400, "body": "{}"}
    llm_stub.faults({"fault": bad_request, "contains": "what does aiohttp do?", "first_of_each": 2})
    rest.call("PATCH", f"/dags/{NIGHTLY}", {"is_paused": True})
    conf = {"documents": DOCUMENTS, "base": f"file://{tmp_path}/documents"}
    backfill(examples_airflow, NIGHTLY, "2025-10-20", "2025-10-27", conf=conf)
    missing = quote("backfill__2025-10-23T22:00:00+00:00")
    rest.call("DELETE", f"/dags/{NIGHTLY}/dagRuns/{missing}")
    rest.call("PATCH", f"/dags/{NIGHTLY}", {"is_paused": False})
    begun = ("20T22", "21T22", "22T22", "24T22", "25T22", "26T23")
    wait_for_runs(rest, NIGHTLY, [f"backfill__2025-10-{hour}:00:00+00:00" for hour in begun])
    llm_stub.faults()
    return examples_airflow.home / "results"


def test_a_week_of_backfilled_nights_one_of_them_missing(examples_airflow, week: Path, tmp_path: Path) -> None:
    rest = examples_airflow.rest
    # the scheduler itself makes a run for last night once the DAG goes on: another week's
    found = (week / NIGHTLY).glob("2025-*/*/manifest.json")
    manifests = {path.parts[-3]: json.loads(path.read_text()) for path in found}
    assert sorted(manifests) == [f"2025-10-{day}" for day in (20, 21, 22, 24, 25, 26)]
    part = next((week / NIGHTLY / "2025-10-22").glob("*/part-*.jsonl"))  # the model turned hostile on Wednesday
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    part.write_text("".join(json.dumps({**row, "output": HOSTILE}) + "\n" for row in rows))

    backfill(examples_airflow, WEEKLY, "2025-10-27", "2025-10-28")
    run_id = "backfill__2025-10-27T06:00:00+00:00"
    wait_for_runs(rest, WEEKLY, [run_id])
    folder = week / WEEKLY / "2025-10-26"
    assert rest.xcom(WEEKLY, run_id, "write_report") == {
        "markdown": f"file://{folder}/report.md",
        "html": f"file://{folder}/report.html",
    }
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()

    assert markdown.startswith("# Nightly summaries, 20 October to 26 October 2025\n")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    assert [row[0] for row in table[2:]] == [f"{day} Oct" for day in DAYS]
    assert table[5][:4] == ["Thu 23 Oct", "missing", "–", "–"]
    counts = [
        [str(each["counts"][key]) for key in ("total", "succeeded", "errored")] for _, each in sorted(manifests.items())
    ]
    assert [row[1:4] for row in table[2:] if row[1] != "missing"] == counts
    assert sorted(counts) == [["8", "7", "1"]] * 2 + [["8", "8", "0"]] * 4
    written = sum(manifest["usage"]["completion_tokens"] for manifest in manifests.values())
    for form, text in (("Markdown", markdown), ("HTML", page)):
        plain = text.replace("\\", "")
        assert "Nights: 6 of 7; Thursday missing" in plain, form
        assert "Documents: 48; summarised: 46; dead letters: 2" in plain, form
        assert f"{written:,} written" in plain, form
        assert plain.count("dead-letter-") == 2, form
        assert "Thursday 23 October" not in plain, form
        assert "echo: " in plain, form
    assert markdown.count(r"\<script\>alert('1')\</script\> \[click\](javascript\:alert(2)) \*\*bold\*\*") == 3
    assert page.count("&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;") == 3
    assert "<script" not in page

    by_hand = {"day": "2025-10-29", "reports": f"file://{tmp_path}/by-hand"}
    run_id = rest.trigger(WEEKLY, conf=by_hand)
    assert rest.wait_for_run(WEEKLY, run_id) == "success"
    assert (tmp_path / "by-hand" / "2025-10-26" / "report.md").read_text() == markdown
