"""Rows that can be had once: kept beside the run, asked for once, read from the middle, whoever is killed when."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from batch_fakes import KilledStore, Try, job_of, part_lines, run, texts
from state_fakes import Values

from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.exceptions import (
    ConfigurationError,
    DuplicateIdError,
    LLMBatchError,
    SourceError,
    StorageError,
)
from airflow_llm_provider.sources import Files, FunctionSource
from airflow_llm_provider.storage import layout, opening
from airflow_llm_provider.storage import spool as spool_module
from airflow_llm_provider.storage.document import RunDocument
from airflow_llm_provider.storage.file_source import Selection
from airflow_llm_provider.storage.plain_values import plain
from airflow_llm_provider.storage.spool import SpooledSource
from airflow_llm_provider.storage.state_files import StateFiles
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.testing import StubVLLM

ROWS = 20


class Asked:
    """Rows that are others each time they are asked for."""

    def __init__(self, rows: int = ROWS) -> None:
        self.times = 0
        self._rows = rows

    def __call__(self) -> Iterator[dict[str, Any]]:
        self.times += 1
        for number in range(self._rows):
            yield {"custom_id": f"{self.times}-{number}", "text": f"asked {self.times}, {number}"}


def spooled(rows: Callable[[], Iterable[Any]], **words: Any) -> SpooledSource:
    selection = Selection(**{name: words.pop(name) for name in ("columns", "custom_id", "limit") if name in words})
    return SpooledSource(rows, name="the rows", spec="rows", selection=selection, **words)


@pytest.fixture
def small_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "OBJECT_BYTES", 300)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


def inputs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "_run" / "input").glob("*"))


@pytest.mark.usefixtures("small_objects")
@pytest.mark.parametrize("chunk_rows", [1, 3, 4, 7, ROWS, 100])
def test_every_chunk_is_read_from_its_first_row_on(store: RunStore, chunk_rows: int) -> None:
    source = spooled(Asked()).beside(store)
    scan = source.scan(chunk_rows)
    assert len(scan.snapshot["objects"]) > 2
    assert scan.plan.total_rows == scan.snapshot["rows"] == ROWS
    for number in reversed(range(len(scan.plan))):
        chunk = scan.plan.chunk(number)
        rows = list(spooled(Asked()).beside(store).rows(scan.snapshot, chunk))
        assert [row.index for row in rows] == list(range(chunk.first_index, chunk.first_index + chunk.rows))
        assert [json.loads(row.raw)["text"] for row in rows] == [f"asked 1, {row.index}" for row in rows]
        assert str(rows[0].position) == f"item {chunk.first_index}"


def test_no_rows_are_a_spool_of_none(store: RunStore) -> None:
    scan = spooled(list).beside(store).scan(4)
    assert (scan.snapshot["objects"], scan.plan) == ([], ChunkPlan(4, 0, ()))


def test_what_is_taken_of_rows(store: RunStore) -> None:
    rows = [{"id": 7, "body": "x", "more": 1}, {"id": 8, "body": "y", "more": 2}, {"id": 7, "body": "z", "more": 3}]
    source = spooled(lambda: rows, columns=("body",), custom_id="id", limit=2).beside(store)
    scan = source.scan(10)
    assert [json.loads(row.raw) for row in source.rows(scan.snapshot, scan.plan.chunk(0))] == [
        {"body": "x", "custom_id": 7},
        {"body": "y", "custom_id": 8},
    ]
    assert source.spec() == {"spool": "rows", "columns": ["body"], "custom_id": "id", "limit": 2}


def test_a_limit_asks_for_no_more_rows(store: RunStore) -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield {"text": "again"}

    assert spooled(endless, limit=3).beside(store).scan(2).plan.total_rows == 3


def test_values_that_json_has_no_word_for(store: RunStore) -> None:
    row = {
        "day": date(2026, 1, 2),
        "at": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
        "took": timedelta(seconds=1.5),
        "price": Decimal("1.10"),
        "id": UUID(int=1),
        "picture": memoryview(b"\x00\xff"),
        "nothing": float("nan"),
        "many": {1: (b"a", {2})},
    }
    source = spooled(lambda: [row]).beside(store)
    scan = source.scan(10)
    (found,) = source.rows(scan.snapshot, scan.plan.chunk(0))
    assert json.loads(found.raw) == {
        "day": "2026-01-02",
        "at": "2026-01-02T03:04:05.000678+00:00",
        "took": 1.5,
        "price": "1.10",
        "id": "00000000-0000-0000-0000-000000000001",
        "picture": "AP8=",
        "nothing": None,
        "many": {"1": ["YQ==", [2]]},
    }


@pytest.mark.parametrize(
    ("rows", "words", "error", "told"),
    [
        ([{"a": 1}, "x"], {}, SourceError, "row 1 is a str, not an object"),
        ([{"a": 1}], {"custom_id": "b"}, SourceError, "has no column b. It has: a"),
        ([{"a": 1}], {"columns": ("a", "c")}, SourceError, "has no column c"),
        ([{"custom_id": "x"}, {"custom_id": "y"}, {"custom_id": "x"}], {}, DuplicateIdError, "item 0 and item 2"),
        ([{"i": 1}, {"i": 1}], {"custom_id": "i"}, DuplicateIdError, "custom_id '1' stands twice"),
        ([{"a": 1}] * 4, {"most_rows": 3}, ConfigurationError, "more than the 3 rows"),
    ],
)
def test_rows_that_are_none(
    store: RunStore, rows: list[Any], words: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        spooled(lambda: rows, **words).beside(store).scan(2)


@pytest.mark.usefixtures("small_objects")
def test_a_label_that_is_repeated_is_found_among_spilled_ones(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_llm_provider.storage.duplicates.IN_MEMORY_ROWS", 5)
    rows = [{"custom_id": f"r{number % 30}", "text": "x" * 20} for number in range(40)]
    with pytest.raises(DuplicateIdError, match="custom_id 'r0' stands twice in the source: item 0 and item 30"):
        spooled(lambda: rows).beside(store).scan(7)


# -- whole runs


@pytest.mark.usefixtures("small_objects")
def test_a_run_asks_once_and_tidies_up(stub: StubVLLM, store: RunStore, tmp_path: Path) -> None:
    asked = Asked()
    manifest = run(job_of(stub, spooled(asked)), store)
    assert manifest["counts"]["succeeded"] == ROWS
    assert asked.times == 1
    assert [line["custom_id"] for line in part_lines(tmp_path / "run")] == [f"1-{number}" for number in range(ROWS)]
    assert inputs(tmp_path) == [], "the rows are kept until the run is finished, and no longer"
    assert run(job_of(stub, spooled(asked)), store) == manifest, "a finished run is not asked for again"
    assert asked.times == 1


@pytest.mark.usefixtures("small_objects")
@pytest.mark.parametrize("how", ["before", "after", "half"])
def test_killed_at_each_change_it_resumes_with_the_same_rows(stub: StubVLLM, tmp_path: Path, how: str) -> None:
    at, middle = 0, 0
    while True:
        at += 1
        folder = tmp_path / f"{at}"
        asked = Asked()
        store = KilledStore(str(folder / "run"), at=at, how=how)
        try:
            run(job_of(stub, spooled(asked)), store)
        except LLMBatchError:
            began = (folder / "run" / "_run" / "run.json").exists()
        else:
            assert at > 12, "15 changes are the least that a busy machine was seen to need"
            assert middle >= 3, "each part is a change of its own, however many a flush takes in"
            break
        middle += 0 < len(store.kept) < ROWS
        after = Try(job_of(stub, spooled(asked), try_number=2, must_exist=began), RunStore(str(folder / "run")))
        assert after()["counts"]["succeeded"] == ROWS
        assert asked.times == (1 if began else 2), "asked again although the run was begun"
        found = [line["custom_id"] for line in part_lines(folder / "run")]
        assert found == [f"{asked.times}-{number}" for number in range(ROWS)]
        assert not store.kept & set(after.requested(stub)), "what was kept was asked of the model again"
        assert inputs(folder) == []


@pytest.mark.usefixtures("small_objects")
def test_a_rerun_asks_anew_and_leaves_nothing_of_before(stub: StubVLLM, store: RunStore, tmp_path: Path) -> None:
    asked = Asked()
    job = job_of(stub, spooled(asked))
    first = run(job, store)
    again = replace(job, source=spooled(asked), rerun=True, epoch=1, try_number=2)
    second = run(again, RunStore(str(tmp_path / "run")))
    assert (asked.times, second["generation"]) == (2, 2)
    assert second["fingerprint"] != first["fingerprint"]
    assert {line["custom_id"][0] for line in part_lines(tmp_path / "run")} == {"2"}
    assert inputs(tmp_path) == []


@pytest.mark.usefixtures("small_objects")
def test_another_query_is_another_run(stub: StubVLLM, store: RunStore, tmp_path: Path) -> None:
    asked = Asked()
    run(job_of(stub, spooled(asked)), store)
    other = SpooledSource(asked, name="the rows", spec="other rows")
    with pytest.raises(LLMBatchError, match=r"source\.spool was 'rows' and is 'other rows' now"):
        run(job_of(stub, other), store)
    manifest = run(job_of(stub, other, on_stale="restart"), RunStore(str(tmp_path / "run")))
    assert (manifest["generation"], asked.times) == (2, 2)


@pytest.mark.usefixtures("small_objects")
@pytest.mark.parametrize("damage", ["gone", "changed", "shorter"])
def test_rows_that_were_lost_end_the_run(stub: StubVLLM, tmp_path: Path, damage: str) -> None:
    asked = Asked()
    store = KilledStore(str(tmp_path / "run"), at=7)
    with pytest.raises(LLMBatchError):
        run(job_of(stub, spooled(asked)), store)
    assert (tmp_path / "run" / "_run" / "run.json").exists()
    *_, last = sorted((tmp_path / "run" / "_run" / "input").glob("*"))
    data = last.read_bytes()
    last.write_bytes(data.replace(b"asked", b"aXked") if damage == "changed" else data[:-5])
    if damage == "gone":
        last.unlink()
    with pytest.raises(SourceError, match="is gone, or was changed: the rows of the rows lie there"):
        run(job_of(stub, spooled(asked), try_number=2), RunStore(str(tmp_path / "run")))
    assert asked.times == 1
    manifest = run(job_of(stub, spooled(asked), try_number=3, on_stale="restart"), RunStore(str(tmp_path / "run")))
    assert (manifest["counts"]["succeeded"], asked.times) == (ROWS, 2)


def test_a_store_that_fails_while_it_spools_loses_nothing(stub: StubVLLM, tmp_path: Path) -> None:
    asked = Asked()
    with pytest.raises(StorageError):
        run(job_of(stub, spooled(asked)), KilledStore(str(tmp_path / "run"), at=1))
    assert (
        run(job_of(stub, spooled(asked), try_number=2), RunStore(str(tmp_path / "run")))["counts"]["succeeded"] == ROWS
    )


def test_it_may_be_kept_in_airflow(stub: StubVLLM) -> None:
    values = Values()
    store = RunStore("xcom://dag/task/run", files=StateFiles(values))
    asked = Asked()
    assert run(job_of(stub, spooled(asked), chunk_rows=100), store)["counts"]["succeeded"] == ROWS
    assert asked.times == 1
    assert not [key for key in values.kept if "input" in key]


def test_a_row_that_json_cannot_say_is_one_bad_row(stub: StubVLLM, store: RunStore, tmp_path: Path) -> None:
    rows = [{"text": "fine"}, {"text": 2**70}, {"text": "half \ud800"}, {"text": object()}, {"text": "fine"}]
    manifest = run(job_of(stub, spooled(lambda: rows)), store)
    assert manifest["counts"]["errored"] == 3
    lines = part_lines(tmp_path / "run")
    assert [line["status"] for line in lines] == ["succeeded", "errored", "errored", "errored", "succeeded"]
    assert "item 3: it holds what JSON cannot say: JSON has no word for a object" in lines[3]["error"]["message"]


def test_numbers_of_other_kinds_are_numbers() -> None:
    """NumPy's are registered with these."""

    @Integral.register
    class Whole:
        def __int__(self) -> int:
            return 7

    assert plain({"n": Whole(), "x": Fraction(1, 2), "nan": float("inf")}) == {"n": 7, "x": 0.5, "nan": None}


