from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from airflow_llm_provider.exceptions import ConfigurationError, ConnectionMissingError, StorageError
from airflow_llm_provider.storage.jsonl import JsonlSource
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
    store.write_from("big.jsonl", iter([b"33", b"3"]))
    assert store.read("a.json") == b"1"
    assert store.read("big.jsonl") == b"333"
    assert store.list("") == {"_run/journal/00000/x.jsonl": 2, "a.json": 1, "big.jsonl": 3}
    assert store.list("_run/journal") == {"_run/journal/00000/x.jsonl": 2}
    store.delete(["a.json", "never-was"])
    assert store.read("a.json") is None
    store.delete(["_run/journal/00000/x.jsonl"])
    store.prune("_run")
    store.write("_run/journal/00000/y.jsonl", b"4")
    store.prune("_run")
    assert store.list("_run") == {"_run/journal/00000/y.jsonl": 1}
    store.delete(["_run/journal/00000/y.jsonl"])
    assert list(store.list("")) == ["big.jsonl"]
    assert list(read_all(store, ["gone", "big.jsonl"])) == [("big.jsonl", b"333")]


def test_overwrites_whole(store: RunStore) -> None:
    store.write("a", b"a long old text")
    store.write("a", b"new")
    assert store.read("a") == b"new"


def test_creates_only_where_nothing_lies(store: RunStore) -> None:
    assert store.create("_run/run.json", b"ours")
    assert not store.create("_run/run.json", b"theirs")
    assert store.read("_run/run.json") == b"ours"
    assert store.list("") == {"_run/run.json": 4}


class Rival:
    """A file system on which another writer comes between our look and our write.

    Args:
        fs: what is really there.
        how: whether the other comes ``before`` our write or ``after`` it, and whether the store is one that ``refuses``
            to overwrite, ``ignores`` that it was asked to, or ``cannot`` (it raises at the word).
    """

    def __init__(self, fs: Any, how: str, comes: str, rival: bytes | None) -> None:
        self._inner, self._how, self._comes, self._rival = fs, how, comes, rival

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        if self._comes == "before" and self._rival is not None:
            self._inner.pipe_file(path, self._rival)
        if mode == "create" and self._how == "cannot":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        self._inner.pipe_file(path, data, mode=mode if self._how == "refuses" else "overwrite")
        if self._comes == "after" and self._rival is not None:
            self._inner.pipe_file(path, self._rival)


@pytest.mark.parametrize("how", ["refuses", "ignores", "cannot"])
def test_creates_on_stores_of_all_kinds(how: str) -> None:
    store = memory_store()
    store._fs = Rival(store._fs, how, "before", None)
    assert store.create("a", b"ours")
    assert not store.create("a", b"theirs")
    assert store.read("a") == b"ours"


@pytest.mark.parametrize(
    ("how", "comes", "stands"),
    [
        ("refuses", "before", b"theirs"),
        ("refuses", "after", b"theirs"),
        ("ignores", "after", b"theirs"),
        ("cannot", "before", b"theirs"),
        ("cannot", "after", b"theirs"),
    ],
)
def test_who_comes_second_or_is_overwritten_is_told(how: str, comes: str, stands: bytes) -> None:
    store = memory_store()
    store._fs = Rival(store._fs, how, comes, b"theirs")
    assert not store.create("a", b"ours")
    assert store.read("a") == stands


@pytest.mark.parametrize(
    ("how", "put", "stands"),
    [("refuses", False, b"theirs"), ("cannot", False, b"theirs"), ("ignores", True, b"ours")],
)
def test_what_lies_there_is_replaced_only_where_the_store_knows_no_condition(
    how: str, *, put: bool, stands: bytes
) -> None:
    store = memory_store()
    store._fs = Rival(store._fs, how, "before", b"theirs")
    assert store.put_new("a", b"ours") is put
    assert store.read("a") == stands


def test_puts_what_is_new_and_nothing_else_on_files(tmp_path: Path, mocker: MockerFixture) -> None:
    store = RunStore(str(tmp_path))
    assert store.put_new("a", b"ours")
    assert not store.put_new("a", b"theirs")
    mocker.patch("os.link", side_effect=PermissionError(errno.EPERM, "Operation not permitted"))
    assert not store.put_new("a", b"theirs")
    assert store.put_new("b", b"ours")
    assert (store.read("a"), store.read("b")) == (b"ours", b"ours")
    assert not list((tmp_path / "_run" / "tmp").iterdir())


