"""One try of a run, in a process of its own, that says on standard output what it does and what it weighs.

Owns the child process of `flat_memory`. Every line is one JSON object with an ``event``, ``at_s`` on the machine's
monotonic clock, which the parent shares, ``rss_bytes`` and ``peak_bytes``:

- ``imported``: the package and Airflow are loaded; from here on it is the task's own work.
- ``begun``: the run was found or begun, and the endpoint asked who it is.
- ``landed``: a part lies in storage; ``rows`` have been landed by this try.
- ``finished``: the manifest lies there; ``reads`` says what was read from storage, as {kind: [objects, bytes]}.

    python -m benchmarks.flat_run <url> <rows.jsonl, or a glob> <result folder>
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import psutil  # type: ignore[import-untyped]

from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore
from benchmarks.bench import make_job


class WatchedStore(RunStore):
    """Says when a part has landed, and keeps count of what is read."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.landed_rows = 0
        self.reads: dict[str, list[int]] = {}

    def read(self, name: str) -> bytes | None:
        """As the store does; counted by the kind of object, such as ``part`` or ``_run/commits``."""
        data = super().read(name)
        kind = "part" if layout.parse_part(name) else "/".join(name.split("/")[:2])
        count = self.reads.setdefault(kind, [0, 0])
        count[0] += 1
        count[1] += len(data or b"")
        return data

    def put_new(self, name: str, data: bytes) -> bool:
        """As the store does; a part is told of."""
        put = super().put_new(name, data)
        if layout.parse_part(name):
            self.landed_rows += data.count(b"\n")
            say("landed", rows=self.landed_rows)
        return put


def say(event: str, **more: Any) -> None:
    """Tell the parent."""
    line = {
        "event": event,
        "at_s": time.monotonic(),  # noqa: TID251 - the parent subtracts its own reading
        "rss_bytes": psutil.Process().memory_info().rss,
        "peak_bytes": _peak_bytes(),
        **more,
    }
    sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def _peak_bytes() -> int:
    """As the kernel counts it for this program; what ``getrusage`` tells is the parent's, where that had more."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(found.split()[1]) * 1024


def main() -> None:
    """Run the try."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flat_run", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--in-flight", type=int, default=64)
    options = parser.parse_args()
    say("imported")
    logging.disable(logging.INFO)
    job = make_job(options.url, options.rows, max_in_flight=options.in_flight)
    store = WatchedStore(options.out.as_uri())
    run_job(job, store, StopSwitch(), begun=lambda: say("begun"))
    say("finished", reads=store.reads)


if __name__ == "__main__":
    main()
