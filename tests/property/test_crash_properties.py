"""Promise 1: killed at whatever write, a run lands every row exactly once and redoes nothing that was kept."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import KilledStore, Try, dead_letter, job_of, kept_indices, part_lines, run, texts, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airflow_llm_provider.batch.job import BatchJob

ROWS = 9
"""Three chunks of four, the last of one row; the third row is refused by the server, the sixth is no JSON."""


@pytest.fixture(scope="module")
def stub() -> Iterator[StubVLLM]:
    def refuse(request: dict[str, Any], _nth: int) -> Fault | None:
        return Fault.bad_request() if "text 2" in json.dumps(request) else None

    with StubVLLM(fault=refuse) as running:
        yield running


@pytest.fixture(autouse=True, scope="module")
def no_fsync() -> Iterator[None]:
    """Processes are killed here, the power stays on; and fsync would be half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows: list[Any] = texts(ROWS)
    rows[5] = b"{no json"
    return write_rows(tmp_path / "rows.jsonl", rows)


def check_landed(folder: Path, manifest: dict[str, Any], said: str) -> None:
    lines = part_lines(folder)
    assert [line["index"] for line in lines] == list(range(ROWS))
    assert [line["index"] for line in lines if line["status"] == "errored"] == [2, 5]
    assert all(f"{said}{line['index']}" in line["output"] for line in lines if line["status"] == "succeeded")
    letters = [json.loads(line) for line in dead_letter(folder).read_bytes().splitlines()]
    assert [letter["index"] for letter in letters] == [2, 5]
    assert manifest["counts"] == {
        "total": ROWS,
        "succeeded": ROWS - 2,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 2,
    }
    assert sum(chunk["rows"] for chunk in manifest["chunks"]) == ROWS


def really_kept(folder: Path, generation: int) -> set[int]:
    """Rows whose outcome counts: none while a restart has not cleared what was there."""
    document = folder / "_run" / "run.json"
    if not document.exists():
        return set()
    begun = json.loads(document.read_bytes())
    return kept_indices(folder) if (begun["generation"], begun["state"]) == (generation, "open") else set()


def killed(stub: StubVLLM, folder: Path, job: BatchJob, *, at: int, how: str) -> tuple[bool, set[int], set[int]]:
    """One try, killed at its `at`-th change: whether it came that far, what it kept and what it had asked for."""
    store = KilledStore(str(folder), at=at, how=how)
    doomed = Try(job, store)
    try:
        doomed()
    except StorageError:
        assert store.dead
    return store.dead, store.kept, set(doomed.requested(stub))


def resume(stub: StubVLLM, folder: Path, job: BatchJob, *, said: str, kept: set[int], generation: int = 1) -> set[int]:
    """The next try, to the end. Returns what it asked for."""
    kept = kept | really_kept(folder, generation)
    second = Try(job, RunStore(str(folder)))
    manifest = second()
    redone = second.requested(stub)
    assert len(redone) == len(set(redone)), "a row was requested twice within a try"
    assert not set(redone) & kept, "a row that was kept was requested again"
    assert manifest["generation"] == generation
    check_landed(folder, manifest, said)
    third = Try(job, RunStore(str(folder)))
    assert third() == manifest
    assert not third.requested(stub), "a finished run was done again"
    return set(redone)


HOW = pytest.mark.parametrize("how", ["after", "half"])


@HOW
def test_killed_at_any_write_of_a_first_try(stub: StubVLLM, tmp_path: Path, source: str, how: str) -> None:
    job = job_of(stub, source)
    for at in range(1, 100):
        folder = tmp_path / str(at)
        died, kept, _ = killed(stub, folder, job, at=at, how=how)
        resume(stub, folder, job, said="Say: text ", kept=kept)
        if not died:
            break
    assert 8 < at < 99  # run.json, journals, parts, commits, dead letters, manifest make more writes than that


RESTARTS = {
    "stale": ({"prompt": "Sing: {{ row.text }}", "on_stale": "restart"}, "Sing: text "),
    "rerun": ({"rerun": True, "epoch": 1}, "Say: text "),
}


@pytest.mark.parametrize(("why", "how"), [("stale", "after"), ("stale", "half"), ("rerun", "after")])
def test_killed_at_any_write_of_a_restart(stub: StubVLLM, tmp_path: Path, source: str, *, why: str, how: str) -> None:
    """Nothing of the answers before may be found among those after, whatever was cleared by then."""
    changes, said = RESTARTS[why]
    before, after = tmp_path / "before", job_of(stub, source, **changes)
    run(job_of(stub, source), RunStore(str(before)))
    for at in range(1, 100):
        folder = tmp_path / str(at)
        shutil.copytree(before, folder)
        died, kept, asked = killed(stub, folder, after, at=at, how=how)
        if not died:
            break
        asked |= resume(stub, folder, after, said=said, kept=kept, generation=2)
        assert asked == set(range(ROWS)) - {5}, "an answer of before the restart was taken for one of after it"
    assert 15 < at < 99


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["before", "after", "half"])), min_size=2, max_size=5)
)
def test_killed_again_and_again(
    stub: StubVLLM, tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    rows: list[Any] = texts(ROWS)
    rows[5] = b"{no json"
    job = job_of(stub, write_rows(folder / "rows.jsonl", rows))
    kept: set[int] = set()
    for at, how in kills:
        kept |= killed(stub, folder / "run", job, at=at, how=how)[1]
    resume(stub, folder / "run", job, said="Say: text ", kept=kept)
