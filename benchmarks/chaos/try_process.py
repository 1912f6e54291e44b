"""One try in a process of its own, which is there to be killed.

Owns what the process does: `batch.execution.run_job` with small numbers, so that few rows make many changes. Processes
are forked from one that has imported all of it, since importing Airflow takes longer than a try (`tries`).
"""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import structlog

from airflow_llm_provider.batch import ending, execution, reporter
from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.job import BatchJob
from airflow_llm_provider.batch.recorder import Recorder
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.batch.switch import HoldSwitch
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.release import Terms
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import LLMBatchError, NoRetryError
from airflow_llm_provider.storage.jsonl import JsonlSource
from airflow_llm_provider.storage.lease import Lease
from airflow_llm_provider.storage.store import RunStore, open_path
from benchmarks.chaos.deaths import Deaths

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from airflow_llm_provider.core.ledger import ChunkSummary, OpenChunk

open_path("file:///", what="nothing")  # Airflow looks for file systems once: before the forks
with suppress(ImportError):
    importlib.import_module("airflow.providers.amazon.aws.fs.s3")

IN_FLIGHT = 4
FLUSH_ROWS = 2

Plant = Literal["", "journal-first", "letters-last", "no-look"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a try is told.

    Attributes:
        uri: the run's path.
        source: its input.
        url: the model server's.
        prompt: of each row.
        on_stale: see `BatchJob`.
        rerun: see `BatchJob`.
        epoch: see `BatchJob`.
        try_number: Airflow's.
        environment: set before anything else, such as connections.
        die_at: the change to files at which it is killed; 0: none.
        torn: see `Deaths`.
        stands_still: see `Deaths`.
        clock_seed: the wall clock steps by up to a day either way, whenever it is read; None: it does not.
        plant: an ordering bug, put in on purpose: to see that it is found.
    """

    uri: str
    source: str
    url: str
    prompt: str = "Say: {{ row.text }}"
    on_stale: Literal["fail", "restart"] = "fail"
    rerun: bool = False
    epoch: int = 0
    try_number: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    die_at: int = 0
    torn: bool = False
    stands_still: bool = False
    clock_seed: int | None = None
    plant: Plant = ""


def work(order: Order, told: Connection) -> None:
    """Do it, and tell of the end: the manifest or the error, and how many changes it took."""
    os.environ.update(order.environment)
    hush()
    if order.clock_seed is not None:
        _step_clocks(Random(order.clock_seed))
    if order.plant:
        _plant(order.plant)
    deaths = Deaths(
        order.uri.removeprefix("file://"), at=order.die_at, torn=order.torn, stands_still=order.stands_still
    )
    deaths.install()
    end: dict[str, Any] = {}
    try:
        end["manifest"] = run_job(_job(order), RunStore(order.uri), StopSwitch())
    except LLMBatchError as error:
        end |= {"error": f"{type(error).__name__}: {error}", "for_good": isinstance(error, NoRetryError)}
    told.send({**end, "changes": deaths.changes})
    told.close()
    os._exit(0)  # taking an interpreter down that has imported Airflow takes as long as a try


def hush() -> None:
    """Have nothing logged: tries are killed by the thousand."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _job(order: Order) -> BatchJob:
    return BatchJob(
        identity=RunIdentity(dag_id="chaos", task_id="task", run_id="run"),
        endpoint=EndpointSettings(base_urls=(order.url,), connect_timeout_s=5, request_timeout_s=5),
        requests=RequestSpec(prompt=order.prompt),
        model=None,
        source=JsonlSource([order.source]),
        chunk_rows=4,
        terms=Terms(limit=IN_FLIGHT),
        tolerance=Tolerance(1.0),
        epoch=order.epoch,
        try_number=order.try_number,
        agreed={},
        switch=HoldSwitch(lambda: None),
        priority=None,
        max_attempts=50,
        on_stale=order.on_stale,
        rerun=order.rerun,
        on_empty="fail",
        must_exist=False,
        flush_rows=FLUSH_ROWS,
        flush_interval_s=0.02,
        outage_patience_s=60,
    )


def _step_clocks(rng: Random) -> None:
    """Have the wall clock step, forwards and backwards, as one does that is set by hand or by a broken time server."""

    def utc_now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=rng.uniform(-86_400, 86_400))

    for module in (ending, execution, reporter):
        setattr(module, "utc_now", utc_now)  # noqa: B010 - mypy would not have it otherwise


def _plant(plant: Plant) -> None:
    """Put a bug in, of those that a careless change of order makes."""

    def journal_first(
        self: Recorder, complete: list[OpenChunk], partial: list[tuple[int, list[Any]]]
    ) -> list[ChunkSummary]:
        for opened in complete:
            self._journal.drop(opened.chunk.number)
        return honest(self, complete, partial)

    def letters_last(
        self: Recorder, complete: list[OpenChunk], partial: list[tuple[int, list[Any]]]
    ) -> list[ChunkSummary]:
        kept = [row.dead_letter for opened in complete for row in opened.settled.values()]
        for opened in complete:
            for row in opened.settled.values():
                row.dead_letter = None
        summaries = honest(self, complete, partial)
        letters = iter(kept)
        for opened in complete:
            for row in opened.settled.values():
                row.dead_letter = next(letters)
            self._parts.commit(opened)
        return summaries

    if plant == "no-look":
        setattr(Lease, "check", lambda _: None)  # noqa: B010
        return
    honest = Recorder._write  # noqa: SLF001 - a bug is put in from outside
    setattr(Recorder, "_write", {"journal-first": journal_first, "letters-last": letters_last}[plant])  # noqa: B010
