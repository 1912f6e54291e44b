"""Tries that stand still between a look at the lease and the change that follows, while others do the whole run.

At each change in turn, of a run begun anew, of its plan and its assembly: whatever the late change does to what the
others have done, the next try finds the run whole, and asks for nothing.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import dead_letter, job_of, part_lines, run, texts, write_rows

from airflow_llm_provider.batch.shares import assemble, plan_shares, work_share
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.request import Status
from airflow_llm_provider.exceptions import LLMBatchError, ReplayError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.testing import StubVLLM

BAD = [1, 6]
ROWS = 9


class StandsStill(RunStore):
    """Storage of a try that stands still at its `at`-th change, once it has looked whether it may."""

    def __init__(self, uri: str, at: int, meanwhile: Callable[[], object]) -> None:
        super().__init__(uri)
        self.changes = 0
        self._when = at
        self._meanwhile = meanwhile

    def _look(self) -> None:
        super()._look()
        self.changes += 1
        if self.changes == self._when:
            self._meanwhile()


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", [b"{no" if n in BAD else row for n, row in enumerate(texts(ROWS))])


def check_whole(folder: Path, manifest: dict[str, Any]) -> None:
    assert manifest == json.loads((folder / layout.MANIFEST).read_bytes())
    assert manifest["counts"] == {
        "total": ROWS,
        "succeeded": ROWS - len(BAD),
        "truncated": 0,
        "invalid_output": 0,
        "errored": len(BAD),
    }
    ours = f"part-*-{manifest['fingerprint']}.jsonl"
    assert [line["index"] for line in part_lines(folder, ours)] == list(range(ROWS))
    for each in manifest["chunks"]:
        assert hashlib.sha256((folder / each["part"]).read_bytes()).hexdigest() == each["sha256"]
    letters = (folder / layout.dead_letter(manifest["fingerprint"])).read_bytes().splitlines()
    assert [json.loads(line)["index"] for line in letters] == BAD


def survives(
    late: Callable[[RunStore], object], others: Callable[[], object], after: Callable[[], dict[str, Any]], folder: Path
) -> Callable[[int], int]:
    """Does `late`, `others` at its n-th change, and `after`; returns how many changes there were."""

    def at(number: int) -> int:
        store = StandsStill(str(folder), number, others)
        try:
            late(store)
        except LLMBatchError:
            assert store.changes >= number, "it failed by itself"
        if store.changes >= number:  # it has stood still
            check_whole(folder, after())
        return store.changes

    return at


def at_each_change(made: Callable[[Path], Callable[[int], int]], tmp_path: Path) -> int:
    number = 1
    while made(tmp_path / f"run-{number}")(number) >= number:
        number += 1
    return number - 1


def test_a_run_that_is_begun_anew(stub: StubVLLM, source: str, tmp_path: Path) -> None:
    def made(folder: Path) -> Callable[[int], int]:
        run(job_of(stub, source), RunStore(str(folder)))

        def again(try_number: int) -> BatchJob:
            return job_of(stub, source, rerun=True, epoch=1, try_number=try_number, flush_rows=2)

        def after() -> dict[str, Any]:
            asked = stub.received
            manifest = run(again(3), RunStore(str(folder)))
            assert stub.received == asked
            assert (manifest["generation"], dead_letter(folder).exists()) == (2, True)
            return manifest

        return survives(lambda store: run(again(1), store), lambda: run(again(2), RunStore(str(folder))), after, folder)

    assert at_each_change(made, tmp_path) > 15


def test_a_run_that_is_begun_anew_once_more_meanwhile(stub: StubVLLM, source: str, tmp_path: Path) -> None:
    """The others are a generation further: nothing that the late one removes, or writes but one object, is theirs."""
    generations: list[int] = []

    def made(folder: Path) -> Callable[[int], int]:
        run(job_of(stub, source), RunStore(str(folder)))

        def again(epoch: int) -> BatchJob:
            return job_of(stub, source, rerun=True, epoch=epoch, try_number=epoch, flush_rows=2)

        def others() -> None:
            run(again(2), RunStore(str(folder)))
            run(again(3), RunStore(str(folder)))

        def after() -> dict[str, Any]:
            asked = stub.received
            manifest = run(job_of(stub, source, epoch=3, rerun=True, try_number=4), RunStore(str(folder)))
            # Where the late change was run.json itself, that generation is what lies there, and is done.
            assert (manifest["generation"], stub.received - asked) in ((3, 0), (4, 0), (2, ROWS - len(BAD)))
            generations.append(manifest["generation"])
            return manifest

        return survives(lambda store: run(again(1), store), others, after, folder)

    assert at_each_change(made, tmp_path) > 15
    assert generations.count(2) <= 2


@pytest.mark.parametrize("meanwhile", ["a replay", "a replay and another one", "a rerun"])
def test_rows_that_are_asked_for_again(stub: StubVLLM, source: str, tmp_path: Path, meanwhile: str) -> None:
    """A replay is the next generation, whose rows are there already for the most part."""

    def made(folder: Path) -> Callable[[int], int]:
        run(job_of(stub, source), RunStore(str(folder)))

        def again(epoch: int, **changes: Any) -> BatchJob:
            changes = changes or {"replay": (Status.ERRORED,)}
            return job_of(stub, source, epoch=epoch, try_number=epoch, flush_rows=2, **changes)

        def others() -> None:
            run(again(2, **({"rerun": True} if meanwhile == "a rerun" else {})), RunStore(str(folder)))
            if meanwhile == "a replay and another one":
                run(again(3), RunStore(str(folder)))

        def after() -> dict[str, Any]:
            asked = stub.received
            try:
                manifest = run(job_of(stub, source, epoch=3, try_number=4), RunStore(str(folder)))
            except ReplayError:  # the late change was run.json itself, over that of a generation further
                told.append(folder)
                manifest = run(again(4, rerun=True), RunStore(str(folder)))
            assert stub.received - asked in (0, ROWS - len(BAD))
            return manifest

        return survives(lambda store: run(again(1), store), others, after, folder)

    told: list[Path] = []
    assert at_each_change(made, tmp_path) > 15
    assert len(told) <= 1


def test_the_plan_and_the_assembly_of_a_run_in_shares(stub: StubVLLM, source: str, tmp_path: Path) -> None:
    def made(folder: Path) -> Callable[[int], int]:
        def whole(store: RunStore, **changes: Any) -> dict[str, Any]:
            job, stop = job_of(stub, source, **changes), StopSwitch()
            for share in plan_shares(job, store, stop, shares=2, begun=lambda: None):
                work_share(job, RunStore(str(folder)), stop, share=share, begun=lambda: None)
            return assemble(job, store, stop)

        whole(RunStore(str(folder)))

        def after() -> dict[str, Any]:
            asked = stub.received
            manifest = whole(RunStore(str(folder)), rerun=True, epoch=1, try_number=3)
            assert stub.received == asked
            return manifest

        return survives(
            lambda store: whole(store, rerun=True, epoch=1, try_number=1),
            lambda: whole(RunStore(str(folder)), rerun=True, epoch=1, try_number=2),
            after,
            folder,
        )

    assert at_each_change(made, tmp_path) > 8
