"""Results as Parquet and as OpenAI's Batch API writes them: read by their own readers, resumed, added later."""

from __future__ import annotations

import json
from datetime import date  # noqa: TC003 - pydantic reads it
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_fakes import KilledStore, job_of, part_lines, run, texts, write_rows
from openai.types.chat import ChatCompletion
from openai.types.completion import Completion as TextCompletion
from pydantic import BaseModel, computed_field, field_serializer
from test_answers import Script, answer

from airflow_llm_provider.core.answers import AnswerRules
from airflow_llm_provider.core.output_schema import OutputSchema
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError, SinkError, SourceError
from airflow_llm_provider.sinks import OpenAIBatch, Parquet, sinks_of
from airflow_llm_provider.storage.sink_openai import OpenAISink
from airflow_llm_provider.storage.sink_parquet import COLUMNS, ParquetSink, arrow_type
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.spool import SpooledSource
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from airflow_llm_provider.batch.job import BatchJob


class Ticket(BaseModel):
    urgency: Literal["low", "high"]
    words: int
    tags: list[str] = []


CLOSED = {"properties": {"a": {"type": "integer"}}, "type": "object", "additionalProperties": False}


class Computed(BaseModel):
    day: date

    @computed_field
    def year(self) -> int:
        return self.day.year

    @field_serializer("day")
    def _iso(self, day: date) -> str:
        return day.isoformat()


GOOD = '{"urgency": "low", "words": 3, "tags": ["a"]}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def table_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("results-*.parquet"))])


def read_openai(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def mixed(tmp_path: Path) -> tuple[Script, str]:
    """Rows of every outcome, and what the stub says to them."""
    rows = [{**row, "n": number, "more": {"x": number}} for number, row in enumerate(texts(6))]
    script = Script(
        {
            "text 1": [answer("{}")],
            "text 2": [Fault.bad_request("too long")],
            "text 3": [answer(None, tool_calls=[])],
            "": [answer(GOOD)],
        }
    )
    return script, write_rows(tmp_path / "rows.jsonl", [*rows, b"no json", {"custom_id": "no text"}])


def test_parquet_has_one_schema_and_every_row(tmp_path: Path, folder: Path) -> None:
    script, source = mixed(tmp_path)
    rules = AnswerRules(schema=OutputSchema(Ticket), repair_attempts=0)
    with StubVLLM(fault=script) as stub:
        job = job_of(stub, source, answers=rules, sinks=(ParquetSink(columns=["n", "text", "more"]),))
        manifest = run(job, RunStore(str(folder)))
    table = table_of(folder)
    assert len({pq.read_schema(path).remove_metadata() for path in folder.glob("results-*.parquet")}) == 1
    assert table.column_names == ["n", "text", "more", *COLUMNS]
    assert table.schema.field("parsed").type == pa.struct(
        [("urgency", pa.string()), ("words", pa.int64()), ("tags", pa.list_(pa.string()))]
    )
    rows, lines = table.to_pylist(), part_lines(folder)
    assert [row["index"] for row in rows] == list(range(8))
    for row, line in zip(rows, lines, strict=True):
        for name in ("custom_id", "status", "output", "parsed", "finish_reason", "attempts"):
            assert row[name] == line[name], name
        assert row["completion_tokens"] == line["usage"]["completion_tokens"]
        assert row["error_kind"] == (line["error"] or {}).get("kind")
        assert row["http_status"] == (line["error"] or {}).get("http_status")
    assert (rows[0]["n"], rows[0]["text"], rows[0]["more"]) == ("0", "text 0", '{"x":0}')
    assert [row["n"] for row in rows[-2:]] == [None, None], "a line that is no JSON, and one without the field"
    told = manifest["sinks"]["parquet"]
    assert {name: told[name] for name in ("columns", "compression")} == {
        "columns": ["n", "text", "more"],
        "compression": "zstd",
    }
    assert {str(path) for path in folder.glob(Path(told["files"]).name)} == set(map(str, folder.glob("results-*")))
    assert {row["status"] for row in rows} == {"succeeded", "invalid_output", "errored"}


def test_without_a_schema_parsed_is_empty_text(stub: StubVLLM, tmp_path: Path, folder: Path) -> None:
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", texts(3)), sinks=(ParquetSink(),))
    run(job, RunStore(str(folder)))
    table = table_of(folder)
    assert table.schema.field("parsed").type == pa.string()
    assert table.column("parsed").null_count == 3
    assert table.column_names == list(COLUMNS)


def test_a_run_without_rows_has_a_file_without_rows(stub: StubVLLM, folder: Path) -> None:
    manifest = run(job_of(stub, ListSource([]), sinks=(ParquetSink(), OpenAISink())), RunStore(str(folder)))
    assert table_of(folder).num_rows == 0
    output = manifest["sinks"]["openai_batch"]
    assert output["errors"] is None
    assert read_openai(folder / output["output"].rpartition("/")[2]) == []


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (Ticket, "struct<urgency: string, words: int64, tags: list<item: string>>"),
        (list[Ticket], "list<item: struct<urgency: string, words: int64, tags: list<item: string>>>"),
        (Literal["a", "b"], "string"),
        (int | None, "int64"),
        (float, "double"),
        (bool, "bool"),
        (int | str, None),
        (dict[str, int], None),
        (tuple[int, str], None),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, None),
        ({**CLOSED, "patternProperties": {"^z": {}}}, None),
        (Computed, "struct<day: string>"),
        (
            {"properties": {"a": {"type": "integer"}}, "type": "object", "additionalProperties": False},
            "struct<a: int64>",
        ),
        ({"type": ["integer", "null"]}, "int64"),
        ({"type": ["integer", "string"]}, None),
        ({"const": 5}, None),
        ({}, None),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"items": {"$ref": "#/$defs/x"}, "type": "array"}}}, None),
    ],
)
def test_the_type_of_a_schema(schema: Any, kind: str | None) -> None:
    wanted = OutputSchema(schema)
    found = arrow_type(wanted.landed, closed=wanted.typed)
    assert (None if found is None else str(found)) == kind


