"""Parquet files: each row is a row, its columns are fields.

Owns what becomes of values that JSON has no word for: dates and times are ISO 8601 texts, decimals texts, binaries
base64, and what is no number null.
"""

from __future__ import annotations

import base64
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.exceptions import SourceError
from airflow_llm_provider.storage.file_source import FileSource
from airflow_llm_provider.storage.found_files import pyarrow_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_llm_provider.storage.file_source import Record
    from airflow_llm_provider.storage.found_files import File

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20  # of each column; else its whole part of a row group is read at once


class ParquetSource(FileSource):
    """Parquet files; a record's offset is its row, from 0."""

    kind = "parquet"

    def _records(
        self, stream: IO[bytes], file: File, start: tuple[int, int], see: Callable[[bytes], object]
    ) -> Iterator[Record]:
        pyarrow_for(file.uri)
        import pyarrow.parquet as pq  # noqa: PLC0415 - an extra
        from pyarrow.lib import ArrowException  # noqa: PLC0415

        try:
            table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            columns = self.selection.of(table.schema_arrow.names, file)
            row = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if row + rows <= start[0]:
                    row += rows
                    continue
                for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    records = [plain(record) for record in _to_microseconds(batch).to_pylist()]
                    see(orjson.dumps(records, option=orjson.OPT_APPEND_NEWLINE))
                    for record in records:
                        if row >= start[0]:
                            yield row, row + 1, record
                        row += 1
        except ArrowException as error:
            raise SourceError(f"{file.uri} can't be read as Parquet: {error}") from error


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


def plain(value: Any) -> Any:
    """A value in JSON's terms; see the module."""
    match value:
        case dict():
            return {str(name): plain(each) for name, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case float() if not math.isfinite(value):
            return None
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return value
