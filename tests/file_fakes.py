"""The same rows as files of every format."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 23


def rows(amount: int = ROWS) -> list[dict[str, Any]]:
    return [{"custom_id": f"doc-{n}", "text": f'te"xt,\nof {n}', "n": str(n)} for n in range(amount)]


def csv_of(wanted: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    if not wanted:
        return b""
    quoted = [['"' + str(value).replace('"', '""') + '"' for value in row.values()] for row in wanted]
    return "".join(f"{delimiter.join(line)}\r\n" for line in [list(wanted[0]), *quoted]).encode()


def jsonl_of(wanted: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in wanted)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return bytes(sink.getvalue())


def parquet(path: Path, wanted: list[dict[str, Any]], *, group: int = 5) -> None:
    pq.write_table(pa.Table.from_pylist(wanted), path, row_group_size=group)


def write(folder: Path, ending: str, wanted: list[dict[str, Any]]) -> str:
    """Two files of that kind, of which a chunk may span both; returns their glob."""
    middle = len(wanted) // 2
    for name, part in (("a", wanted[:middle]), ("b", wanted[middle:])):
        path = folder / f"{name}.{ending}"
        match ending:
            case "jsonl":
                path.write_bytes(jsonl_of(part))
            case "jsonl.gz":
                path.write_bytes(gzip.compress(jsonl_of(part)))
            case "jsonl.zst":
                path.write_bytes(zstd(jsonl_of(part)))
            case "csv":
                path.write_bytes(csv_of(part))
            case "csv.gz":
                path.write_bytes(gzip.compress(csv_of(part)))
            case "tsv":
                path.write_bytes(csv_of(part, "\t"))
            case "parquet":
                parquet(path, part)
            case _:
                raise AssertionError(ending)
    return f"{folder}/*.{ending}"


ENDINGS = ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "tsv", "parquet"]
