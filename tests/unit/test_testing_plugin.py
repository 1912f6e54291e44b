from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import json, os, urllib.request
import pytest

pytestmark = pytest.mark.simulated_vllm(model="outer", max_num_seqs=3)

def served(url):
    with urllib.request.urlopen(url + "/v1/models") as answer:
        return json.loads(answer.read())["data"][0]["id"]

@pytest.mark.simulated_vllm(model="inner")
def test_simulated(simulated_vllm, connect_vllm):
    assert served(simulated_vllm.url) == "inner"
    assert simulated_vllm.spec.engine.max_num_seqs == 3
    connect_vllm(simulated_vllm, model="inner")
    made = json.loads(os.environ["AIRFLOW_CONN_VLLM_DEFAULT"])
    assert made == {"conn_type": "vllm", "host": simulated_vllm.url, "extra": {"model": "inner"}}

@pytest.mark.stub_vllm(model="quick")
def test_stub(stub_vllm, connect_vllm):
    assert served(stub_vllm.url) == "quick"
    connect_vllm(stub_vllm, conn_id="other")
    assert "AIRFLOW_CONN_VLLM_DEFAULT" not in os.environ
    assert "AIRFLOW_CONN_OTHER" in os.environ
"""

INI = """
[pytest]
addopts = -p airflow_llm_provider.testing.plugin
airflow_dags_folder = dags
"""
MIGRATE = """
import os, sys
from pathlib import Path

assert sys.argv[1:] == ["db", "migrate"]
Path(os.environ["AIRFLOW_HOME"], "migrated").write_text("yes")
sys.exit(os.environ.get("FAILS"))
"""
LED = """
import os
from pathlib import Path
import their_dag

def test_led():
    home = Path(os.environ["AIRFLOW_HOME"])
    assert (home / "migrated").exists()
    Path("home").write_text(str(home))
    told = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW")}
    assert told == {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path("dags").resolve()),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__PARALLELISM": "3",
    }
"""
THEIRS = {
    "AIRFLOW_HOME": "/theirs",
    "AIRFLOW_CONFIG": "/theirs/airflow.cfg",
    "AIRFLOW__CORE__DAGS_FOLDER": "/theirs/dags",
    "AIRFLOW__CORE__PARALLELISM": "3",
    "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": "[]",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://theirs",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "postgresql+asyncpg://theirs",
    "AIRFLOW__LLM_BATCH__RESULTS_BASE": "s3://theirs",
}


def with_an_airflow(folder: Path, *, conftest: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Pytest where the plugin is led to DAGs; Airflow is one that only notes that it was called."""
    written = {
        "pytest.ini": INI,
        "airflow/__init__.py": "",
        "airflow/__main__.py": MIGRATE,
        "dags/their_dag.py": "",
        "conftest.py": conftest,
        "test_led.py": LED,
    }
    for name, text in written.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=folder, env=kept | THEIRS | env
    )


def test_airflow_is_led_to_a_home_of_the_tests_own_which_is_gone_afterwards(tmp_path: Path) -> None:
    ran = with_an_airflow(tmp_path, conftest="import airflow\n")  # after the plugin, which comes first
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not Path((tmp_path / "home").read_text()).exists()


def test_a_database_that_can_not_be_made_is_told_of(tmp_path: Path) -> None:
    ran = with_an_airflow(tmp_path, FAILS="no room on the disk")
    assert ran.returncode == 4
    assert "airflow_dags_folder: the tests' Airflow has no database, for this failed: no room on the disk" in ran.stderr


def test_a_folder_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    ran = with_an_airflow(tmp_path, PYTEST_ADDOPTS="-o airflow_dags_folder=nowhere")
    assert ran.returncode == 4
    assert f"airflow_dags_folder: there is no folder {tmp_path}/nowhere" in ran.stderr


def test_an_airflow_that_is_there_already_is_told_of(tmp_path: Path) -> None:
    ran = with_an_airflow(tmp_path, PYTEST_ADDOPTS="-p airflow")
    assert ran.returncode == 4
    assert "airflow_dags_folder: Airflow was imported before" in ran.stderr


def test_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["airflow_llm_provider.testing.plugin"]\n')
    (tmp_path / "test_theirs.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout
