"""The provider's metadata: valid, discoverable, in step with the hook, and light to import."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from airflow_llm_provider.get_provider_info import get_provider_info
from airflow_llm_provider.hooks.connection import EXTRA_KEYS
from airflow_llm_provider.hooks.vllm import VLLMHook


def _airflow_schema(name: str) -> dict:
    # Airflow's folder is found without importing it: importing sets up logging, settings and a database URL.
    folder = importlib.util.find_spec("airflow").submodule_search_locations[0]
    return json.loads(Path(folder, name).read_text())


def _connection_type() -> dict:
    (connection_type,) = get_provider_info()["connection-types"]
    return connection_type


def test_validates_against_airflows_schema():
    schema = _airflow_schema("provider_info.schema.json")
    jsonschema.validate(get_provider_info(), schema)
    assert set(get_provider_info()) <= set(schema["properties"]), "a misspelt key would be ignored by Airflow"


def test_config_defaults_and_examples_have_their_options_type():
    read = {"string": str, "integer": int, "float": float}
    for section in get_provider_info()["config"].values():
        for option in section["options"].values():
            read[option["type"]](option["example"])
            if option["type"] != "string" and option["default"]:
                assert read[option["type"]](option["default"]) > 0


def test_config_section_has_the_documented_options():
    options = get_provider_info()["config"]["llm_batch"]["options"]
    assert {name: option["default"] for name, option in options.items()} == {
        "results_base": "",
        "results_link": "",
        "max_in_flight": "",
        "pool_scheduled_batch": "",
        "pool_burst_batch": "",
        "requests_per_slot": "",
        "flush_interval_s": "2.0",
        "flush_rows": "100",
        "outage_patience_s": "",
    }


def test_connection_type_names_the_hook():
    connection_type = _connection_type()
    assert connection_type["connection-type"] == VLLMHook.conn_type
    assert connection_type["hook-name"] == VLLMHook.hook_name
    assert connection_type["hook-class-name"] == f"{VLLMHook.__module__}.{VLLMHook.__qualname__}"


def test_every_form_field_is_a_key_the_hook_reads():
    assert set(_connection_type()["conn-fields"]) <= set(EXTRA_KEYS)


def test_form_behaviour_is_valid_in_airflow_3_1s_way():
    behaviour = VLLMHook.get_ui_field_behaviour()
    jsonschema.validate(behaviour, _airflow_schema("customized_form_field_behaviours.schema.json"))
    assert behaviour["hidden_fields"] == ["schema", "login"]
    assert behaviour["relabeling"] == {"host": "Base URL(s)", "password": "API key"}


def test_form_widgets_for_airflow_3_1_are_the_form_fields(monkeypatch):
    class Field:
        def __init__(self, label, *, description):
            self.label, self.description = label, description

    class Wtforms:
        class StringField(Field): ...

        class IntegerField(Field): ...

    monkeypatch.setitem(sys.modules, "wtforms", Wtforms)
    widgets = VLLMHook.get_connection_form_widgets()
    fields = _connection_type()["conn-fields"]
    assert {name: (w.label, w.description) for name, w in widgets.items()} == {
        name: (f["label"], f["description"]) for name, f in fields.items()
    }
    integers = {name for name, w in widgets.items() if isinstance(w, Wtforms.IntegerField)}
    assert {"slots", "max_in_flight", "headroom", "priority"} <= integers
    assert not {"model", "window", "hold"} & integers


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("airflow_llm_provider.get_provider_info", ["airflow", "aiohttp", "openai", "jinja2", "orjson", "pydantic"]),
        ("airflow_llm_provider.hooks.connection", ["airflow", "aiohttp", "openai", "jinja2", "orjson", "pydantic"]),
        ("airflow_llm_provider.hooks.vllm", ["aiohttp", "openai", "httpx2"]),
    ],
)
def test_import_is_light(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
