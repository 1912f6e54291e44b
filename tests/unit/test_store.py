from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from airflow_llm_provider.exceptions import ConfigurationError, StorageError
from airflow_llm_provider.storage.store import RunStore, read_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_mock import MockerFixture


def memory_store() -> RunStore:
    MemoryFileSystem.store.clear()
    attach("memory", fs=MemoryFileSystem())
    return RunStore("memory://bucket/run")


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The same promises on files and on an object store, for which fsspec's memory file system stands."""
    if request.param == "file":
        return RunStore(f"file://{tmp_path}/run")
    return memory_store()


class Failing:
    """A file system whose one method raises."""

    def __init__(self, fs: Any, method: str, error: Exception) -> None:
        self._inner, self._method, self._error = fs, method, error

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            return self._raise
        return getattr(self._inner, name)

    def _raise(self, *_: Any, **__: Any) -> None:
        raise self._error


def test_writes_reads_lists_and_deletes(store: RunStore) -> None:
    store.write("a.json", b"1")
    store.write("_run/journal/00000/x.jsonl", b"22", durable=False)
    assert store.write_from("big.jsonl", iter([b"33", b"3"])) == 3
    assert store.read("a.json") == b"1"
    assert store.read("big.jsonl") == b"333"
    assert store.list("") == {"_run/journal/00000/x.jsonl": 2, "a.json": 1, "big.jsonl": 3}
    assert store.list("_run/journal") == {"_run/journal/00000/x.jsonl": 2}
    store.delete(["a.json", "never-was"])
    assert store.read("a.json") is None
    store.delete_folder("_run/journal")
    store.delete_folder("_run/journal")
    assert list(store.list("")) == ["big.jsonl"]
    assert list(read_all(store, ["gone", "big.jsonl"])) == [("big.jsonl", b"333")]


def test_overwrites_whole(store: RunStore) -> None:
    store.write("a", b"a long old text")
    store.write("a", b"new")
    assert store.read("a") == b"new"


def test_nothing_there_is_none_and_no_error(store: RunStore) -> None:
    assert store.read("a") is None
    assert store.list("") == {}
    assert store.list("_run/journal") == {}


def test_no_file_system_for_a_scheme() -> None:
    with pytest.raises(ConfigurationError, match=r"nosuch://.*airflow-llm-provider\[s3\]"):
        RunStore("nosuch://bucket/run")


FAILURES = {
    "permission": (PermissionError(errno.EACCES, "denied"), "Permission is denied"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk is full"),
    "input/output": (OSError(errno.EIO, "Input/output error"), "Nothing is lost"),
    "a client library's own": (RuntimeError("SlowDown"), "SlowDown"),
}


@pytest.mark.parametrize(("error", "words"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize(
    ("method", "act"),
    [
        ("cat_file", lambda store: store.read("a")),
        ("find", lambda store: store.list("")),
        ("rm_file", lambda store: store.delete(["a"])),
        ("rm", lambda store: store.delete_folder("_run")),
    ],
    ids=["read", "list", "delete", "delete_folder"],
)
def test_could_not_is_never_nothing_there(
    store: RunStore, method: str, act: Callable[[RunStore], object], error: Exception, words: str
) -> None:
    store.write("a", b"1")
    store._fs = Failing(store._fs, method, error)
    with pytest.raises(StorageError, match=words) as raised:
        act(store)
    assert store.uri in str(raised.value)


@pytest.mark.parametrize("method", ["pipe_file", "put_file"])
def test_a_put_that_fails_leaves_the_old_object(method: str) -> None:
    store = memory_store()
    store.write("a", b"old")
    store._fs = Failing(store._fs, method, OSError(errno.ENOSPC, "full"))
    with pytest.raises(StorageError, match="disk is full"):
        store.write("a", b"new") if method == "pipe_file" else store.write_from("a", [b"new"])
    assert store.read("a") == b"old"


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_on_files_that_fails_leaves_the_old_object_and_no_scratch(
    tmp_path: Path, mocker: MockerFixture, step: str
) -> None:
    store = RunStore(str(tmp_path))
    store.write("a", b"old")
    patched = mocker.patch(step, side_effect=OSError(errno.ENOSPC, "full"))
    with pytest.raises(StorageError, match="disk is full"):
        store.write("a", b"new")
    with pytest.raises(StorageError, match="disk is full"):
        store.write_from("a", [b"new"])
    mocker.stop(patched)
    assert store.read("a") == b"old"
    assert not list((tmp_path / "_run" / "tmp").iterdir())


def test_pieces_that_fail_leave_no_object(store: RunStore) -> None:
    def pieces() -> Any:
        yield b"half"
        raise StorageError("cannot read the other half")

    with pytest.raises(StorageError, match="other half"):
        store.write_from("a", pieces())
    assert store.read("a") is None


def test_scratch_of_killed_tries_is_not_listed_and_can_be_cleared(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.write("a", b"1")
    (tmp_path / "_run" / "tmp" / "left-over").write_bytes(b"half")
    assert store.list("") == {"a": 1}
    store.clear_scratch()
    assert not (tmp_path / "_run" / "tmp").exists()


def test_spooling_for_an_object_store_leaves_nothing_on_the_local_disk(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(tempfile, "tempdir", str(tmp_path))
    memory_store().write_from("a", [b"1"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["", "_run/journal"])
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, mocker: MockerFixture, folder: str) -> None:
    store = RunStore(str(tmp_path))
    store.write("_run/journal/00000/x.jsonl", b"1")
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == tmp_path / folder:
            raise PermissionError(errno.EACCES, "denied", str(path))
        return scandir(path)

    mocker.patch("os.scandir", refuse)
    with pytest.raises(StorageError, match="denied"):
        store.list("")


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"a file")
    store = RunStore(str(tmp_path / "run"))
    with pytest.raises(StorageError):
        store.read("_run/run.json")
    with pytest.raises(StorageError):
        store.write("_run/run.json", b"")
