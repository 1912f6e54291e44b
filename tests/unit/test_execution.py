"""Runs from beginning to end against a stub: begin, resume, finish, rerun, stale, restart, empty, stop."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import (
    IDENTITY,
    HookedStore,
    KilledStore,
    Try,
    dead_letter,
    job_of,
    kept_indices,
    part_lines,
    run,
    texts,
    write_rows,
)

from airflow_llm_provider.batch import reporter
from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.batch.execution import EmptySourceSkip
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.control_law import ControlLaw
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.release import Terms
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.core.window_text import parse_windows
from airflow_llm_provider.endpoint.load import LoadReader
from airflow_llm_provider.exceptions import (
    ConfigurationError,
    EndpointDownError,
    EndpointRefusedError,
    ForeignRunError,
    RunMissingError,
    RunStoppedError,
    SourceError,
    StaleRunError,
    StorageError,
    TooManyErrorsError,
)
from airflow_llm_provider.storage.jsonl import JsonlSource
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests lose no power; half their time would be spent on it."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", texts(10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(folder: Path) -> RunStore:
    return RunStore(str(folder))


def outputs(folder: Path) -> list[str]:
    return [line["output"] for line in part_lines(folder)]


def kill(job: Any, folder: Path, *, at: int) -> None:
    killed = KilledStore(str(folder), at=at, how="after")
    with pytest.raises(StorageError):
        run(job, killed)


# -- landing


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (10, {}),
        (1, {}),
        (7, {"max_in_flight": 1}),
        (7, {"chunk_rows": 1}),
        (5, {"chunk_rows": 1, "max_in_flight": 1, "flush_rows": 1}),
        (300, {"chunk_rows": 1000, "max_in_flight": 64, "flush_rows": 100, "flush_interval_s": 2.0}),
        (300, {"chunk_rows": 7, "max_in_flight": 64}),
    ],
)
def test_every_row_lands_once_in_order(
    stub: StubVLLM, tmp_path: Path, store: RunStore, folder: Path, *, rows: int, changes: dict[str, Any]
) -> None:
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", texts(rows)), **changes)
    manifest = run(job, store)
    lines = part_lines(folder)
    assert [line["index"] for line in lines] == list(range(rows))
    assert [line["custom_id"] for line in lines] == [f"doc-{index}" for index in range(rows)]
    assert all(f"text {line['index']}" in line["output"] for line in lines)
    assert manifest["counts"] == {"total": rows, "succeeded": rows, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert stub.received == rows
    assert stub.peak_in_flight <= job.terms.limit
    assert not [name for name in store.list("_run") if "journal" in name or "commits" in name or "dead" in name]


def test_a_row_of_five_megabytes(stub: StubVLLM, store: RunStore, folder: Path) -> None:
    rows = [{"text": "x" * (5 << 20)}, {"text": "short"}]
    run(job_of(stub, ListSource(rows)), store)
    assert [line["usage"]["prompt_tokens"] > 1000 for line in part_lines(folder)] == [True, False]


def test_the_last_rows_are_all_bad(stub: StubVLLM, tmp_path: Path, store: RunStore, folder: Path) -> None:
    rows = [*texts(5), *[b"{no"] * 8]
    manifest = run(job_of(stub, write_rows(tmp_path / "rows.jsonl", rows)), store)
    assert manifest["counts"] == {"total": 13, "succeeded": 5, "truncated": 0, "invalid_output": 0, "errored": 8}
    letters = [json.loads(line) for line in dead_letter(folder).read_bytes().splitlines()]
    assert [letter["source"]["line"] for letter in letters] == list(range(6, 14))


def test_where_only_rows_that_time_out_are_left_the_run_ends(
    stub: StubVLLM, tmp_path: Path, store: RunStore, folder: Path
) -> None:
    """The endpoint looks sick and is not, as it shows with a row that it has answered before: twice, but kept once."""
    bad = {f"text {number}" for number in range(10, 40)}
    stub.behaviour.fault = lambda request, _: (
        Fault.gateway(504) if any(text in json.dumps(request) for text in bad) else None
    )
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", texts(40)), max_in_flight=40, max_attempts=1)
    assert run(job, store)["counts"] == {
        "total": 40,
        "succeeded": 10,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 30,
    }
    assert [line["index"] for line in part_lines(folder)] == list(range(40))
    assert stub.received > 40


@pytest.mark.parametrize("chunk_rows", [1, 4])
def test_a_bad_first_row_is_one_bad_row(stub: StubVLLM, tmp_path: Path, store: RunStore, chunk_rows: int) -> None:
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", [b"{no", *texts(5)]), chunk_rows=chunk_rows)
    assert run(job, store)["counts"] == {"total": 6, "succeeded": 5, "truncated": 0, "invalid_output": 0, "errored": 1}


def test_where_no_row_can_become_a_request_nothing_is_begun(stub: StubVLLM, source: str, store: RunStore) -> None:
    job = job_of(stub, source, prompt="{{ row.txt }}")
    with pytest.raises(ConfigurationError, match=r"first 10 rows.*rows\.jsonl, line 1.*'txt'.*custom_id, text"):
        run(job, store)
    assert store.list("") == {}
    assert stub.received == 0


def test_everything_journalled_and_nothing_committed(
    stub: StubVLLM, source: str, store: RunStore, folder: Path
) -> None:
    """Killed at the first part, with all rows in the journal: the next try sends nothing."""

    class NoParts(HookedStore):
        def before(self, name: str) -> None:
            if name.startswith("part-"):
                # what a complete chunk had not journalled yet is lost with the process
                raise StorageError("killed")

    job = job_of(stub, source, chunk_rows=100, flush_rows=1, flush_interval_s=0.001)
    stub.behaviour.delay_s = 0.02  # so that rows settle one flush after another
    with pytest.raises(StorageError):
        run(job, NoParts(str(folder)))
    stub.behaviour.delay_s = 0
    kept = kept_indices(folder)
    assert len(kept) >= 4
    second = Try(job, store)
    second()
    assert set(second.requested(stub)) == set(range(10)) - kept
    assert sorted(line["index"] for line in part_lines(folder)) == list(range(10))


# -- finished runs


def test_clearing_a_finished_unchanged_run_sends_nothing(stub: StubVLLM, source: str, store: RunStore) -> None:
    manifest = run(job_of(stub, source), store)
    assert run(job_of(stub, source, epoch=5), store) == manifest
    assert stub.received == 10


def test_rerun_happens_once_per_clear(stub: StubVLLM, source: str, store: RunStore) -> None:
    run(job_of(stub, source, rerun=True), store)
    assert stub.received == 10
    run(job_of(stub, source, rerun=True), store)  # a retry of the same task instance
    assert stub.received == 10
    manifest = run(job_of(stub, source, rerun=True, epoch=1), store)
    assert stub.received == 20
    assert manifest["generation"] == 2
    assert run(job_of(stub, source, rerun=True, epoch=1), store) == manifest


def test_rerun_resumes_a_run_that_is_not_finished(stub: StubVLLM, source: str, store: RunStore, folder: Path) -> None:
    kill(job_of(stub, source), folder, at=5)
    kept = kept_indices(folder)
    second = Try(job_of(stub, source, rerun=True, epoch=1), store)
    assert second()["generation"] == 1
    assert not set(second.requested(stub)) & kept


@pytest.mark.parametrize("on_stale", ["fail", "restart"])
@pytest.mark.parametrize("mended", ["prompt", "source"])
def test_rerun_does_it_again_with_what_was_mended(
    stub: StubVLLM, tmp_path: Path, source: str, store: RunStore, *, mended: str, on_stale: Any
) -> None:
    """What TooManyErrorsError tells people to do: mend the cause and clear with rerun=True."""
    stub.behaviour.fault = lambda request, _: Fault.bad_request() if "Say: text 1" in json.dumps(request) else None
    with pytest.raises(TooManyErrorsError, match="rerun=True"):
        run(job_of(stub, source, tolerance=Tolerance(0.0)), store)
    changes: dict[str, Any] = {"prompt": "Sing: {{ row.text }}"} if mended == "prompt" else {}
    if mended == "source":
        write_rows(tmp_path / "rows.jsonl", [row | {"text": f"a {row['text']}"} for row in texts(10)])
    anew = job_of(stub, source, tolerance=Tolerance(0.0), rerun=True, epoch=1, on_stale=on_stale, **changes)
    manifest = run(anew, store)
    assert (manifest["generation"], manifest["counts"]["succeeded"]) == (2, 10)
    received = stub.received
    assert run(anew, store) == manifest
    assert stub.received == received


@pytest.mark.parametrize("on_stale", ["fail", "restart"])
def test_a_finished_run_whose_input_was_archived_stays_finished(
    stub: StubVLLM, tmp_path: Path, store: RunStore, *, on_stale: Any
) -> None:
    source = write_rows(tmp_path / "a.jsonl", texts(6))
    (tmp_path / "glob").mkdir()
    write_rows(tmp_path / "glob" / "b.jsonl", [{"text": "more"}])
    job = job_of(stub, JsonlSource([source, f"{tmp_path}/glob/*.jsonl"]), on_stale=on_stale)
    manifest = run(job, store)
    for path in (tmp_path / "a.jsonl", tmp_path / "glob" / "b.jsonl"):
        path.unlink()
        assert run(replace(job, epoch=5), store) == manifest
    assert stub.received == 7


def test_a_finished_run_is_still_stale_where_its_input_is_there_and_another(
    stub: StubVLLM, tmp_path: Path, source: str, store: RunStore, folder: Path
) -> None:
    run(job_of(stub, source), store)
    write_rows(tmp_path / "rows.jsonl", texts(11))
    with pytest.raises(SourceError, match="has changed"):
        run(job_of(stub, source), store)
    rows = RunStore(f"{folder}-of-rows")
    run(job_of(stub, ListSource(texts(3))), rows)
    with pytest.raises(SourceError, match="not those the run began with"):  # the upstream task gave others
        run(job_of(stub, ListSource(texts(4))), rows)


@pytest.mark.parametrize("gone", ["endpoint", "window", "input"])
def test_where_only_the_manifest_is_missing_nothing_else_is_needed(
    stub: StubVLLM, tmp_path: Path, source: str, store: RunStore, folder: Path, *, gone: str
) -> None:
    class NoManifest(HookedStore):
        def before(self, name: str) -> None:
            if name == "manifest.json":
                raise StorageError("killed")

    with pytest.raises(StorageError, match="killed"):
        run(job_of(stub, source), NoManifest(str(folder)))
    job = job_of(stub, source)
    if gone == "endpoint":
        stub.behaviour.api_key = "an endpoint that nobody needs to ask"
    elif gone == "window":
        begins = utc_now() + timedelta(hours=6)
        later = parse_windows(f"{begins:%H:%M}-{begins + timedelta(hours=1):%H:%M} UTC")
        job = replace(job, terms=Terms(limit=4, windows=later))
    else:
        (tmp_path / "rows.jsonl").unlink()
    assert run(job, store)["counts"]["succeeded"] == 10
    assert stub.received == 10


# -- what changed


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": ({"prompt": "Sing: {{ row.text }}"}, r"prompt was 'Say: .*' and is 'Sing: "),
    "system prompt": (
        {"requests": RequestSpec(prompt="Say: {{ row.text }}", system_prompt="x")},
        "system_prompt was not set and is 'x' now",
    ),
    "parameter": (
        {"requests": RequestSpec(prompt="Say: {{ row.text }}", parameters={"temperature": 0.5})},
        r"parameters.temperature was not set",
    ),
    "model": ({"model": "stub"}, "model was not set and is 'stub' now"),
    "value used in the prompt": (
        {"requests": RequestSpec(prompt="Say: {{ row.text }}{{ ds }}", context={"ds": "2026-01-01"})},
        "context.ds",
    ),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("finished", [False, True], ids=["unfinished", "finished"])
def test_what_shapes_answers_may_not_change(
    stub: StubVLLM, source: str, folder: Path, change: dict[str, Any], words: str, *, finished: bool
) -> None:
    store = RunStore(str(folder))
    if finished:
        run(job_of(stub, source), store)
    else:
        kill(job_of(stub, source), folder, at=5)
    before = stub.received
    with pytest.raises(StaleRunError, match=words):
        run(job_of(stub, source, **change), store)
    assert stub.received == before
    manifest = run(job_of(stub, source, on_stale="restart", **change), store)
    assert manifest["generation"] == 2
    assert len(outputs(folder)) == 10
    assert {line.name for line in folder.glob("part-*")} == {chunk["part"] for chunk in manifest["chunks"]}
    assert run(job_of(stub, source, on_stale="restart", **change), store) == manifest


@pytest.mark.parametrize(
    "change",
    [
        {"max_in_flight": 2},
        {"chunk_rows": 3},
        {"flush_rows": 50},
        {"tolerance": Tolerance(0.5)},
        {"requests": RequestSpec(prompt="Say: {{ row.text }}", context={"ds": "unused"})},
    ],
)
def test_what_shapes_no_answer_may_change(
    stub: StubVLLM, source: str, store: RunStore, folder: Path, change: dict[str, Any]
) -> None:
    kill(job_of(stub, source), folder, at=8)
    kept = kept_indices(folder)
    assert kept
    second = Try(job_of(stub, source, **change), store)
    assert second()["generation"] == 1
    assert not set(second.requested(stub)) & kept


def test_moving_the_endpoint_changes_no_answer(stub: StubVLLM, source: str, store: RunStore, folder: Path) -> None:
    kill(job_of(stub, source), folder, at=8)
    with StubVLLM() as other:
        assert run(job_of(other, source), store)["generation"] == 1


def test_tuples_and_floats_are_the_same_after_a_round_trip(
    stub: StubVLLM, source: str, store: RunStore, folder: Path
) -> None:
    spec = RequestSpec(prompt="{{ row.text }}", parameters={"stop": ("a", "b"), "logit_bias": {"5": -1.0}})
    kill(job_of(stub, source, requests=spec), folder, at=5)
    assert run(job_of(stub, source, requests=spec), store)["generation"] == 1


def test_a_changed_input_is_stale_and_a_late_file_is_not(
    stub: StubVLLM, tmp_path: Path, store: RunStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(tmp_path / "a.jsonl", texts(6))
    job = job_of(stub, f"{tmp_path}/*.jsonl")
    kill(job, folder, at=5)
    write_rows(tmp_path / "b.jsonl", [{"text": "late"}])
    assert run(job, store)["counts"]["total"] == 6
    assert "b.jsonl came after this run began" in caplog.text
    write_rows(tmp_path / "a.jsonl", texts(7))
    with pytest.raises(SourceError, match=r"a\.jsonl has changed"):
        run(job, store)
    assert run(replace(job, on_stale="restart"), store)["counts"]["total"] == 8


def test_a_swapped_model_is_noticed_at_a_resume(stub: StubVLLM, source: str, store: RunStore, folder: Path) -> None:
    kill(job_of(stub, source), folder, at=5)
    stub.swap_model("other-weights")
    with pytest.raises(StaleRunError, match=r"swapped under the name 'stub'.*stub-weights.*other-weights"):
        run(job_of(stub, source), store)


def swap_after(stub: StubVLLM, rows: int) -> None:
    """The model behind the name is another one from the `rows`-th request on; so says the endpoint when it is asked."""

    def fault(_request: dict[str, Any], nth: int) -> Fault | None:
        if nth != rows:
            return None
        stub.swap_model("other-weights")
        return Fault.answer(502, "Bad Gateway")  # upon which the endpoint is looked at again

    stub.behaviour.fault = fault


def test_a_model_swapped_in_the_try_that_began_the_run_restarts_it_where_that_was_asked_for(
    stub: StubVLLM, source: str, store: RunStore, folder: Path
) -> None:
    swap_after(stub, 6)
    with pytest.raises(StaleRunError, match="swapped under the name"):
        run(job_of(stub, source, max_in_flight=1), store)
    stub.swap_model("stub-weights")
    swap_after(stub, stub.received + 6)
    other = RunStore(f"{folder}-2")
    manifest = run(job_of(stub, source, max_in_flight=1, on_stale="restart"), other)
    assert (manifest["generation"], manifest["served"]["root"]) == (2, "other-weights")
    assert [line["index"] for line in part_lines(folder.with_name(f"{folder.name}-2"))] == list(range(10))


def test_an_input_that_changes_under_the_try_that_began_the_run(
    stub: StubVLLM, tmp_path: Path, source: str, store: RunStore, folder: Path
) -> None:
    """Once per try: an input that goes on changing would be begun anew for ever."""

    def cut(_request: dict[str, Any], nth: int) -> None:
        if nth == 1:
            write_rows(tmp_path / "rows.jsonl", texts(3))

    stub.behaviour.fault = cut
    job = job_of(stub, source, max_in_flight=1, chunk_rows=1, on_stale="restart")
    manifest = run(job, store)
    assert (manifest["generation"], manifest["counts"]["total"]) == (2, 3)


def test_an_input_that_was_never_there_is_looked_for_once(
    stub: StubVLLM, tmp_path: Path, store: RunStore, mocker: MockerFixture
) -> None:
    source = JsonlSource([f"{tmp_path}/nothing.jsonl"])
    scan = mocker.spy(source, "scan")
    with pytest.raises(SourceError, match="no file matches"):
        run(job_of(stub, source, on_stale="restart"), store)
    assert scan.call_count == 1
    assert store.list("") == {}


def test_a_run_begun_without_a_model_name_goes_on_with_the_model_it_found(
    source: str, store: RunStore, folder: Path
) -> None:
    with StubVLLM() as stub:
        kill(job_of(stub, source), folder, at=5)
    with StubVLLM(model=("other", "stub")) as both:
        run(job_of(both, source), store)
    with StubVLLM(model="other") as other, pytest.raises(ForeignRunError):
        run(job_of(other, source, identity=replace(IDENTITY, run_id="next")), store)


# -- who and where


def test_a_run_that_must_exist(stub: StubVLLM, source: str, store: RunStore) -> None:
    for rerun in (False, True):  # whether a clear waives it is the marker's to say
        with pytest.raises(RunMissingError):
            run(job_of(stub, source, must_exist=True, rerun=rerun), store)
    assert stub.received == 0


def test_storage_that_cannot_be_read_never_starts_a_run(stub: StubVLLM, source: str, folder: Path) -> None:
    run(job_of(stub, source), RunStore(str(folder)))

    class Unreadable(RunStore):
        def read(self, name: str) -> bytes | None:
            raise StorageError(f"cannot read {name}")

    with pytest.raises(StorageError):
        run(job_of(stub, source), Unreadable(str(folder)))
    assert stub.received == 10


@pytest.mark.parametrize("broken", ["_run/journal", "_run/commits", "part-"])
def test_storage_that_cannot_be_read_at_a_resume_stops_it(
    stub: StubVLLM, source: str, folder: Path, broken: str
) -> None:
    class Unreadable(RunStore):
        def read(self, name: str) -> bytes | None:
            if name.startswith(broken):
                raise StorageError(f"cannot read {name}")
            return super().read(name)

    kill(job_of(stub, source), folder, at=1)
    fingerprint = json.loads((folder / "_run" / "run.json").read_bytes())["fingerprint"]
    names = {
        "_run/journal": f"_run/journal/00000/{fingerprint}-x-00000.jsonl",
        "_run/commits": f"_run/commits/{fingerprint}-x-00000.jsonl",
        "part-": f"part-00000-{fingerprint}.jsonl",
    }
    RunStore(str(folder)).write(names[broken], b"")
    with pytest.raises(StorageError, match="cannot read"):
        run(job_of(stub, source), Unreadable(str(folder)))
    assert stub.received == 0


# -- empty inputs


@pytest.mark.parametrize("after", ["nothing", "a run"])
@pytest.mark.parametrize("on_empty", ["succeed", "skip", "fail"])
def test_an_input_without_rows(
    stub: StubVLLM, tmp_path: Path, store: RunStore, folder: Path, *, on_empty: Any, after: str
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", texts(3))
    if after == "a run":
        run(job_of(stub, source), store)
    write_rows(tmp_path / "rows.jsonl", [])
    job = job_of(stub, source, on_empty=on_empty, on_stale="restart")
    stub.behaviour.api_key = "an endpoint that nobody needs to ask"
    match on_empty:
        case "succeed":
            manifest = run(job, store)
            assert manifest["counts"] == {"total": 0, "succeeded": 0, "truncated": 0, "invalid_output": 0, "errored": 0}
            assert run(job, store) == manifest
        case "skip":
            with pytest.raises(EmptySourceSkip):
                run(job, store)
        case "fail":
            with pytest.raises(SourceError, match="on_empty='fail'"):
                run(job, store)
    if on_empty != "succeed":
        assert len(part_lines(folder)) == (3 if after == "a run" else 0), "an older run's results are touched"


# -- errors


def test_too_many_errors_fail_the_run_after_all_has_landed(
    stub: StubVLLM, source: str, store: RunStore, folder: Path
) -> None:
    stub.behaviour.fault = lambda request, _: Fault.bad_request() if "text 1" in json.dumps(request) else None
    job = job_of(stub, ListSource([{"text": f"text {number % 2}"} for number in range(10)]), tolerance=Tolerance(0.4))
    with pytest.raises(TooManyErrorsError, match=r"5 of 10 rows errored.*dead-letter-[0-9a-f]{12}\.jsonl"):
        run(job, store)
    assert len(part_lines(folder)) == 10
    with pytest.raises(TooManyErrorsError):
        run(job, store)
    assert run(replace(job, tolerance=Tolerance(0.5)), store)["counts"]["errored"] == 5
    assert stub.received == 10


def test_a_hopeless_run_stops_early(stub: StubVLLM, store: RunStore) -> None:
    stub.behaviour.fault = lambda _request, _nth: Fault.bad_request()
    job = job_of(stub, ListSource(texts(2000)), tolerance=Tolerance(0.1), chunk_rows=100)
    with pytest.raises(TooManyErrorsError, match="Stopped early"):
        run(job, store)
    assert stub.received < 400


def test_malformed_rows_count_for_a_hopeless_run_too(stub: StubVLLM, store: RunStore, tmp_path: Path) -> None:
    rows = [row for text in texts(1000) for row in (text, b"{no")]
    stub.behaviour.delay_s = 0.005
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", rows), tolerance=Tolerance(0.1), chunk_rows=100)
    with pytest.raises(TooManyErrorsError, match=r"Stopped early.*no JSON"):
        run(job, store)
    assert stub.received < 500


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.answer(401, '{"error": {"message": "bad key"}}'), "bad key"),
        (Fault.answer(404, '{"error": {"message": "The model does not exist", "code": "model_not_found"}}'), "model"),
        (Fault.answer(404, "no route"), "route"),
    ],
)
def test_an_endpoint_that_refuses_stops_the_run_at_once_and_keeps_what_settled(
    stub: StubVLLM, source: str, store: RunStore, folder: Path, *, fault: Fault, words: str
) -> None:
    stub.behaviour.fault = lambda _request, nth: fault if nth > 5 else None
    with pytest.raises(EndpointRefusedError, match=words):
        run(job_of(stub, source, max_in_flight=1), store)
    assert stub.received == 6
    assert kept_indices(folder) == {0, 1, 2, 3, 4}
    stub.behaviour.fault = None
    run(job_of(stub, source), store)
    assert stub.received == 11


def test_an_endpoint_that_is_down_burns_no_row(stub: StubVLLM, source: str, store: RunStore, folder: Path) -> None:
    stub.behaviour.fault = lambda _request, nth: Fault.answer(502, "Bad Gateway") if nth > 4 else None
    with pytest.raises(EndpointDownError, match="the next try goes on"):
        run(job_of(stub, source, outage_patience_s=0.5, max_attempts=1), store)
    stub.behaviour.fault = None
    assert run(job_of(stub, source), store)["counts"]["errored"] == 0


def test_a_restarted_endpoint_is_waited_for(stub: StubVLLM, source: str, store: RunStore) -> None:
    stub.behaviour.fault = lambda _request, nth: Fault.engine_dead() if 3 <= nth <= 6 else None
    assert run(job_of(stub, source, max_attempts=1), store)["counts"] == {
        "total": 10,
        "succeeded": 10,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 0,
    }


# -- storage that fails in the middle


@pytest.mark.parametrize("prefix", ["_run/journal", "part-", "_run/commits", "manifest"])
def test_storage_that_fails_during_the_run_ends_the_try_and_the_next_goes_on(
    stub: StubVLLM, source: str, store: RunStore, folder: Path, prefix: str
) -> None:
    class Full(HookedStore):
        def before(self, name: str) -> None:
            if name.startswith(prefix):
                raise StorageError("disk full")

    stub.behaviour.delay_s = 0.02
    with pytest.raises(StorageError, match="disk full"):
        run(job_of(stub, source, max_in_flight=1, flush_rows=1), Full(str(folder)))  # one row a flush
    kept = kept_indices(folder)
    second = Try(job_of(stub, source), store)
    second()
    assert set(second.requested(stub)) == set(range(10)) - kept
    assert [line["index"] for line in part_lines(folder)] == list(range(10))


def test_progress_that_cannot_be_written_stops_nothing(stub: StubVLLM, source: str, folder: Path) -> None:
    class NoProgress(HookedStore):
        def before(self, name: str) -> None:
            if name == "_run/progress.json":
                raise StorageError("no")

    assert run(job_of(stub, source), NoProgress(str(folder)))["counts"]["succeeded"] == 10


# -- stop


def test_stopped_before_anything(stub: StubVLLM, source: str, store: RunStore) -> None:
    stop = StopSwitch()
    stop.set("Stopped from outside")
    with pytest.raises(RunStoppedError, match="Stopped from outside"):
        run(job_of(stub, source), store, stop)
    assert (stub.received, store.list("")) == (0, {})


class StoppingStore(HookedStore):
    """Sets the switch, twice, when an object of some name is written."""

    def __init__(self, uri: str, stop: StopSwitch, prefix: str) -> None:
        super().__init__(uri)
        self._stop_it, self._prefix = stop, prefix

    def after(self, name: str) -> None:
        if name.startswith(self._prefix):
            self._stop_it.set("Stopped from outside")
            self._stop_it.set("again")


@pytest.mark.parametrize("prefix", ["_run/run.json", "_run/progress.json", "_run/journal"])
def test_stopped_at_some_moment_what_settled_is_kept(
    stub: StubVLLM, tmp_path: Path, folder: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "FIRST_S", 0.0)
    source = write_rows(tmp_path / "rows.jsonl", texts(60))
    stub.behaviour.delay_s = 0.01
    stop = StopSwitch()
    first = Try(job_of(stub, source, chunk_rows=100), StoppingStore(str(folder), stop, prefix), stop)
    with pytest.raises(RunStoppedError, match="Stopped from outside"):
        first()
    kept = kept_indices(folder)
    asked = set(first.requested(stub))
    assert len(asked - kept) <= 4, "more is redone than was in flight"
    assert len(asked) < 60
    stub.behaviour.delay_s = 0
    second = Try(job_of(stub, source, chunk_rows=100), RunStore(str(folder)))
    second()
    assert set(second.requested(stub)) == set(range(60)) - kept
    assert [line["index"] for line in part_lines(folder)] == list(range(60))


@pytest.mark.parametrize("prefix", ["part-00002", "dead-letter", "manifest"])
def test_a_stop_at_the_very_end_comes_too_late_to_harm(stub: StubVLLM, source: str, folder: Path, prefix: str) -> None:
    stop = StopSwitch()
    store = StoppingStore(str(folder), stop, prefix)
    try:
        run(job_of(stub, source), store, stop)
    except RunStoppedError:
        assert prefix == "part-00002"
    manifest = run(job_of(stub, source), RunStore(str(folder)))
    assert manifest["counts"]["succeeded"] == 10
    assert stub.received == 10


def test_stopped_while_nothing_comes_back(stub: StubVLLM, source: str, store: RunStore) -> None:
    """Requests in flight are cancelled, which frees their slots on the server."""
    stub.behaviour.delay_s = 600
    stop = StopSwitch()

    def when_busy() -> None:
        while stub.in_flight < 4:
            threading.Event().wait(0.005)
        stop.set("Stopped from outside")

    helper = threading.Thread(target=when_busy, daemon=True)
    helper.start()
    with pytest.raises(RunStoppedError, match="0 of 10 rows are kept"):
        run(job_of(stub, source), store, stop)
    helper.join(30)
    for _ in range(2000):
        if stub.in_flight == 0:
            break
        threading.Event().wait(0.005)
    assert stub.in_flight == 0


def test_a_server_that_runs_more_than_its_slots_is_told_of(
    stub: StubVLLM, folder: Path, source: str, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    loads = iter([Load(running=16, waiting=0)])
    mocker.patch.object(LoadReader, "read", side_effect=lambda: next(loads, Load(running=0, waiting=0)))
    manifest = run(job_of(stub, source, control=ControlLaw(kind="headroom", slots=8)), RunStore(str(folder)))
    assert manifest["counts"]["succeeded"] == 10
    assert sum("its connection says slots = 8" in message for message in caplog.messages) == 1
