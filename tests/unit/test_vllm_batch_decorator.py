"""``@task.vllm_batch`` with a light context; a real scheduler is in tests/system."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, Asset, task
from batch_fakes import part_lines
from test_llm_batch_operator import context_of

from airflow_llm_provider.decorators.vllm_batch import vllm_batch_task
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks.compat import AirflowSkipException

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_llm_provider.testing import StubVLLM


@pytest.fixture
def results(stub: StubVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    connection = {"conn_type": "vllm", "host": stub.url}
    monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__RESULTS_BASE", f"file://{tmp_path}")
    return tmp_path / "d" / "t" / "manual__x~3Ay"


def operator_of(function: Callable[..., Any], *args: Any, **words: Any) -> Any:
    with DAG("d", schedule=None):
        return vllm_batch_task(function, **{"task_id": "t", "prompt": "Say {{ row.text }}", **words})(*args).operator


def test_rows_of_a_function_that_is_called_as_airflow_calls_functions(results: Path) -> None:
    def rows(word: str, ds: str | None = None, **context: Any) -> Iterator[dict[str, Any]]:
        for number in range(3):
            yield {"custom_id": f"{word}-{number}", "text": f"{ds} {context['params']['tone']}"}

    manifest = operator_of(rows, "mail").execute(context_of())
    assert manifest["counts"]["succeeded"] == 3
    lines = part_lines(results)
    assert [line["custom_id"] for line in lines] == ["mail-0", "mail-1", "mail-2"]
    assert lines[0]["output"] == "echo: Say 2026-01-02 dry"


def test_it_is_called_once_over_tries(results: Path, stub: StubVLLM) -> None:
    calls = []

    def rows() -> list[dict[str, Any]]:
        calls.append(1)
        return [{"text": f"call {len(calls)}"}]

    first = operator_of(rows).execute(context_of())
    assert operator_of(rows).execute(context_of(try_number=2)) == first
    assert (len(calls), stub.received) == (1, 1)
    assert results.exists()


def test_what_the_function_raises_is_airflows(results: Path) -> None:
    def rows() -> None:
        raise AirflowSkipException("nothing today")

    with pytest.raises(AirflowSkipException, match="nothing today"):
        operator_of(rows).execute(context_of())
    assert not results.exists()


def test_a_path_will_do(results: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    manifest = operator_of(lambda: str(tmp_path / "*.jsonl")).execute(context_of())
    assert manifest["counts"]["succeeded"] == 2
    assert results.exists()


def test_arguments_are_judged_when_the_dag_is_parsed() -> None:
    with pytest.raises(ConfigurationError, match="it is what the function returns"):
        operator_of(list, source="x")
    with pytest.raises(ConfigurationError, match="max_error_rate"):
        operator_of(list, max_error_rate=7)


def test_what_it_depends_on_and_what_is_rendered() -> None:
    with DAG("d", schedule=None) as dag:

        @task
        def day() -> str:
            return "2026-01-02"

        @vllm_batch_task(prompt="x")
        def batch(word: str) -> list[Any]:
            return [word]

        batch(day())
    operator = dag.get_task("batch")
    assert operator.upstream_task_ids == {"day"}
    assert operator.retries == 3
    assert {"op_args", "op_kwargs", "result_path", "vllm_conn_id", "model", "deadline"} == set(operator.template_fields)
    assert operator.operator_name == "@task.vllm_batch"


def test_assets_that_it_is_handed_are_inlets(results: Path) -> None:
    asset = Asset("s3://b/x")
    task = operator_of(lambda given: [{"text": given.uri}], asset)
    task.execute(context_of())
    assert task.inlets == [asset]
    assert results.exists()


def test_it_is_a_decorator_of_airflows_own() -> None:
    with DAG("d", schedule=None) as dag:

        @task.vllm_batch(prompt="x")
        def batch() -> list[Any]:
            return []

        batch()
    assert dag.get_task("batch").operator_name == "@task.vllm_batch"
