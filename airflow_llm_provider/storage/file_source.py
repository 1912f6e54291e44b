"""An input of files, whatever their format: pinned, scanned once, and read again from any chunk on.

Owns pinning, the scan, and finding a chunk's rows. What a record is, and where one begins, is each format's: `jsonl`,
`csv_rows`, `parquet`, `documents`. Does not know prompts.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self, TypeAlias

import orjson

from airflow_llm_provider.core.chunks import Chunk, ChunkPlan
from airflow_llm_provider.core.request import Position
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError, SourceError
from airflow_llm_provider.storage.duplicates import DuplicateFinder
from airflow_llm_provider.storage.found_files import RESTART, File, FoundFiles, gone, is_packed
from airflow_llm_provider.storage.source import MalformedRow, Scan, SourceRow, duplicate_id
from airflow_llm_provider.storage.store import storage_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from airflow_llm_provider.storage.store import RunStore

Raw: TypeAlias = "bytes | Mapping[str, Any] | MalformedRow"
Record: TypeAlias = "tuple[int, int, Raw]"
"""Where it begins in its file, by the format's own count; its line, or the like, for people; what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is taken of each row, and of how many.

    Attributes:
        columns: fields that a row has; None: all that the file has.
        custom_id: the field that is a row's label; None: ``custom_id``.
        limit: rows, the first ones; None: all.

    Raises:
        ConfigurationError: when it can't be meant.
    """

    columns: tuple[str, ...] | None = None
    custom_id: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.columns is not None and not (self.columns and all(isinstance(name, str) for name in self.columns)):
            raise ConfigurationError(f"source: columns must be a list of names, not {self.columns!r}")
        if self.custom_id is not None and not isinstance(self.custom_id, str):
            raise ConfigurationError(f"source: custom_id must be a field's name, not {self.custom_id!r}")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            raise ConfigurationError(f"source: limit must be a whole number of 1 or more, not {self.limit!r}")

    def spec(self) -> dict[str, Any]:
        """What was asked for, in JSON values."""
        columns = list(self.columns) if self.columns is not None else None
        asked = {"columns": columns, "custom_id": self.custom_id, "limit": self.limit}
        return {name: value for name, value in asked.items() if value is not None}

    def of(self, names: Sequence[str], file: File) -> list[str]:
        """The columns to read of a file that names its columns: those asked for, and the label's.

        Raises:
            SourceError: it has not all that are asked for.
        """
        label = self.custom_id or "custom_id"
        asked = [*(self.columns or ()), *([label] if self.custom_id is not None else [])]
        if missing := [name for name in asked if name not in names]:
            raise SourceError(f"{file.uri} has no column {', '.join(missing)}. It has: {', '.join(names)}")
        return [name for name in names if self.columns is None or name in self.columns or name == label]

    def take(self, raw: Raw) -> Raw:
        """What is asked for of a row; one that can't be read stays as it is, and makes a bad row later."""
        if (self.columns is None and self.custom_id is None) or isinstance(raw, MalformedRow):
            return raw
        fields = parsed(raw)
        if fields is None:
            return raw
        names = fields if self.columns is None else self.columns
        taken = {name: fields[name] for name in names if name in fields}
        taken.pop("custom_id", None)
        label = fields.get(self.custom_id or "custom_id")
        return taken if label is None else {**taken, "custom_id": label}

    def label(self, raw: Raw) -> str | None:
        """A row's own label, where it has one that can be read."""
        name = self.custom_id or "custom_id"
        if isinstance(raw, MalformedRow) or (isinstance(raw, bytes) and _says_no(raw, name)):
            return None
        fields = parsed(raw)
        label = fields.get(name) if fields is not None else None
        # Another one makes a bad row later.
        return str(label) if isinstance(label, str | int) and not isinstance(label, bool) else None


