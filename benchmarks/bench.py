"""What the benchmarks share: a stub server in a process of its own, input rows, and the job over them.

Owns no measurement.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson

from airflow_llm_provider.batch.job import BatchJob
from airflow_llm_provider.batch.switch import HoldSwitch
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.release import Terms
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.operators.reading import CHUNK_ROWS, FLUSH_INTERVAL_S, FLUSH_ROWS, MAX_ATTEMPTS
from airflow_llm_provider.sources import Query, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = "stub"
PARAMETERS = {"temperature": 0.2, "max_tokens": 256}

_WORDS = "Sixty words that say nothing in particular, so that the answer that echoes them has the usual size. "


def prompt(index: int) -> str:
    """A row's prompt. The stub echoes 200 characters of it in an answer of about 870 bytes, the size of a summary."""
    return f"Summarise document {index}: {3 * _WORDS}"


def write_rows(path: Path, rows: int, *, first: int = 0, row_bytes: int | None = None) -> None:
    """Write the input as JSONL: the prompt's text and a ``custom_id`` per line.

    Args:
        path: the file.
        rows: how many.
        first: the first one's number.
        row_bytes: of a line, about; the id alone is some of them. None: what `prompt` has.
    """
    with path.open("wb") as file:
        for index in range(first, first + rows):
            text = prompt(index) if row_bytes is None else "x" * max(1, row_bytes - 38)
            file.write(orjson.dumps({"custom_id": f"doc-{index}", "text": text}, option=orjson.OPT_APPEND_NEWLINE))


def write_parquet(path: Path, rows: int, *, first: int, row_bytes: int) -> None:
    """The same as Parquet, with texts that do not compress; row groups of 10,000 rows."""
    import pyarrow as pa  # noqa: PLC0415 - an extra
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = pa.schema({"custom_id": pa.string(), "text": pa.string()})
    with pq.ParquetWriter(path, schema, compression="none") as file:
        for begins in range(first, first + rows, 10_000):
            numbers = range(begins, min(begins + 10_000, first + rows))
            texts = [os.urandom(row_bytes // 2).hex() for _ in numbers]
            file.write_table(pa.table([[f"doc-{number}" for number in numbers], texts], schema=schema))


def write_table(url: str, folder: Path, rows: int, *, row_bytes: int) -> Path:
    """The same as a table of a PostgreSQL, which Airflow knows as `bench`, with texts that do not compress well.

    Returns:
        A file with the query that gives them.
    """
    import psycopg2  # type: ignore[import-untyped]  # noqa: PLC0415 - of the group `distributed`

    address = url.replace("postgresql+psycopg2", "postgresql")
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE rows AS SELECT 'doc-' || n AS custom_id, "
            "(SELECT string_agg(md5(n::text || '-' || k), '') FROM generate_series(1, %s) AS k) AS text "
            "FROM generate_series(0, %s) AS n",
            [max(1, row_bytes // 32), rows - 1],
        )
    os.environ["AIRFLOW_CONN_BENCH"] = address.replace("postgresql://", "postgres://")
    file = folder / "rows.sql"
    file.write_text("SELECT custom_id, text FROM rows")
    return file


@contextmanager
def stub_server(log: Path | None = None, *, delay_s: float = 0.0) -> Iterator[str]:
    """The stub in another process, so that its CPU time is not ours. Yields its base URL.

    Args:
        log: a file that gets one line per request, before its answer.
        delay_s: from a request to its answer.
    """
    command = [sys.executable, "-m", "airflow_llm_provider.testing", "--model", MODEL, "--delay-s", str(delay_s)]
    if log is not None:
        command += ["--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout is None:
                raise AssertionError
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def make_job(url: str, rows: Path, *, max_in_flight: int, chunk_rows: int = CHUNK_ROWS) -> BatchJob:
    """The job that asks the server at `url` about the rows in the file `rows`, with the operator's defaults."""
    return BatchJob(
        identity=RunIdentity(dag_id="benchmark", task_id="rows", run_id="once"),
        endpoint=EndpointSettings(base_urls=(url,)),
        requests=RequestSpec(prompt="{{ row.text }}", parameters=PARAMETERS),
        model=None,
        source=source_of(Query(rows.read_text(), conn_id="bench") if rows.suffix == ".sql" else rows),
        chunk_rows=chunk_rows,
        terms=Terms(limit=max_in_flight),
        tolerance=Tolerance(0.0),
        epoch=1,
        try_number=1,
        agreed={},
        switch=HoldSwitch(lambda: None),
        priority=None,
        max_attempts=MAX_ATTEMPTS,
        on_stale="fail",
        rerun=False,
        on_empty="succeed",
        must_exist=False,
        flush_rows=FLUSH_ROWS,
        flush_interval_s=FLUSH_INTERVAL_S,
        outage_patience_s=600,
    )
