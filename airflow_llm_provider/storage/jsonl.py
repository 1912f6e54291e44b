"""JSONL files on any object storage: one JSON object per line, blank lines skipped.

Owns finding, pinning, scanning and seeking. Lines are not parsed here, save for a ``custom_id`` to find repetitions;
a malformed line is a row like any other and becomes a dead letter later. Does not know prompts.
"""

from __future__ import annotations

import codecs
import hashlib
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

import orjson
from fsspec.implementations.local import LocalFileSystem

from airflow_llm_provider.core.chunks import Chunk, ChunkPlan
from airflow_llm_provider.core.request import Position
from airflow_llm_provider.exceptions import LLMBatchError, SourceError, StorageError
from airflow_llm_provider.storage.duplicates import DuplicateFinder
from airflow_llm_provider.storage.source import Scan, SourceRow, duplicate_id
from airflow_llm_provider.storage.store import open_path, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_BLOCK_BYTES = 1 << 20
_READ_AHEAD_BYTES = 4 << 20  # a chunk is seldom larger; s3fs's own default of 50 MiB would be fetched for each
_MAX_LINE_BYTES = 64 << 20
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is found: `uri` names it for people, `path` for its file system."""

    uri: str
    path: str
    pattern: int  # which of the source's patterns found it
    size_bytes: int
    version: str  # changes when the file does: ETag, checksum or modification time, whichever the store has


class _Content:
    """What was read of a file."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def add(self, block: bytes) -> None:
        self.sha256.update(block)
        self.size_bytes += len(block)


class JsonlSource:
    """JSONL files, by path or glob, in the order given and sorted within a glob.

    Args:
        patterns: paths or globs with a scheme, such as ``s3://conn@bucket/docs/*.jsonl``; a bare path is a local file.

    Raises:
        ConfigurationError: when no file system serves a scheme.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = list(patterns)
        self._file_systems: list[Any] = []
        self._paths: list[str] = []
        self._same: set[tuple[str, str]] = set()  # files of another version than was pinned, and the same content
        for pattern in patterns:
            fs, path = open_path(pattern, what="source")
            self._file_systems.append(fs)
            self._paths.append(path)

    def __str__(self) -> str:
        return ", ".join(self._patterns)

    def spec(self) -> object:
        """The patterns, as the DAG rendered them."""
        return {"jsonl": self._patterns}

    def scan(self, chunk_rows: int) -> Scan:
        """Read every file once. See `storage.source.Source.scan`."""
        files: list[dict[str, Any]] = []
        starts: list[tuple[int, int, int]] = []
        digest = hashlib.sha256()
        total = 0
        with DuplicateFinder() as finder:
            repeated: tuple[int, int] | None = None
            for number, file in enumerate(self._find()):
                first = total
                content = _Content()
                for offset, line_number, line in self._lines(file, 0, 1, content.add):
                    if total % chunk_rows == 0:
                        starts.append((number, offset, line_number))
                    label = _label(line)
                    if label is not None and repeated is None:
                        repeated = finder.add(label, total)
                    total += 1
                digest.update(content.sha256.digest())
                files.append(
                    {
                        "uri": file.uri,
                        "path": file.path,
                        "pattern": file.pattern,
                        "bytes": content.size_bytes,  # as read: a listing may be older
                        "version": file.version,
                        "sha256": content.sha256.hexdigest(),
                        "rows": total - first,
                    }
                )
            repeated = repeated or finder.finish()
        snapshot = {"kind": "jsonl", "files": files, "rows": total}
        plan = ChunkPlan(chunk_rows, total, tuple(starts))
        if repeated:
            raise self._repeated(snapshot, plan, *repeated)
        return Scan(snapshot, digest.hexdigest(), plan)

    def check(self, snapshot: Mapping[str, Any], *, may_be_gone: bool = False) -> list[str]:
        """Pinned files must be as they were; others are left for the next run. See `storage.source.Source.check`."""
        now = {(file.pattern, file.path): file for file in self._find(pinned=snapshot)}
        for pinned in snapshot["files"]:
            file = now.pop((pinned["pattern"], pinned["path"]), None)
            if file is None:
                if may_be_gone:
                    continue
                raise SourceError(f"{pinned['uri']} was part of this run's input and is gone. {_RESTART}")
            self._compare(file, pinned)
        return [
            f"{file.uri} came after this run began; it is left for the next run"
            for file in sorted(now.values(), key=lambda file: file.uri)
        ]

    def rows(self, snapshot: Mapping[str, Any], chunk: Chunk) -> Iterator[SourceRow]:
        """The chunk's rows, from its byte offset on. See `storage.source.Source.rows`."""
        index, end = chunk.first_index, chunk.first_index + chunk.rows
        offset, line_number = chunk.offset, chunk.line
        for pinned in snapshot["files"][chunk.file :]:
            file = _File(pinned["uri"], pinned["path"], pinned["pattern"], pinned["bytes"], pinned["version"])
            for _, number, line in self._lines(file, offset, line_number, self._checks(file, pinned)):
                yield SourceRow(index, Position(file=file.uri, line=number), line)
                index += 1
                if index == end:
                    return
            offset, line_number = 0, 1
        raise SourceError(
            f"The source ended before row {index}: it has changed while the run was reading it. {_RESTART}"
        )

    def _find(self, pinned: Mapping[str, Any] | None = None) -> list[_File]:
        """All files, in input order.

        Args:
            pinned: a snapshot: a plain path that it names may be missing, which the caller then reports.
        """
        found: list[_File] = []
        for number, pattern in enumerate(self._patterns):
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
                _File(str(fs.unstrip_protocol(name)), name, number, int(info["size"] or 0), _version(info))
                for name, info in sorted(infos.items())
                if info["type"] == "file"
            ]
            if not matched and pinned is None:
                _check_bucket(fs, path, pattern)
                raise _nothing(pattern, folder=any(info["type"] == "directory" for info in infos.values()))
            found.extend(matched)
        if pinned is None:
            _check_named_once(found)
        return found

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

    def _lines(
        self, file: _File, offset: int, line_number: int, see: Callable[[bytes], object] | None = None
    ) -> Iterator[tuple[int, int, bytes]]:
        """(byte offset, line number, line) of each line that is not blank, from `offset` on.

        `see` gets every block as it is read.
        """
        try:
            with self._open(file, offset) as stream:
                rest = b""
                while block := stream.read(_BLOCK_BYTES):
                    if see is not None:
                        see(block)
                    *lines, rest = (rest + block if rest else block).split(b"\n")
                    for line in lines:
                        if line and not line.isspace():
                            yield offset, line_number, line
                        offset += len(line) + 1
                        line_number += 1
                    _check_length(rest, file, line_number)
                if rest and not rest.isspace():
                    yield offset, line_number, rest
        except LLMBatchError:
            raise
        except FileNotFoundError as error:
            raise SourceError(f"{file.uri} was part of this run's input and is gone. {_RESTART}") from error
        except Exception as error:  # whatever the store's client raises
            raise storage_error(f"reading {file.uri}", error) from error

    def _open(self, file: _File, offset: int) -> IO[bytes]:
        if file.uri.endswith(_COMPRESSED):
            raise SourceError(f"{file.uri} is compressed, which is not supported yet: give plain JSONL")
        stream: IO[bytes] = self._file_systems[file.pattern].open(file.path, "rb", block_size=_READ_AHEAD_BYTES)
        if offset:
            stream.seek(offset)
        return stream

    def _checks(self, file: _File, pinned: Mapping[str, Any]) -> Callable[[bytes], None]:
        """Called with each block that was read, before its rows are handed on: they are found by their offsets."""
        return lambda _: self._check_now(file, pinned)

    def _check_now(self, file: _File, pinned: Mapping[str, Any]) -> None:
        """Whether a pinned file is as it was: what has been read of one that is not belongs to another input.

        Raises:
            SourceError: it has changed, or is gone.
            StorageError: that could not be found out.
        """
        fs = self._file_systems[file.pattern]
        try:
            fs.invalidate_cache(file.path)
            info = fs.info(file.path)
        except FileNotFoundError as error:
            raise SourceError(f"{file.uri} was part of this run's input and is gone. {_RESTART}") from error
        except Exception as error:  # whatever the store's client raises
            raise storage_error(f"looking at {file.uri}", error) from error
        self._compare(replace(file, size_bytes=int(info["size"] or 0), version=_version(info)), pinned)

    def _compare(self, file: _File, pinned: Mapping[str, Any]) -> None:
        """Whether `file`, as it is found now, has the content that was pinned; raises SourceError where it has not."""
        if file.size_bytes == pinned["bytes"]:
            if file.version == pinned["version"] or (file.path, file.version) in self._same:
                return
            if self._content_digest(file) == pinned["sha256"]:
                self._same.add((file.path, file.version))
                return
        raise SourceError(f"{pinned['uri']} has changed since this run began. {_RESTART}")

    def _content_digest(self, file: _File) -> str:
        content = _Content()
        for _ in self._lines(file, 0, 1, content.add):
            pass
        return content.sha256.hexdigest()

    def _repeated(self, snapshot: Mapping[str, Any], plan: ChunkPlan, first: int, second: int) -> SourceError:
        def row(index: int) -> SourceRow:
            chunk = plan.chunk(plan.number_of(index))
            return next(found for found in self.rows(snapshot, chunk) if found.index == index)

        later = row(second)
        label = _label(later.raw) if isinstance(later.raw, bytes) else None
        return duplicate_id(label or "", row(first).position, later.position)


