"""One try's work: the runner and its parts, put together and run.

Owns the wiring and the back-offs. Does not decide what run this is (`execution`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_llm_provider.batch.backoff import exponential
from airflow_llm_provider.batch.feeder import Feeder
from airflow_llm_provider.batch.gate import Gate
from airflow_llm_provider.batch.prepare import Preparer
from airflow_llm_provider.batch.recorder import Recorder
from airflow_llm_provider.batch.reporter import Reporter, earlier_row_s
from airflow_llm_provider.batch.runner import Runner
from airflow_llm_provider.batch.watch import LatencyWatch
from airflow_llm_provider.core.circuit import Circuit
from airflow_llm_provider.core.dispatch import Dispatcher
from airflow_llm_provider.core.drain import RowDurations
from airflow_llm_provider.core.own_requests import OwnRequests
from airflow_llm_provider.core.prompt import RequestTemplate
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.identity import ServedModel

if TYPE_CHECKING:
    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.core.ledger import Ledger
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
) -> None:
    """Request every row that is not done, until all are.

    Raises:
        LLMBatchError: why this try ended before that; what had settled is kept.
        RunHeld: the run may not go on for a while; the same.
    """
    model = document.served["model"]
    dispatcher = Dispatcher(
        limit=job.terms.limit,
        max_attempts=job.max_attempts,
        wait_s=exponential(first_s=1, max_s=60),
        circuit=Circuit(wait_s=exponential(first_s=0.5, max_s=30), patience_s=job.outage_patience_s),
    )
    latency = job.endpoint.latency if job.terms.gated else None
    own = OwnRequests() if latency else None
    watch = LatencyWatch(latency, job.endpoint, own=own) if latency else None
    dispatcher.durations = RowDurations(await asyncio.to_thread(earlier_row_s, store))
    dispatcher.hold()  # until the gate says otherwise
    recorder = Recorder(ledger, journal, parts, flush_rows=job.flush_rows, flush_interval_s=job.flush_interval_s)
    reporter = Reporter(store, ledger, dispatcher)
    async with EndpointClient(job.endpoint, base_url=job.endpoint.base_urls[0]) as client:
        runner = Runner(
            client=client,
            dispatcher=dispatcher,
            recorder=recorder,
            ledger=ledger,
            tolerance=job.tolerance,
            served=ServedModel(model, document.served["root"], None),
            request_prefix=f"{document.fingerprint}-{try_token}",
            own=own,
        )
        feeder = Feeder(
            source=job.source,
            snapshot=document.snapshot,
            preparer=Preparer(RequestTemplate(job.requests, model=model), priority=job.priority),
            ledger=ledger,
            journal=journal,
            recorder=recorder,
            dispatcher=dispatcher,
            fed=runner.pump,
        )
        gate = Gate(
            job.terms,
            switch=job.switch,
            watch=watch,
            runner=runner,
            dispatcher=dispatcher,
            ledger=ledger,
            remaining_s=reporter.remaining_s,
        )
        reporter.gate = gate
        companions = [reporter.run, gate.run, job.switch.run, *([watch.run] if watch else [])]
        try:
            await runner.run(feeder, stop, companions)
        finally:
            await reporter.finish()
