"""The last writes of a run: dead letters and manifest, also where an earlier end got half-way or was damaged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from batch_fakes import HookedStore, Try, dead_letter, job_of, run, texts, write_rows

from airflow_llm_provider.exceptions import ForeignRunError, StorageError
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.testing import StubVLLM


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests lose no power."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def job(stub: StubVLLM, tmp_path: Path) -> BatchJob:
    """Three chunks of four, four and two rows; the second and the ninth row are no JSON."""
    rows = [*texts(1), b"{no", *texts(8)[2:], b"{no", *texts(10)[9:]]
    return job_of(stub, write_rows(tmp_path / "rows.jsonl", rows))


def letters(folder: Path) -> list[int]:
    return [json.loads(line)["index"] for line in dead_letter(folder).read_bytes().splitlines()]


def test_a_damaged_manifest_moved_away_costs_no_dead_letter(stub: StubVLLM, folder: Path, job: BatchJob) -> None:
    """As its error advises. By then the chunks' own letters are gone: what was assembled of them is all there is."""
    manifest = run(job, RunStore(str(folder)))
    assert letters(folder) == [1, 8]
    (folder / "manifest.json").write_bytes(b'{"generation": 1')
    with pytest.raises(ForeignRunError, match="Move it away and clear the task"):
        run(job, RunStore(str(folder)))
    (folder / "manifest.json").unlink()
    second = Try(job, RunStore(str(folder)))
    again = second()
    assert second.requested(stub) == []
    assert letters(folder) == [1, 8]
    assert again["counts"] == manifest["counts"]
    assert again["dead_letter"] == manifest["dead_letter"]


class KeepsOnly(HookedStore):
    """Storage that loses the letters of one chunk while the run ends."""

    def __init__(self, uri: str, lost: str, *, after_listing: bool) -> None:
        super().__init__(uri)
        self._lost = lost
        self._after_listing = after_listing
        self.losing = False

    def after(self, name: str) -> None:
        self.losing = self.losing or name.startswith("part-00002")

    def list(self, prefix: str) -> dict[str, int]:
        if self.losing and not self._after_listing:
            self._lose()
        found = super().list(prefix)
        if self.losing and self._after_listing:
            self._lose()
        return found

    def _lose(self) -> None:
        for path in Path(self._root).glob(f"_run/dead/{self._lost}-*"):
            path.unlink()


@pytest.mark.parametrize("after_listing", [False, True], ids=["before it is looked for", "after"])
@pytest.mark.parametrize("lost", ["00000", "00002"])
def test_a_run_is_not_finished_without_a_dead_letter_it_should_have(
    stub: StubVLLM, folder: Path, job: BatchJob, *, lost: str, after_listing: bool
) -> None:
    with pytest.raises(StorageError, match=f"dead letters.*part-{lost}-"):
        run(job, KeepsOnly(str(folder), lost, after_listing=after_listing))
    assert not (folder / "manifest.json").exists()
    assert not dead_letter(folder).exists()
    with pytest.raises(StorageError, match=f"part-{lost}-.*remove"):  # for good, so it says how to mend it
        run(job, RunStore(str(folder)))
    for part in folder.glob(f"part-{lost}-*"):
        part.unlink()
    assert run(job, RunStore(str(folder)))["counts"]["errored"] == 2
    assert letters(folder) == [1, 8]


def test_an_end_that_was_killed_while_it_removed_the_chunks_letters(
    stub: StubVLLM, folder: Path, job: BatchJob
) -> None:
    """Half of them lie there still: assembling those again would lose the others."""
    run(job, RunStore(str(folder)))
    whole = dead_letter(folder).read_bytes()
    fingerprint = json.loads((folder / "manifest.json").read_bytes())["fingerprint"]
    (folder / "manifest.json").unlink()
    half = folder / "_run" / "dead" / f"00002-{fingerprint}.jsonl"
    half.parent.mkdir()
    half.write_bytes(whole.splitlines(keepends=True)[1])
    run(job, RunStore(str(folder)))
    assert dead_letter(folder).read_bytes() == whole


def test_the_log_says_how_it_ended_and_where_things_lie(
    stub: StubVLLM, folder: Path, job: BatchJob, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    manifest = run(job, RunStore(str(folder)))
    total, errored = manifest["counts"]["total"], manifest["counts"]["errored"]
    assert errored == 2
    assert (
        f"Finished: {total - errored} of {total} rows succeeded; {errored} errored, their dead letters are at "
        f"{manifest['dead_letter']}"
    ) in caplog.text
    assert f"The results are at {manifest['parts']}" in caplog.text
    assert f"{total}/{total} rows (100.0 %), of them {errored} errored, " in caplog.text