@pytest.mark.usefixtures("small_objects")
def test_a_try_that_does_not_begin_leaves_nothing(stub: StubVLLM, tmp_path: Path) -> None:
    asked = Asked()
    stub.behaviour.api_key = "another"
    for _ in range(3):
        with pytest.raises(LLMBatchError):
            run(job_of(stub, spooled(asked)), RunStore(str(tmp_path / "run")))
    twice = [*({"custom_id": f"{number}", "text": "x" * 50} for number in range(20)), {"custom_id": "7"}]
    with pytest.raises(DuplicateIdError):
        run(job_of(stub, spooled(lambda: twice)), RunStore(str(tmp_path / "run")))
    assert inputs(tmp_path) == []
    assert asked.times == 3


def test_what_a_killed_try_left_goes_when_a_run_begins(stub: StubVLLM, store: RunStore, tmp_path: Path) -> None:
    left = tmp_path / "run" / "_run" / "input" / "0badf00d-00000.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text('{"text": "of another call"}\n')
    assert run(job_of(stub, spooled(Asked())), store)["counts"]["succeeded"] == ROWS
    assert inputs(tmp_path) == []


def test_an_end_that_tidies_up_late_leaves_its_successors_rows(stub: StubVLLM, tmp_path: Path) -> None:
    """It has listed what to remove when a rerun is getting ready, and stands still; the rerun goes on."""
    folder = str(tmp_path / "run")
    asked = Asked()
    first = run(job_of(stub, spooled(asked)), RunStore(folder))
    document = RunDocument.decode(RunStore(folder).read(layout.RUN) or b"", uri="")
    rerun = spooled(asked).beside(RunStore(folder))
    scan = rerun.scan(4)
    late = RunStore(folder)
    opening.tidy(late, opening.untidy(late, document, keeps_input=False))
    assert len(inputs(tmp_path)) == len(scan.snapshot["objects"])
    again = run(job_of(stub, spooled(asked), rerun=True, epoch=1, try_number=2), RunStore(folder))
    assert (first["generation"], again["generation"]) == (1, 2)
    assert inputs(tmp_path) == []


