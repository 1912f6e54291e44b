"""What a run costs an object store: PUTs, GETs, DELETEs and listings, by kind of object.

    python -m benchmarks.object_count --rows 20000 --in-flight 64 --delay-s 0.5

Runs against the stub, whose answers take `--delay-s`, so that the pace is ``in flight / delay``. Counted is what the
run asks its store for, on local disk; on S3 each is one request (a folder's removal is a listing and a DELETE for each
thousand objects). What a night costs depends on its length, which no benchmark waits for: flushes of the journal over
hours are those of `core.flush_clock`, asked for each moment.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.flush_clock import FlushClock
from airflow_llm_provider.operators.reading import FLUSH_INTERVAL_S, FLUSH_ROWS
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import StubVLLM
from benchmarks.arguments import count, seconds
from benchmarks.bench import make_job, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

NIGHT_S = 8 * 3600
TICK_S = 0.05


class CountingStore(RunStore):
    """Counts what is asked of it, by verb and kind of object."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.asked: Counter[tuple[str, str]] = Counter()

    def read(self, name: str) -> bytes | None:
        """As the store does."""
        self.asked["GET", _kind(name)] += 1
        return super().read(name)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """As the store does."""
        self.asked["PUT", _kind(name)] += 1
        super().write(name, data, durable=durable)

    def write_from(self, name: str, pieces: Iterable[bytes]) -> None:
        """As the store does."""
        self.asked["PUT", _kind(name)] += 1
        super().write_from(name, pieces)

    def put_new(self, name: str, data: bytes) -> bool:
        """As the store does."""
        self.asked["PUT", _kind(name)] += 1
        return super().put_new(name, data)

    def list(self, prefix: str) -> dict[str, int]:
        """As the store does."""
        self.asked["LIST", _kind(prefix)] += 1
        return super().list(prefix)

    def _delete(self, name: str) -> None:
        self.asked["DELETE", _kind(name)] += 1
        super()._delete(name)


def _kind(name: str) -> str:
    return "part" if layout.parse_part(name) else "/".join(name.split("/")[:2]) or "everything"


def flushes(*, rows_per_s: float, lasts_s: float) -> int:
    """How often a try of this pace and length journals, if no chunk is complete in between."""
    clock, last_s, flushed = FlushClock(rows=FLUSH_ROWS, interval_s=FLUSH_INTERVAL_S, began_s=0.0), 0.0, 0
    for tick in range(int(lasts_s / TICK_S)):
        now_s = tick * TICK_S
        if now_s >= clock.due_s(int((now_s - last_s) * rows_per_s)):
            clock.flushed(now_s)
            last_s = now_s
            flushed += 1
    return flushed


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.object_count", description=__doc__)
    parser.add_argument("--rows", type=count, default=20_000)
    parser.add_argument("--in-flight", type=count, default=64)
    parser.add_argument("--delay-s", type=seconds, default=0.5)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, StubVLLM(delay_s=options.delay_s) as stub:
        source = Path(folder) / "rows.jsonl"
        write_rows(source, options.rows)
        store = CountingStore(f"file://{folder}/run")
        manifest = run_job(make_job(stub.url, source, max_in_flight=options.in_flight), store, StopSwitch())
    pace = options.rows / manifest["duration_s"]
    print(
        f"{options.rows:,} rows in {manifest['duration_s']:.0f} s, {pace:.0f} rows/s, {options.in_flight} in flight\n"
    )
    print("| request | of | number | per million rows |")
    print("|---|---|---|---|")
    for (verb, kind), number in sorted(store.asked.items()):
        print(f"| {verb} | `{kind}` | {number:,} | {number * 1_000_000 // options.rows:,} |")
    for verb in ("PUT", "GET", "DELETE"):
        total = sum(number for (each, _), number in store.asked.items() if each == verb)
        print(f"| **{verb}** | all | {total:,} | {total * 1_000_000 // options.rows:,} |")
    print("\nFlushes of the journal in a night of 8 hours and 16 tries side by side, by the rule:\n")
    for rows_per_s in (0.1, 1, 10, 100):
        shared = 16 * flushes(rows_per_s=rows_per_s, lasts_s=NIGHT_S)
        print(f"- {rows_per_s:g} rows/s each: {shared:,} (every 2 s: {16 * NIGHT_S // 2:,})")


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    main()
