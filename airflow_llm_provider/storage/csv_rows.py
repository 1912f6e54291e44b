"""CSV files with a header: each record is a row, its fields are texts.

A record may have line breaks in its quotes. One with more or fewer fields than the header, or that is no UTF-8, becomes
a dead letter.
"""

from __future__ import annotations

import codecs
import csv
from typing import IO, TYPE_CHECKING

from airflow_llm_provider.exceptions import ConfigurationError, SourceError
from airflow_llm_provider.storage import text_lines
from airflow_llm_provider.storage.file_source import FileSource, Selection
from airflow_llm_provider.storage.source import MalformedRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from airflow_llm_provider.storage.file_source import Raw, Record
    from airflow_llm_provider.storage.found_files import File


class CsvSource(FileSource):
    """CSV files; a record's offset is its first line's, in bytes of what was unpacked.

    Args:
        patterns: see `FileSource`.
        selection: see `FileSource`.
        delimiter: between two fields, one character; None: a tab in ``.tsv``, a comma in all others.

    Raises:
        ConfigurationError: as `FileSource`, and for a delimiter that is none.
    """

    kind = "csv"
    counts_bytes = True
    seeks = True

    def __init__(
        self, patterns: Sequence[str], selection: Selection | None = None, *, delimiter: str | None = None
    ) -> None:
        super().__init__(patterns, selection)
        if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ConfigurationError(f"source: delimiter must be one character, such as ';', not {delimiter!r}")
        self._delimiter = delimiter

    def spec(self) -> object:
        """As `FileSource`'s, and the delimiter."""
        whole: Any = super().spec()
        return whole if self._delimiter is None else {**whole, "delimiter": self._delimiter}

    def _records(
        self, stream: IO[bytes], file: File, start: tuple[int, int], see: Callable[[bytes], object]
    ) -> Iterator[Record]:
        csv.field_size_limit(max(csv.field_size_limit(), text_lines.MAX_LINE_BYTES))  # of the process; texts are long
        delimiter = self._delimiter or ("\t" if ".tsv" in file.uri.rsplit("/", 1)[-1] else ",")
        lines = _Lines(text_lines.split(stream, 0, 1, uri=file.uri, see=see), file)
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        header = self._header(records, file)
        if not header:
            return
        wanted = frozenset(self.selection.of(header, file))
        if start[0] > lines.offset >= 0:  # the header is read from the beginning, whatever follows
            if file.packed:
                while 0 <= lines.offset < start[0]:
                    next(lines)
            else:
                stream.seek(start[0])
                lines = _Lines(text_lines.split(stream, *start, uri=file.uri, see=see), file)
            records = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            lines.begin()
            at = lines.offset, lines.number
            try:
                fields = next(records, None)
            except csv.Error as error:
                yield *at, MalformedRow(f"the record is no CSV: {error}", lines.text)
                records = csv.reader(lines, delimiter=delimiter, strict=True)
                continue
            if fields is None:
                return
            if fields:
                yield *at, _row(fields, header, wanted, lines.text)

    def _header(self, records: Iterator[list[str]], file: File) -> list[str]:
        try:
            header = next((fields for fields in records if fields), [])
        except csv.Error as error:
            raise SourceError(f"{file.uri}: its first line is no CSV header: {error}") from error
        header = [name.strip() for name in header]
        if any(not name for name in header) or len(set(header)) != len(header):
            raise SourceError(f"{file.uri}: its first line must name each column once, and it is: {', '.join(header)}")
        return header


class _Lines:
    """Lines as the csv module wants them; knows where the next one begins, and what was read since `begin`."""

    def __init__(self, lines: Iterator[tuple[int, int, bytes]], file: File) -> None:
        self._lines = lines
        self._file = file
        self._next = next(lines, None)
        self._began = 1  # the record's first line
        self._read: list[str] = []
        self._size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._next is None:
            raise StopIteration
        text = self._next[2].removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape") + "\n"
        self._next = next(self._lines, None)
        self._read.append(text)
        self._size += len(text)
        if self._size > text_lines.MAX_LINE_BYTES:
            raise SourceError(
                f"{self._file.uri}: the record that begins in line {self._began} is longer than "
                f"{text_lines.MAX_LINE_BYTES >> 20} MiB. Is a quote in it not closed?"
            )
        return text

    def begin(self) -> None:
        """A record begins."""
        self._read.clear()
        self._size, self._began = 0, self.number

    @property
    def offset(self) -> int:
        """Of the next line; -1 where there is none."""
        return -1 if self._next is None else self._next[0]

    @property
    def number(self) -> int:
        return 0 if self._next is None else self._next[1]

    @property
    def text(self) -> str:
        """What was read of this record, with what is no UTF-8 replaced."""
        return "".join(self._read).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _row(fields: list[str], header: list[str], wanted: frozenset[str], text: str) -> Raw:
    if len(fields) != len(header):
        return MalformedRow(f"it has {len(fields)} fields, and the header names {len(header)}", text)
    row = {name: value for name, value in zip(header, fields, strict=True) if name in wanted}
    if not all(value.isascii() or _is_utf8(value) for value in row.values()):
        return MalformedRow("it is no UTF-8", text)
    return row


def _is_utf8(value: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in value)
