"""What an input source is to a run: something to scan once, to pin, and to read from any chunk on.

Owns the protocol and the list of rows from XCom. `jsonl` is the source that reads files. Does not know prompts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.core.identity import canonical
from airflow_llm_provider.core.request import Position
from airflow_llm_provider.exceptions import ConfigurationError, DuplicateIdError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from airflow_llm_provider.core.chunks import Chunk
    from airflow_llm_provider.storage.store import RunStore


@dataclass(frozen=True, slots=True)
class MalformedRow:
    """A record of a file that is none of its format: it becomes a dead letter.

    Attributes:
        message: what is wrong with it.
        text: it, as far as it can be shown.
    """

    message: str
    text: str


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as the source has it: `raw` is a line of JSON still to be parsed, or a mapping, or could not be read."""

    index: int
    position: Position
    raw: bytes | Mapping[str, Any] | MalformedRow


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over the source found.

    Attributes:
        snapshot: pins what was read, in JSON values; kept in ``run.json``.
        digest: SHA-256 over the content, hex; part of the fingerprint.
        plan: the chunks.
    """

    snapshot: dict[str, Any]
    digest: str
    plan: ChunkPlan


class Source(Protocol):
    """An input. Its methods block: call them from threads. ``str()`` names it for people, without what is in it."""

    def beside(self, store: RunStore) -> Source:
        """The same, where what must be kept of it is kept at the run's path."""
        ...

    def spec(self) -> object:
        """What the DAG named, in JSON values; another value is another input."""
        ...

    def scan(self, chunk_rows: int) -> Scan:
        """Read everything once: count, pin, find duplicate ids, plan.

        Raises:
            SourceError: when there is no such input, or two rows share a ``custom_id``.
            StorageError: when it could not be read.
        """
        ...

    def forget(self, snapshot: Mapping[str, Any]) -> None:
        """The run was not begun: what was kept for it is kept no more. Never raises; what can't be removed stays."""
        ...

    def check(self, snapshot: Mapping[str, Any], *, may_be_gone: bool = False) -> list[str]:
        """Compare the pinned input with what is there now. Returns warnings, e.g. of files that came late.

        Args:
            snapshot: what was pinned.
            may_be_gone: every row has landed, so what is there no more was archived.

        Raises:
            SourceError: when something that was pinned has changed, or is gone and may not be.
            StorageError: when that could not be found out.
        """
        ...

    def rows(self, snapshot: Mapping[str, Any], chunk: Chunk) -> Iterator[SourceRow]:
        """The chunk's rows, in order, found by seeking.

        Raises:
            SourceError: when the input ends before the chunk does.
        """
        ...


class ListSource:
    """Rows that came as a list, usually through XCom.

    Args:
        items: the rows.

    Raises:
        ConfigurationError: when an item is no mapping.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self._items = list(items)  # once: outputs of mapped tasks ask Airflow anew for each item
        for number, item in enumerate(self._items):
            if not isinstance(item, dict):
                raise ConfigurationError(
                    f"source: item {number} is a {type(item).__name__}, not an object; "
                    "give rows such as {'text': '…'}, or paths as strings"
                )
        self._sha256: str | None = None

    def __str__(self) -> str:
        return f"{len(self._items):,} rows, given as a list"

    def beside(self, store: RunStore) -> Self:
        """It is kept by Airflow."""
        del store
        return self

    def spec(self) -> object:
        """That it is a list; which rows are in it, `check` tells more plainly than a digest would."""
        return "list"

    def scan(self, chunk_rows: int) -> Scan:
        """Plan the list; its position in a chunk is the item number."""
        seen: dict[str, int] = {}
        for number, item in enumerate(self._items):
            label = item.get("custom_id")
            if not isinstance(label, str | int) or isinstance(label, bool):  # another one makes a bad row later
                continue
            if str(label) in seen:
                raise duplicate_id(str(label), Position(file="", line=seen[str(label)]), Position(file="", line=number))
            seen[str(label)] = number
        total = len(self._items)
        starts = tuple((0, first, first) for first in range(0, total, chunk_rows))
        digest = self._digest()
        return Scan({"kind": "list", "rows": total, "sha256": digest}, digest, ChunkPlan(chunk_rows, total, starts))

    def forget(self, snapshot: Mapping[str, Any]) -> None:
        """Nothing was kept."""

    def check(self, snapshot: Mapping[str, Any], *, may_be_gone: bool = False) -> list[str]:
        """A list is pinned whole by its digest, and is always there."""
        del may_be_gone
        if snapshot.get("sha256") != self._digest():
            raise SourceError(
                "The rows given as source are not those the run began with. Clear the upstream task's change, "
                "or set on_stale='restart' to begin anew"
            )
        return []

    def rows(self, snapshot: Mapping[str, Any], chunk: Chunk) -> Iterator[SourceRow]:
        """The chunk's items."""
        del snapshot
        for index in range(chunk.first_index, chunk.first_index + chunk.rows):
            yield SourceRow(index, Position(file="", line=index), self._items[index])

    def _digest(self) -> str:
        try:
            self._sha256 = self._sha256 or hashlib.sha256(canonical(self._items)).hexdigest()
        except TypeError as error:
            raise ConfigurationError(f"source: the rows hold a value that JSON cannot say: {error}") from error
        return self._sha256


def duplicate_id(label: str, first: Position, second: Position) -> DuplicateIdError:
    """The error for two rows with one label, naming both places."""
    return DuplicateIdError(
        f"custom_id {label!r} stands twice in the source: {first} and {second}. "
        "Results could not be told apart by it: make the ids unique, or leave custom_id out"
    )
