"""Rows that can be had once, kept beside the run: those of a query or a function, which asked again would be others.

Owns the spool: its objects, and reading a chunk from them. Does not know where rows come from, nor which try may begin
a run (`batch.execution`).

::

    _run/input/<token>-00000.jsonl   rows as lines of JSON, in objects of some megabytes; before run.json

`<token>` is made for each spooling, so that two tries never write the same object; ``run.json`` names the one that
counts, with each object's size, rows and SHA-256. Until it lies there nothing of a spool counts, and a try that does
not get so far removes its own. It is removed when the run is finished; what a try left that was killed while it
spooled, when a run begins there after it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, cast

import orjson

from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.core.request import Position
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError, SourceError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.duplicates import DuplicateFinder
from airflow_llm_provider.storage.file_source import Selection
from airflow_llm_provider.storage.plain_values import plain
from airflow_llm_provider.storage.source import MalformedRow, Scan, SourceRow, duplicate_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_llm_provider.core.chunks import Chunk
    from airflow_llm_provider.storage.store import RunStore

OBJECT_BYTES = 4 << 20
"""Of an object, about: it is read whole for the chunks that begin in it."""

_SHOWN_CHARS = 2000

_RESTART = "Set on_stale='restart' and clear the task: its rows are asked for anew, and the run begins anew with them"


class SpooledSource:
    """See the module.

    Args:
        rows: has them, once; called when the run begins.
        name: what they are, for people.
        spec: what the DAG said of them, in JSON values.
        selection: what is taken of them.
        most_rows: more are refused; None: any number will do.
    """

    kind = "spool"

    def __init__(
        self,
        rows: Callable[[], Iterable[Any]],
        *,
        name: str,
        spec: object = None,
        selection: Selection | None = None,
        most_rows: int | None = None,
    ) -> None:
        self._rows = rows
        self._name = name
        self._spec = spec
        self._selection = selection or Selection()
        self._most_rows = most_rows
        self._store: RunStore | None = None
        self._read: tuple[str, list[bytes]] = ("", [])  # the object that was read last

    def __str__(self) -> str:
        return self._name

    def beside(self, store: RunStore) -> Self:
        """Keep them at the run's path."""
        self._store = store
        return self

    def spec(self) -> object:
        """What the DAG said of them, and what is taken of them."""
        return {self.kind: self._spec, **self._selection.spec()}

    def scan(self, chunk_rows: int) -> Scan:
        """Ask for them and write them down.

        Raises:
            SourceError: a row is no object, or two have one label.
            StorageError: they could not be written.
        """
        spool = _Spool(self._placed, chunk_rows)
        try:
            self._fill(spool)
        except BaseException:
            self._remove(spool.token, len(spool.objects) + 1)
            raise
        snapshot = {"kind": self.kind, "token": spool.token, "objects": spool.objects, "rows": spool.rows}
        return Scan(snapshot, spool.digest.hexdigest(), ChunkPlan(chunk_rows, spool.rows, tuple(spool.starts)))

    def forget(self, snapshot: Mapping[str, Any]) -> None:
        """See `storage.source.Source.forget`."""
        self._remove(snapshot["token"], len(snapshot["objects"]))

    def check(self, snapshot: Mapping[str, Any], *, may_be_gone: bool = False) -> list[str]:
        """Whether what was written lies there: it is asked for no more.

        Raises:
            SourceError: it does not, and rows are missing.
        """
        if snapshot.get("kind") != self.kind:
            raise SourceError(f"The run that lies there has rows of another kind of source. {_RESTART}")
        if may_be_gone:
            return []
        listing = self._placed.list(layout.INPUT)
        for number, each in enumerate(snapshot["objects"]):
            name = layout.spooled(snapshot["token"], number)
            size = listing.get(name, None)
            if size is None:  # listings of some stores are late
                size = self._placed.size(name)
            if size != each["bytes"]:
                raise self._damaged(name)
        return []

    def rows(self, snapshot: Mapping[str, Any], chunk: Chunk) -> Iterator[SourceRow]:
        """The chunk's rows; see `storage.source.Source.rows`."""
        number, at = chunk.file, chunk.line
        for index in range(chunk.first_index, chunk.first_index + chunk.rows):
            lines = self._object(snapshot, number)
            while at >= len(lines):
                number, at = number + 1, 0
                lines = self._object(snapshot, number)
            yield SourceRow(index, Position(file="", line=index), _raw(lines[at]))
            at += 1

    def _fill(self, spool: _Spool) -> None:
        with DuplicateFinder() as finder:
            for number, row in enumerate(self._taken()):
                label = Selection().label(row)
                if label is not None and (twice := finder.add(label, number)) is not None:
                    raise _twice(label, *twice)
                spool.add(row)
            spool.close()
            if (twice := finder.finish()) is not None:
                raise _twice(str(self._label_of(spool, twice[1])), *twice)

    def _remove(self, token: str, objects: int) -> None:
        with suppress(LLMBatchError):  # the next run that begins here removes them
            self._placed.delete([layout.spooled(token, number) for number in range(objects)])

    @property
    def _placed(self) -> RunStore:
        if self._store is None:
            raise AssertionError("a spool that has no place yet")
        return self._store

    def _taken(self) -> Iterator[dict[str, Any] | MalformedRow]:
        """What is taken of each row, in JSON's terms; one that has none makes a bad row later."""
        limit = self._selection.limit
        for number, row in enumerate(self._rows()):
            if not isinstance(row, Mapping):
                raise SourceError(
                    f"{self._name}: row {number} is a {type(row).__name__}, not an object such as {{'text': '…'}}"
                )
            if self._most_rows is not None and number >= self._most_rows:
                raise ConfigurationError(
                    f"{self._name} has more than the {self._most_rows:,} rows that a run with checkpoint='xcom' may "
                    "have. Leave checkpoint out, and give a result_path on object storage"
                )
            if number == 0:
                self._check_columns(row)
            yield _plain(row, self._selection)
            if number + 1 == limit:
                return

    def _check_columns(self, row: Mapping[str, Any]) -> None:
        asked = [*(self._selection.columns or ())]
        if self._selection.custom_id is not None:
            asked.append(self._selection.custom_id)
        if missing := [name for name in asked if name not in row]:
            raise SourceError(f"{self._name} has no column {', '.join(missing)}. It has: {', '.join(map(str, row))}")

    def _object(self, snapshot: Mapping[str, Any], number: int) -> list[bytes]:
        name = layout.spooled(snapshot["token"], number)
        if self._read[0] != name:
            data = self._placed.read(name) if number < len(snapshot["objects"]) else None
            if data is None or hashlib.sha256(data).hexdigest() != snapshot["objects"][number]["sha256"]:
                raise self._damaged(name)
            self._read = (name, data.splitlines())
        return self._read[1]

    def _label_of(self, spool: _Spool, index: int) -> str | None:
        """The label of a row that was spooled."""
        first = 0
        for number, each in enumerate(spool.objects):
            if index < first + each["rows"]:
                lines = self._object({"token": spool.token, "objects": spool.objects}, number)
                return Selection().label(lines[index - first])
            first += each["rows"]
        return None

    def _damaged(self, name: str) -> SourceError:
        return SourceError(
            f"{self._placed.uri}/{name} is gone, or was changed: the rows of {self._name} lie there, and asked for "
            f"again they may be others. {_RESTART}"
        )


