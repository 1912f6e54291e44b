"""Two runs, or two tries of one, that meet at one path: at most one of them ends well, and it keeps its results."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from batch_fakes import IDENTITY, HookedStore, Try, job_of, part_lines, run, texts, write_rows

from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.exceptions import ForeignRunError, RunMissingError, RunStoppedError, StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_llm_provider.testing import StubVLLM

OTHER = replace(IDENTITY, map_index=1)
FOREIGN_PART = layout.part(0, "ba9876543210")


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests lose no power."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", texts(10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


class Meeting(HookedStore):
    """Storage at which something happens once: after a listing, or after some object was written.

    Args:
        uri: the run's path.
        when: ``list``, or the beginning of an object's name.
        happens: what.
    """

    def __init__(self, uri: str, when: str, happens: Callable[[], object]) -> None:
        super().__init__(uri)
        self._when = when
        self._happens: Callable[[], object] | None = happens

    def list(self, prefix: str) -> dict[str, int]:
        found = super().list(prefix)
        if self._when == "list":
            self._now()
        return found

    def after(self, name: str) -> None:
        if name.startswith(self._when):
            self._now()

    def _now(self) -> None:
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()


def change_run(folder: Path, **fields: Any) -> None:
    """As if another had written ``run.json`` after us, on a store that lets it."""
    path = folder / layout.RUN
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **fields}))


# -- at the beginning


def test_of_two_runs_that_find_nothing_only_the_first_begins(stub: StubVLLM, source: str, folder: Path) -> None:
    """A mapped operator with a result_path that does not name the map index: both instances look, both find nothing."""
    first = job_of(stub, source, identity=OTHER)
    done: list[Any] = []
    late = Try(
        job_of(stub, source, requests=RequestSpec(prompt="Sing: {{ row.text }}")),
        Meeting(str(folder), "list", lambda: done.append(run(first, RunStore(str(folder))))),
    )
    with pytest.raises(
        ForeignRunError, match=r"belongs to dag\.task\[1\] of run run, and this is dag\.task of run run"
    ):
        late()
    assert late.requested(stub) == []
    assert run(first, RunStore(str(folder))) == done[0]
    assert [line["output"] for line in part_lines(folder)] == [f"echo: Say: text {number}" for number in range(10)]


def test_a_late_try_of_the_same_run_does_not_begin_it_again(stub: StubVLLM, source: str, folder: Path) -> None:
    """Its predecessor was given up for dead and was not; either way one of them goes on alone."""
    job = job_of(stub, source)
    late = Try(job, Meeting(str(folder), "list", lambda: run(job, RunStore(str(folder)))))
    with pytest.raises(RunStoppedError, match=r"[Aa]nother try of this task"):
        late()
    assert late.requested(stub) == []
    assert run(job, RunStore(str(folder)))["generation"] == 1
    assert stub.received == 10


# -- at the end, where the store let two begin


def theirs(folder: Path, **fields: Any) -> None:
    """Another run has written its document over ours, and has committed a chunk, letters included."""
    change_run(folder, **fields)
    for name in (FOREIGN_PART, layout.dead(0, "ba9876543210", "0123"), layout.dead_letter("ba9876543210")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"theirs")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"identity": OTHER.as_dict()}, ForeignRunError, r"belongs to dag\.task\[1\]"),
        ({"generation": 2}, RunStoppedError, "another try of this task"),
        ({"created_at": "2026-01-01T00:00:00+00:00"}, RunStoppedError, "another try of this task"),
        ({"fingerprint": "ba9876543210"}, RunStoppedError, "another try of this task"),
    ],
    ids=["another run", "a later generation", "a restart at the same moment", "another prompt"],
)
def test_who_was_overwritten_touches_nothing_and_says_so(
    stub: StubVLLM, tmp_path: Path, folder: Path, *, fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [*texts(9), b"{no"])  # with a dead letter of our own
    store = Meeting(str(folder), "part-00002", lambda: theirs(folder, **fields))
    with pytest.raises(error, match=words):
        run(job_of(stub, source), store)
    for name in (FOREIGN_PART, layout.dead(0, "ba9876543210", "0123"), layout.dead_letter("ba9876543210")):
        assert (folder / name).read_bytes() == b"theirs"
    assert not (folder / layout.MANIFEST).exists()


def test_a_run_whose_document_is_gone_at_the_end_is_not_called_finished(
    stub: StubVLLM, source: str, folder: Path
) -> None:
    store = Meeting(str(folder), "part-00002", (folder / layout.RUN).unlink)
    with pytest.raises(RunMissingError, match=r"run\.json.*is gone"):
        run(job_of(stub, source), store)
    assert not (folder / layout.MANIFEST).exists()


@pytest.mark.parametrize("how", ["gone", "cut short"])
def test_the_manifest_names_no_part_that_is_not_there(stub: StubVLLM, source: str, folder: Path, how: str) -> None:
    """A try of before, which was clearing for a restart, has removed what this one committed."""

    def meddle() -> None:
        for part in folder.glob("part-00000-*"):
            part.unlink() if how == "gone" else part.write_bytes(part.read_bytes()[:-9])

    with pytest.raises(StorageError, match=r"part-00000-.*another"):
        run(job_of(stub, source), Meeting(str(folder), "part-00002", meddle))
    assert not (folder / layout.MANIFEST).exists()
    second = Try(job_of(stub, source), RunStore(str(folder)))
    second()
    assert second.requested(stub) == [0, 1, 2, 3]
    assert [line["index"] for line in part_lines(folder)] == list(range(10))


def test_a_restart_does_not_open_what_another_has_taken_over(stub: StubVLLM, source: str, folder: Path) -> None:
    run(job_of(stub, source), RunStore(str(folder)))
    anew = job_of(stub, source, rerun=True, epoch=1)
    store = Meeting(str(folder), layout.RUN, lambda: change_run(folder, created_at="2026-01-01T00:00:00+00:00"))
    with pytest.raises(RunStoppedError, match="another try of this task"):
        run(anew, store)
    document = json.loads((folder / layout.RUN).read_bytes())
    assert (document["generation"], document["state"]) == (2, "clearing")
    assert run(anew, RunStore(str(folder)))["generation"] == 2
