"""The chunk plan: which consecutive rows are committed together, and where each chunk begins in the source.

Owns the plan's shape and its compact JSON form. Holds chunks, never rows: ten million rows in chunks of a thousand
are ten thousand entries. Does not know how a source is read (`storage.source`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows, and the place where the first of them stands.

    Attributes:
        number: the chunk's place in the plan, from 0.
        first_index: index of its first row.
        rows: how many rows it has, 1 or more.
        file: which of the snapshot's files its first row stands in, from 0; 0 for a list.
        offset: that row's byte offset in the file; for a list, its item number.
        line: that row's 1-based line number; for a list, its item number.
    """

    number: int
    first_index: int
    rows: int
    file: int
    offset: int
    line: int


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """All chunks of a run, in input order.

    Every chunk but the last has `chunk_rows` rows, so a row's chunk is a division away.

    Raises:
        ValueError: when the starts do not fit the number of rows.
    """

    chunk_rows: int
    total_rows: int
    starts: tuple[tuple[int, int, int], ...]  # (file, offset, line) per chunk

    def __post_init__(self) -> None:
        if self.chunk_rows < 1 or -(-self.total_rows // self.chunk_rows) != len(self.starts):
            raise ValueError(f"{len(self.starts)} chunks of {self.chunk_rows} rows cannot hold {self.total_rows} rows")

    def __len__(self) -> int:
        return len(self.starts)

    def chunk(self, number: int) -> Chunk:
        """The chunk with that number."""
        first_index = number * self.chunk_rows
        file, offset, line = self.starts[number]
        return Chunk(number, first_index, min(self.chunk_rows, self.total_rows - first_index), file, offset, line)

    def number_of(self, index: int) -> int:
        """The number of the chunk that holds row `index`."""
        return index // self.chunk_rows

    def share(self, number: int, shares: int) -> range:
        """The chunks of one of so many shares: consecutive ones, and as many as any other share has, or one fewer."""
        return range(number * len(self) // shares, (number + 1) * len(self) // shares)

    def share_of(self, chunk: int, shares: int) -> int:
        """The share that the chunk is in: the inverse of `share`."""
        return ((chunk + 1) * shares - 1) // len(self)

    def rows_of(self, chunks: range) -> int:
        """The rows of consecutive chunks."""
        return min(chunks.stop * self.chunk_rows, self.total_rows) - chunks.start * self.chunk_rows if chunks else 0

    def as_dict(self) -> dict[str, Any]:
        """The form kept in ``run.json``."""
        return {"chunk_rows": self.chunk_rows, "total_rows": self.total_rows, "starts": self.starts}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkPlan:
        """The inverse of `as_dict`.

        Raises:
            ValueError, KeyError, TypeError: when `data` is no plan.
        """
        return cls(
            chunk_rows=int(data["chunk_rows"]),
            total_rows=int(data["total_rows"]),
            starts=tuple((int(file), int(offset), int(line)) for file, offset, line in data["starts"]),
        )
