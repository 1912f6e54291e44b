"""Runs that are kept in Airflow, as the operator has them; a real scheduler is in tests/system."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, NEVER_EXPIRE
from airflow.sdk.serde import deserialize, serialize
from state_fakes import Values

from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException
from airflow_llm_provider.operators.batch_group import LLMBatchGroup
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.storage.state_files import StateFiles
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

    from airflow_llm_provider.testing import StubVLLM

AT = datetime(2026, 1, 2, 3, tzinfo=UTC)
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
        self.tries = arguments.pop("tries", 0)
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
        context: Any = {"ti": ti, "dag_run": SimpleNamespace(run_after=AT, logical_date=None), "params": {}}
        if self.values is not None:
            context["task_state_store"] = self.values
        return LLMBatchOperator(**self._arguments).execute(context)


def test_results_are_an_xcom_and_nothing_lies_on_storage(airflow: Path) -> None:
    task = Task(Values())
    manifest = task.attempt()
    assert [row["custom_id"] for row in task.xcoms["results"]] == [row["custom_id"] for row in ROWS]
    assert all(row["output"] for row in task.xcoms["results"])
    assert (manifest["counts"]["succeeded"], manifest["result_path"]) == (7, "xcom://d/t/r")
    assert task.xcoms["dead_letters"] == []
    assert task.values is not None
    assert task.values.retentions == {NEVER_EXPIRE}
    assert not airflow.exists()


def test_a_retry_asks_for_what_is_left(stub: StubVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__FLUSH_ROWS", "1")
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__FLUSH_INTERVAL_S", "0.001")
    stub.behaviour.delay_s = 0.02
    values = Values()
    task = Task(values, max_in_flight=1)
    values.dies_at = 14
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
    with pytest.raises(AirflowFailException, match=r"may keep 4,000: .*object storage"):
        Task(Values(), source=[{"text": f"text {number}"} for number in range(140)]).attempt()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"checkpoint": "redis"}, "checkpoint is 'storage' or 'xcom', not 'redis'"),
        ({"checkpoint": "xcom", "result_path": "s3://b/x"}, "there is no result_path; give one of them"),
        ({"checkpoint": "xcom", "chunk_rows": 99}, "chunk_rows must be 100 or more"),
    ],
)
def test_what_a_dag_may_say(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LLMBatchOperator(task_id="t", source=ROWS, prompt="{{ row.text }}", **arguments)


@pytest.mark.parametrize("said", [{"checkpoint": "xcom"}, {"default_args": {"checkpoint": "xcom"}}])
def test_tasks_that_share_a_run_keep_it_on_storage(said: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="keep it on object storage"), DAG("d", schedule=None):
        LLMBatchGroup("g", source=ROWS, prompt="{{ row.text }}", **said)


def test_a_state_store_that_keeps_two_tries_apart_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKERS__STATE_STORE_BACKEND", "some.Backend")
    with pytest.raises(AirflowFailException, match=r"state_store_backend is some\.Backend.*object storage"):
        Task(Values()).attempt()


def test_a_try_that_was_superseded_hands_nothing_on(mocker: MockerFixture) -> None:
    """It has written the manifest, stands still, and wakes when its successor has handed everything on."""
    values = Values()
    task = Task(values)

    def stood_still(*given: Any, **keywords: Any) -> Any:
        manifest = run_job(*given, **keywords)
        values.superseded = True
        return manifest

    mocker.patch("airflow_llm_provider.operators.llm_batch.run_job", stood_still)
    with pytest.raises(AirflowException, match="nothing of this run any more"):
        task.attempt()
    assert not task.xcoms


def test_results_that_are_not_all_there_are_not_handed_on(mocker: MockerFixture) -> None:
    values = Values()
    task = Task(values)

    def lost(job: Any, store: RunStore, *given: Any, **keywords: Any) -> Any:
        manifest = run_job(job, store, *given, **keywords)
        RunStore(store.uri, files=store._files).delete([manifest["chunks"][0]["part"]])  # whoever may
        return manifest

    mocker.patch("airflow_llm_provider.operators.llm_batch.run_job", lost)
    with pytest.raises(AirflowException, match=r"has 0 of its 7 lines"):
        task.attempt()
    assert not task.xcoms


def test_an_early_stop_hands_nothing_on(stub: StubVLLM) -> None:
    stub.behaviour.fault = lambda *_: Fault.bad_request("no")
    task = Task(Values(), max_error_rate=0.1, source=[{"text": f"text {number}"} for number in range(2000)])
    with pytest.raises(AirflowFailException, match="Stopped early"):
        task.attempt()
    assert not task.xcoms


def test_a_nul_in_an_answer_does_not_reach_postgres() -> None:
    task = Task(Values(), source=[{"text": "zero \0 and the words \\u0000"}])
    task.attempt()
    assert task.xcoms["results"][0]["output"].endswith("zero \ufffd and the words \\u0000")


def test_whoever_was_too_large_for_airflow_begins_anew_on_storage(airflow: Path, stub: StubVLLM) -> None:
    values = Values()
    Task(values).attempt()
    manifest = Task(values, checkpoint="storage", tries=1).attempt()
    assert manifest["result_path"] == f"file://{airflow}/d/t/r"
    assert stub.received == 14


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ({"__id__": 1}, {"___id__": 1}),
        (
            {"__classname__": "x", "__data__": [{"__version__": 2}]},
            {"___classname__": "x", "___data__": [{"___version__": 2}]},
        ),
        ({"__type": "set", "__var": [1]}, {"___type": "set", "___var": [1]}),
        ({"__other__": "__id__", "_id": "\0"}, {"__other__": "__id__", "_id": "\N{REPLACEMENT CHARACTER}"}),
    ],
)
def test_keys_that_mean_something_to_airflow_arrive(
    stub: StubVLLM, *, odd: dict[str, Any], shown: dict[str, Any]
) -> None:
    """In a request that was refused, and in a tool call: pushing them would fail, or make something else of them."""
    line = {"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": [], "metadata": odd}}
    stub.behaviour.fault = lambda _body, _nth: Fault.bad_request()
    task = Task(Values(), source=[line], prompt=None, max_error_rate=1.0)
    task.attempt()
    (letter,) = task.xcoms["dead_letters"]
    assert letter["request"]["body"]["metadata"] == shown
    assert deserialize(serialize(task.xcoms["dead_letters"])) == task.xcoms["dead_letters"]


def test_dead_letters_are_not_counted_twice(stub: StubVLLM, mocker: MockerFixture) -> None:
    """Those of the chunks go when the run's own are put together of them."""
    stub.behaviour.fault = lambda _body, _nth: Fault.bad_request()
    rows = [{"text": "x" * 30_000} for _ in range(100)]
    task = Task(Values(), source=rows, max_error_rate=1.0)
    task.attempt()
    letters = sum(len(json.dumps(letter)) for letter in task.xcoms["dead_letters"])
    results = sum(len(json.dumps(row)) for row in task.xcoms["results"])
    small = partial(StateFiles, most_bytes=letters + results + 100_000)
    mocker.patch("airflow_llm_provider.operators.checkpoint.StateFiles", small)
    again = Task(Values(), source=rows, max_error_rate=1.0)
    again.attempt()
    assert len(again.xcoms["dead_letters"]) == 100
    assert letters > results + 100_000, "twice would have been too much"
