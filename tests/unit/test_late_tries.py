"""Tries that were given up for dead and are not: what they decided minutes ago may not hold any more."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.io import attach
from batch_fakes import HookedStore, KilledStore, Try, job_of, part_lines, run, texts, write_rows
from fsspec.implementations.memory import MemoryFileSystem

from airflow_llm_provider.core.request import Usage
from airflow_llm_provider.exceptions import RunStoppedError, SourceError, StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_llm_provider.testing import StubVLLM

ROWS = 9


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", texts(ROWS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def delayed(made: Try, method: str, meanwhile: Callable[[], object]) -> Try:
    """A try that stands still when it comes to `method`, while something else happens."""
    honest = getattr(made._run, method)

    def late(*arguments: Any, **more: Any) -> Any:
        meanwhile()
        return honest(*arguments, **more)

    setattr(made._run, method, late)
    return made


def finished_by_another(job: Any, folder: Path, states: list[dict[str, bytes]]) -> Callable[[], object]:
    def meanwhile() -> None:
        if not states:
            run(job, RunStore(str(folder)))
            states.append(everything(folder))

    return meanwhile


def test_who_meant_to_begin_anew_leaves_what_another_has_begun_anew(stub: StubVLLM, source: str, folder: Path) -> None:
    run(job_of(stub, source), RunStore(str(folder)))
    job, states = job_of(stub, source, rerun=True, epoch=1), []
    late = delayed(Try(job, RunStore(str(folder))), "_ask_endpoint", finished_by_another(job, folder, states))
    with pytest.raises(RunStoppedError, match="changed by another try"):
        late()
    left = everything(folder)
    left.pop(layout.LEASE, None)
    assert left == states[0]
    assert not late.requested(stub)
    assert run(job, RunStore(str(folder)))["generation"] == 2


def test_who_meant_to_go_on_leaves_what_another_has_finished(stub: StubVLLM, source: str, folder: Path) -> None:
    dying = KilledStore(str(folder), at=6)
    with pytest.raises(StorageError):
        run(job_of(stub, source), dying)
    job, states = job_of(stub, source), []
    late = delayed(Try(job, RunStore(str(folder))), "_check_shaping", finished_by_another(job, folder, states))
    assert late() == json.loads(states[0]["manifest.json"])
    assert everything(folder) == states[0]
    assert not late.requested(stub)


class DiesWithAJournal(HookedStore):
    """Of a process that is killed when it has journalled something."""

    dead = False

    def before(self, name: str) -> None:
        if self.dead:
            raise StorageError("killed")

    def after(self, name: str) -> None:
        self.dead = self.dead or name.startswith(layout.JOURNAL)


def test_who_meant_to_tidy_up_leaves_what_another_does_anew(stub: StubVLLM, source: str, folder: Path) -> None:
    """A finished run with something left over; another begins it anew, and waits for its window half-way."""
    run(job_of(stub, source), RunStore(str(folder)))
    RunStore(str(folder)).write(f"{layout.COMMITS}/left-over.jsonl", b"")
    states: list[dict[str, bytes]] = []

    def meanwhile() -> None:
        if states:
            return
        stub.behaviour.delay_s = 0.05
        with suppress(StorageError):
            slow = job_of(stub, source, rerun=True, epoch=1, chunk_rows=ROWS, max_in_flight=1)
            run(slow, DiesWithAJournal(str(folder)))
        RunStore(str(folder)).delete([layout.LEASE, layout.PROGRESS])
        states.append(everything(folder))

    late = delayed(Try(job_of(stub, source), RunStore(str(folder))), "_check_source", meanwhile)
    late()
    assert any(name.startswith(layout.JOURNAL) for name in states[0])
    left = everything(folder)
    left.pop(layout.LEASE, None)
    assert left == states[0]


def test_who_lost_the_lease_does_not_begin_anew_for_a_changed_source(stub: StubVLLM, source: str, folder: Path) -> None:
    """It finds the source changed in the middle of its work, when another try has the run."""
    with pytest.raises(StorageError):
        run(job_of(stub, source), KilledStore(str(folder), at=8))
    late = Try(job_of(stub, source, on_stale="restart"), RunStore(str(folder)))

    def overtaken(*_: Any, **__: Any) -> None:
        RunStore(str(folder)).write(layout.LEASE, b'{"try_number": 2, "token": "other"}\n')
        raise SourceError("it has changed")

    late._run._check_source = overtaken
    before = everything(folder)
    with pytest.raises(RunStoppedError):
        late()
    after = everything(folder)
    assert after.pop(layout.LEASE) != before.pop(layout.LEASE)
    assert after == before


def test_a_rerun_has_names_of_its_own(stub: StubVLLM, source: str, folder: Path) -> None:
    """So that what a try of before the rerun writes or removes late is none of the rerun's."""
    first = run(job_of(stub, source), RunStore(str(folder)))
    again = run(job_of(stub, source, rerun=True, epoch=1), RunStore(str(folder)))
    assert again["generation"] == 2
    assert not {each["part"] for each in first["chunks"]} & {each["part"] for each in again["chunks"]}
    store = RunStore(str(folder))
    store.write(first["chunks"][0]["part"], b"late")
    assert run(job_of(stub, source, rerun=True, epoch=1), store) == again


