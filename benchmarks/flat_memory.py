"""Promise 8, flat: memory at row 20,000 and at row 200,000, and how long a run killed at 99 % takes to resume.

One run of 202,000 rows in a process of its own, the stub in another. When row 200,000 has landed, with 99 % done and no
manifest, the run is killed with ``kill -9``; a second process goes on with it. Counted of that one: the time to its
first new request, as seen at the stub, and to the manifest. What Python and Airflow take to import is shown apart:
Airflow's worker has that behind it when a task begins.

    python -m benchmarks.flat_memory
    python -m benchmarks.flat_memory --rows 10000000 --kill-at 9900000 --early 1000000 --files 10 --row-bytes 100
    python -m benchmarks.flat_memory --rows 2000000 --kill-at 1900000 --early 200000 --query  # a table of PostgreSQL's
    python -m benchmarks.flat_memory --rows 400 --row-bytes 5000000 --in-flight 8 --whole    # few, large, not killed
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.storage.store import RunStore
from benchmarks.bench import stub_server, write_parquet, write_rows, write_table
from tools.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

EARLY_ROW = 20_000
LATE_ROW = 200_000
MAX_GROWTH_MB = 20.0
MAX_RESUME_S = 2.0
MAX_LARGE_RESUME_S = 30.0
"""Of ten million rows."""

MAX_RESUME_US_A_ROW = 5.0
PARQUET_ROW_BYTES = 1000
_ROOT = Path(__file__).resolve().parents[1]  # where `benchmarks` is found
_POLL_S = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """What was measured.

    Attributes:
        rss_mb: memory of the first try: ``imported``, ``begun``, then by rows landed.
        rows_per_s: the first try's pace, from its begin to its end.
        landed: rows in the parts that the first try left.
        kept: rows in parts and journal that it left: the second try must not ask for them again.
        imported_s: what the second process took to import everything.
        begun_s: from there until it had found the run and asked the endpoint who it is.
        resumed_s: from there (imported) until its first new request.
        finished_s: from there (imported) until the manifest.
        resent: requests the second try sent.
        reads: what the second try read from storage, as {kind: [objects, bytes]}.
        planned_s: what the first try took from its imports to its begin: the source read, and the run written down.
        source_bytes: the input's size.
        objects: in the run's folder, ``killed`` and ``finished``.
        listed_s: what listing them took, when the run was killed.
        peak_mb: the most memory that either try had, as the kernel counts it.
    """

    rss_mb: dict[str, float]
    rows_per_s: float
    landed: int
    kept: int
    imported_s: float
    begun_s: float
    resumed_s: float
    finished_s: float
    resent: int
    reads: dict[str, list[int]]
    planned_s: float
    source_bytes: int
    objects: dict[str, int]
    listed_s: float
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What is read.

    Attributes:
        rows: how many.
        files: how many they are spread over.
        row_bytes: see `write_rows`.
        parquet: whether they are Parquet's.
        database: a PostgreSQL server whose table they are, instead.
    """

    rows: int
    files: int = 1
    row_bytes: int | None = None
    parquet: bool = False
    database: str | None = None

    def write(self, folder: Path) -> Path:
        """Write it to `folder`; returns the files' glob, or the file of the query that gives them."""
        if self.database is not None:
            return write_table(self.database, folder, self.rows, row_bytes=self.row_bytes or PARQUET_ROW_BYTES)
        for number in range(self.files):
            begins, ends = number * self.rows // self.files, (number + 1) * self.rows // self.files
            if self.parquet:
                path = folder / f"rows-{number:05}.parquet"
                write_parquet(path, ends - begins, first=begins, row_bytes=self.row_bytes or PARQUET_ROW_BYTES)
            else:
                path = folder / f"rows-{number:05}.jsonl"
                write_rows(path, ends - begins, first=begins, row_bytes=self.row_bytes)
        return folder / f"rows-*.{'parquet' if self.parquet else 'jsonl'}"


