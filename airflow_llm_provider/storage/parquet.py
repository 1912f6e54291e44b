"""Parquet files: each row is a row, its columns are fields.

Owns reading them in batches that bound memory, from any row on. What becomes of values that JSON has no word for is
`plain_values`'.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.exceptions import SourceError
from airflow_llm_provider.storage.file_source import FileSource
from airflow_llm_provider.storage.found_files import pyarrow_for
from airflow_llm_provider.storage.plain_values import plain
from airflow_llm_provider.storage.source import MalformedRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_llm_provider.storage.file_source import Raw, Record
    from airflow_llm_provider.storage.found_files import File

_BATCH_ROWS = 256
_BATCH_BYTES = 4 << 20
_BUFFER_BYTES = 1 << 20  # of each column; else its whole part of a row group is read at once


_NO_WORD = (
    ValueError,
    OverflowError,
    KeyError,
    TypeError,
)  # a year after 9999, a moment to the nanosecond in a list, …


class ParquetSource(FileSource):
    """Parquet files; a record's offset is its row, from 0."""

    kind = "parquet"
    jumps = True

    def _records(
        self, stream: IO[bytes], file: File, start: tuple[int, int], see: Callable[[bytes], object]
    ) -> Iterator[Record]:
        if file.packed:
            raise SourceError(f"{file.uri}: Parquet is packed within. Unpack what is around it")
        pyarrow_for(file.uri)
        import pyarrow.parquet as pq  # noqa: PLC0415 - an extra
        from pyarrow.lib import ArrowException  # noqa: PLC0415

        try:
            table = pq.ParquetFile(
                stream, pre_buffer=False, buffer_size=_BUFFER_BYTES, coerce_int96_timestamp_unit="us"
            )
            columns = self._columns(table.schema_arrow.names, file)
            for row, batch in _batches(table, columns, start[0]):
                records = _rows(batch)
                see(b"".join(_line(record) for record in records))
                for number, record in enumerate(records, row):
                    if number >= start[0]:
                        yield number, number + 1, record
        except ArrowException as error:
            raise SourceError(f"{file.uri} can't be read as Parquet: {error}") from error
        except OSError as error:
            if error.errno is None:  # pyarrow's own, of damaged pages
                raise SourceError(f"{file.uri} is damaged: {error}. Put the whole file there") from error
            raise

    def _columns(self, names: list[str], file: File) -> list[str]:
        if len(set(names)) != len(names):
            raise SourceError(f"{file.uri} has two columns of one name. It has: {', '.join(names)}")
        return self.selection.of(names, file)


def _batches(table: Any, columns: list[str], start: int) -> Iterator[tuple[int, Any]]:
    """Each batch of rows that has some from `start` on, with its first row's number."""
    row = 0
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        if row + about.num_rows <= start:
            row += about.num_rows
            continue
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
        for batch in table.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            if row + batch.num_rows > start:
                yield row, batch
            row += batch.num_rows


def _line(record: Raw) -> bytes:
    """What a record is told by: whole batches would be told by where they end, too."""
    known = {"malformed": record.message} if isinstance(record, MalformedRow) else record
    return orjson.dumps(known, option=orjson.OPT_APPEND_NEWLINE)


def _rows(batch: Any) -> list[Raw]:
    """A batch's rows; where one has a value that Python has no word for, that one is none."""
    batch = _to_microseconds(batch)
    try:
        return [plain(record) for record in batch.to_pylist()]
    except _NO_WORD:
        return [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _row(one: Any) -> Raw:
    try:
        found: dict[str, Any] = plain(one.to_pylist()[0])
    except _NO_WORD as error:
        return MalformedRow(f"a value of it can't be read: {type(error).__name__}: {error}", "")
    return found


def _to_microseconds(batch: Any) -> Any:
    """Moments to the nanosecond, which Python has no word for, are cut."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    types = pa.types
    for number, field in enumerate(batch.schema):
        if getattr(field.type, "unit", "") != "ns":
            continue
        if types.is_timestamp(field.type):
            coarser = pa.timestamp("us", field.type.tz)
        else:
            coarser = pa.duration("us") if types.is_duration(field.type) else pa.time64("us")
        batch = batch.set_column(number, field.name, batch.column(number).cast(coarser, safe=False))
    return batch
