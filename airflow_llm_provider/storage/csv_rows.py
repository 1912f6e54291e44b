"""CSV files with a header: each record is a row, its fields are texts.

A record may have line breaks in its quotes. One with more or fewer fields than the header, or that is no UTF-8, becomes
a dead letter; where it has several lines, its first one does, and the others are read as records of their own: a quote
that is not closed costs its line, and not all that follow.
"""

from __future__ import annotations

import codecs
import csv
from collections import deque
from typing import IO, TYPE_CHECKING

from airflow_llm_provider.exceptions import SourceError
from airflow_llm_provider.storage import text_lines
from airflow_llm_provider.storage.file_source import FileSource, Selection
from airflow_llm_provider.storage.source import MalformedRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from airflow_llm_provider.storage.file_source import Record
    from airflow_llm_provider.storage.found_files import File


class CsvSource(FileSource):
    """CSV files; a record's offset is its first line's, in bytes of what was unpacked.

    Args:
        patterns: see `FileSource`.
        selection: see `FileSource`.
        delimiter: between two fields, one character; None: a tab in ``.tsv``, a comma in all others.

    Raises:
        ConfigurationError: as `FileSource`.
    """

    kind = "csv"
    counts_bytes = True
    seeks = True

    def __init__(
        self, patterns: Sequence[str], selection: Selection | None = None, *, delimiter: str | None = None
    ) -> None:
        super().__init__(patterns, selection)
        self._delimiter = delimiter

    def spec(self) -> object:
        """As `FileSource`'s, and the delimiter."""
        whole: Any = super().spec()
        return whole if self._delimiter is None else {**whole, "delimiter": self._delimiter}

    def _records(
        self, stream: IO[bytes], file: File, start: tuple[int, int], see: Callable[[bytes], object]
    ) -> Iterator[Record]:
        csv.field_size_limit(max(csv.field_size_limit(), text_lines.MAX_LINE_BYTES))  # of the process; texts are long
        delimiter = self._delimiter or ("\t" if file.ending == "tsv" else ",")
        lines = _Lines(text_lines.split(stream, 0, 1, uri=file.uri, see=see))
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        header = self._header(records, file)
        if not header:
            return
        wanted = frozenset(self.selection.of(header, file))
        if start[0] > lines.offset >= 0:  # the header is read from the beginning, whatever follows
            if file.packed:
                while 0 <= lines.offset < start[0]:
                    next(lines)
                    lines.begin()
            else:
                stream.seek(start[0])
                lines = _Lines(text_lines.split(stream, *start, uri=file.uri, see=see))
            records = csv.reader(lines, delimiter=delimiter, strict=True)
        label = self.selection.custom_id or "custom_id"
        yield from _rows(lines, records, header, wanted=wanted, label=label, delimiter=delimiter)

    def _header(self, records: Iterator[list[str]], file: File) -> list[str]:
        try:
            header = next((fields for fields in records if fields), [])
        except (csv.Error, _TooLongError) as error:
            raise SourceError(f"{file.uri}: its first line is no CSV header: {error}") from error
        header = [name.strip() for name in header]
        if not all(map(_is_utf8, header)):
            raise SourceError(f"{file.uri}: its first line is no UTF-8. Write the file as UTF-8")
        if any(not name for name in header) or len(set(header)) != len(header):
            raise SourceError(f"{file.uri}: its first line must name each column once, and it is: {', '.join(header)}")
        return header


class _TooLongError(Exception):
    """A record has more in it than any row may."""


class _Lines:
    """Lines as the csv module wants them; knows where the next one begins, and what was read since `begin`."""

    def __init__(self, lines: Iterator[tuple[int, int, bytes]]) -> None:
        self._lines = lines
        self._read: list[tuple[int, int, bytes]] = []
        self._size = 0
        self._given_back: deque[tuple[int, int, bytes]] = deque()
        self._next = next(lines, None)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._next
        if line is None:
            raise StopIteration
        if self._size > text_lines.MAX_LINE_BYTES:
            raise _TooLongError(f"it is longer than {text_lines.MAX_LINE_BYTES >> 20} MiB, or a quote is not closed")
        self._next = self._given_back.popleft() if self._given_back else next(self._lines, None)
        self._read.append(line)
        self._size += len(line[2])
        return line[2].removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape") + "\n"

    def begin(self) -> None:
        """A record begins."""
        self._read.clear()
        self._size = 0

    def give_back(self) -> str:
        """All but the record's first line are to be read again; returns that one."""
        text = self.text_of(self._read[:1])
        if self._next is not None:
            self._given_back.appendleft(self._next)
        self._given_back.extendleft(reversed(self._read[1:]))
        self._next = self._given_back.popleft() if self._given_back else None
        return text

    @property
    def offset(self) -> int:
        """Of the next line; -1 where there is none."""
        return -1 if self._next is None else self._next[0]

    @property
    def number(self) -> int:
        """Of the next line; 0 where there is none."""
        return 0 if self._next is None else self._next[1]

    @property
    def text(self) -> str:
        """What was read of this record, with what is no UTF-8 replaced."""
        return self.text_of(self._read)

    @staticmethod
    def text_of(lines: Sequence[tuple[int, int, bytes]]) -> str:
        """Lines as one text."""
        return b"".join(line + b"\n" for _, _, line in lines).decode("utf-8", "replace")


def _rows(
    lines: _Lines,
    records: Iterator[list[str]],
    header: list[str],
    *,
    wanted: frozenset[str],
    label: str,
    delimiter: str,
) -> Iterator[Record]:
    while True:
        lines.begin()
        at = lines.offset, lines.number
        wrong = ""
        try:
            fields = next(records, None)
        except (csv.Error, _TooLongError) as error:
            fields, wrong = [], f"the record is no CSV: {error}"
        if fields is None:
            return
        if fields and len(fields) != len(header):
            wrong = f"it has {len(fields)} fields, and the header names {len(header)}"
        if wrong:  # maybe for a quote that is not closed, so that the next lines may be records of their own
            text = lines.give_back()
            records = csv.reader(lines, delimiter=delimiter, strict=True)
            yield *at, MalformedRow(wrong, text)
        elif fields:
            row = {name: value for name, value in zip(header, fields, strict=True) if name in wanted}
            if all(value.isascii() or _is_utf8(value) for value in row.values()):
                yield *at, row if row.get(label) != "" else {**row, label: None}  # a blank label is none
            else:
                yield *at, MalformedRow("it is no UTF-8", lines.text)


def _is_utf8(value: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in value)