class _Spool:
    """Writes rows down, an object at a time.

    Args:
        store: the run's.
        chunk_rows: rows of a chunk, whose places are noted.
    """

    def __init__(self, store: RunStore, chunk_rows: int) -> None:
        self.token = secrets.token_hex(4)
        self.objects: list[dict[str, Any]] = []
        self.starts: list[tuple[int, int, int]] = []
        self.rows = 0
        self.digest = hashlib.sha256()
        self._store = store
        self._chunk_rows = chunk_rows
        self._lines: list[bytes] = []
        self._bytes = 0

    def add(self, row: dict[str, Any] | MalformedRow) -> None:
        """Write one down."""
        line = orjson.dumps([row.message, row.text] if isinstance(row, MalformedRow) else row) + b"\n"
        if self.rows % self._chunk_rows == 0:
            self.starts.append((len(self.objects), self._bytes, len(self._lines)))
        self._lines.append(line)
        self._bytes += len(line)
        self.rows += 1
        self.digest.update(line)
        if self._bytes >= OBJECT_BYTES:
            self.close()

    def close(self) -> None:
        """Put what there is into an object."""
        if not self._lines:
            return
        data = b"".join(self._lines)
        self._store.write(layout.spooled(self.token, len(self.objects)), data)
        sha256 = hashlib.sha256(data).hexdigest()
        self.objects.append({"bytes": len(data), "rows": len(self._lines), "sha256": sha256})
        self._lines, self._bytes = [], 0


def _plain(row: Mapping[str, Any], selection: Selection) -> dict[str, Any] | MalformedRow:
    try:
        taken = cast("dict[str, Any]", selection.take(plain(row)))
        orjson.dumps(taken)
    except (TypeError, ValueError, RecursionError) as error:
        shown = repr(row)[:_SHOWN_CHARS].encode("utf-8", "replace").decode()
        return MalformedRow(f"it holds what JSON cannot say: {error}", shown)
    return taken


def _raw(line: bytes) -> bytes | MalformedRow:
    """A row's line; a list is what was said of one that has none."""
    return MalformedRow(*orjson.loads(line)) if line.startswith(b"[") else line


def _twice(label: str, first: int, second: int) -> SourceError:
    return duplicate_id(label, Position(file="", line=first), Position(file="", line=second))