# -- functions


def test_other_arguments_are_another_run(stub: StubVLLM, tmp_path: Path) -> None:
    def job(word: str) -> BatchJob:
        return job_of(stub, FunctionSource(lambda: [{"text": word}], name="rows", arguments={"op_args": [word]}))

    run(job("one"), RunStore(str(tmp_path / "run")))
    with pytest.raises(LLMBatchError, match=r"source\.arguments was 'sha256:"):
        run(job("two"), RunStore(str(tmp_path / "run")))
    assert stub.received == 1


def test_one_that_says_something_else_in_the_next_try_ends_the_run(stub: StubVLLM, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts(9)))
    said = iter([Files(str(path)), Files(str(path), columns=["text"])])
    first = job_of(stub, FunctionSource(lambda: next(said), name="where"))
    with pytest.raises(LLMBatchError):
        run(first, KilledStore(str(tmp_path / "run"), at=6))
    with pytest.raises(SourceError, match=r"where\(\) says now that its rows are .*columns"):
        run(job_of(stub, FunctionSource(lambda: next(said), name="where")), RunStore(str(tmp_path / "run")))


def test_a_function_that_says_where_rows_lie_is_asked_in_each_try(stub: StubVLLM, tmp_path: Path) -> None:
    calls = []
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts(9)))

    def where() -> Files:
        calls.append(1)
        return Files(str(path))

    store = KilledStore(str(tmp_path / "run"), at=6)
    with pytest.raises(LLMBatchError):
        run(job_of(stub, FunctionSource(where, name="where")), store)
    manifest = run(job_of(stub, FunctionSource(where, name="where"), try_number=2), RunStore(str(tmp_path / "run")))
    assert manifest["counts"]["succeeded"] == 9
    assert len(calls) == 2
    assert inputs(tmp_path) == [], "files lie where they lie"


def test_a_function_that_returns_rows_is_called_once(stub: StubVLLM, tmp_path: Path) -> None:
    asked = Asked()
    store = KilledStore(str(tmp_path / "run"), at=8)
    with pytest.raises(LLMBatchError):
        run(job_of(stub, FunctionSource(asked, name="rows")), store)
    again = FunctionSource(asked, name="rows")
    assert str(again) == "what rows() returns"
    assert run(job_of(stub, again, try_number=2), RunStore(str(tmp_path / "run")))["counts"]["succeeded"] == ROWS
    assert asked.times == 1


@pytest.mark.parametrize("value", [None, 5, {"a": 1}, b"x", object()])
def test_what_a_function_may_not_return(stub: StubVLLM, store: RunStore, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"rows\(\) returned a .*: it must return rows"):
        run(job_of(stub, FunctionSource(lambda: value, name="rows")), store)


def test_what_a_function_raises_is_its_own(stub: StubVLLM, store: RunStore) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield {"text": "x"}
        raise LookupError("no such mailbox")

    with pytest.raises(LookupError, match="no such mailbox"):
        run(job_of(stub, FunctionSource(broken, name="rows")), store)
