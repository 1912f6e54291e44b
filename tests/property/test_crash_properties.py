"""Promise 1: killed at whatever write, a run lands every row exactly once and redoes nothing that was kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import KilledStore, Try, job_of, kept_indices, part_lines, run, texts, write_rows

from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = 9
"""Three chunks of four, the last of one row; the third row is refused by the server, the sixth is no JSON."""


@pytest.fixture(scope="module")
def stub() -> Iterator[StubVLLM]:
    def refuse(request: dict[str, Any], _nth: int) -> Fault | None:
        return Fault.bad_request() if "text 2" in json.dumps(request) else None

    with StubVLLM(fault=refuse) as running:
        yield running


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
    letters = [json.loads(line) for line in (folder / "dead-letter.jsonl").read_bytes().splitlines()]
    assert [letter["index"] for letter in letters] == [2, 5]
    assert manifest["counts"] == {"total": ROWS, "succeeded": ROWS - 2, "errored": 2}
    assert sum(chunk["rows"] for chunk in manifest["chunks"]) == ROWS


def die_and_resume(
    stub: StubVLLM, folder: Path, job: Any, *, at: int, how: str, said: str, **next_try: Any
) -> tuple[bool, dict[str, Any]]:
    """Whether the first try was killed at all, and the manifest after as many tries as it takes."""
    killed = KilledStore(str(folder), at=at, how=how)
    try:
        manifest = run(job, killed)
    except StorageError:
        manifest = None
    if not killed.dead:
        assert manifest is not None
        check_landed(folder, manifest, said)
        return False, manifest
    kept = kept_indices(folder) if next_try.get("keeps", True) else set()
    second = Try(job, RunStore(str(folder)))
    manifest = second()
    redone = second.requested(stub)
    assert len(redone) == len(set(redone)), "a row was requested twice within a try"
    assert not set(redone) & kept, "a row that was kept was requested again"
    check_landed(folder, manifest, said)
    assert run(job, RunStore(str(folder))) == manifest, "a finished run is not done again"
    return True, manifest


@pytest.mark.parametrize("how", ["before", "after", "half"])
def test_killed_at_any_write_of_a_first_try(stub: StubVLLM, tmp_path: Path, source: str, how: str) -> None:
    at, died = 0, True
    while died:
        at += 1
        died, _ = die_and_resume(stub, tmp_path / f"run-{at}", job_of(stub, source), at=at, how=how, said="Say: text ")
        assert at < 100
    assert at > 8  # run.json, journals, parts, commits, dead letters, manifest: a run makes more writes than that
