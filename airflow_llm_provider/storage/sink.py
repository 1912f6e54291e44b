"""What a finished run's rows are written as besides its parts: views of them, for readers who want another form.

Owns the protocol, and reading the rows. A view is written once all rows have landed and before the manifest says so;
killed in between it is written again, which changes nothing: it is made of the parts alone, and of the pinned input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_llm_provider.core.chunks import Chunk
    from airflow_llm_provider.core.output_schema import OutputSchema
    from airflow_llm_provider.storage.document import RunDocument
    from airflow_llm_provider.storage.source import Source, SourceRow
    from airflow_llm_provider.storage.store import RunStore


def landed_lines(store: RunStore, name: str, *, rows: int) -> list[bytes]:
    """The lines of an object of a finished run.

    Raises:
        StorageError: it could not be read, or has not so many.
    """
    data = store.read(name)
    lines = [] if data is None else data.splitlines()
    if len(lines) != rows:
        raise StorageError(f"{store.uri}/{name} has {len(lines):,} of its {rows:,} lines. The next try reads it again")
    return lines


class Sink(Protocol):
    """A view. Its methods block: call them from threads, or where there is no loop."""

    @property
    def name(self) -> str:
        """Its key in the manifest's ``sinks``."""
        ...

    def spec(self) -> dict[str, Any]:
        """What the DAG said of it, in JSON values; kept in the manifest, beside where it lies."""
        ...

    def write(self, run: FinishedRows) -> dict[str, Any]:
        """Write it; returns where it lies, for the manifest, in JSON values.

        Raises:
            SinkError: what landed has no such form.
            StorageError: it could not be written, or what it is made of not be read.
            SourceError: it shows something of the input, which has changed or is gone.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRows:
    """A run whose rows have all landed.

    Attributes:
        store: the run's.
        document: what it is.
        source: its input.
        url: the route that requests went to; None where each row says that itself.
        schema: what answers had to be, where there was one.
    """

    store: RunStore
    document: RunDocument
    source: Source
    url: str | None
    schema: OutputSchema | None

    def chunks(self) -> Iterator[tuple[Chunk, list[dict[str, Any]]]]:
        """Each chunk with its rows' lines, in input order."""
        plan = self.document.plan
        for number in range(len(plan)):
            chunk = plan.chunk(number)
            name = layout.part(number, self.document.fingerprint)
            yield chunk, [orjson.loads(line) for line in landed_lines(self.store, name, rows=chunk.rows)]

    def inputs(self, chunk: Chunk) -> Iterator[SourceRow]:
        """The chunk's rows as the source has them."""
        return self.source.rows(self.document.snapshot, chunk)
