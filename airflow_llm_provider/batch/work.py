"""One try's work: the runner and its parts, put together and run.

Owns the wiring and the back-offs. Does not decide what run this is (`execution`).
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING

from airflow_llm_provider.batch import attempts
from airflow_llm_provider.batch.backoff import exponential
from airflow_llm_provider.batch.control import LimitControl
from airflow_llm_provider.batch.feeder import Feeder
from airflow_llm_provider.batch.gate import Gate, RunHeld
from airflow_llm_provider.batch.prepare import Preparer
from airflow_llm_provider.batch.recorder import Recorder
from airflow_llm_provider.batch.reporter import Earlier, Reporter
from airflow_llm_provider.batch.runner import Runner
from airflow_llm_provider.batch.slicer import Checked, Plain, Slicer
from airflow_llm_provider.batch.watch import LatencyWatch
from airflow_llm_provider.core.circuit import Circuit
from airflow_llm_provider.core.dispatch import Dispatcher
from airflow_llm_provider.core.drain import RowDurations
from airflow_llm_provider.core.own_requests import OwnRequests
from airflow_llm_provider.core.prompt import RequestTemplate
from airflow_llm_provider.core.row_queue import RowQueue
from airflow_llm_provider.core.spread import Spread
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.identity import ServedModel
from airflow_llm_provider.endpoint.load import LoadReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.core.ledger import Ledger, Totals
    from airflow_llm_provider.core.occupancy import Occupancy
    from airflow_llm_provider.core.row_queue import Spent
    from airflow_llm_provider.storage.document import RunDocument
    from airflow_llm_provider.storage.journal import Journal
    from airflow_llm_provider.storage.parts import Parts
    from airflow_llm_provider.storage.store import RunStore


async def work_off(
    job: BatchJob,
    document: RunDocument,
    store: RunStore,
    *,
    ledger: Ledger,
    journal: Journal,
    parts: Parts,
    try_token: str,
    stop: StopSwitch,
    told: Callable[[Occupancy, Totals], None] | None = None,
) -> None:
    """Request every row that is not done, until all are, or the shift ends; `told` is the `Reporter`'s.

    Raises:
        LLMBatchError: why this try ended before that; what had settled is kept.
        RunHeld: the run may not go on for a while; the same.
    """
    model = document.served["model"]
    urls = job.endpoint.base_urls
    earlier = await asyncio.to_thread(Earlier.read, store)
    await job.switch.refresh()  # reading the source may have taken long
    spent = await asyncio.to_thread(attempts.read, job, store)
    spread = _spread(job, spent, row_s=earlier.row_s)
    recorder = Recorder(
        ledger,
        journal,
        parts,
        flush_rows=job.flush_rows,
        flush_interval_s=job.flush_interval_s,
        redaction=job.redaction,
    )
    reporter = Reporter(
        store, ledger, spread, urls, remaining_s=earlier.remaining_s, told=told, interval_s=job.progress_interval_s
    )
    latency = job.endpoint.latency if job.terms.gated else None
    owns = [OwnRequests() if latency else None for _ in urls]
    watches = [
        LatencyWatch(latency, job.endpoint, base_url=url, own=own) if latency else None
        for url, own in zip(urls, owns, strict=True)
    ]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(EndpointClient(job.endpoint, base_url=url, redaction=job.redaction))
            for url in urls
        ]
        runner = Runner(
            clients=list(zip(clients, owns, strict=True)),
            senders=_checked(job, _senders(job, clients, spread.dispatchers, model)),
            spread=spread,
            recorder=recorder,
            ledger=ledger,
            answers=job.answers,
            tolerance=job.tolerance,
            in_part=bool(document.replays),
            served=ServedModel(model, document.served["root"], None),
            request_prefix=f"{document.fingerprint}-{try_token}",
        )
        feeder = Feeder(
            source=job.source,
            snapshot=document.snapshot,
            preparer=Preparer(RequestTemplate(job.requests, model=model), priority=job.priority),
            ledger=ledger,
            journal=journal,
            recorder=recorder,
            dispatcher=spread,
            fed=runner.pump,
        )
        gates = [
            Gate(
                job.terms,
                switch=job.switch,
                watch=watch,
                runner=handle,
                dispatcher=dispatcher,
                ledger=ledger,
                remaining_s=reporter.remaining_s,
                name=url if len(urls) > 1 else "",
                shift=job.shift,
            )
            for url, watch, handle, dispatcher in zip(urls, watches, runner.handles, spread.dispatchers, strict=True)
        ]
        reporter.gates = gates
        controls = [
            LimitControl(
                dispatcher.learnt,
                LoadReader(client),
                dispatcher=dispatcher,
                runner=handle,
                name=url,
                slots=job.control.slots,
            )
            for url, client, dispatcher, handle in zip(urls, clients, spread.dispatchers, runner.handles, strict=True)
            if dispatcher.learnt is not None
        ]
        watching = [watch.run for watch in watches if watch is not None]
        obeyed = [*(gate.run for gate in gates), *(control.run for control in controls)]
        try:
            await runner.run(feeder, stop, [reporter.run, job.switch.run, *obeyed, *watching])
        except RunHeld:
            await asyncio.to_thread(attempts.keep, job, store, spread.spent(), before=spent)
            raise
        finally:
            await reporter.finish()


def _senders(
    job: BatchJob, clients: Sequence[EndpointClient], dispatchers: Sequence[Dispatcher], model: str
) -> list[Plain]:
    """Rows run in slices where batch may have to give way between two of them."""
    if not job.control.slices:
        return [Plain(client) for client in clients]
    ending: set[int] = set()
    return [
        Slicer(client, model=model, name=url, ending=ending, learnt=dispatcher.learnt)
        for client, url, dispatcher in zip(clients, job.endpoint.base_urls, dispatchers, strict=True)
    ]


def _checked(job: BatchJob, senders: list[Plain]) -> list[Plain]:
    schema = job.answers.schema
    return senders if schema is None else [Checked(sender, schema) for sender in senders]


def _spread(job: BatchJob, spent: Mapping[int, Spent], *, row_s: float | None) -> Spread:
    """A dispatcher for each server, all of them on hold until their gates say otherwise."""
    queue = RowQueue(spent)
    dispatchers = [
        Dispatcher(
            limit=job.terms.limit_here,
            max_attempts=job.max_attempts,
            wait_s=exponential(first_s=1, max_s=60),
            circuit=Circuit(wait_s=exponential(first_s=0.5, max_s=30), patience_s=job.outage_patience_s),
            queue=queue,
            learnt=job.control.learnt(job.terms.limit_here, Random()),
        )
        for _ in job.endpoint.base_urls
    ]
    for dispatcher in dispatchers:
        dispatcher.durations = RowDurations(row_s)
        dispatcher.hold()
    return Spread(dispatchers, queue, limit=job.terms.limit)
