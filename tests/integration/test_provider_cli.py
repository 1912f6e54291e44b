"""A real Airflow finds the installed package: in its CLI, and in the API its connection form is drawn from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_llm_provider.get_provider_info import get_provider_info

# The route the connection form reads, called in process: no server, no login, no database.
HOOK_META = """
import json, logging, warnings
warnings.filterwarnings("error", message=".*VLLMHook.*")
logging.disable(logging.CRITICAL)
from airflow.api_fastapi.core_api.routes.ui.connections import hook_meta_data
(ours,) = [meta for meta in hook_meta_data() if meta.connection_type == "vllm"]
print("\\n" + ours.model_dump_json())
"""

GET_HOOK = """
from airflow.providers_manager import ProvidersManager
from airflow.sdk import Connection
import warnings
warnings.filterwarnings("error", message=".*VLLMHook.*")
info = ProvidersManager().hooks["vllm"]
hook = Connection(conn_id="llm", uri="vllm://gpu1:8000").get_hook()
print("\\n" + repr([info.connection_testable, type(hook).__name__, hook.vllm_conn_id]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a program of this environment with an Airflow home of its own, and return its standard output."""
    home = tmp_path_factory.mktemp("airflow")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment = {
        **inherited,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }

    def program(*command: str) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return program


@pytest.fixture(scope="module")
def airflow(run):
    """Run the `airflow` beside this Python and return the JSON it prints."""
    program = str(Path(sys.executable).parent / "airflow")

    def command(*arguments: str) -> list[dict[str, str]]:
        text = run(program, *arguments, "--output", "json")
        return json.loads(text[text.index("[{") :])

    return command


def test_providers_list_shows_the_package(airflow):
    (ours,) = [row for row in airflow("providers", "list") if row["package_name"] == "airflow-llm-provider"]
    assert ours["description"].startswith("Run LLM batch work on self-hosted vLLM")
    assert ours["version"]


def test_providers_hooks_shows_the_connection_type(airflow):
    (ours,) = [row for row in airflow("providers", "hooks") if row["connection_type"] == "vllm"]
    assert ours == {
        "connection_type": "vllm",
        "class": "airflow_llm_provider.hooks.vllm.VLLMHook",
        "conn_id_attribute_name": "vllm_conn_id",
        "package_name": "airflow-llm-provider",
        "hook_name": "vLLM",
    }


def test_the_connection_form_has_our_fields(run):
    form = json.loads(run(sys.executable, "-c", HOOK_META).splitlines()[-1])
    (connection_type,) = get_provider_info()["connection-types"]

    assert form["hook_name"] == "vLLM"
    assert form["standard_fields"]["host"]["title"] == "Base URL(s)"
    assert form["standard_fields"]["password"]["title"] == "API key"
    assert form["standard_fields"]["login"]["hidden"]
    assert form["standard_fields"]["url_schema"]["hidden"]
    assert not form["standard_fields"]["host"]["hidden"]
    assert form["extra_fields"].keys() == connection_type["conn-fields"].keys()
    for name, field in connection_type["conn-fields"].items():
        shown = form["extra_fields"][name]
        assert shown["schema"] == {**field["schema"], "title": field["label"]}
        assert shown["description"] == field["description"]


def test_configuration_options_are_airflows_own(run):
    program = str(Path(sys.executable).parent / "airflow")
    values = {
        name: run(program, "config", "get-value", "llm_batch", name).strip().splitlines()[-1:]
        for name in ("max_in_flight", "flush_interval_s", "flush_rows")
    }
    # max_in_flight is there and empty: what follows from the placement holds
    assert values == {"max_in_flight": [], "flush_interval_s": ["2.0"], "flush_rows": ["100"]}


def test_airflow_makes_the_hook_of_a_connection_without_a_deprecation(run):
    assert run(sys.executable, "-c", GET_HOOK).splitlines()[-1] == "[True, 'VLLMHook', 'llm']"
