"""Whole objects on any object storage: read, write atomically, list, delete.

Owns the difference between stores (rename on files, one PUT elsewhere) and between "nothing there" and "could not
read". Does not know what the objects mean (`layout`, `journal`, `parts`). The only place, beside `source`, where
Airflow's path type is used.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem

from airflow_llm_provider.exceptions import ConfigurationError, ConnectionMissingError, LLMBatchError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_llm_provider.storage.state_files import StateFiles

_READERS = 16

_FOUND: set[str] = set()
"""Connections that this process has looked up: a source may name thousands of paths."""

_SCRATCH = "_run/tmp"
"""Where files are written before they are renamed into place; same file system as the run, out of readers' sight."""

_NO_CONDITIONS = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
"""What stores say that know no conditional write."""

_SCRATCH_OLD_S = 120.0
"""Nobody writes a file for so long without touching it: what is older was left by a try that was killed."""


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `StorageError` that says what was being done."""
    try:
        yield
    except LLMBatchError:  # a lease that is lost, too
        raise
    except Exception as error:  # fsspec's file systems raise what their client libraries raise
        raise storage_error(what, error) from error


def storage_error(what: str, error: Exception) -> StorageError:
    """An error that says what was tried, on which object, what happened and what to do."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "The disk is full: free space and let the task try again"
    elif isinstance(error, PermissionError):
        advice = "Permission is denied: check the storage connection's rights"
    elif type(error).__name__ == "FlexibleChecksumError":  # botocore's, which need not be installed
        advice = (
            "Either the data was damaged on its way, or this store answers a part of an object with the whole's "
            "checksum, as some do that are not Amazon's: then set response_checksum_validation to 'when_required' in "
            "the connection's config_kwargs"
        )
    else:
        advice = "Nothing is lost; another try reads it again"
    return StorageError(f"Storage failed at: {what}: {type(error).__name__}: {error}. {advice}")


class StrictLocalFileSystem(LocalFileSystem):  # type: ignore[misc] # fsspec ships no types
    """Local files, where a folder that cannot be read is an error.

    fsspec's `find` and `glob` take it for an empty one, so that a permission or an I/O error would look like nothing
    there; they swallow OSErrors only.
    """

    def ls(self, path: Any, detail: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002 - fsspec's signature
        """See fsspec."""
        try:
            return super().ls(path, detail=detail, **kwargs)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(f"list {path}", error) from error


def open_path(uri: str, *, what: str) -> tuple[Any, str]:
    """The file system that serves `uri`, and the path on it.

    Raises:
        ConfigurationError: when none does; `what` says whose URI it is.
        ConnectionMissingError: Airflow does not know the connection that the URI names.
    """
    _check_connection(uri, what=what)
    try:
        path = ObjectStoragePath(uri)
        fs: Any = path.fs
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"{what}: no file system serves {uri!r}: {error}. Install the provider that does, "
            "e.g. airflow-llm-provider[s3] for s3://"
        ) from error
    return StrictLocalFileSystem() if isinstance(fs, LocalFileSystem) else fs, str(path.path)


def _check_connection(uri: str, *, what: str) -> None:
    """Whether there is the one that `uri` names: providers make do without, and ask whoever has such a bucket."""
    conn_id = uri.partition("://")[2].partition("/")[0].rpartition("@")[0]
    if not conn_id or conn_id in _FOUND:
        return
    try:
        BaseHook.get_connection(conn_id)
    except Exception as error:  # of several types over Airflow's versions
        raise ConnectionMissingError(
            f"{what} {uri} names the connection {conn_id}, which Airflow does not know, or could not look up: {error}. "
            "Make it (Admin, Connections), or name another"
        ) from error
    _FOUND.add(conn_id)


class RunStore:
    """The objects below one run's path. All names are relative to it. Methods block: call them from threads.

    Args:
        uri: the run's path, with a scheme; a connection may be named as in ``s3://conn@bucket/prefix``.
        files: where no file system serves `uri`: what does.

    Attributes:
        guard: called before anything is changed; what it raises keeps the change from being made.

    Raises:
        ConfigurationError: when no file system serves the URI's scheme.
        ConnectionMissingError: Airflow does not know the connection that the URI names.
    """

    def __init__(self, uri: str, *, files: StateFiles | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.guard: Callable[[], None] | None = None
        self._files = files
        self._fs: Any = files
        path = self.uri
        if files is None:
            self._fs, path = open_path(self.uri, what="result_path")
        self._root = path.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def below(self, folder: str) -> RunStore:
        """What lies below one folder of it, as storage of its own, with a guard of its own."""
        return RunStore(f"{self.uri}/{folder}", files=self._files)

    def read(self, name: str) -> bytes | None:
        """The object's bytes; None only where the store says that there is no such object.

        Raises:
            StorageError: when it could not be read, which never means that nothing is there.
        """
        with _naming(f"read {self.uri}/{name}"):
            # s3fs would say that nothing is there where a listing, which it keeps for ever, did not show it.
            self._fs.invalidate_cache(self._at(name))
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def read_lines(self, name: str) -> Iterator[bytes]:
        """The object's lines, each with its end, a block in memory at a time; none where it is not there.

        Raises:
            StorageError: when it could not be read.
        """
        if self._files is not None:
            yield from (self.read(name) or b"").splitlines(keepends=True)
            return
        with _naming(f"read {self.uri}/{name}"):
            self._fs.invalidate_cache(self._at(name))
            try:
                with self._fs.open(self._at(name), "rb") as file:
                    yield from file
            except FileNotFoundError:
                return

    def size(self, name: str) -> int | None:
        """The object's bytes, counted; None where there is no such object.

        Raises:
            StorageError: when it could not be found out.
        """
        with _naming(f"look for {self.uri}/{name}"):
            self._fs.invalidate_cache(self._at(name))
            try:
                return int(self._fs.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Put the whole object in place at once: readers see the old one or the new one, never a part.

        Args:
            name: the object.
            data: its bytes.
            durable: on files, also survive a power loss (fsync).

        Raises:
            StorageError: when it could not be written; the old object, if any, is then still there.
        """
        with _naming(f"write {self.uri}/{name}"):
            if not self._local:
                self._look()
                self._fs.pipe_file(self._at(name), data)
                return
            with self._spooled([data], durable=durable) as scratch:
                self._place(scratch, name, Path.replace, durable=durable)

    def write_from(self, name: str, pieces: Iterable[bytes]) -> None:
        """Like `write`, for an object too large to hold: spooled to a local file first."""
        with _naming(f"write_from {self.uri}/{name}"), self._spooled(pieces, durable=True) as scratch:
            if self._local:
                self._place(scratch, name, Path.replace, durable=True)
            else:
                self._look()
                self._fs.put_file(str(scratch), self._at(name))

    def create(self, name: str, data: bytes) -> bool:
        """Put the whole object in place where none lies yet; returns whether ours is the one that lies there.

        Files and the large object stores settle themselves who comes first. Where a store cannot, it is looked at
        just before and just after: of two that write between each other's looks, both may take themselves for the
        first, and whoever relies on it must look again later.

        Raises:
            StorageError: when it could not be found out or written.
        """
        if self.read(name) is not None:
            return False
        self.put_new(name, data)
        return self.read(name) == data

    def put_new(self, name: str, data: bytes) -> bool:
        """Put the whole object in place unless one lies there; returns False where one does.

        A store that knows no such condition replaces what somebody put there a moment ago. Where an answer was lost,
        what lies there may be ours.

        Raises:
            StorageError: when it could not be found out or written.
        """
        with _naming(f"create {self.uri}/{name}"):
            if not self._local:
                self._look()
                return self._put_new(name, data)
            with self._spooled([data], durable=True) as scratch:
                try:
                    self._place(scratch, name, _link, durable=True)
                except FileExistsError:
                    return False
            return True

    def list(self, prefix: str) -> dict[str, int]:
        """Names of all objects below the folder `prefix` ("" for the run itself) with their sizes in bytes.

        Sorted by name; scratch files are left out.
        """
        with _naming(f"list {self.uri}/{prefix}"):
            base = self._at(prefix)
            self._fs.invalidate_cache(base)
            try:
                found = self._fs.find(base, detail=True)
            except FileNotFoundError:
                return {}
            cut = len(self._root) + 1
            sizes = {str(path)[cut:]: int(info["size"] or 0) for path, info in found.items()}
            return {name: sizes[name] for name in sorted(sizes) if not name.startswith(_SCRATCH)}

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, in no order; those that are gone already are fine.

        Raises:
            StorageError: when one could not be removed.
        """
        gone = list(names)
        self._look()
        if self._files is not None:
            with _naming(f"delete {len(gone):,} objects of {self.uri}"):
                self._files.remove([self._at(name) for name in gone])
        elif self._local or len(gone) < _READERS:
            for name in gone:
                self._delete(name)
        else:
            with ThreadPoolExecutor(_READERS, thread_name_prefix="llm-batch-remove") as removers:
                list(removers.map(self._delete, gone))

    def prune(self, folder: str) -> None:
        """Remove the empty folders in `folder`, where the storage is a file system: elsewhere there are none."""
        if self._local:
            for each, _, _ in os.walk(self._at(folder), topdown=False):
                if each != self._at(_SCRATCH):  # another may be about to write there
                    with suppress(OSError):  # it is not empty
                        Path(each).rmdir()

    def clear_scratch(self) -> None:
        """Remove what killed tries left half-written on files; what another may be writing just now is left."""
        folder = Path(self._at(_SCRATCH))
        if not self._local or not folder.exists() or folder.is_symlink():  # whose else's may it be?
            return
        with _naming(f"clear {self.uri}/{_SCRATCH}"), self._spooled([], durable=False) as probe:
            now_s = probe.stat().st_mtime  # by the clock that dates the others, which may be a file server's
            for entry in os.scandir(folder):
                with suppress(FileNotFoundError):
                    if entry.stat().st_mtime < now_s - _SCRATCH_OLD_S:
                        Path(entry.path).unlink()

    def _delete(self, name: str) -> None:
        with _naming(f"delete {self.uri}/{name}"):
            try:
                self._fs.rm_file(self._at(name))
            except FileNotFoundError:
                return

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _look(self) -> None:
        if self.guard is not None:
            self.guard()

    def _put_new(self, name: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(self._at(name), data, mode="create")
        except FileExistsError:
            return False  # another's, or our own whose answer was lost
        except (OSError, NotImplementedError, TypeError, ValueError) as error:
            # It knows no such condition, or says so of what exists. Anything else is an error: without the condition
            # this would replace what another has put there meanwhile.
            if isinstance(error, OSError) and error.errno not in _NO_CONDITIONS:
                raise
            if self.read(name) is not None:
                return False
            self._look()
            self._fs.pipe_file(self._at(name), data)
        return True

    @contextmanager
    def _spooled(self, pieces: Iterable[bytes], *, durable: bool) -> Iterator[Path]:
        """A scratch file that holds `pieces`; gone afterwards, where it was not moved away."""
        scratch = self._scratch()
        try:
            with scratch.open("wb") as file:
                file.writelines(pieces)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)

    def _scratch(self) -> Path:
        if self._local:
            folder = Path(self._root) / _SCRATCH
            folder.mkdir(parents=True, exist_ok=True)
            return folder / secrets.token_hex(8)
        handle, name = tempfile.mkstemp(prefix="llm-batch-")
        os.close(handle)
        return Path(name)

    def _place(self, scratch: Path, name: str, put: Callable[[Path, Path], object], *, durable: bool) -> None:
        target = Path(self._at(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self._look()  # as late as can be: what was spooled may have taken long
        try:
            put(scratch, target)
        except FileNotFoundError:  # another try pruned the folder, which was empty
            target.parent.mkdir(parents=True, exist_ok=True)
            put(scratch, target)
        if durable:
            _sync_folder(target.parent)


def _link(scratch: Path, target: Path) -> None:
    """Give `scratch` the name `target`; raises FileExistsError where another file bears it."""
    try:
        os.link(scratch, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        scratch.replace(target)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power loss: the folder's entry is data of the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_all(store: RunStore, names: Iterable[str], *, at_once: int = 4 * _READERS) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each object, in order; one that vanished between listing and reading is left out.

    Several are read at once, and `at_once` held: on S3 each takes tens of milliseconds, and a resume reads hundreds.

    Raises:
        StorageError: when one could not be read.
    """
    rest = iter(names)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="llm-batch-read") as readers:
        while batch := list(islice(rest, at_once)):
            for name, data in zip(batch, readers.map(store.read, batch), strict=True):
                if data is not None:
                    yield name, data
