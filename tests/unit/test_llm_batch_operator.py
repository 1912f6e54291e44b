"""The operator with a light context; a real scheduler is in tests/system."""

from __future__ import annotations

import datetime as dt
import json
import logging
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.configuration import conf
from airflow.sdk import DAG, NEVER_EXPIRE, Asset, ObjectStoragePath, task
from batch_fakes import IDENTITY, part_lines, texts, write_rows

from airflow_llm_provider import exceptions
from airflow_llm_provider.batch.execution import EmptySourceSkip
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError, NoRetryError, RunMissingError
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException, AirflowSkipException
from airflow_llm_provider.operators import llm_batch
from airflow_llm_provider.operators.context import NAMES, prompt_context
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator, ResultsLink
from airflow_llm_provider.operators.marker import RunMarker
from airflow_llm_provider.operators.paths import browse_link, result_uri
from airflow_llm_provider.results import read_results
from airflow_llm_provider.sinks import Parquet
from airflow_llm_provider.sources import Files, Query, source_of
from airflow_llm_provider.storage.jsonl import JsonlSource
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.spool import SpooledSource
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


SECRET = "sk-very-secret-key"
AT = dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)
IDENTITY_HERE = RunIdentity(dag_id="d", task_id="t", run_id="manual__x:y")


class States(dict[str, Any]):
    """Airflow's task state store."""

    def set(self, key: str, value: Any, *, retention: Any) -> None:
        assert retention is NEVER_EXPIRE
        self[key] = value


def context_of(*, states: States | None = None, dated: bool = True, **ti: Any) -> Any:
    values: dict[str, Any] = {
        "ti": SimpleNamespace(
            **{"dag_id": "d", "task_id": "t", "run_id": "manual__x:y", "map_index": -1, "try_number": 1, "max_tries": 3}
            | ti
        ),
        "dag_run": SimpleNamespace(run_after=AT, logical_date=AT if dated else None),
        "params": {"tone": "dry", "day": AT},
    }
    if dated:
        values |= {"ds": "2026-01-02", "ts": AT.isoformat()}
    if states is not None:
        values["task_state_store"] = states
    return values


def operator(**arguments: Any) -> LLMBatchOperator:
    return LLMBatchOperator(**{"task_id": "t", "source": [{"text": "hi"}], "prompt": "Say {{ row.text }}", **arguments})


