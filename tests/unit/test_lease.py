"""One writer: which try of a run may write, and what becomes of one that may no longer."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from batch_fakes import HookedStore, Try, job_of, part_lines, run, texts, write_rows

from airflow_llm_provider.batch import reporter
from airflow_llm_provider.exceptions import RunStoppedError, StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.lease import Lease
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import StubVLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def stub() -> Iterator[StubVLLM]:
    with StubVLLM() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", texts(10))


NOW = datetime(2026, 1, 15, 2, 0, tzinfo=UTC)


def lease(folder: Path, token: str, try_number: int = 1) -> tuple[RunStore, Lease]:
    store = RunStore(str(folder))
    return store, Lease(store, token=token, try_number=try_number)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHANGES: list[tuple[str, Callable[[RunStore], object]]] = [
    ("write", lambda store: store.write("a", b"late")),
    ("write_from", lambda store: store.write_from("a", [b"late"])),
    ("put_new", lambda store: store.put_new("new", b"late")),
    ("create", lambda store: store.create("new", b"late")),
    ("delete", lambda store: store.delete(["a"])),
]


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_who_lost_the_lease_changes_nothing(folder: Path, change: Callable[[RunStore], object]) -> None:
    zombie, held = lease(folder, "old")
    held.take(NOW)
    zombie.write("a", b"early")
    zombie.write("b/c", b"early")
    lease(folder, "new", 2)[1].take(NOW)
    before = everything(folder)
    with pytest.raises(RunStoppedError, match=r"Try 2 has taken the run at .*from this one, try 1"):
        change(zombie)
    assert everything(folder) == before


def test_a_newer_try_is_not_robbed_by_an_older_one_that_comes_late(folder: Path) -> None:
    new, held = lease(folder, "new", 2)
    held.take(NOW)
    with pytest.raises(RunStoppedError, match="Try 2 has taken"):
        lease(folder, "old", 1)[1].take(NOW)
    new.write("a", b"still ours")


@pytest.mark.parametrize("tells", [b"", b"[]", b'{"updated_at": 3}', b'{"updated_at": "2026-01-15T02:00:00"}'])
def test_a_dag_run_made_again_counts_from_one_and_takes_what_nobody_works_at(folder: Path, tells: bytes) -> None:
    _, held = lease(folder, "of the run that was deleted", 3)
    held.take(NOW)
    store, held = lease(folder, "new", 1)
    store.write(layout.PROGRESS, tells)
    with pytest.raises(RunStoppedError):
        held.take(NOW + timedelta(seconds=30))
    held.take(NOW + timedelta(seconds=90))
    store.write("a", b"")


def test_who_tells_of_its_progress_works_however_long_ago_it_began(folder: Path) -> None:
    new, held = lease(folder, "new", 2)
    held.take(NOW)
    new.write(layout.PROGRESS, json.dumps({"updated_at": (NOW + timedelta(hours=5)).isoformat()}).encode())
    with pytest.raises(RunStoppedError, match="Try 2 has taken"):
        lease(folder, "old", 1)[1].take(NOW + timedelta(hours=5, seconds=3))


def test_of_two_processes_of_one_try_the_later_holds_it(folder: Path) -> None:
    """A deferred task comes back in another process, under the same number."""
    first, held = lease(folder, "one")
    held.take(NOW)
    second, held = lease(folder, "two")
    held.take(NOW)
    second.write("a", b"")
    with pytest.raises(RunStoppedError, match="Another process has taken"):
        first.write("a", b"")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"try_number": "x"}', b"\xff"])
def test_a_damaged_lease_keeps_nobody_from_taking_it_and_nobody_holds_it(folder: Path, data: bytes) -> None:
    store, held = lease(folder, "one")
    held.take(NOW)
    (folder / layout.LEASE).write_bytes(data)
    with pytest.raises(RunStoppedError):
        store.write("a", b"")
    held.take(NOW)
    store.write("a", b"")


def test_a_lease_that_was_removed_is_lost(folder: Path) -> None:
    store, held = lease(folder, "one")
    held.take(NOW)
    (folder / layout.LEASE).unlink()
    with pytest.raises(RunStoppedError, match=r"lease\.json is gone"):
        store.write("a", b"")


def test_a_lease_that_cannot_be_read_is_not_lost_and_lets_nothing_through(folder: Path) -> None:
    class Unreadable(RunStore):
        broken = False

        def read(self, name: str) -> bytes | None:
            if self.broken:
                raise StorageError(f"cannot read {name}")
            return super().read(name)

    store = Unreadable(str(folder))
    Lease(store, token="one", try_number=1).take(NOW)
    store.broken = True
    with pytest.raises(StorageError, match="cannot read"):
        store.write("a", b"")
    assert not (folder / "a").exists()
    store.broken = False
    store.write("a", b"")


# -- runs


class Overtaken(HookedStore):
    """Storage of a try beside which another does the whole run, when an object of some name is about to be written."""

    def __init__(self, uri: str, prefix: str, other: Callable[[], object]) -> None:
        super().__init__(uri)
        self._prefix = prefix
        self._other: Callable[[], object] | None = other

    def before(self, name: str) -> None:
        if name.startswith(self._prefix) and self._other is not None:
            other, self._other = self._other, None
            other()


def check_whole(folder: Path, rows: int) -> None:
    """Each row landed once, and the manifest tells the truth."""
    manifest = json.loads((folder / layout.MANIFEST).read_bytes())
    assert [line["index"] for line in part_lines(folder)] == list(range(rows))
    assert {each["part"] for each in manifest["chunks"]} == {path.name for path in folder.glob("part-*")}
    for each in manifest["chunks"]:
        assert hashlib.sha256((folder / each["part"]).read_bytes()).hexdigest() == each["sha256"]


@pytest.mark.parametrize("at", ["_run/journal", "part-00001", "_run/commits", "manifest.json"])
def test_a_try_that_was_given_up_for_dead_ends_before_its_next_write(
    stub: StubVLLM, source: str, folder: Path, at: str
) -> None:
    then: dict[str, bytes] = {}

    def next_try() -> None:
        run(job_of(stub, source, try_number=2), RunStore(str(folder)))
        then.update(everything(folder))

    stub.behaviour.delay_s = 0.02  # rows settle one after another, or a chunk would be whole before any is journalled
    with pytest.raises(RunStoppedError, match="is gone, so another try has finished the run"):
        run(job_of(stub, source, flush_rows=1, max_in_flight=1), Overtaken(str(folder), at, next_try))
    assert everything(folder) == then
    check_whole(folder, 10)
    assert not (folder / layout.LEASE).exists()


def test_a_try_that_settles_nothing_finds_out_too(
    stub: StubVLLM, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the server's slots: the newer try needs them."""
    monkeypatch.setattr(reporter, "FIRST_S", 0.05)
    monkeypatch.setattr(reporter, "PROGRESS_INTERVAL_S", 0.05)
    stub.behaviour.delay_s = 20.0

    def taken() -> None:
        lease(folder, "new", 2)[1].take(NOW)

    doomed = Try(job_of(stub, source), Overtaken(str(folder), layout.PROGRESS, taken))
    with pytest.raises(RunStoppedError, match="Try 2 has taken"):
        doomed()
    assert doomed.requested(stub)


def test_an_unfinished_run_goes_on_under_the_next_tries_lease(stub: StubVLLM, source: str, folder: Path) -> None:
    class Full(HookedStore):
        def before(self, name: str) -> None:
            if name.startswith("part-00001"):
                raise StorageError("disk full")

    with pytest.raises(StorageError):
        run(job_of(stub, source), Full(str(folder)))
    assert (folder / layout.LEASE).exists()
    run(job_of(stub, source, try_number=2), RunStore(str(folder)))
    check_whole(folder, 10)
    assert not (folder / layout.LEASE).exists()


def test_a_run_that_another_try_begins_between_two_looks_is_no_foreign_one(
    stub: StubVLLM, source: str, folder: Path
) -> None:
    class Late(RunStore):
        """Sees no run, and then what the other try has begun meanwhile."""

        looked = False

        def list(self, prefix: str) -> dict[str, int]:
            if not self.looked:
                self.looked = True
                run(job_of(stub, source), RunStore(str(folder)))
            return super().list(prefix)

    assert run(job_of(stub, source, try_number=2), Late(str(folder)))["counts"]["succeeded"] == 10
    assert stub.received == 10
    check_whole(folder, 10)