def test_a_text_is_a_text_where_that_is_what_was_wanted(tmp_path: Path, folder: Path) -> None:
    rules = AnswerRules(schema=OutputSchema(Literal["a", "b"]))
    with StubVLLM(fault=lambda *_: answer('"a"')) as stub:
        run(job_of(stub, ListSource(texts(1)), answers=rules, sinks=(ParquetSink(),)), RunStore(str(folder)))
    assert table_of(folder).column("parsed").to_pylist() == ["a"]
    assert tmp_path.exists()


def test_a_value_that_does_not_fit_is_null_and_stands_in_output(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run must not want for its manifest because of what a model said."""
    rules = AnswerRules(schema=OutputSchema({"type": "integer"}))
    script = Script({"text 1": [answer("9223372036854775808")], "text 2": [answer("1e30")], "": [answer("7")]})
    with StubVLLM(fault=script) as stub:
        job = job_of(stub, ListSource(texts(4)), answers=rules, sinks=(ParquetSink(),))
        assert run(job, RunStore(str(folder)))["counts"]["succeeded"] == 4
    table = table_of(folder)
    assert table.column("parsed").to_pylist() == [7, None, None, 7]
    assert table.column("output").to_pylist()[1] == "9223372036854775808"
    assert "Row 1: parsed is null in Parquet" in caplog.text


def test_fields_of_rows_that_are_dead_letters_are_shown_as_they_can_be(stub: StubVLLM, folder: Path) -> None:
    rows = [{"text": "fine", "x": 1}, {"text": "half \ud800", "x": {"n": 10**30}}]
    sinks = (ParquetSink(columns=["text", "x"]), OpenAISink())
    manifest = run(job_of(stub, ListSource(rows), sinks=sinks), RunStore(str(folder)))
    assert manifest["counts"]["errored"] == 1
    assert table_of(folder).column("text").to_pylist() == ["fine", "half ?"]


def test_a_column_that_no_row_has_is_told_of(stub: StubVLLM, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    sinks = (ParquetSink(columns=["text", "tpyo"]),)
    run(job_of(stub, ListSource(texts(5)), sinks=sinks), RunStore(str(folder)))
    assert "No row of the input has a field tpyo" in caplog.text


def test_answers_that_are_nested_too_deeply_for_that_apis_lines(folder: Path) -> None:
    deep: Any = "x"
    for _ in range(249):
        deep = [deep]
    with StubVLLM(fault=lambda *_: answer(None, message={"role": "assistant", "tool_calls": deep})) as stub:
        run(job_of(stub, ListSource(texts(1)), sinks=(OpenAISink(),)), RunStore(str(folder)))
    assert part_lines(folder)[0]["tool_calls"] is not None
    (path,) = folder.glob("output-*.jsonl")
    (line,) = read_openai(path)
    assert line["custom_id"] == "doc-0"


def test_what_has_no_type_of_its_own_is_json(tmp_path: Path, folder: Path) -> None:
    rules = AnswerRules(schema=OutputSchema({"type": "object"}))
    with StubVLLM(fault=lambda *_: answer('{"any": [1, null]}')) as stub:
        run(job_of(stub, ListSource(texts(2)), answers=rules, sinks=(ParquetSink(),)), RunStore(str(folder)))
    assert table_of(folder).column("parsed").to_pylist() == ['{"any":[1,null]}'] * 2


# -- OpenAI's Batch API


def test_what_is_written_is_what_that_apis_own_types_read(tmp_path: Path, folder: Path) -> None:
    script, source = mixed(tmp_path)
    with StubVLLM(fault=script) as stub:
        manifest = run(job_of(stub, source, sinks=(OpenAISink(),)), RunStore(str(folder)))
    fingerprint = manifest["fingerprint"]
    assert manifest["sinks"]["openai_batch"]["output"] == f"{folder}/output-{fingerprint}.jsonl"
    output = read_openai(folder / f"output-{fingerprint}.jsonl")
    assert [line["custom_id"] for line in output] == ["doc-0", "doc-1", "doc-3", "doc-4", "doc-5"]
    assert len({line["id"] for line in output}) == 5
    for line in output:
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        body = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert body.usage is not None
        assert body.usage.total_tokens == 15
    assert output[0]["response"]["body"]["choices"][0]["message"]["content"] == GOOD
    errors = read_openai(folder / f"errors-{fingerprint}.jsonl")
    assert [line["custom_id"] for line in errors] == ["doc-2", "row-6", "no text"]
    assert errors[0]["response"]["status_code"] == 400
    assert errors[0]["response"]["body"]["error"]["message"] == "too long"
    assert (errors[1]["response"], errors[1]["error"]["code"]) == (None, "malformed_row")


EXAMPLE = """\
{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-3.5-turbo-0125", \
"messages": [{"role": "system", "content": "You are a helpful assistant."},\
{"role": "user", "content": "Hello world!"}],\
"max_tokens": 1000}}
{"custom_id": "request-2", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-3.5-turbo-0125", \
"messages": [{"role": "system", "content": "You are an unhelpful assistant."},\
{"role": "user", "content": "Hello world!"}],"max_tokens": 1000}}
"""
"""Of https://platform.openai.com/docs/guides/batch, as it stands there."""


def test_that_apis_own_example_runs_unchanged(stub: StubVLLM, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "batchinput.jsonl").write_text(EXAMPLE)
    spec = RequestSpec(renames_model=True)
    job = job_of(stub, str(tmp_path / "batchinput.jsonl"), requests=spec, model="stub", sinks=(OpenAISink(),))
    manifest = run(job, RunStore(str(folder)))
    assert manifest["counts"]["succeeded"] == 2
    (path,) = folder.glob("output-*.jsonl")
    said = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in read_openai(path)
    }
    assert said == {"request-1": "echo: Hello world!", "request-2": "echo: Hello world!"}


def test_rows_of_both_routes_are_told_apart(stub: StubVLLM, folder: Path) -> None:
    chat = {"url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "hi"}], "n": 2}}
    rows = [chat, {"url": "/v1/completions", "body": {"prompt": "hi"}}]
    run(job_of(stub, ListSource(rows), requests=RequestSpec(), sinks=(OpenAISink(),)), RunStore(str(folder)))
    (path,) = folder.glob("output-*.jsonl")
    first, second = (line["response"]["body"] for line in read_openai(path))
    assert len(ChatCompletion.model_validate(first).choices) == 2
    assert TextCompletion.model_validate(second, strict=True).choices[0].text == "echo: hi"


# -- when they are written


def job_with(stub: StubVLLM, tmp_path: Path, **changes: Any) -> BatchJob:
    source = write_rows(tmp_path / "rows.jsonl", texts(9))
    return job_of(stub, source, **{"sinks": (ParquetSink(columns=["text"]), OpenAISink()), **changes})


@pytest.mark.parametrize("how", ["before", "after"])
def test_killed_at_each_change_they_are_whole_in_the_end(stub: StubVLLM, tmp_path: Path, how: str) -> None:
    at = 0
    while True:
        at += 1
        folder = tmp_path / f"run-{at}"
        try:
            run(job_with(stub, tmp_path), KilledStore(str(folder), at=at, how=how))
        except LLMBatchError:
            manifest = run(job_with(stub, tmp_path, try_number=2), RunStore(str(folder)))
        else:
            break
        assert set(manifest["sinks"]) == {"parquet", "openai_batch"}
        assert table_of(folder).column("index").to_pylist() == list(range(9))
        (path,) = folder.glob("output-*.jsonl")
        assert len(read_openai(path)) == 9
    assert at > 10


def test_a_finished_run_gets_those_that_it_lacks_and_sends_nothing(
    stub: StubVLLM, tmp_path: Path, folder: Path
) -> None:
    store = RunStore(str(folder))
    first = run(job_with(stub, tmp_path, sinks=()), store)
    assert first["sinks"] == {}
    assert not list(folder.glob("results-*"))
    second = run(job_with(stub, tmp_path, try_number=2), store)
    assert stub.received == 9
    assert table_of(folder).num_rows == 9
    assert set(second["sinks"]) == {"parquet", "openai_batch"}
    assert {name: second[name] for name in ("fingerprint", "counts", "chunks")} == {
        name: first[name] for name in ("fingerprint", "counts", "chunks")
    }
    assert run(job_with(stub, tmp_path, try_number=3), store) == second, "and has them then"
    assert not (folder / "_run" / "lease.json").exists()


def test_a_rerun_removes_those_of_before(stub: StubVLLM, tmp_path: Path, folder: Path) -> None:
    store = RunStore(str(folder))
    run(job_with(stub, tmp_path), store)
    before = {path.name for pattern in ("results-*", "output-*") for path in folder.glob(pattern)}
    run(job_with(stub, tmp_path, rerun=True, epoch=1, try_number=2, sinks=()), store)
    assert len(before) == 4
    assert not before & {path.name for path in folder.iterdir()}


def test_columns_of_an_input_that_has_changed(stub: StubVLLM, tmp_path: Path, folder: Path) -> None:
    store = RunStore(str(folder))
    run(job_with(stub, tmp_path, sinks=()), store)
    (tmp_path / "rows.jsonl").write_text("")
    job = job_of(stub, str(tmp_path / "rows.jsonl"), sinks=(ParquetSink(columns=["text"]),))
    with pytest.raises(SourceError, match="has changed since this run began"):
        run(job, store)


@pytest.mark.parametrize("on_stale", ["fail", "restart"])
def test_rows_that_are_gone_by_then_are_no_reason_to_do_the_run_again(
    stub: StubVLLM, folder: Path, on_stale: str
) -> None:
    def job(*sinks: ParquetSink) -> BatchJob:
        source = SpooledSource(lambda: texts(6), name="rows", spec="rows")
        return job_of(stub, source, sinks=sinks, on_stale=on_stale)

    first = run(job(), RunStore(str(folder)))
    with pytest.raises(SinkError, match="leave that sink, or its columns, out, and clear the task"):
        run(job(ParquetSink(columns=["text"])), RunStore(str(folder)))
    assert stub.received == 6
    assert run(job(), RunStore(str(folder))) == first
    second = run(job(ParquetSink()), RunStore(str(folder)))
    assert (second["generation"], stub.received) == (1, 6)
    assert table_of(folder).num_rows == 6


def test_other_columns_are_another_sink(stub: StubVLLM, tmp_path: Path, folder: Path) -> None:
    first = run(job_with(stub, tmp_path), RunStore(str(folder)))
    other = (ParquetSink(columns=["custom"], compression="gzip"),)
    second = run(job_with(stub, tmp_path, sinks=other), RunStore(str(folder)))
    assert stub.received == 9
    assert second["sinks"]["parquet"]["columns"] == ["custom"]
    assert second["sinks"]["openai_batch"] == first["sinks"]["openai_batch"], "it lies there still"
    assert {name: value for name, value in second.items() if name != "sinks"} == {
        name: value for name, value in first.items() if name != "sinks"
    }
    its = sorted(folder.glob(Path(second["sinks"]["parquet"]["files"]).name))
    assert {pq.read_schema(path).names[0] for path in its} == {"custom"}
    assert len(its) == 3


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Parquet(columns="text"), "columns must be a list of names"),
        (lambda: Parquet(columns=["index"]), "index is a column of the results"),
        (lambda: Parquet(compression="lzma"), "compression is one of"),  # type: ignore[arg-type]
        (lambda: sinks_of("parquet"), "'parquet' is none"),
        (lambda: sinks_of([Parquet(), Parquet()]), "one of each kind at most"),
    ],
)
def test_words_that_cannot_be_meant(make: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        make()
    assert [type(each) for each in sinks_of((Parquet(), OpenAIBatch()))] == [Parquet, OpenAIBatch]
    assert repr(Parquet(columns=["a", "a"])) == "Parquet(columns=['a'], compression='zstd')"