@pytest.fixture
def results(stub: StubVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default connection leads to the stub, and results lie below the returned folder."""
    stub.behaviour.api_key = SECRET
    connection = {"conn_type": "vllm", "host": stub.url, "password": SECRET, "extra": {"slots": 5}}
    monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__RESULTS_BASE", f"file://{tmp_path}/results")
    return tmp_path / "results"


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": None}, None),  # rows may be batch lines
        ({"prompt": "{{ rwo.text }}"}, "rwo, which does not exist"),
        ({"prompt": "{{ row.text"}, "no valid template"),
        ({"prompt": "x", "messages": []}, "not both"),
        ({"prompt": None, "temperature": 0.5}, "temperature: without prompt"),
        ({"temperature": 0.5, "extra_body": {"temperature": 1}}, "temperature: given as an argument and in extra_body"),
        ({"extra_body": {"model": "m"}}, "extra_body may not hold model"),
        ({"extra_body": {"a": {1}}}, "JSON cannot say"),
        ({"endpoint": "rerank"}, "endpoint is one of"),
        ({"chunk_rows": 0}, "chunk_rows must be a whole number"),
        ({"chunk_rows": True}, "chunk_rows must be a whole number"),
        ({"chunk_rows": "10"}, "chunk_rows must be a whole number"),
        ({"max_in_flight": 0}, "max_in_flight must be a whole number"),
        ({"max_in_flight": 1.5}, "max_in_flight must be a whole number"),
        ({"max_error_rate": 2}, "between 0 and 1"),
        ({"shift": 1800}, "shift must be a timedelta of 0:01:00 or more, not 1800"),
        ({"shift": dt.timedelta(seconds=59)}, "shift must be a timedelta of 0:01:00 or more"),
        ({"fruitless_retries": -1}, "fruitless_retries must be a whole number of 0 or more"),
        ({"fruitless_retries": True}, "fruitless_retries must be a whole number"),
        ({"fruitless_retries": "3"}, "fruitless_retries must be a whole number"),
        ({"prompt": "{{ params.tone }} {{ ds }} {{ run_after }} {{ map_index }}"}, None),
    ],
)
def test_arguments_are_judged_when_the_dag_is_parsed(arguments: dict[str, Any], words: str | None) -> None:
    if words is None:
        operator(**arguments)
    else:
        with pytest.raises(ConfigurationError, match=words):
            operator(**arguments)


def test_retries_are_three_unless_somebody_says_otherwise() -> None:
    with DAG("plain", schedule=None):
        assert operator().retries == 3
        assert operator(task_id="none", retries=0).retries == 0
        mapped = LLMBatchOperator.partial(task_id="mapped", prompt="x").expand(source=["a", "b"])
        assert mapped.retries == 3
    with DAG("defaults", schedule=None, default_args={"retries": 7}):
        assert operator().retries == 7
        assert LLMBatchOperator.partial(task_id="mapped", prompt="x").expand(source=["a"]).retries == 7


def test_the_prompt_is_no_airflow_template() -> None:
    assert set(LLMBatchOperator.template_fields) == {"source", "result_path", "vllm_conn_id", "model", "deadline"}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("/data/*.jsonl", JsonlSource),
        (Path("/data/a.jsonl"), JsonlSource),
        (["/data/a.jsonl", "/data/b.jsonl"], JsonlSource),
        (("/data/a.jsonl",), JsonlSource),
        ([{"text": "x"}], ListSource),
        (({"text": "x"},), ListSource),
        ([], ListSource),
        (Asset("file:///data/a.jsonl"), JsonlSource),
        (Query("SELECT 1", conn_id="db"), SpooledSource),
    ],
)
def test_source_kinds(source: Any, kind: type) -> None:
    assert isinstance(source_of(source), kind)


@pytest.mark.parametrize(("source", "words"), [({"a": 1}, "source is a dict"), (5, "source is a int"), ([5], "item 0")])
def test_sources_that_are_none(source: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        source_of(source)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"sql": " ", "conn_id": "db"}, "a Query needs sql"),
        ({"sql": "SELECT 1", "conn_id": ""}, "a Query needs conn_id"),
        ({"sql": "SELECT 1", "conn_id": "db", "columns": "a"}, "columns must be a list of names"),
        ({"sql": "SELECT 1", "conn_id": "db", "limit": -1}, "limit"),
    ],
)
def test_queries_that_are_none(words: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        source_of(Query(**words))


# -- where results lie


@pytest.mark.parametrize(
    ("result_path", "base", "uri"),
    [
        (None, "s3://c@b/base/", "s3://c@b/base/dag/task/run"),
        (None, "/var/results", "file:///var/results/dag/task/run"),
        ("mine/x", "s3://b/base", "s3://b/base/mine/x"),
        ("mine/x/", "file:///base", "file:///base/mine/x"),
        (" mine ", "/base", "file:///base/mine"),
        ("/elsewhere", "s3://b", "file:///elsewhere"),
        ("gs://other/x", "s3://b", "gs://other/x"),
        ("a..b/...", "/base", "file:///base/a..b/..."),
    ],
)
def test_result_paths(result_path: str | None, base: str, uri: str) -> None:
    assert result_uri(result_path, base=base, identity=IDENTITY) == uri


@pytest.mark.parametrize(
    "result_path",
    ["..", "../x", "a/../../x", "a/..", "/base/../etc", "s3://b/../c", "a\\..\\..\\x", "a?/../../x", "a#/../../../x"],
)
def test_a_result_path_cannot_climb(result_path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"holds '\.\.'"):
        result_uri(result_path, base="/base", identity=IDENTITY)


@pytest.mark.parametrize("result_path", ["", "  ", "/", "s3://"])
def test_a_result_path_that_is_empty_after_rendering(result_path: str) -> None:
    with pytest.raises(ConfigurationError, match="empty after rendering"):
        result_uri(result_path, base="/base", identity=IDENTITY)


def test_the_default_path_stays_below_its_base_whatever_the_run_is_called() -> None:
    identity = RunIdentity(dag_id="..", task_id="a/../../b", run_id="manual__2026-01-01T00:00:00+00:00")
    uri = result_uri(None, base="/base", identity=identity)
    assert uri == "file:///base/~2E~2E/a~2F..~2F..~2Fb/manual__2026-01-01T00~3A00~3A00~2B00~3A00"


def test_the_link_to_the_results() -> None:
    template = "https://console/{bucket}?prefix={key}&s={scheme}"
    assert browse_link("s3://conn@b/x/y", template) == "https://console/b?prefix=x/y&s=s3"
    assert browse_link("s3://b/x", "") == "s3://b/x"
    for wrong in ("{nosuch}", "{0}", "{"):
        with pytest.raises(ConfigurationError, match="results_link"):
            browse_link("s3://b/x", wrong)


# -- what prompts may use


def test_the_prompts_context_is_plain_values() -> None:
    values = prompt_context(context_of(), IDENTITY_HERE)
    assert json.loads(json.dumps(values)) == values
    assert values["params"] == {"tone": "dry", "day": str(AT)}
    assert values["logical_date"] == values["run_after"] == AT.isoformat()
    assert (values["ds"], values["map_index"]) == ("2026-01-02", -1)
    assert values.keys() <= NAMES


def test_a_run_without_a_logical_date_has_no_ds() -> None:
    values = prompt_context(context_of(dated=False), IDENTITY_HERE)
    assert values.keys() == {"params", "run_id", "dag_id", "task_id", "map_index", "run_after"}
    assert values["map_index"] == -1


# -- the note that a run was begun


def test_the_marker_remembers_where_the_run_was_begun() -> None:
    states = States()
    marker = RunMarker(context_of(states=states))
    assert not marker.expects("s3://b/x", rerun=False)
    marker.set("s3://b/x")
    again = RunMarker(context_of(states=states, try_number=2))
    assert again.expects("s3://b/x", rerun=False)
    with pytest.raises(RunMissingError, match=r"s3://b/x.*s3://b/y"):
        again.expects("s3://b/y", rerun=False)
    with pytest.raises(RunMissingError, match="set rerun=True and clear"):
        again.expects("s3://b/y", rerun=True)
    assert again.expects("s3://b/x", rerun=True), "a retry of a run that is done anew is none that begins it anew"
    cleared = RunMarker(context_of(states=states, try_number=3, max_tries=5))
    assert cleared.expects("s3://b/x", rerun=False)
    assert not cleared.expects("s3://b/x", rerun=True)
    assert not cleared.expects("s3://b/y", rerun=True)
    cleared.set("s3://b/y")
    assert RunMarker(context_of(states=states, try_number=4, max_tries=5)).expects("s3://b/y", rerun=True)


def test_without_a_state_store_nothing_is_expected(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    marker = RunMarker(context_of(try_number=2))
    assert not marker.expects("s3://b/x", rerun=False)
    marker.set("s3://b/x")
    assert "before 3.3" in caplog.text


# -- execute


def test_runs_a_batch_and_says_what_is_in_force(
    stub: StubVLLM, results: Path, tmp_path: Path, *, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(LLMBatchOperator, "log", logging.getLogger("operator"))  # Airflow's own goes past caplog
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__FLUSH_ROWS", "7")
    source = write_rows(tmp_path / "rows.jsonl", texts(3))
    task = operator(source=source, prompt="{{ params.tone }}: {{ row.text }}", temperature=0, chunk_rows=2)
    states = States()
    manifest = task.execute(context_of(states=states))
    folder = results / "d" / "t" / "manual__x~3Ay"
    assert manifest["counts"] == {"total": 3, "succeeded": 3, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert manifest["result_path"] == f"file://{folder}"
    assert "chunks" not in manifest
    assert json.loads(json.dumps(manifest)) == manifest
    assert [line["output"] for line in part_lines(folder)] == [f"echo: dry: text {number}" for number in range(3)]
    assert states == {"llm_batch.run": {"uri": f"file://{folder}", "epoch": 3}}
    assert ResultsLink().get_link(task, ti_key=None) == f"file://{folder}"  # type: ignore[arg-type]
    for line in (
        "vllm_conn_id = 'vllm_default'  [default]",
        f"source = '{source}'  [DAG]",
        "prompt = '{{ params.tone }}: {{ row.text }}'  [DAG]",
        "messages = None  [default]",
        "system_prompt = None  [default]",
        "extra_headers = []  [default]",
        "verify = True  [default]",
        "connect_timeout_s = 10.0  [default]",
        "request_timeout_s = 3600.0  [default]",
        "results_link = '{uri}'  [default]",
        f"base_url = '{stub.url}'  [connection vllm_default]",
        "temperature = 0  [DAG]",
        "chunk_rows = 2  [DAG]",
        "max_in_flight = 10  [connection vllm_default (2 × slots 5)]",
        "limit_law = 'adaptive'  [placement]",
        "max_error_rate = 0.1  [default]",
        "retries = 3  [default]",
        "flush_rows = 7  [provider configuration [llm_batch] flush_rows]",
        "provider configuration [llm_batch] results_base",
    ):
        assert line in caplog.text
    written = "".join(path.read_text() for path in folder.rglob("*.json*"))
    assert SECRET not in caplog.text + written + json.dumps(manifest)


def test_says_who_set_what_also_where_it_is_the_default(
    stub: StubVLLM, results: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who set a value looks for it in the log, and should not be told that nobody did."""
    caplog.set_level(logging.INFO)
    header = "Bearer-of-news"
    extra = {"request_timeout_s": 3600, "connect_timeout_s": 5, "verify": "true", "extra_headers": {"X-Team": header}}
    connection = {"conn_type": "vllm", "host": stub.url, "password": SECRET, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__FLUSH_ROWS", "100")
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__MAX_IN_FLIGHT", "64")
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__RESULTS_LINK", "https://browse/{key}")
    conf.set("llm_batch", "flush_interval_s", "2.0")  # as a line of airflow.cfg does
    try:
        task = operator(
            source=[{"text": f"private words {number}"} for number in range(3)],
            prompt=None,
            messages=[{"role": "user", "content": "Say {{ row.text }}"}],
            system_prompt="Be brief. " * 50,
        )
        task.execute(context_of())
    finally:
        conf.remove_option("llm_batch", "flush_interval_s", remove_default=False)
    for line in (
        "source = '3 rows, given as a list'  [DAG]",
        "prompt = None  [default]",
        "messages = [{'role': 'user', 'content': 'Say {{ row.text }}'}]  [DAG]",
        "… (502 characters)  [DAG]",
        "extra_headers = ['X-Team']  [connection vllm_default]",
        "verify = True  [connection vllm_default]",
        "connect_timeout_s = 5.0  [connection vllm_default]",
        "request_timeout_s = 3600.0  [connection vllm_default]",
        "max_in_flight = 64  [provider configuration [llm_batch] max_in_flight]",
        "flush_rows = 100  [provider configuration [llm_batch] flush_rows]",
        "flush_interval_s = 2.0  [provider configuration [llm_batch] flush_interval_s]",
        "results_link = 'https://browse/{key}'  [provider configuration [llm_batch] results_link]",
    ):
        assert line in caplog.text
    for secret in (SECRET, header, "private words"):
        assert secret not in caplog.text


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_configuration_value_is_none(
    results: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    caplog.set_level(logging.INFO)
    for option in ("FLUSH_ROWS", "RESULTS_LINK", "MAX_IN_FLIGHT"):
        monkeypatch.setenv(f"AIRFLOW__LLM_BATCH__{option}", value)
    operator().execute(context_of())
    assert "flush_rows = 100  [default]" in caplog.text
    assert "results_link = '{uri}'  [default]" in caplog.text


def test_a_second_try_elsewhere_finds_that_the_run_is_missing(results: Path, tmp_path: Path) -> None:
    states = States()
    task = operator()
    task.execute(context_of(states=states))
    (results / "d").rename(tmp_path / "on another worker")
    with pytest.raises(AirflowFailException, match="RunMissingError: An earlier try"):
        task.execute(context_of(states=states, try_number=2))


def test_a_number_in_the_configuration_that_is_none(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__FLUSH_ROWS", "many")
    with pytest.raises(AirflowFailException, match=r"\[llm_batch\] flush_rows is 'many', which is no int"):
        operator().execute(context_of())


def test_a_connection_that_is_not_there(results: Path) -> None:
    with pytest.raises(AirflowException, match="nowhere") as raised:
        operator(vllm_conn_id="nowhere").execute(context_of())
    assert not isinstance(raised.value, AirflowFailException), "Airflow says the same of a backend that is away"


def test_an_empty_input_skips_where_the_dag_says_so(results: Path) -> None:
    with pytest.raises(AirflowSkipException, match="on_empty='skip'"):
        operator(source=[], on_empty="skip").execute(context_of())
    with pytest.raises(AirflowFailException, match="on_empty='fail'"):
        operator(source=[], on_empty="fail").execute(context_of())
    assert operator(source=[]).execute(context_of())["counts"]["total"] == 0


ERRORS = [
    each
    for each in vars(exceptions).values()
    if isinstance(each, type) and issubclass(each, LLMBatchError) and each is not LLMBatchError
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_ends_the_task_as_its_group_says(
    results: Path, mocker: MockerFixture, error: type[LLMBatchError]
) -> None:
    mocker.patch.object(llm_batch, "run_job", side_effect=error("what happened"))
    no_retry = issubclass(error, NoRetryError)
    with pytest.raises(AirflowException, match=f"{error.__name__}: what happened") as raised:
        operator().execute(context_of())
    assert isinstance(raised.value, AirflowFailException) is no_retry


def test_a_skip_is_no_failure(results: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(llm_batch, "run_job", side_effect=EmptySourceSkip("no rows"))
    with pytest.raises(AirflowSkipException, match="no rows"):
        operator().execute(context_of())


def test_killed_from_outside_it_ends_as_a_failure_that_a_retry_mends(results: Path, mocker: MockerFixture) -> None:
    task = operator(source=texts(50))
    task.on_kill()  # before execute: nothing to stop
    whole = llm_batch.run_job

    def killed(job: Any, store: Any, switch: Any, **keywords: Any) -> Any:
        task.on_kill()
        task.on_kill()
        return whole(job, store, switch, **keywords)

    mocker.patch.object(llm_batch, "run_job", killed)
    with pytest.raises(AirflowException, match="RunStoppedError: Stopped from outside") as raised:
        task.execute(context_of())
    assert not isinstance(raised.value, AirflowFailException)
    mocker.stopall()
    assert task.execute(context_of(try_number=2))["counts"]["succeeded"] == 50


def test_files_are_rendered_in_a_copy_and_what_they_come_from_is_upstream() -> None:
    with DAG("d", schedule=None):

        @task
        def export() -> str:
            return "s3://b/x"

        files = Files("{{ ds }}/*.csv", columns=["{{ ds }}"])
        first = operator(task_id="a", source=files)
        second = operator(task_id="b", source=Files(export()))
        mapped = LLMBatchOperator.partial(task_id="c", source=Files(export()), prompt="x").expand(model=["a", "b"])
        expanded = LLMBatchOperator.partial(task_id="e", prompt="x").expand(source=[Files(export()), Files("y")])
    assert second.upstream_task_ids == {"export"}
    assert mapped.upstream_task_ids == {"export__1"}
    assert expanded.upstream_task_ids == {"export__2"}
    for day in ("2026-01-02", "2026-01-03"):
        each = copy(first)
        each.render_template_fields({"ds": day, "task": each})
        assert (each.source.paths, each.source.columns) == (f"{day}/*.csv", [day])
    assert files.paths == "{{ ds }}/*.csv"


def test_a_query_is_rendered_as_files_are() -> None:
    query = Query("SELECT '{{ ds }}'", conn_id="{{ ds }}", parameters={"day": "{{ ds }}"}, custom_id="{{ ds }}")
    each = copy(operator(source=query))
    each.render_template_fields({"ds": "2026-01-02", "task": each})
    assert each.source == Query(
        "SELECT '2026-01-02'", conn_id="2026-01-02", parameters={"day": "2026-01-02"}, custom_id="2026-01-02"
    )
    assert query.sql == "SELECT '{{ ds }}'"


def test_what_a_query_is_asked_with_is_told_to_nobody() -> None:
    query = Query("SELECT 1", conn_id="db", parameters={"key": SECRET})
    for told in (repr(query), str(query.open()), str(query.open().spec())):
        assert SECRET not in told
    assert query.open().spec() != Query("SELECT 1", conn_id="db", parameters={"key": "other"}).open().spec()
    assert query.open().spec() == Query("SELECT 1", conn_id="db", parameters={"key": SECRET}).open().spec()


def test_an_asset_is_an_inlet() -> None:
    asset = Asset("file:///data/a.jsonl")
    assert operator(source=asset).inlets == [asset]


@pytest.mark.parametrize(
    "paths",
    [
        ObjectStoragePath("file:///data/a.jsonl"),
        [ObjectStoragePath("file:///data/a.jsonl")],
        [Path("/data/a.jsonl")],
        Files(Path("/data/a.jsonl")),
        Files([ObjectStoragePath("file:///data/a.jsonl")]),
    ],
)
def test_paths_of_every_kind(paths: Any) -> None:
    assert isinstance(source_of(paths), JsonlSource)
    assert str(source_of(paths)).endswith("/data/a.jsonl")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (Files("/x.csv", columns=["a"]), "Parquet shows b, which is not among the columns that the source takes: a"),
        (Query("SELECT 1", conn_id="db", columns=["a"], custom_id="b"), "b is the rows' label: the column custom_id"),
    ],
)
def test_columns_that_rows_have_not(results: Path, source: Any, told: str) -> None:
    with pytest.raises(AirflowFailException, match=told):
        operator(source=source, sinks=Parquet(columns=["b"])).execute(context_of())
    assert not results.exists() or not list(results.iterdir())


# -- what answers must be

SCHEMA = {"type": "object", "properties": {"urgency": {"enum": ["low", "high"]}}, "required": ["urgency"]}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"output_schema": "Ticket"}, "output_schema must be"),
        ({"output_schema": SCHEMA, "extra_body": {"response_format": {}}}, "response_format: output_schema sets it"),
        ({"output_schema": SCHEMA, "extra_body": {"n": 2}}, "n: with output_schema a row has one answer"),
        ({"output_schema": SCHEMA, "on_truncated": "accept"}, "half an answer fits none"),
        ({"on_truncated": "ignore"}, "on_truncated is 'report' or 'accept'"),
        ({"retry_max_tokens": 50}, "has no effect without max_tokens"),
        ({"retry_max_tokens": 50, "max_tokens": 50}, r"retry_max_tokens \(50\) must be more than max_tokens \(50\)"),
        ({"repair_attempts": -1}, "repair_attempts must be"),
        (
            {"endpoint": "embeddings", "output_schema": SCHEMA},
            "output_schema: endpoint='embeddings' answers with vectors",
        ),
        ({"endpoint": "embeddings", "max_tokens": 5}, "max_tokens: endpoint='embeddings'"),
        ({"endpoint": "classify", "max_tokens": 5}, "max_tokens: endpoint='classify' answers with labels"),
        ({"endpoint": "score"}, "takes prompt and document"),
        ({"document": "x"}, "takes prompt and document"),
        ({"endpoint": "embeddings", "system_prompt": "x"}, "endpoint='embeddings' takes prompt"),
        ({"endpoint": "embeddings", "extra_body": {"input": "x"}}, "extra_body may not hold input"),
    ],
)
def test_what_is_wanted_of_answers_is_judged_when_the_dag_is_parsed(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        operator(**arguments)


def test_structured_output_from_end_to_end(results: Path, stub: StubVLLM, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bodies = []
    stub.behaviour.fault = lambda body, _: bodies.append(body)
    manifest = operator(output_schema=SCHEMA, max_tokens=5, retry_max_tokens=50).execute(context_of())
    assert manifest["counts"]["succeeded"] == 1
    (row,) = read_results(manifest)
    assert row.parsed == {"urgency": "low"}
    (body,) = bodies
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert "output_schema = 'output'  [DAG]" in caplog.text
    assert "retry_max_tokens = 50  [DAG]" in caplog.text
    assert (results / "d" / "t").exists()


def test_a_schema_that_the_server_is_not_told_of(results: Path, stub: StubVLLM) -> None:
    bodies = []
    stub.behaviour.fault = lambda body, _: bodies.append(body)
    task = operator(output_schema=SCHEMA, constrain_output=False, repair_attempts=1, max_error_rate=1.0)
    assert task.execute(context_of())["counts"]["invalid_output"] == 1
    assert len(bodies) == 2
    assert not any("response_format" in body for body in bodies)
    assert (results / "d" / "t").exists()


def test_a_document_is_scored_against_the_prompt(results: Path, stub: StubVLLM) -> None:
    bodies = []
    stub.behaviour.fault = lambda body, _: bodies.append(body)
    manifest = operator(endpoint="score", document="{{ row.text }}!").execute(context_of())
    assert bodies == [{"model": "stub", "text_1": "Say hi", "text_2": "hi!"}]
    (row,) = read_results(manifest)
    assert isinstance(row.parsed, float)
    assert (results / "d" / "t").exists()


def test_dead_letters_keep_what_redact_leaves(results: Path, stub: StubVLLM) -> None:
    stub.behaviour.fault = lambda *_: Fault.bad_request("hi is no prompt")
    task = operator(redact=lambda text: text.replace("hi", "-"), max_error_rate=1.0)
    manifest = task.execute(context_of())
    (letter,) = [json.loads(line) for line in next(results.rglob("dead-letter*")).read_bytes().splitlines()]
    assert letter["request"]["body"]["messages"] == [{"role": "user", "content": "Say -"}]
    assert letter["error"]["message"].endswith("- is no prompt")
    assert manifest["counts"]["errored"] == 1


def test_whole_requests_are_sent_as_they_are_and_their_answers_checked(results: Path, stub: StubVLLM) -> None:
    bodies = []
    stub.behaviour.fault = lambda body, _: bodies.append(body)
    line = {"url": "/v1/chat/completions", "body": {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}}
    task = operator(prompt=None, source=[line], output_schema=SCHEMA, repair_attempts=0, max_error_rate=1.0)
    assert task.execute(context_of())["counts"]["invalid_output"] == 1
    assert bodies == [line["body"]]
    assert (results / "d" / "t").exists()
