"""JSONL: one JSON object per line, blank lines skipped.

Lines are not parsed here; a malformed line is a row like any other and becomes a dead letter later.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING

from airflow_llm_provider.storage import text_lines
from airflow_llm_provider.storage.file_source import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_llm_provider.storage.file_source import Record
    from airflow_llm_provider.storage.found_files import File


class JsonlSource(FileSource):
    """JSONL files; a record's offset is its line's, in bytes of what was unpacked."""

    kind = "jsonl"
    counts_bytes = True
    seeks = True

    def _records(
        self, stream: IO[bytes], file: File, start: tuple[int, int], see: Callable[[bytes], object]
    ) -> Iterator[Record]:
        _go_to(stream, file, start[0])
        for offset, number, line in text_lines.split(stream, *start, uri=file.uri, see=see):
            if line and not line.isspace():
                yield offset, number, line


def _go_to(stream: IO[bytes], file: File, offset: int) -> None:
    """Go to a line's beginning: by seeking, or, in a packed file, by reading what comes before."""
    if not file.packed:
        stream.seek(offset)
        return
    while offset > 0:
        read = stream.read(min(offset, io.DEFAULT_BUFFER_SIZE * 128))
        if not read:
            return  # it is shorter than it was, which whoever reads on finds out
        offset -= len(read)