def measure(folder: Path, read: Input, *, kill_at: int, in_flight: int) -> Flat:
    """Do both tries.

    Args:
        folder: for input and results.
        read: the input.
        kill_at: the first try is killed when so many rows have landed.
        in_flight: requests in flight.
    """
    source, out, log = read.write(folder), folder / "out", folder / "requests.log"
    first: list[dict[str, Any]] = []
    with stub_server() as url, _try(url, source, out, in_flight) as (process, events):
        for event in events:
            first.append(event)
            if event.get("rows", 0) >= kill_at:
                process.kill()
    if (out / "manifest.json").exists():
        raise AssertionError("the run was killed too late: it had finished")
    began_s = _now_s()
    objects = {"killed": len(RunStore(out.as_uri()).list(""))}
    listed_s = _now_s() - began_s
    landed = _rows_in(out.glob("part-*.jsonl"))
    kept = landed | _rows_in(out.glob("_run/journal/*/*.jsonl"))
    with stub_server(log) as url:
        started_s = _now_s()
        with _try(url, source, out, in_flight) as (process, events):
            watcher = _FirstLine(log, process)
            second = {event["event"]: event for event in events}
    objects["finished"] = len(RunStore(out.as_uri()).list(""))
    begun_s, imported_s = first[1]["at_s"], second["imported"]["at_s"]
    return Flat(
        rss_mb={str(event.get("rows", event["event"])): event["rss_bytes"] / 1e6 for event in first},
        rows_per_s=first[-1]["rows"] / (first[-1]["at_s"] - begun_s),
        landed=len(landed),
        kept=len(kept),
        imported_s=imported_s - started_s,
        begun_s=second["begun"]["at_s"] - imported_s,
        resumed_s=watcher.seen_s() - imported_s,
        finished_s=second["finished"]["at_s"] - imported_s,
        resent=log.read_bytes().count(b"\n"),
        reads=second["finished"]["reads"],
        planned_s=begun_s - first[0]["at_s"],
        source_bytes=sum(file.stat().st_size for file in folder.glob(source.name)),
        objects=objects,
        listed_s=listed_s,
        peak_mb=max(event["peak_bytes"] for event in (*first, *second.values())) / 1e6,
    )


def measure_whole(folder: Path, read: Input, *, in_flight: int) -> str:
    """Do one try that nobody kills, in words."""
    source = read.write(folder)
    with stub_server() as url, _try(url, source, folder / "out", in_flight) as (_, events):
        by_name = {event["event"]: event for event in events}
    imported, begun, finished = by_name["imported"], by_name["begun"], by_name["finished"]
    planned_s, took_s = begun["at_s"] - imported["at_s"], finished["at_s"] - begun["at_s"]
    peak_mb = finished["peak_bytes"] / 1e6
    return f"planned in {planned_s:.2f} s, finished {took_s:.2f} s later; memory at most {peak_mb:,.1f} MB"


