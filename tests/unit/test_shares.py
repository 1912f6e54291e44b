"""One run, worked off by several tasks: planned, shared, assembled; each of them killed, cleared and late."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import HookedStore, KilledStore, dead_letter, job_of, part_lines, run, texts, write_rows
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.batch.shares import assemble, plan_shares, work_share
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.exceptions import (
    ConfigurationError,
    RunMissingError,
    RunStoppedError,
    SourceError,
    StaleRunError,
    StorageError,
    TooManyErrorsError,
    UnfinishedSharesError,
)
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airflow_llm_provider.batch.job import BatchJob

ROWS = 21
"""Six chunks of four, the last of one row; the third row is refused by the server, the sixth is no JSON."""


@given(st.integers(1, 500), st.data())
def test_each_chunk_is_in_one_share(chunks: int, data: st.DataObject) -> None:
    shares = data.draw(st.integers(1, chunks))
    plan = ChunkPlan(1, chunks, tuple((0, number, number) for number in range(chunks)))
    ranges = [plan.share(number, shares) for number in range(shares)]
    assert [chunk for each in ranges for chunk in each] == list(range(chunks))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert all(plan.share_of(chunk, shares) == number for number, each in enumerate(ranges) for chunk in each)
    assert sum(plan.rows_of(each) for each in ranges) == chunks


@pytest.fixture(scope="module")
def stub() -> Iterator[StubVLLM]:
    def refuse(request: dict[str, Any], _nth: int) -> Fault | None:
        return Fault.bad_request() if '"Say: text 2"' in json.dumps(request) else None

    with StubVLLM(fault=refuse) as running:
        yield running


@pytest.fixture
def job(stub: StubVLLM, tmp_path: Path) -> BatchJob:
    rows: list[Any] = texts(ROWS)
    rows[5] = b"{no json"
    return job_of(stub, write_rows(tmp_path / "rows.jsonl", rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def plan(job: BatchJob, folder: Path, shares: int = 3, **changes: Any) -> list[int]:
    return plan_shares(replace(job, **changes), RunStore(str(folder)), StopSwitch(), shares=shares, begun=lambda: None)


def work(job: BatchJob, store: RunStore | Path, share: int, stop: StopSwitch | None = None) -> dict[str, Any]:
    store = store if isinstance(store, RunStore) else RunStore(str(store))
    return work_share(job, store, stop or StopSwitch(), share=share, begun=lambda: None)


def end(job: BatchJob, folder: Path) -> dict[str, Any]:
    return assemble(job, RunStore(str(folder)), StopSwitch())


def check_landed(folder: Path, manifest: dict[str, Any], said: str = "Say: text ") -> None:
    lines = part_lines(folder)
    assert [line["index"] for line in lines] == list(range(ROWS))
    assert [line["index"] for line in lines if line["status"] == "errored"] == [2, 5]
    assert all(f"{said}{line['index']}" in line["output"] for line in lines if line["status"] == "succeeded")
    letters = [json.loads(line)["index"] for line in dead_letter(folder).read_bytes().splitlines()]
    assert letters == [2, 5]
    assert manifest["counts"] == {
        "total": ROWS,
        "succeeded": ROWS - 2,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 2,
    }
    assert manifest == json.loads((folder / "manifest.json").read_bytes())
    for each in manifest["chunks"]:
        assert hashlib.sha256((folder / each["part"]).read_bytes()).hexdigest() == each["sha256"]
    left = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tmp"]
    assert {path.name for path in left} - {each["part"] for each in manifest["chunks"]} == {
        "manifest.json",
        dead_letter(folder).name,
        "run.json",
    }


def test_planned_shared_and_assembled(job: BatchJob, folder: Path, stub: StubVLLM) -> None:
    before = stub.received
    assert plan(job, folder) == [0, 1, 2]
    ended = [work(job, folder, share) for share in (2, 0, 1)]
    assert [each["share"] for each in ended] == [2, 0, 1]
    assert [each["counts"]["total"] for each in ended] == [5, 8, 8]
    check_landed(folder, end(job, folder))
    assert stub.received - before == ROWS - 1


def test_what_lands_is_what_one_task_lands(job: BatchJob, folder: Path, tmp_path: Path) -> None:
    plan(job, folder)
    for share in range(3):
        work(job, folder, share)
    shared = end(job, folder)
    alone = run(job, RunStore(str(tmp_path / "alone")))
    differs = {"result_path", "parts", "dead_letter", "started_at", "finished_at", "duration_s"}
    assert {key: value for key, value in shared.items() if key not in differs} == {
        key: value for key, value in alone.items() if key not in differs
    }
    names = sorted(path.name for path in folder.glob("part-*"))
    assert [(folder / name).read_bytes() for name in names] == [
        (tmp_path / "alone" / name).read_bytes() for name in names
    ]


def test_side_by_side(job: BatchJob, folder: Path) -> None:
    plan(job, folder, shares=6)
    ended: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda share=share: ended.append(work(job, folder, share))) for share in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(ended) == 6
    check_landed(folder, end(job, folder))


def test_more_shares_than_chunks_are_as_many_as_chunks(job: BatchJob, folder: Path) -> None:
    assert plan(job, folder, shares=100) == [0, 1, 2, 3, 4, 5]


def test_an_input_without_rows_has_one_share_and_an_empty_manifest(
    stub: StubVLLM, folder: Path, tmp_path: Path
) -> None:
    empty = job_of(stub, write_rows(tmp_path / "empty.jsonl", []))
    assert plan(empty, folder) == [0]
    assert work(empty, folder, 0)["counts"]["total"] == 0
    assert end(empty, folder)["counts"] == {
        "total": 0,
        "succeeded": 0,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 0,
    }


def test_an_unfinished_run_is_not_assembled(job: BatchJob, folder: Path) -> None:
    plan(job, folder)
    with pytest.raises(UnfinishedSharesError, match=r"0 of 21 rows.*shares 0, 1, 2: clear"):
        end(job, folder)
    work(job, folder, 0)
    work(job, folder, 2)
    with pytest.raises(UnfinishedSharesError, match=r"13 of 21 rows.*shares 1: clear"):
        end(job, folder)
    assert not (folder / "manifest.json").exists()
    work(job, folder, 1)
    check_landed(folder, end(job, folder))


def test_each_of_them_done_again_asks_for_nothing(job: BatchJob, folder: Path, stub: StubVLLM) -> None:
    plan(job, folder)
    for share in range(3):
        work(job, folder, share)
    before = stub.received
    work(job, folder, 1)
    assert plan(job, folder) == [0, 1, 2]
    manifest = end(job, folder)
    assert plan(job, folder) == [0, 1, 2]  # mapped tasks that Airflow has must not go away
    assert work(job, folder, 0) == {"share": 0}
    assert end(job, folder) == manifest
    assert stub.received == before


@pytest.mark.parametrize("how", ["before", "after", "half"])
def test_a_share_killed_at_any_write_costs_its_own_rows_alone(
    job: BatchJob, folder: Path, tmp_path: Path, stub: StubVLLM, how: str
) -> None:
    for at in range(1, 100):
        here = tmp_path / str(at)
        plan(job, here)
        work(job, here, 2)
        dying = _KilledShare(str(here), at=at, how=how)
        before = dict(stub.counts)
        try:
            work(job, dying, 0)
        except StorageError:
            assert dying.dead
        between = dict(stub.counts)
        work(job, here, 0)
        again = _rows(between, dict(stub.counts))
        assert len(again) == len(set(again))
        assert not set(again) & dying.everything_kept
        assert set(again) <= set(range(8))
        assert set(_rows(before, between)) <= set(range(8))
        work(job, here, 1)
        check_landed(here, end(job, here))
        if not dying.dead:
            break
    assert 8 < at < 99


class _KilledShare(KilledStore):
    """Killed with whatever it handed out below: a process has one life."""

    def below(self, folder: str) -> RunStore:
        self.share = _Below(f"{self.uri}/{folder}", self)
        return self.share

    @property
    def everything_kept(self) -> set[int]:
        return self.kept | self.share.kept


class _Below(KilledStore):
    def __init__(self, uri: str, whole: KilledStore) -> None:
        super().__init__(uri, how=whole.how)
        self._whole = whole

    @property
    def dead(self) -> bool:
        return self._whole.dead

    def _killed_here(self) -> bool:
        return self._whole._killed_here()


def _rows(before: dict[str, int], after: dict[str, int]) -> list[int]:
    return [int(name.split("-")[2]) for name, amount in after.items() for _ in range(amount - before.get(name, 0))]


def test_an_assembly_killed_at_any_write_is_done_again(job: BatchJob, folder: Path, tmp_path: Path) -> None:
    for at in range(1, 60):
        here = tmp_path / str(at)
        plan(job, here)
        for share in range(3):
            work(job, here, share)
        dying = KilledStore(str(here), at=at)
        try:
            assemble(job, dying, StopSwitch())
        except StorageError:
            assert dying.dead
        check_landed(here, end(job, here))
        if not dying.dead:
            break
    assert 4 < at < 59


@pytest.mark.parametrize("why", ["stale", "rerun"])
def test_a_plan_that_begins_anew_killed_at_any_write(job: BatchJob, tmp_path: Path, why: str) -> None:
    changes: dict[str, Any] = {"rerun": True, "epoch": 1}
    said = "Say: text "
    if why == "stale":
        sung = replace(job.requests, prompt="Sing: {{ row.text }}")
        changes, said = {"requests": sung, "on_stale": "restart"}, "Sing: text "
    anew = replace(job, **changes)
    for at in range(1, 100):
        here = tmp_path / str(at)
        plan(job, here)
        for share in range(3):
            work(job, here, share)
        if why == "rerun" or at % 2:
            end(job, here)
        dying = KilledStore(str(here), at=at)
        try:
            plan_shares(anew, dying, StopSwitch(), shares=2, begun=lambda: None)
        except StorageError:
            assert dying.dead
        assert plan(anew, here, shares=2) == [0, 1]
        for share in (1, 0):
            work(anew, here, share)
        if why == "rerun":
            check_landed(here, end(anew, here), said)
        else:
            lines = part_lines(here)
            assert [line["index"] for line in lines] == list(range(ROWS))
            assert all(said in line["output"] for line in lines if line["status"] == "succeeded")
        if not dying.dead:
            break
    assert 6 < at < 99


class Overtaken(HookedStore):
    """Does something just before its n-th change."""

    def __init__(self, uri: str, at: int, act: Any) -> None:
        super().__init__(uri)
        self._left = at
        self._act = act

    def before(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


@pytest.mark.parametrize("at", range(1, 4))
def test_a_share_whose_run_is_begun_anew_ends(job: BatchJob, folder: Path, at: int) -> None:
    """The plan is cleared with rerun=True while a share of before still works."""
    plan(job, folder)
    work(job, folder, 1)
    work(job, folder, 2)
    sung = replace(job, requests=replace(job.requests, prompt="Sing: {{ row.text }}"), on_stale="restart")

    def anew() -> None:
        plan(sung, folder)

    with pytest.raises(RunStoppedError):
        work(job, Overtaken(str(folder), at, anew), 0)
    assert not list(folder.glob("part-*")), "it wrote what was cleared"
    assert not list((folder / "_run").rglob("*-*.jsonl"))
    for share in range(3):
        work(sung, folder, share)
    manifest = end(sung, folder)
    assert manifest["generation"] == 2
    assert all("Sing" in line["output"] for line in part_lines(folder) if line["status"] == "succeeded")


def test_a_share_of_a_run_that_is_not_there(job: BatchJob, folder: Path) -> None:
    with pytest.raises(RunMissingError):
        work(job, folder, 0)
    with pytest.raises(RunMissingError):
        end(job, folder)


def test_a_share_that_the_run_does_not_have(job: BatchJob, folder: Path) -> None:
    plan(job, folder)
    with pytest.raises(ConfigurationError, match="has 3 shares"):
        work(job, folder, 3)


def test_a_dag_that_changed_between_plan_and_work(job: BatchJob, folder: Path) -> None:
    plan(job, folder)
    with pytest.raises(StaleRunError, match="prompt"):
        work(replace(job, requests=replace(job.requests, prompt="Other: {{ row.text }}")), folder, 0)


def test_an_input_that_changed_between_plan_and_work(job: BatchJob, folder: Path, tmp_path: Path) -> None:
    plan(job, folder)
    write_rows(tmp_path / "rows.jsonl", texts(ROWS + 1))
    with pytest.raises(SourceError, match="has changed"):
        work(job, folder, 0)


def test_one_share_bears_more_errors_than_its_part_of_what_the_run_bears(
    stub: StubVLLM, folder: Path, tmp_path: Path
) -> None:
    rows: list[Any] = texts(ROWS)
    rows[:4] = [b"{no json"] * 4
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", rows), tolerance=Tolerance(0.2))
    plan(job, folder)
    for share in range(3):
        work(job, folder, share)
    assert end(job, folder)["counts"]["errored"] == 4
    strict = replace(job, tolerance=Tolerance(0.1))
    with pytest.raises(TooManyErrorsError, match="4 of 21"):
        end(strict, folder)


def test_a_share_whose_first_rows_are_bad_goes_on_where_the_run_bears_it(
    stub: StubVLLM, folder: Path, tmp_path: Path
) -> None:
    """One task alone would stop: 168 of the first 836 rows are more than a fifth, and less than one of all."""
    rows: list[Any] = texts(1000)
    rows[500:900:2] = [b"{no json"] * 200
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", rows), tolerance=Tolerance(0.2), chunk_rows=100)
    plan(job, folder, shares=2)
    assert work(job, folder, 1)["counts"] == {
        "total": 500,
        "succeeded": 300,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 200,
    }
    with pytest.raises(TooManyErrorsError, match="Stopped early"):
        run(job, RunStore(str(tmp_path / "alone")))


def test_a_share_of_bad_rows_alone_stops(stub: StubVLLM, folder: Path, tmp_path: Path) -> None:
    rows: list[Any] = texts(3300)
    rows[300:600] = [b"{no json"] * 300
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", rows), tolerance=Tolerance(0.2), chunk_rows=100)
    plan(job, folder, shares=11)
    with pytest.raises(TooManyErrorsError, match="rows of this share errored"):
        work(job, folder, 1)


def test_a_listing_that_is_late_is_no_missing_row(job: BatchJob, folder: Path, stub: StubVLLM) -> None:
    """Whoever assembles comes a moment after the last part was put."""

    class Late(RunStore):
        def list(self, prefix: str) -> dict[str, int]:
            hidden = ("part-00005", "_run/shares/00002")
            return {name: size for name, size in super().list(prefix).items() if not name.startswith(hidden)}

    plan(job, folder)
    for share in range(3):
        work(job, folder, share)
    before = stub.received
    manifest = assemble(job, Late(str(folder)), StopSwitch())
    assert assemble(job, RunStore(str(folder)), StopSwitch()) == manifest  # removes what was not listed then
    check_landed(folder, manifest)
    assert stub.received == before


@pytest.mark.parametrize("blank", [True, False])
def test_a_listing_without_what_lies_there_is_not_believed(
    job: BatchJob, folder: Path, stub: StubVLLM, *, blank: bool
) -> None:
    class Blank(RunStore):
        def list(self, prefix: str) -> dict[str, int]:
            return {}

        def below(self, folder: str) -> RunStore:
            return Blank(f"{self.uri}/{folder}")

    plan(job, folder)
    before = stub.received
    act = (
        (lambda: assemble(job, Blank(str(folder)), StopSwitch()))
        if blank
        else (lambda: work(job, Blank(str(folder)), 0))
    )
    with pytest.raises(StorageError, match="does not show"):
        act()
    assert stub.received == before


def test_an_input_that_was_archived_when_all_rows_had_landed(job: BatchJob, folder: Path, tmp_path: Path) -> None:
    plan(job, folder)
    for share in range(3):
        work(job, folder, share)
    (tmp_path / "rows.jsonl").unlink()
    assert plan(job, folder) == [0, 1, 2]
    assert work(job, folder, 1)["share"] == 1
    check_landed(folder, end(job, folder))


def test_an_operator_and_a_group_of_one_id_do_not_go_on_with_each_others_runs(
    job: BatchJob, folder: Path, tmp_path: Path
) -> None:
    plan(job, folder)
    work(job, folder, 0)
    with pytest.raises(StaleRunError, match="planned for shares"):
        run(job, RunStore(str(folder)))
    alone = tmp_path / "alone"
    with pytest.raises(StorageError):
        run(job, KilledStore(str(alone), at=8))
    with pytest.raises(StaleRunError, match="not for shares"):
        plan(job, alone)
    assert plan(job, alone, on_stale="restart") == [0, 1, 2]
    for share in range(3):
        work(job, alone, share)
    check_landed(alone, end(job, alone))


def test_a_rerun_happens_once_per_clear_of_the_plan(job: BatchJob, folder: Path, stub: StubVLLM) -> None:
    """Whoever assembles was cleared another number of times."""
    again = replace(job, rerun=True, epoch=7)
    for generation in (1, 1, 2, 2):
        shares = plan(job if generation == 1 else again, folder)
        for share in shares:
            work(job if generation == 1 else again, folder, share)
        manifest = end(replace(job, rerun=generation == 2, epoch=99), folder)
        assert manifest["generation"] == generation
    assert manifest["epoch"] == 7


def test_a_share_that_is_late_finds_the_run_finished(job: BatchJob, folder: Path) -> None:
    plan(job, folder)
    for share in range(3):
        work(job, folder, share)

    class Slow(RunStore):
        def below(self, below: str) -> RunStore:
            return _Acts(f"{self.uri}/{below}", lambda: end(job, folder))

    assert work(job, Slow(str(folder)), 1) == {"share": 1}


class _Acts(HookedStore):
    def __init__(self, uri: str, act: Any) -> None:
        super().__init__(uri)
        self._act = act

    def before(self, name: str) -> None:
        act, self._act = self._act, lambda: None
        act()


def test_a_share_that_is_told_to_stop_goes_on_later(job: BatchJob, folder: Path, stub: StubVLLM) -> None:
    plan(job, folder)
    stop = StopSwitch()
    stop.set("the test says so")
    with pytest.raises(RunStoppedError):
        work(job, folder, 0, stop)
    for share in range(3):
        work(job, folder, share)
    check_landed(folder, end(job, folder))
