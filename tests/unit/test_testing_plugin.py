from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def test_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["airflow_llm_provider.testing.plugin"]\n')
    (tmp_path / "test_theirs.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout
