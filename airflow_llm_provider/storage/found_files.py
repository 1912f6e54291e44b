"""The files of an input: found by path or glob, opened, and looked at again.

Owns what a file is known by, and every question to its store. Does not know what is in it (`file_source` and the
formats).
"""

from __future__ import annotations

import gzip
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, cast

from fsspec.implementations.local import LocalFileSystem

from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError, SourceError, StorageError
from airflow_llm_provider.storage.store import open_path, storage_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_READ_AHEAD_BYTES = 4 << 20  # a chunk is seldom larger; s3fs's own default of 50 MiB would be fetched for each
PACKED = (".gz", ".zst")
_OTHERWISE_PACKED = (".bz2", ".xz", ".zip", ".7z")

RESTART = "Put it back as it was, or set on_stale='restart' to begin this run anew"


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is found.

    Attributes:
        uri: names it for people.
        path: names it for its file system.
        pattern: which of the source's patterns found it.
        size_bytes: as it lies there.
        version: changes when the file does: ETag, checksum or modification time, whichever the store has.
    """

    uri: str
    path: str
    pattern: int
    size_bytes: int
    version: str

    @property
    def packed(self) -> bool:
        """Whether it is compressed, so that nothing in it is found by seeking."""
        return is_packed(self.uri)

    @property
    def ending(self) -> str:
        """What its name ends with, but for what says that it is packed."""
        return ending(self.uri)


class FoundFiles:
    """See the module.

    Args:
        patterns: paths or globs with a scheme, such as ``s3://conn@bucket/docs/*.jsonl``; a bare path is a local file.

    Raises:
        ConfigurationError: when no file system serves a scheme.
        ConnectionMissingError: Airflow does not know a connection that one names.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = list(patterns)
        self._file_systems: list[Any] = []
        self._paths: list[str] = []
        for pattern in patterns:
            fs, path = open_path(pattern, what="source")
            self._file_systems.append(fs)
            self._paths.append(path)

    def find(self, pinned: Mapping[str, Any] | None = None) -> list[File]:
        """All files, in the order of the patterns, and sorted within a glob.

        Args:
            pinned: a snapshot: a plain path that it names may be missing, which the caller then reports.

        Raises:
            SourceError: there are none, or one of them twice.
            StorageError: they could not be looked for.
        """
        found: list[File] = []
        for number, pattern in enumerate(self.patterns):
            fs, path = self._file_systems[number], self._paths[number]
            try:
                is_glob = any(magic in path for magic in "*?[")
                infos = fs.glob(path, detail=True) if is_glob else {path: fs.info(path)}
                infos = self._followed(fs, infos, pinned=pinned is not None)
            except FileNotFoundError:
                infos = {}
            except LLMBatchError:
                raise
            except Exception as error:  # whatever the store's client raises
                raise storage_error(f"finding {pattern}", error) from error
            matched = [
                File(str(fs.unstrip_protocol(name)), name, number, int(info["size"] or 0), _version(info))
                for name, info in sorted(infos.items())
                if info["type"] == "file"
            ]
            if not matched and pinned is None:
                _check_bucket(fs, path, pattern)
                raise _nothing(pattern, folder=any(info["type"] == "directory" for info in infos.values()))
            found.extend(matched)
        if pinned is None:
            self._check_named_once(found)
        return found

    def now(self, file: File) -> File:
        """The file as it is just now.

        Raises:
            SourceError: it is gone.
            StorageError: that could not be found out.
        """
        fs = self._file_systems[file.pattern]
        try:
            fs.invalidate_cache(file.path)
            info = fs.info(file.path)
        except FileNotFoundError as error:
            raise gone(file) from error
        except Exception as error:  # whatever the store's client raises
            raise storage_error(f"looking at {file.uri}", error) from error
        return replace(file, size_bytes=int(info["size"] or 0), version=_version(info))

    @contextmanager
    def open(self, file: File, *, jumps: bool = False) -> Iterator[IO[bytes]]:
        """Its bytes, unpacked where it is compressed; raises what its store's client raises, and SourceError.

        Args:
            file: which one.
            jumps: whether it is read here and there, and not from one place on.
        """
        name = file.uri.lower()
        if name.endswith(_OTHERWISE_PACKED):
            raise SourceError(f"{file.uri}: of packed files, gzip (.gz) and zstd (.zst) are read. Unpack it")
        caching: dict[str, Any] = {"block_size": _READ_AHEAD_BYTES}
        if jumps:
            caching = {"block_size": 1 << 20, "cache_type": "blockcache", "cache_options": {"maxblocks": 32}}
        with self._file_systems[file.pattern].open(file.path, "rb", **caching) as stream:
            if name.endswith(".gz"):
                with gzip.GzipFile(fileobj=stream) as unpacked:
                    yield cast("IO[bytes]", unpacked)
            elif name.endswith(".zst"):
                with pyarrow_for(file.uri).CompressedInputStream(stream, "zstd") as unpacked:
                    yield cast("IO[bytes]", unpacked)
            else:
                yield stream

    def _check_named_once(self, files: Sequence[File]) -> None:
        seen: set[tuple[int, str]] = set()  # two stores may have buckets of one name
        for file in files:
            key = id(self._file_systems[file.pattern]), file.path
            if key in seen:
                raise SourceError(f"source: {file.uri} is named twice, so that its rows would be asked twice")
            seen.add(key)

    @staticmethod
    def _followed(fs: Any, infos: Mapping[str, Any], *, pinned: bool) -> dict[str, Any]:
        """A symbolic link in a listing is described as itself; asked for by name, as the file it leads to."""
        found = {}
        for name, info in infos.items():
            try:
                found[name] = fs.info(name) if info.get("islink") else info
            except FileNotFoundError as error:
                if not pinned:  # else it is none of the run's files, or one that is missing now
                    raise SourceError(
                        f"source: {name} is a link, and what it leads to is not there. Mend it, or remove it"
                    ) from error
        return found


def is_packed(name: str) -> bool:
    """Whether a file of that name is compressed."""
    return name.lower().endswith(PACKED)


def ending(name: str) -> str:
    """What a file's name ends with, in small letters, but for what says that it is packed: ``csv`` of ``A.CSV.gz``."""
    last = name.rsplit("/", 1)[-1].lower()
    for packed in PACKED:
        last = last.removesuffix(packed)
    return last.rpartition(".")[2]


def pyarrow_for(uri: str) -> Any:
    """pyarrow, which is an extra.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            f"source: {uri} needs pyarrow. Install airflow-llm-provider[files] on the workers"
        ) from error
    return pa


def gone(file: File) -> SourceError:
    """The error for a pinned file that is not there."""
    return SourceError(f"{file.uri} was part of this run's input and is gone. {RESTART}")


def _check_bucket(fs: Any, path: str, pattern: str) -> None:
    """Whether the bucket is there: a store says of a missing one that it holds nothing.

    Raises:
        StorageError: it is not, or may not be seen.
    """
    if isinstance(fs, LocalFileSystem):
        return
    bucket = path.split("/", 1)[0]
    if not bucket:  # a store without them
        return
    try:
        there = fs.exists(bucket)
    except Exception as error:  # whatever the store's client raises
        raise storage_error(f"looking for the bucket of {pattern}", error) from error
    if not there:
        raise StorageError(f"source: {pattern}: there is no bucket {bucket}, or this connection may not see it")


def _nothing(pattern: str, *, folder: bool) -> SourceError:
    if folder:
        return SourceError(f"source: {pattern} is a folder. Name its files, e.g. {pattern.rstrip('/')}/*.jsonl")
    return SourceError(
        f"source: no file matches {pattern}. An input that may be empty must still be there as an empty file; "
        "one that comes later needs a sensor before this task"
    )


def _version(info: Mapping[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key) is not None:
            value = str(info[key]).strip('"')  # some list them so, and tell them otherwise
            return f"{key}={value}"
    return ""