class Rival(HookedStore):
    """Before the first part is put, another try's lies there, whose answers took other tokens."""

    def before(self, name: str) -> None:
        if layout.parse_part(name) and layout.parse_part(name)[0] == 0:  # type: ignore[index]
            RunStore(self.uri).write(name, self.part)

    part = b""


def test_what_a_manifest_counts_is_what_lies_there_whoever_put_it(
    stub: StubVLLM, source: str, folder: Path, tmp_path: Path
) -> None:
    honest = run(job_of(stub, source), RunStore(str(tmp_path / "honest")))
    rows = [json.loads(line) for line in (tmp_path / "honest" / honest["chunks"][0]["part"]).read_bytes().splitlines()]
    for row in rows:
        row["usage"]["completion_tokens"] += 100
    store = Rival(str(folder))
    store.part = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    manifest = run(job_of(stub, source), store)
    usage = Usage()
    for line in part_lines(folder):
        usage += Usage(**line["usage"])
    assert manifest["usage"] == usage.as_dict()
    assert manifest["usage"]["completion_tokens"] == honest["usage"]["completion_tokens"] + 400
    assert manifest["counts"] == honest["counts"]


def test_of_two_records_that_differ_the_part_tells(stub: StubVLLM, source: str, folder: Path) -> None:
    honest = run(job_of(stub, source), RunStore(str(folder)))
    (folder / layout.MANIFEST).unlink()
    for token, tokens in (("aaaaaaaa", 1), ("zzzzzzzz", 2)):
        lines = [{**each, "completion_tokens": tokens} for each in honest["chunks"]]
        RunStore(str(folder)).write(
            layout.commits(honest["fingerprint"], token, 0),
            b"".join(json.dumps(each).encode() + b"\n" for each in lines),
        )
    assert run(job_of(stub, source), RunStore(str(folder)))["usage"] == honest["usage"]


def test_a_listing_without_the_run_is_not_believed(stub: StubVLLM, source: str, folder: Path) -> None:
    class Blank(RunStore):
        def list(self, prefix: str) -> dict[str, int]:
            return {}

    with pytest.raises(StorageError):
        run(job_of(stub, source), KilledStore(str(folder), at=8))
    before = stub.received
    with pytest.raises(StorageError, match=r"does not show _run/run\.json"):
        run(job_of(stub, source), Blank(str(folder)))
    assert stub.received == before


# -- the store's part in it


def lost() -> None:
    raise RunStoppedError("lost")


def test_a_lease_that_is_lost_while_an_object_is_spooled_is_lost_in_time(folder: Path) -> None:
    store = RunStore(str(folder))
    store.write("a", b"old")

    def pieces() -> Iterator[bytes]:
        yield b"new"
        store.guard = lost

    with pytest.raises(RunStoppedError):
        store.write_from("a", pieces())
    store.guard = None
    assert store.read("a") == b"old"


def test_what_else_goes_wrong_with_a_conditional_write_is_no_licence_to_replace() -> None:
    attach("memory", fs=MemoryFileSystem())
    store = RunStore("memory://bucket/late")

    class Tired:
        def __init__(self, fs: Any) -> None:
            self._fs = fs

        def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
            if mode == "create":
                raise OSError(16, "Service Unavailable")
            raise AssertionError("it was put without the condition")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._fs, name)

    store._fs = Tired(store._fs)
    with pytest.raises(StorageError, match="Service Unavailable"):
        store.put_new("a", b"1")