def test_an_answer_that_was_lost_does_not_make_us_our_own_rival() -> None:
    """The client library sends the request again, and is refused by what its first one wrote."""
    store = memory_store()
    store._fs = Rival(store._fs, "refuses", "before", b"ours")
    assert store.create("a", b"ours")


def test_creates_on_files_too_where_there_are_no_hard_links(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch("os.link", side_effect=PermissionError(errno.EPERM, "Operation not permitted"))
    store = RunStore(str(tmp_path))
    assert store.create("a", b"ours")
    assert not store.create("a", b"theirs")
    assert store.read("a") == b"ours"
    assert not list((tmp_path / "_run" / "tmp").iterdir())


def test_a_rival_on_files_between_look_and_write(tmp_path: Path, mocker: MockerFixture) -> None:
    store = RunStore(str(tmp_path))
    real = os.fsync

    def rival(handle: int) -> None:
        mocker.stop(patched)
        (tmp_path / "a").write_bytes(b"theirs")
        real(handle)

    patched = mocker.patch("os.fsync", side_effect=rival)
    assert not store.create("a", b"ours")
    assert store.read("a") == b"theirs"


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
        ("rm_file", lambda store: store.delete(f"a{number}" for number in range(40))),
    ],
    ids=["read", "list", "delete", "delete many"],
)
def test_could_not_is_never_nothing_there(
    store: RunStore, method: str, act: Callable[[RunStore], object], error: Exception, words: str
) -> None:
    store.write("a", b"1")
    store._fs = Failing(store._fs, method, error)
    with pytest.raises(StorageError, match=words) as raised:
        act(store)
    assert store.uri in str(raised.value)


def test_a_create_that_cannot_look_creates_nothing() -> None:
    store = memory_store()
    whole, store._fs = store._fs, Failing(store._fs, "cat_file", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StorageError, match="Input/output error"):
        store.create("a", b"1")
    store._fs = whole
    assert store.read("a") is None


@pytest.mark.parametrize("method", ["pipe_file", "put_file"])
def test_a_put_that_fails_leaves_the_old_object(method: str) -> None:
    store = memory_store()
    store.write("a", b"old")
    store._fs = Failing(store._fs, method, OSError(errno.ENOSPC, "full"))
    with pytest.raises(StorageError, match="disk is full"):
        store.write("a", b"new") if method == "pipe_file" else store.write_from("a", [b"new"])
    if method == "pipe_file":
        with pytest.raises(StorageError, match="disk is full"):
            store.create("b", b"new")
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


def test_scratch_of_killed_tries_is_not_listed_and_is_removed_when_it_is_old(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.write("a", b"1")
    scratch = tmp_path / "_run" / "tmp"
    (scratch / "left-over").write_bytes(b"half")
    os.utime(scratch / "left-over", (1, 1))
    assert store.list("") == {"a": 1}
    (scratch / "just now").write_bytes(b"ha")
    store.clear_scratch()
    assert [entry.name for entry in scratch.iterdir()] == ["just now"]
    assert store.list("") == {"a": 1}


def test_scratch_that_another_try_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Else a run that ends would fail the write of another that shares its path by mistake."""
    one, other = RunStore(str(tmp_path)), RunStore(str(tmp_path))

    def pieces() -> Any:
        yield b"half"
        other.write("b", b"1")
        other.clear_scratch()
        yield b" and half"

    one.write_from("a", pieces())
    assert one.read("a") == b"half and half"


def test_scratch_that_cannot_be_looked_at_is_an_error(tmp_path: Path, mocker: MockerFixture) -> None:
    store = RunStore(str(tmp_path))
    store.clear_scratch()  # nothing was ever written: nothing to look at
    store.write("a", b"1")
    mocker.patch("os.scandir", side_effect=PermissionError(errno.EACCES, "denied"))
    with pytest.raises(StorageError, match="denied"):
        store.clear_scratch()


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


def test_a_connection_that_airflow_does_not_know_is_no_anonymous_access() -> None:
    """Its provider would make do without, and ask Amazon, or whoever has a bucket of that name."""
    with pytest.raises(ConnectionMissingError, match=r"result_path s3://nobody@rows/run names the connection nobody"):
        RunStore("s3://nobody@rows/run")
    with pytest.raises(ConnectionMissingError, match=r"source s3://nobody@rows/\*\.jsonl names the connection nobody"):
        JsonlSource(["s3://nobody@rows/*.jsonl"])
