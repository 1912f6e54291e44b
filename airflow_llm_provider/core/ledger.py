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
        truncated: rows whose text was cut off.
        invalid_output: rows whose answer is not what was wanted.
        errored: rows that have no answer.
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
    truncated: int = 0
    invalid_output: int = 0

    @property
    def dead_letters(self) -> int:
        """Rows that did not succeed."""
        return self.rows - self.succeeded

    def as_dict(self) -> dict[str, Any]:
        """The form kept in the run's commit records and the manifest."""
        return {
            "chunk": self.number,
            "rows": self.rows,
            "succeeded": self.succeeded,
            "truncated": self.truncated,
            "invalid_output": self.invalid_output,
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
            truncated=int(data.get("truncated", 0)),  # older runs know none
            invalid_output=int(data.get("invalid_output", 0)),
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
        dead_letter: the encoded dead letter, newline included, for a row that did not succeed.
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
    truncated: int = 0
    invalid_output: int = 0
    errored: int = 0
    usage: Usage = field(default_factory=Usage)

    @property
    def done(self) -> int:
        """Rows that have an outcome."""
        return self.succeeded + self.truncated + self.invalid_output + self.errored

    @property
    def failed(self) -> int:
        """Rows without a result that is of use: what ``max_error_rate`` is about. A text that was cut off has some."""
        return self.invalid_output + self.errored

    @property
    def otherwise(self) -> str:
        """Who did not succeed, in words; empty where all did."""
        words = {"errored": self.errored, "with invalid output": self.invalid_output, "truncated": self.truncated}
        return ", ".join(f"{number:,} {word}" for word, number in words.items() if number)

    def counts(self) -> dict[str, int]:
        """The form that stands in manifests: the total, and what it is made of."""
        return {"total": self.done, **{status.value: getattr(self, status) for status in Status}}

    def count(self, status: Status, rows: int = 1) -> None:
        """Count rows of that outcome; a negative number takes back."""
        setattr(self, status, getattr(self, status) + rows)


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
        for status in Status:
            self.totals.count(status, getattr(summary, status))
        self.totals.usage += summary.usage

    def _count(self, settled: SettledLine, totals: Totals | None = None, *, times: int = 1) -> None:
        totals = self.totals if totals is None else totals
        totals.count(settled.status, times)
        totals.usage = totals.usage + settled.usage if times > 0 else totals.usage - settled.usage