class _FirstLine(threading.Thread):
    """Notes when a file gets its first line, while `process` lives."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._process = process
        self._seen_s: float | None = None
        self.start()

    def run(self) -> None:
        while self._process.poll() is None:
            if self._path.stat().st_size:
                self._seen_s = _now_s()
                return
            time.sleep(_POLL_S)  # noqa: TID251 - a thread of the benchmark, not the package

    def seen_s(self) -> float:
        self.join()
        if self._seen_s is None:
            raise AssertionError("the second try sent nothing")
        return self._seen_s


@contextmanager
def _try(
    url: str, source: Path, out: Path, in_flight: int
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[dict[str, Any]]]]:
    command = [sys.executable, "-m", "benchmarks.flat_run", url, str(source), str(out), "--in-flight", str(in_flight)]
    environment = {**os.environ, "AIRFLOW_HOME": str(source.parent / "airflow")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=_ROOT) as process:
        if process.stdout is None:
            raise AssertionError
        try:
            # Airflow logs to standard output as well; our lines are the JSON ones
            yield process, (orjson.loads(line) for line in process.stdout if line.startswith(b'{"event"'))
        finally:
            process.kill()


def _rows_in(files: Iterator[Path]) -> set[int]:
    """Indices of the rows that have a whole line in one of `files`."""
    return {
        row["index"]
        for file in files
        for line in file.read_bytes().split(b"\n")[:-1]
        if "index" in (row := orjson.loads(line))
    }


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - the clock that `flat_run` reports by


def report(flat: Flat, *, early: int = EARLY_ROW, late: int = LATE_ROW) -> Iterator[str]:
    """The tables; memory is told from row `early` to row `late`."""
    yield f"the source's {flat.source_bytes / 1e6:,.1f} MB read and planned in {flat.planned_s:.2f} s"
    yield "memory of the task process (RSS)"
    shown = ("imported", "begun", 1_000, *range(early, late, max(1, (late - early) // 5_000 * 1_000)), late)
    for name in [str(name) for name in shown if str(name) in flat.rss_mb]:
        title = f"row {int(name):,}" if name.isdecimal() else name
        yield f"  {title:>14} {flat.rss_mb[name]:8.1f} MB"
    if str(early) in flat.rss_mb and str(late) in flat.rss_mb:
        growth_mb = flat.rss_mb[str(late)] - flat.rss_mb[str(early)]
        yield f"  growth from row {early:,} to {late:,}: {growth_mb:.1f} MB{_verdict(growth_mb, MAX_GROWTH_MB)}"
    yield f"  at most, at any moment: {flat.peak_mb:,.1f} MB"
    yield f"  pace: {flat.rows_per_s:,.0f} rows/s"
    yield f"objects: {flat.objects['killed']:,} when it was killed, listed in {flat.listed_s:.2f} s; "
    yield f"  {flat.objects['finished']:,} at the end"
    yield ""
    yield f"resume after kill -9 with {flat.landed:,} rows landed, {flat.kept:,} kept"
    yield f"  Python and Airflow imported     {flat.imported_s:8.2f} s, from process start"
    yield f"  run found, endpoint asked       {flat.begun_s:8.2f} s, from there"
    verdict = _verdict(flat.resumed_s, MAX_RESUME_S if flat.kept <= LATE_ROW * 2 else MAX_LARGE_RESUME_S)
    yield f"  first new request               {flat.resumed_s:8.2f} s, from there{verdict}"
    yield f"  manifest                        {flat.finished_s:8.2f} s, from there"
    per_row_us = 1e6 * flat.resumed_s / max(1, flat.kept)
    verdict = _verdict(per_row_us, MAX_RESUME_US_A_ROW) if flat.kept >= LATE_ROW else ""  # of few rows, it is the rest
    yield f"  first request, per finished row {per_row_us:8.2f} µs{verdict}"
    yield f"  requests sent                   {flat.resent:8,}"
    for kind, (objects, size_bytes) in sorted(flat.reads.items()):
        yield f"  read {kind:26} {objects:8,} objects, {size_bytes / 1e3:,.1f} kB"


def _verdict(value: float, limit: float) -> str:
    return f" (limit {limit:g}: {'met' if value < limit else 'MISSED'})"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flat_memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=202_000)
    parser.add_argument("--kill-at", type=int, default=LATE_ROW, help="kill when so many rows have landed")
    parser.add_argument("--early", type=int, default=EARLY_ROW, help="memory's growth is told from this row on")
    parser.add_argument("--files", type=int, default=1, help="the input is spread over so many")
    parser.add_argument("--row-bytes", type=int, help="of a line of the input, about")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--parquet", action="store_true", help="the input is Parquet, in row groups of 10,000")
    parser.add_argument(
        "--query", action="store_true", help="the input is a table of a PostgreSQL (make test-distributed)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--whole", action="store_true", help="one try, which nobody kills, and its memory at most")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-bench-") as folder, ExitStack() as stack:
        read = Input(
            rows=options.rows,
            files=options.files,
            row_bytes=options.row_bytes,
            parquet=options.parquet,
            database=stack.enter_context(Postgres()).url if options.query else None,
        )
        if options.whole:
            print(measure_whole(Path(folder), read, in_flight=options.in_flight))
            return
        flat = measure(Path(folder), read, kill_at=options.kill_at, in_flight=options.in_flight)
    lines = report(flat, early=options.early, late=options.kill_at)
    print(orjson.dumps(asdict(flat)).decode() if options.json else "\n".join(lines))


if __name__ == "__main__":
    main()
