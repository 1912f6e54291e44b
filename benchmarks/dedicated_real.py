"""The same on a real vLLM with 8 slots: whole runs of ours, in pairs with all rows in flight that fit.

Owns the runs and the sampling. See `benchmarks.dedicated`.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.control_law import FIXED, ControlLaw
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.endpoint.load import GENERATED, RUNNING, WAITING
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.storage.store import RunStore
from benchmarks.bench import make_job
from benchmarks.colocation.batch_process import write_rows
from benchmarks.colocation.servers import Server, vllm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_llm_provider.batch.job import BatchJob

SLOTS = 8
EVERYTHING = 128
"""In flight, for the list schedule: sixteen for each slot are always in the server's queue."""

SAMPLE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run.

    Attributes:
        makespan_s: of the whole run, from reading its rows to its manifest.
        tokens_per_s: generated over that.
        lost: samples at which nothing was there, in between: the API server or we were too busy.
        busy: slots that ran, of all, from when some waited first to when they did last.
        queued: share of that time at which some waited, so that no slot can have been free.
        waited: how many waited, on average.
    """

    makespan_s: float
    tokens_per_s: float
    lost: float
    busy: float
    queued: float
    waited: float


def pairs(number: int, rows: int) -> Iterator[str]:
    """Run them, and tell."""
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="llm-dedicated-") as name, vllm(SLOTS, Path(name) / "vllm.log") as server:
        folder = Path(name)
        source = folder / "rows.jsonl"
        write_rows(source, rows, seed=1)
        warm = folder / "warm.jsonl"
        write_rows(warm, 32, seed=2)
        run_job(_job(server, warm, FIXED), RunStore(f"file://{folder / 'warm'}"), StopSwitch())
        yield f"{rows} rows of 160-640 tokens, {SLOTS} slots, nobody says so"
        yield "               makespan, s   tokens/s   busy, %   none there, %   some wait, %  waiting  / list schedule"
        for pair in range(number):
            bound = _measured(server, source, folder / f"all-{pair}", FIXED)
            ours = _measured(server, source, folder / f"ours-{pair}", ControlLaw(kind="adaptive"))
            yield _line("list schedule", bound, bound)
            yield _line("adaptive", ours, bound)


def _line(name: str, measured: Measured, bound: Measured) -> str:
    return (
        f"{name:15}{measured.makespan_s:11.1f}{measured.tokens_per_s:11.0f}{100 * measured.busy:10.1f}"
        f"{100 * measured.lost:16.1f}{100 * measured.queued:15.1f}{measured.waited:9.1f}"
        f"{measured.makespan_s / bound.makespan_s:17.3f}"
    )


def _job(server: Server, rows: Path, control: ControlLaw) -> BatchJob:
    return replace(
        make_job(server.url, rows, max_in_flight=EVERYTHING),
        endpoint=EndpointSettings(base_urls=(server.url,), api_key=server.api_key),
        requests=RequestSpec(),
        control=control,
    )


def _measured(server: Server, rows: Path, out: Path, control: ControlLaw) -> Measured:
    job = _job(server, rows, control)
    server.settle()
    samples: list[tuple[float, float]] = []
    over = threading.Event()
    sampling = threading.Thread(target=_sample, args=(server, samples, over))
    tokens = server.counters()[GENERATED]
    sampling.start()
    began_s = _now_s()
    try:
        run_job(job, RunStore(f"file://{out}"), StopSwitch())
    finally:
        makespan_s = _now_s() - began_s
        over.set()
        sampling.join()
    return _summed(samples, makespan_s, server.counters()[GENERATED] - tokens)


def _sample(server: Server, samples: list[tuple[float, float]], over: threading.Event) -> None:
    while not over.wait(SAMPLE_S):
        with suppress(OSError):  # a server that is asked too much; the next sample tells
            counters = server.counters()
            samples.append((counters[RUNNING], counters[WAITING]))


def _summed(samples: list[tuple[float, float]], makespan_s: float, tokens: float) -> Measured:
    queues = [number for number, (_, waiting) in enumerate(samples) if waiting > 0]
    if not queues:
        raise RuntimeError("No sample found any request waiting: too few rows, or the limit did not fill the server")
    between = samples[queues[0] : queues[-1] + 1]
    return Measured(
        makespan_s=makespan_s,
        tokens_per_s=tokens / makespan_s,
        lost=sum(not running + waiting for running, waiting in between) / len(between),
        busy=sum(running for running, _ in between) / (SLOTS * len(between)),
        queued=sum(waiting > 0 for _, waiting in between) / len(between),
        waited=sum(waiting for _, waiting in between) / len(between),
    )


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - runs on a real server take real time