_RESTART = "Put it back as it was, or set on_stale='restart' to begin this run anew"


def _check_bucket(fs: Any, path: str, pattern: str) -> None:
    """Whether the bucket is there: a store says of a missing one that it holds nothing.

    Raises:
        StorageError: it is not, or may not be seen.
    """
    if isinstance(fs, LocalFileSystem):
        return
    bucket = path.split("/", 1)[0]
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


def _check_named_once(files: Sequence[_File]) -> None:
    seen: set[str] = set()
    for file in files:
        if file.uri in seen:
            raise SourceError(f"source: {file.uri} is named twice, so that its rows would be asked twice")
        seen.add(file.uri)


def _check_length(line: bytes, file: _File, line_number: int) -> None:
    if len(line) > _MAX_LINE_BYTES:
        megabytes = _MAX_LINE_BYTES >> 20
        raise SourceError(
            f"{file.uri}, line {line_number} is longer than {megabytes} MiB. Is it JSONL, one object per line?"
        )


def _version(info: Mapping[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key) is not None:
            return f"{key}={info[key]}"
    return ""


def _label(line: bytes) -> str | None:
    """The line's ``custom_id``, where it has one that can be read."""
    if b'"custom_id"' not in line:
        return None
    try:
        row = orjson.loads(line.removeprefix(codecs.BOM_UTF8))
    except ValueError:
        return None
    label = row.get("custom_id") if isinstance(row, dict) else None
    # Another one makes a bad row later.
    return str(label) if isinstance(label, str | int) and not isinstance(label, bool) else None
