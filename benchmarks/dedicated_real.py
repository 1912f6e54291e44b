"""The same on a real vLLM with 8 slots: whole runs of ours, in pairs with all rows in flight that fit.

Owns the runs and the sampling. See `benchmarks.dedicated`.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.control_law import FIXED, ControlLaw
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.storage.store import RunStore
from benchmarks.bench import make_job
from benchmarks.colocation.batch_process import write_rows
from benchmarks.colocation.servers import GENERATED, RUNNING, WAITING, Server, vllm

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
        makespan_s: from the first sample with something running to the last.
        tokens_per_s: generated over that.
        busy: slots that ran, of all, from when some waited first to when they did last.
        queued: share of that time at which some waited, so that no slot can have been free.
        waited: how many waited, on average.
    """

    makespan_s: float
    tokens_per_s: float
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
        yield "               makespan, s   tokens/s   busy, %   some wait, %   waiting   makespan / list schedule"
        for pair in range(number):
            bound = _measured(server, source, folder / f"all-{pair}", FIXED)
            ours = _measured(server, source, folder / f"ours-{pair}", ControlLaw(kind="adaptive"))
            yield _line("list schedule", bound, bound)
            yield _line("adaptive", ours, bound)


def _line(name: str, measured: Measured, bound: Measured) -> str:
    return (
        f"{name:15}{measured.makespan_s:11.1f}{measured.tokens_per_s:11.0f}{100 * measured.busy:10.1f}"
        f"{100 * measured.queued:15.1f}{measured.waited:10.1f}{measured.makespan_s / bound.makespan_s:27.3f}"
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
    samples: list[tuple[float, float, float, float]] = []
    over = threading.Event()
    sampling = threading.Thread(target=_sample, args=(server, samples, over))
    sampling.start()
    try:
        run_job(job, RunStore(f"file://{out}"), StopSwitch())
    finally:
        over.set()
        sampling.join()
    return _summed(samples)


def _sample(server: Server, samples: list[tuple[float, float, float, float]], over: threading.Event) -> None:
    while not over.wait(SAMPLE_S):
        counters = server.counters()
        now = time.monotonic()  # noqa: TID251
        samples.append((now, counters[RUNNING], counters[WAITING], counters[GENERATED]))


def _summed(samples: list[tuple[float, float, float, float]]) -> Measured:
    working = [number for number, sample in enumerate(samples) if sample[1] + sample[2] > 0]
    begin, end = samples[max(0, working[0] - 1)], samples[min(len(samples) - 1, working[-1] + 1)]
    queues = [number for number, sample in enumerate(samples) if sample[2] > 0]
    if not queues:
        raise RuntimeError("No sample found any request waiting: too few rows, or the limit did not fill the server")
    between = samples[queues[0] : queues[-1] + 1]
    return Measured(
        makespan_s=end[0] - begin[0],
        tokens_per_s=(end[3] - begin[3]) / (end[0] - begin[0]),
        busy=sum(sample[1] for sample in between) / (SLOTS * len(between)),
        queued=sum(sample[2] > 0 for sample in between) / len(between),
        waited=sum(sample[2] for sample in between) / len(between),
    )
