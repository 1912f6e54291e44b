"""Runs that are kept in Airflow, as the operator has them; a real scheduler is in tests/system."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from state_fakes import Values

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException
from airflow_llm_provider.operators.batch_group import LLMBatchGroup
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.storage.state_files import StateFiles
from airflow_llm_provider.testing import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

    from airflow_llm_provider.testing import StubVLLM

ROWS = [{"custom_id": f"doc-{number}", "text": f"text {number}"} for number in range(7)]


@pytest.fixture(autouse=True)
def airflow(stub: StubVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    results = tmp_path / "results"
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__RESULTS_BASE", f"file://{results}")
    connection = {"conn_type": "vllm", "host": stub.url, "extra": {}}
    monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", json.dumps(connection))
    return results


class Task:
    """A task instance over its tries: Airflow keeps its state, and forgets its XComs at each."""

    def __init__(self, values: Values | None = None, **arguments: Any) -> None:
        self.values = values
        self.tries = 0
        self.xcoms: dict[str, Any] = {}
        self._arguments = {
            "task_id": "t",
            "source": ROWS,
            "prompt": "{{ row.text }}",
            "checkpoint": "xcom",
            **arguments,
        }

    def attempt(self) -> Any:
        self.tries += 1
        self.xcoms = {}
        ti = SimpleNamespace(
            dag_id="d",
            task_id="t",
            run_id="r",
            map_index=-1,
            try_number=self.tries,
            max_tries=3,
            xcom_push=lambda key, value: self.xcoms.update({key: json.loads(json.dumps(value))}),
        )
        context: Any = {"ti": ti, "dag_run": SimpleNamespace(run_after=None, logical_date=None), "params": {}}
        if self.values is not None:
            context["task_state_store"] = self.values
        return LLMBatchOperator(**self._arguments).execute(context)


def test_results_are_an_xcom_and_nothing_lies_on_storage(airflow: Path) -> None:
    task = Task(Values())
    manifest = task.attempt()
    assert [row["custom_id"] for row in task.xcoms["results"]] == [row["custom_id"] for row in ROWS]
    assert all(row["output"] for row in task.xcoms["results"])
    assert (manifest["counts"]["succeeded"], manifest["result_path"]) == (7, "xcom://d/r/t")
    assert "dead_letters" not in task.xcoms
    assert not airflow.exists()


def test_a_retry_asks_for_what_is_left(stub: StubVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__FLUSH_ROWS", "1")
    stub.behaviour.delay_s = 0.02
    values = Values()
    task = Task(values, max_in_flight=1)
    values.dies_at = 40
    with pytest.raises(AirflowException, match="StorageError"):
        task.attempt()
    assert not task.xcoms
    kept, asked = values.reborn(), stub.received
    task.values = kept
    stub.behaviour.delay_s = 0
    task.attempt()
    assert len(task.xcoms["results"]) == 7
    assert 0 < stub.received - asked < 7


def test_cleared_a_finished_run_hands_its_results_on_again(stub: StubVLLM) -> None:
    task = Task(Values())
    task.attempt()
    first = task.xcoms
    task.attempt()
    assert task.xcoms == first
    assert stub.received == 7


def test_where_too_much_errs_results_and_dead_letters_are_handed_on_all_the_same(stub: StubVLLM) -> None:
    stub.behaviour.fault = lambda request, _: Fault.bad_request("no") if "text 3" in json.dumps(request) else None
    task = Task(Values(), max_error_rate=0)
    with pytest.raises(AirflowFailException, match="TooManyErrorsError"):
        task.attempt()
    assert [row["status"] for row in task.xcoms["results"]].count("errored") == 1
    assert [letter["custom_id"] for letter in task.xcoms["dead_letters"]] == ["doc-3"]


def test_an_airflow_that_keeps_no_state_says_so_before_anything_is_sent(stub: StubVLLM) -> None:
    with pytest.raises(AirflowFailException, match=r"needs Airflow 3\.3 or newer.*result_path on object storage"):
        Task(None).attempt()
    assert stub.received == 0


def test_too_many_rows_say_so_before_anything_is_sent(stub: StubVLLM) -> None:
    rows = [{"text": "x"}] * 10_001
    with pytest.raises(AirflowFailException, match=r"10,001 rows.*may have 10,000.*object storage"):
        Task(Values(), source=rows).attempt()
    assert stub.received == 0


def test_answers_that_are_too_large_fail_without_a_retry(mocker: MockerFixture) -> None:
    small = partial(StateFiles, most_bytes=4000)
    mocker.patch("airflow_llm_provider.operators.checkpoint.StateFiles", small)
    with pytest.raises(AirflowFailException, match=r"may keep 4,000\. .*object storage"):
        Task(Values(), source=ROWS * 20).attempt()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"checkpoint": "redis"}, "checkpoint is 'storage' or 'xcom', not 'redis'"),
        ({"checkpoint": "xcom", "result_path": "s3://b/x"}, "there is no result_path; give one of them"),
    ],
)
def test_what_a_dag_may_say(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LLMBatchOperator(task_id="t", source=ROWS, prompt="{{ row.text }}", **arguments)


def test_tasks_that_share_a_run_keep_it_on_storage() -> None:
    with pytest.raises(ConfigurationError, match="keep it on object storage"):
        LLMBatchGroup("g", source=ROWS, prompt="{{ row.text }}", checkpoint="xcom")
