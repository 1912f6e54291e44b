"""What is committed, journalled and pending: the run's bookkeeping, in memory.

Owns the counts and the settled lines of open chunks. Does not know how lines are encoded or where they are written:
`batch.recorder` flushes, commits, and tells the ledger afterwards.

A chunk's life: pending → open (rows settle, some are journalled) → committed. Only open chunks hold lines, and the
runner bounds how many are open, so memory does not grow with rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.core.request import Status, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_llm_provider.core.chunks import Chunk, ChunkPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSummary:
    """What the manifest says of a committed chunk; kept so that a resume need not read its part again.

    Attributes:
        number: the chunk.
        rows: lines in the part.
        succeeded: rows that succeeded.
        errored: rows that errored.
        usage: tokens, summed over the rows.
        bytes: the part's size.
        sha256: the part's checksum, hex.
    """

    number: int
    rows: int
    succeeded: int
    errored: int
    usage: Usage
    bytes: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """The form kept in the run's commit records and the manifest."""
        return {
            "chunk": self.number,
            "rows": self.rows,
            "succeeded": self.succeeded,
            "errored": self.errored,
            **self.usage.as_dict(),
            "bytes": self.bytes,
            "sha256": self.sha256,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChunkSummary:
        """The inverse of `as_dict`."""
        return cls(
            number=int(data["chunk"]),
            rows=int(data["rows"]),
            succeeded=int(data["succeeded"]),
            errored=int(data["errored"]),
            usage=Usage(int(data["prompt_tokens"]), int(data["completion_tokens"]), int(data["cached_tokens"])),
            bytes=int(data["bytes"]),
            sha256=str(data["sha256"]),
        )


@dataclass(slots=True)
class SettledLine:
    """A row's final line, as it will stand in the part, with what the counts need of it.

    Attributes:
        line: the encoded line, newline included.
        dead_letter: the encoded dead letter, newline included, for a row that errored.
    """

    line: bytes
    status: Status
    usage: Usage
    dead_letter: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """What it holds of memory, its dead letter included."""
        return len(self.line) + len(self.dead_letter or b"")


@dataclass(slots=True)
class OpenChunk:
    """A chunk that is being worked on."""

    chunk: Chunk
    settled: dict[int, SettledLine] = field(default_factory=dict)
    unjournalled: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every row has settled."""
        return len(self.settled) == self.chunk.rows


@dataclass(slots=True, kw_only=True)
class Totals:
    """Rows and tokens settled so far, in this and earlier tries."""

    succeeded: int = 0
    errored: int = 0
    usage: Usage = field(default_factory=Usage)

    @property
    def done(self) -> int:
        """Rows that have an outcome."""
        return self.succeeded + self.errored


class Ledger:
    """Which rows have an outcome, and how safe it is.

    Args:
        plan: the run's chunks.
        committed: summaries of the chunks whose parts lie in storage.
        chunks: those that it keeps the book of, consecutive ones; None: all.

    Attributes:
        total_rows: of these chunks.
        open_bytes: what the settled rows of open chunks hold of memory.
    """

    def __init__(self, plan: ChunkPlan, committed: Mapping[int, ChunkSummary], chunks: range | None = None) -> None:
        self.plan = plan
        self._chunks = range(len(plan)) if chunks is None else chunks
        self.total_rows = plan.rows_of(self._chunks)
        self.committed: dict[int, ChunkSummary] = dict(committed)
        self.open: dict[int, OpenChunk] = {}
        self.open_bytes = 0
        self.totals = Totals()
        self.settled_here = Totals()
        """Of these, what this try settled; its pace says nothing of what it found."""
        self.unjournalled_rows = 0
        for summary in committed.values():
            self._add(summary)

    def pending_chunks(self) -> Iterator[Chunk]:
        """Chunks without a part, in input order, as of now."""
        return (self.plan.chunk(number) for number in self._chunks if number not in self.committed)

    def open_chunk(self, chunk: Chunk, journalled: Mapping[int, SettledLine]) -> OpenChunk:
        """Begin work on `chunk`, with what an earlier try journalled of it."""
        opened = OpenChunk(chunk)
        last = chunk.first_index + chunk.rows
        for index, settled in journalled.items():
            if chunk.first_index <= index < last:
                opened.settled[index] = settled
                self.open_bytes += settled.size_bytes
                self._count(settled)
        self.open[chunk.number] = opened
        return opened

    def settle(self, index: int, settled: SettledLine) -> OpenChunk:
        """Note a row's outcome; a row settles once, and only while its chunk is open.

        Raises:
            ValueError: when the row has settled already: a bug that would land it twice.
        """
        opened = self.open[self.plan.number_of(index)]
        if index in opened.settled:
            raise ValueError(f"row {index} settled twice")
        opened.settled[index] = settled
        opened.unjournalled.append(index)
        self.open_bytes += settled.size_bytes
        self.unjournalled_rows += 1
        self._count(settled)
        self._count(settled, self.settled_here)
        return opened

    def journalled(self, opened: OpenChunk, indices: list[int]) -> None:
        """`indices` of `opened` lie in the journal now; they are the oldest unjournalled ones."""
        del opened.unjournalled[: len(indices)]
        self.unjournalled_rows -= len(indices)

    def commit(self, summary: ChunkSummary) -> None:
        """The chunk's part lies in storage; its lines are dropped.

        Args:
            summary: of what lies there, which may be another try's: it is what counts.
        """
        opened = self.open.pop(summary.number)
        self.unjournalled_rows -= len(opened.unjournalled)
        self.committed[summary.number] = summary
        for settled in opened.settled.values():
            self.open_bytes -= settled.size_bytes
            self._count(settled, times=-1)
        self._add(summary)

    @property
    def finished(self) -> bool:
        """Whether every chunk has a part."""
        return len(self.committed) == len(self._chunks)

    @property
    def open_rows(self) -> int:
        """Rows in open chunks, settled or not."""
        return sum(opened.chunk.rows for opened in self.open.values())

    def _add(self, summary: ChunkSummary) -> None:
        self.totals.succeeded += summary.succeeded
        self.totals.errored += summary.errored
        self.totals.usage += summary.usage

    def _count(self, settled: SettledLine, totals: Totals | None = None, *, times: int = 1) -> None:
        totals = self.totals if totals is None else totals
        if settled.status is Status.SUCCEEDED:
            totals.succeeded += times
        else:
            totals.errored += times
        totals.usage = totals.usage + settled.usage if times > 0 else totals.usage - settled.usage
