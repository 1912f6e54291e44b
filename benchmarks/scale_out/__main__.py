"""How much faster a run is on four workers than on one, where the endpoint is not what is short.

    python -m benchmarks.scale_out

A real Airflow on Celery, Redis and PostgreSQL, all on this machine, and the stub in a process of its own, each of whose
answers takes `--delay-s`. So a worker's pace is bound by its ``max_in_flight``, at ``in flight / delay`` rows a second,
and not by the machine's CPU, which workers on machines of their own would not share: what is measured is what Airflow
and the sharing out cost, and not what a client can do (`benchmarks.client_cpu`). The runs follow each other on the same
Airflow, with as many workers as the table says, each working at one share at a time.

Seconds are counted from the first request to the last one, as the server's own log has them, and from the run's begin
to its manifest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.arguments import count, seconds
from benchmarks.bench import stub_server, write_rows
from benchmarks.scale_out.group import DAG_ID, DAGS, environment
from tools.celery_airflow import CeleryAirflow
from tools.postgres import Postgres
from tools.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNKS_A_SHARE = 4
PATIENCE_S = 3600.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run.

    Attributes:
        workers: on so many.
        rows: of so many rows.
        sending_s: from the first request to the last one.
        run_s: from the run's begin to its manifest.
    """

    workers: int
    rows: int
    sending_s: float
    run_s: float


def measure(folder: Path, options: argparse.Namespace) -> Iterator[Measured]:
    """Run the same rows on as many workers as each line of the table has."""
    source, log = folder / "rows.jsonl", folder / "requests.log"
    write_rows(source, options.rows)
    with (
        Postgres() as postgres,
        RedisServer() as redis,
        stub_server(log, delay_s=options.delay_s) as url,
        CeleryAirflow(
            folder / "airflow",
            DAGS,
            database=postgres.url,
            broker=redis.url,
            env=environment(url, shares=options.shares, chunk_rows=_chunk_rows(options), in_flight=options.in_flight),
            parallelism=2 * options.shares,
        ) as airflow,
    ):
        airflow.rest.wait_for_dag(DAG_ID)
        for workers in sorted(options.workers):
            airflow.start_workers(f"w{number}" for number in range(len(airflow.workers), workers))
            results = folder / f"results-{workers}"
            at = log.stat().st_size
            conf = {"source": str(source), "result_path": str(results)}
            run_id = airflow.rest.trigger(DAG_ID, conf=conf)
            sending_s = _watch(log, at=at, rows=options.rows)
            state = airflow.rest.wait_for_run(DAG_ID, run_id, timeout_s=PATIENCE_S)
            if state != "success":
                raise SystemExit(f"The run on {workers} workers ended as {state}")
            manifest = json.loads((results / "manifest.json").read_text())
            if manifest["counts"]["succeeded"] != options.rows:
                raise SystemExit(f"The run on {workers} workers has other rows than it was given: {manifest['counts']}")
            yield Measured(workers=workers, rows=options.rows, sending_s=sending_s, run_s=manifest["duration_s"])


def _chunk_rows(options: argparse.Namespace) -> int:
    chunks: int = options.shares * CHUNKS_A_SHARE
    return max(1, int(options.rows) // chunks)


def _watch(log: Path, *, at: int, rows: int) -> float:
    """Seconds from the log's first line after `at` to the one that makes it as many as there are rows."""
    deadline = time.monotonic() + PATIENCE_S
    first_s: float | None = None
    seen = 0
    with log.open("rb") as lines:
        lines.seek(at)
        while time.monotonic() < deadline:
            fresh = lines.read().count(b"\n")
            if fresh and first_s is None:
                first_s = time.monotonic()
            seen += fresh
            if first_s is not None and seen >= rows:
                return time.monotonic() - first_s
            time.sleep(POLL_S)
    raise SystemExit(f"{seen:,} of {rows:,} rows were asked in {PATIENCE_S:.0f} s")


def table(measured: Sequence[Measured], *, in_flight: int, delay_s: float) -> Iterator[str]:
    """Markdown."""
    alone = measured[0]
    yield (
        "| workers | first to last request, s | rows/s | to the first line's | of in flight / latency "
        "| begin to manifest, s |"
    )
    yield "|---|---|---|---|---|---|"
    for each in measured:
        pace = each.rows / each.sending_s
        ratio = pace / (alone.rows / alone.sending_s)
        share = pace / (each.workers * in_flight / delay_s)
        yield (
            f"| {each.workers} | {each.sending_s:.0f} | {pace:.0f} | {ratio:.2f} | {100 * share:.0f} % | "
            f"{each.run_s:.0f} |"
        )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__)
    parser.add_argument("--rows", type=count, default=12_800)
    parser.add_argument("--shares", type=count, default=16)
    parser.add_argument("--in-flight", type=count, default=32, help="of each worker")
    parser.add_argument("--delay-s", type=seconds, default=0.5, help="from a request to its answer")
    parser.add_argument("--workers", type=count, nargs="+", default=[1, 4])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-bench-") as folder:
        measured = list(measure(Path(folder), options))
    print(
        f"{options.rows:,} rows in {options.shares} shares, {options.in_flight} in flight on each worker, "
        f"{options.delay_s:g} s an answer\n"
    )
    print("\n".join(table(measured, in_flight=options.in_flight, delay_s=options.delay_s)))


if __name__ == "__main__":
    main()
