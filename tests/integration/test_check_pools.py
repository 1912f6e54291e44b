"""``airflow llm-batch check-pools`` against a real database: pools and DAGs got there by Airflow's own commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AIRFLOW = str(Path(sys.executable).parent / "airflow")
POOLS_FILE = Path(__file__).parents[2] / "example_dags" / "pools.json"

DAGS = """
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator

from airflow_llm_provider.operators.llm_batch import LLMBatchOperator


class Ours(LLMBatchOperator):
    pass


with DAG("night", schedule=None):
    LLMBatchOperator(task_id="plain", source=[], prompt="x", pool_slots=12)
    LLMBatchOperator.partial(task_id="mapped", prompt="x", pool_slots=13).expand(source=["a", "b"])
    Ours(task_id="subclass", source=[], prompt="x", workload="burst-batch", pool="nowhere")
    EmptyOperator(task_id="neighbour", pool="llm_burst_batch", pool_slots=4)
    EmptyOperator(task_id="stranger", pool="nowhere_either", pool_slots=99)
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """Run an `airflow` command in a home of its own, with a migrated database and the DAG above."""
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    (home / "dags" / "night.py").write_text(DAGS)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment = {
        **inherited,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__LLM_BATCH__POOL_SCHEDULED_BATCH": "llm_scheduled_batch",
        "AIRFLOW__LLM_BATCH__POOL_BURST_BATCH": "llm_burst_batch",
    }

    def run(*arguments: str, code: int = 0, **more: str) -> str:
        done = subprocess.run(
            [AIRFLOW, *arguments],
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    run("db", "migrate")
    return run


def found(text: str) -> list[tuple[str, str, str]]:
    problems = json.loads(text[text.index("[") :])
    return [(each["pool"], each["problem"].split(":")[0].split(",")[0], each["used_by"]) for each in problems]


OPTION = "provider configuration "


def test_what_keeps_tasks_from_starting_is_found_and_mended(airflow, tmp_path):
    # Before there are DAGs: what the configuration names is missing.
    assert found(airflow("llm-batch", "check-pools", "-o", "json", code=1)) == [
        ("llm_burst_batch", "does not exist", f"{OPTION}pool_burst_batch"),
        ("llm_scheduled_batch", "does not exist", f"{OPTION}pool_scheduled_batch"),
    ]

    # The example's pools, as the docs say.
    assert "Uploaded 2 pool(s)" in airflow("pools", "import", str(POOLS_FILE))
    airflow("dags", "reserialize")
    assert found(airflow("llm-batch", "check-pools", "-o", "json", code=1)) == [
        ("llm_burst_batch", "has 3 slots", "task night.neighbour (4)"),
        ("llm_scheduled_batch", "has 12 slots", "task night.mapped (13)"),
        ("nowhere", "does not exist", "task night.subclass"),
    ]

    # Mended, and one thing is wrong that was not before.
    def pool(slots: int, *, include_deferred: bool = False) -> dict[str, object]:
        return {"slots": slots, "description": "", "include_deferred": include_deferred}

    pools = {"llm_burst_batch": pool(4), "llm_scheduled_batch": pool(-1, include_deferred=True), "nowhere": pool(1)}
    (tmp_path / "pools.json").write_text(json.dumps(pools))
    airflow("pools", "import", str(tmp_path / "pools.json"))
    table = " ".join(airflow("llm-batch", "check-pools", code=1).split())
    assert "llm_scheduled_batch | counts deferred tasks" in table
    assert "provider configuration pool_scheduled_batch" in table
    assert "task night.plain" in table
    assert "nowhere" not in table

    # What the remedy says.
    airflow("pools", "set", "llm_scheduled_batch", "-1", "no bound")
    assert airflow("llm-batch", "check-pools").strip().splitlines()[-1] == (
        "4 batch tasks, pools llm_burst_batch, llm_scheduled_batch, nowhere: nothing is wrong"
    )


def test_a_database_that_cannot_be_read_is_no_clean_bill(airflow):
    airflow("llm-batch", "check-pools", code=1, AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="sqlite:////nowhere/airflow.db")