class _Content:
    """What was read of a file."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def add(self, block: bytes) -> None:
        self.sha256.update(block)
        self.size_bytes += len(block)


class FileSource(ABC):
    """Files of one format, by path or glob, in the order given and sorted within a glob.

    Args:
        patterns: see `FoundFiles`.
        selection: what is taken of them.

    Attributes:
        kind: the format's name.
        counts_bytes: whether what `_records` shows of a file is all of its bytes, as they lie there.
        jumps: whether a file is read here and there.
        seeks: whether a record in the middle of a file is found as fast as its first, unless the file is packed.

    Raises:
        ConfigurationError: when no file system serves a scheme.
    """

    kind = "files"
    counts_bytes = False
    jumps = False
    seeks = False

    def __init__(self, patterns: Sequence[str], selection: Selection | None = None) -> None:
        self._patterns = list(patterns)
        self._files = FoundFiles(patterns)
        self.selection = selection or Selection()
        self._same: set[tuple[str, str]] = set()  # files of another version than was pinned, and the same content
        self._going: tuple[int, Iterator[SourceRow]] | None = None  # the next row's index, and what has it

    def __str__(self) -> str:
        taken = "".join(f", {name}={value!r}" for name, value in self.selection.spec().items())
        return f"{', '.join(self._patterns)}{taken}"

    def beside(self, store: RunStore) -> Self:
        """Files lie where they lie."""
        del store
        return self

    def spec(self) -> object:
        """The patterns, as the DAG rendered them, and what is asked for of the files."""
        return {self.kind: self._patterns, **self.selection.spec()}

    def scan(self, chunk_rows: int) -> Scan:
        """Read every file once. See `storage.source.Source.scan`."""
        self._going = None
        files: list[dict[str, Any]] = []
        starts: list[tuple[int, int, int]] = []
        digest = hashlib.sha256()
        total, most = 0, self.selection.limit
        with DuplicateFinder() as finder:
            repeated: tuple[int, int] | None = None
            for number, file in enumerate(self._files.find()):
                if most is not None and total >= most:
                    break
                first = total
                content = _Content()
                for offset, line, raw in self._read(file, 0, 1, content.add):
                    if total == most:
                        continue  # the file is pinned whole all the same
                    if total % chunk_rows == 0:
                        starts.append((number, offset, line))
                    label = self.selection.label(raw)
                    if label is not None and repeated is None:
                        repeated = finder.add(label, total)
                    total += 1
                digest.update(content.sha256.digest())
                whole = self.counts_bytes and not file.packed
                files.append(
                    {
                        "uri": file.uri,
                        "path": file.path,
                        "pattern": file.pattern,
                        "bytes": content.size_bytes if whole else file.size_bytes,  # as read: a listing may be older
                        "version": file.version,
                        "sha256": content.sha256.hexdigest(),
                        "rows": total - first,
                    }
                )
            repeated = repeated or finder.finish()
        snapshot = {"kind": self.kind, "files": files, "rows": total}
        plan = ChunkPlan(chunk_rows, total, tuple(starts))
        if repeated:
            raise self._repeated(snapshot, plan, *repeated)
        return Scan(snapshot, digest.hexdigest(), plan)

    def forget(self, snapshot: Mapping[str, Any]) -> None:
        """Nothing was kept."""
        del snapshot

    def check(self, snapshot: Mapping[str, Any], *, may_be_gone: bool = False) -> list[str]:
        """Pinned files must be as they were; others are left for the next run. See `storage.source.Source.check`."""
        now = {(file.pattern, file.path): file for file in self._files.find(pinned=snapshot)}
        for pinned in snapshot["files"]:
            file = now.pop((pinned["pattern"], pinned["path"]), None)
            if file is None:
                if may_be_gone:
                    continue
                raise SourceError(f"{pinned['uri']} was part of this run's input and is gone. {RESTART}")
            self._compare(file, pinned)
        if self.selection.limit is not None:  # it was not looked for all that there were
            return []
        return [
            f"{file.uri} came after this run began; it is left for the next run"
            for file in sorted(now.values(), key=lambda file: file.uri)
        ]

    def rows(self, snapshot: Mapping[str, Any], chunk: Chunk) -> Iterator[SourceRow]:
        """The chunk's rows, from its offset on. See `storage.source.Source.rows`.

        Where nothing is found by seeking, the chunk after the last one that was read goes on there.
        """
        seeks = self.seeks and not is_packed(snapshot["files"][chunk.file]["uri"])
        going, self._going = self._going, None
        missing, end = chunk.first_index, chunk.first_index + chunk.rows
        rows = going[1] if going is not None and going[0] == chunk.first_index else self._rows_from(snapshot, chunk)
        for row in rows:
            if row.index + 1 == end and not seeks:
                self._going = (end, rows)
            yield row
            missing += 1
            if missing == end:
                return
        raise SourceError(
            f"The source ended before row {missing}: it has changed while the run was reading it. {RESTART}"
        )

    def _rows_from(self, snapshot: Mapping[str, Any], chunk: Chunk) -> Iterator[SourceRow]:
        """All rows from the chunk's first one on."""
        index, offset, line = chunk.first_index, chunk.offset, chunk.line
        for pinned in snapshot["files"][chunk.file :]:
            file = File(pinned["uri"], pinned["path"], pinned["pattern"], pinned["bytes"], pinned["version"])
            check = self._checks(file, pinned)
            for _, number, raw in self._read(file, offset, line, check):
                yield SourceRow(index, Position(file=file.uri, line=number), self.selection.take(raw))
                index += 1
            check(b"")  # one that is shorter than it was, or empty, showed no block
            offset, line = 0, 1

    @abstractmethod
    def _records(
        self, stream: IO[bytes], file: File, start: tuple[int, int], see: Callable[[bytes], object]
    ) -> Iterator[Record]:
        """Each record from `start` (offset, line) on. `see` gets what is read, before its records are handed on."""

    def _read(self, file: File, offset: int, line: int, see: Callable[[bytes], object]) -> Iterator[Record]:
        try:
            with self._files.open(file, jumps=self.jumps) as stream:
                yield from self._records(stream, file, (offset, line), see)
        except LLMBatchError:
            raise
        except FileNotFoundError as error:
            raise gone(file) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _damaged(file, error) from error
        except OSError as error:
            if file.packed and "compress" in str(error):  # pyarrow's of what is no zstd, or was cut
                raise _damaged(file, error) from error
            raise storage_error(f"reading {file.uri}", error) from error
        except Exception as error:  # whatever the store's client raises
            raise storage_error(f"reading {file.uri}", error) from error

    def _checks(self, file: File, pinned: Mapping[str, Any]) -> Callable[[bytes], None]:
        """Called with each block that was read, before its rows are handed on: they are found by their offsets."""
        return lambda _: self._compare(self._files.now(file), pinned)

    def _compare(self, file: File, pinned: Mapping[str, Any]) -> None:
        """Whether `file`, as it is found now, has the content that was pinned; raises SourceError where it has not."""
        if file.size_bytes == pinned["bytes"]:
            if file.version == pinned["version"] or (file.path, file.version) in self._same:
                return
            if self._content_digest(file) == pinned["sha256"]:
                self._same.add((file.path, file.version))
                return
        raise SourceError(f"{pinned['uri']} has changed since this run began. {RESTART}")

    def _content_digest(self, file: File) -> str:
        content = _Content()
        for _ in self._read(file, 0, 1, content.add):
            pass
        return content.sha256.hexdigest()

    def _repeated(self, snapshot: Mapping[str, Any], plan: ChunkPlan, first: int, second: int) -> SourceError:
        def row(index: int) -> SourceRow:
            chunk = plan.chunk(plan.number_of(index))
            return next(found for found in self.rows(snapshot, chunk) if found.index == index)

        later = row(second)
        return duplicate_id(Selection().label(later.raw) or "", row(first).position, later.position)


def _says_no(line: bytes, name: str) -> bool:
    """Whether a line of JSON has no such field, as far as that is seen without parsing: names may be in escapes."""
    return name.isascii() and name.isidentifier() and f'"{name}"'.encode() not in line and b"\\u" not in line


def _damaged(file: File, error: Exception) -> SourceError:
    return SourceError(f"{file.uri} can't be unpacked, or was cut off: {error}. Put the whole file there")


def fields_of(raw: Raw) -> Mapping[str, Any]:
    """A row's fields; none where it has none that can be read."""
    return {} if isinstance(raw, MalformedRow) else parsed(raw) or {}


def parsed(raw: bytes | Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A row's fields; None where it is a line that has none."""
    if not isinstance(raw, bytes):
        return raw
    try:
        fields = orjson.loads(raw.removeprefix(codecs.BOM_UTF8))
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
