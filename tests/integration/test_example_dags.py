"""The example DAGs import as Airflow imports them, and hold the tasks that the docs speak of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "example_dags"
TASKS = {
    "archive_on_workers": {"classify.plan", "classify.work", "classify.assemble", "count"},
    "burst_documents": {"ask", "answers"},
    "dedicated_gpu": {"keywords"},
    "extract_complaints": {"extract", "count"},
    "nightly_summarisation": {"collect_documents", "summarise", "show"},
    "shared_gpu_priority": {"files_of_the_hour", "label"},
    "triage_tickets": {"triage", "report"},
    "weekly_report": {"write_report"},
}
SCHEDULES = {
    "archive_on_workers": "0 23 * * sun Europe/London",
    "extract_complaints": "0 6 * * * Europe/London",
    "nightly_summarisation": "0 23 * * * Europe/London",
    "shared_gpu_priority": "0 * * * * UTC",
    "triage_tickets": "0 5 * * * Europe/London",
    "weekly_report": "0 6 * * mon Europe/London",
}

LOAD = """
import json, sys
from airflow.dag_processing.dagbag import BundleDagBag
from pathlib import Path

folder = Path(sys.argv[1])
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="examples")
print(json.dumps({
    "errors": bag.import_errors,
    "warnings": [str(warning) for warnings in bag.captured_warnings.values() for warning in warnings],
    "tasks": {dag_id: sorted(dag.task_ids) for dag_id, dag in bag.dags.items()},
    "schedules": {
        key: f"{dag.timetable.expression} {dag.timetable.timezone}" for key, dag in bag.dags.items() if dag.schedule
    },
}))
"""


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> dict:
    home = tmp_path_factory.mktemp("airflow")
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    env["PYTHONPATH"] = str(EXAMPLES.parent)
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(EXAMPLES)], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    answer: dict = json.loads(result.stdout.splitlines()[-1])
    return answer


def test_they_import_without_errors_or_warnings(bag: dict) -> None:
    assert bag["errors"] == {}
    assert bag["warnings"] == []


def test_they_hold_the_expected_tasks(bag: dict) -> None:
    assert {dag_id: set(tasks) for dag_id, tasks in bag["tasks"].items()} == TASKS


def test_they_run_when_they_say(bag: dict) -> None:
    assert bag["schedules"] == SCHEDULES


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_markers_come_in_pairs(path: Path) -> None:
    text = path.read_text()
    starts = [line.split("[START ")[1].rstrip("]") for line in text.splitlines() if "# [START " in line]
    ends = [line.split("[END ")[1].rstrip("]") for line in text.splitlines() if "# [END " in line]
    assert starts
    assert sorted(starts) == sorted(ends)
