"""One run, worked off by several tasks: one plans, any number work at a share each, one assembles the manifest.

Owns what each of them does of a run. Does not know how it is done for a whole run (`execution`), nor the tasks
(`operators.batch_group`).

The plan is ``run.json``, as any run's, and says how many shares there are. A share is a stretch of the chunks; what
only its task writes (lease, journal, progress, commit records, dead letters) lies in a folder of its own, as if it were
a run of its own, and its parts lie beside all others. So each share is killed, cleared and resumed by itself. Whoever
assembles reads the shares' records, finds whether each chunk has a part, and ends the run as one task would.

A plan that begins anew removes the shares' folders, and with them their leases: whoever still works at one ends before
its next write.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.batch.ending import add_sinks, judge, lacks_sinks
from airflow_llm_provider.batch.execution import JobRun, Opened
from airflow_llm_provider.core.ledger import Ledger
from airflow_llm_provider.exceptions import (
    ConfigurationError,
    RunStoppedError,
    StaleRunError,
    UnfinishedSharesError,
)
from airflow_llm_provider.storage import layout, opening
from airflow_llm_provider.storage.journal import Journal
from airflow_llm_provider.storage.parts import Parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.core.ledger import Totals
    from airflow_llm_provider.core.occupancy import Occupancy
    from airflow_llm_provider.storage.document import RunDocument
    from airflow_llm_provider.storage.source import Scan
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)

NAMED = 20
"""So many shares are named in an error."""


def plan_shares(
    job: BatchJob, store: RunStore, stop: StopSwitch, *, shares: int, begun: Callable[[], None]
) -> list[int]:
    """Find, begin or begin anew the run at `store`, and say which shares there are to work at.

    Args:
        job: what to do.
        store: where.
        stop: ends it early.
        shares: how many there should be; there are no more than chunks.
        begun: called once the intent lies in storage.

    Returns:
        The shares' numbers. Of a finished run, too: mapped tasks that Airflow has must not go away.

    Raises:
        LLMBatchError, EmptySourceSkip, RunHeld: see `execution.run_job`.
    """
    planned: list[int] = _Plan(job, store, stop, begun, shares=shares).run()["shares"]
    return planned


def work_share(
    job: BatchJob,
    store: RunStore,
    stop: StopSwitch,
    *,
    share: int,
    begun: Callable[[], None],
    told: Callable[[Occupancy, Totals], None] | None = None,
) -> dict[str, Any]:
    """Work off one share of the run at `store`.

    Returns:
        ``share``, its ``counts`` and ``usage``; of a finished run the share alone.

    Raises:
        LLMBatchError, RunHeld: see `execution.run_job`.
    """
    return _Share(replace(job, must_exist=True), store, stop, begun, told, share=share).run()


def assemble(job: BatchJob, store: RunStore, stop: StopSwitch) -> dict[str, Any]:
    """Write the manifest of the run at `store`, whose shares have all been worked off.

    Returns:
        The manifest.

    Raises:
        UnfinishedSharesError: they have not.
        LLMBatchError: see `execution.run_job`.
    """
    return _Assembly(replace(job, must_exist=True), store, stop, lambda: None).run()


def _check_shared(document: RunDocument, store: RunStore) -> None:
    """Whether the run was planned for shares: one task's journal and dead letters lie elsewhere.

    Raises:
        StaleRunError: it was not.
    """
    if document.epoch is None:
        raise StaleRunError(
            f"The run at {store.uri} was begun by an LLMBatchOperator of the same id, and not for shares. Let that "
            "finish it, or set on_stale='restart' to begin it anew (what it has done is removed)"
        )


def _check_open(document: RunDocument, store: RunStore) -> None:
    """Whether the run may be worked at.

    Raises:
        RunStoppedError: what a restart removes is not removed yet.
    """
    if document.state != "open":
        raise RunStoppedError(
            f"The run at {store.uri} is being begun anew by the task that plans it. This one ends; the next try sees "
            "what is there"
        )


def _load(document: RunDocument, store: RunStore, try_token: str) -> tuple[Parts, Ledger]:
    """What is done of the whole run.

    Raises:
        StorageError: it could not be found out.
    """
    plan, shares = document.plan, document.shares
    parts = Parts(store, document.fingerprint, try_token, plan=plan, shares=shares)
    committed = parts.load(plan, opening.whole_listing(store, layout.RUN))
    for share in sorted({plan.share_of(number, shares) for number in range(len(plan)) if number not in committed}):
        committed |= parts.load_share(plan.share(share, shares))  # by name: what has just been put may not be listed
    return parts, Ledger(plan, committed)


class _Plan(JobRun):
    _shares_runs = True

    def __init__(
        self, job: BatchJob, store: RunStore, stop: StopSwitch, begun: Callable[[], None], *, shares: int
    ) -> None:
        super().__init__(job, store, stop, begun)
        self._most_shares = shares

    def run(self) -> dict[str, Any]:
        planned = self._begun_anew_if_asked()
        if "shares" in planned or self._anew is None or self._anew.document is None:
            return planned
        return {"shares": list(range(self._anew.document.shares))}  # it is a manifest: the run is finished

    def _check_shaping(self, document: RunDocument) -> None:
        super()._check_shaping(document)
        _check_shared(document, self._store)

    def _shared(self, scan: Scan) -> dict[str, Any]:
        return {"shares": max(1, min(self._most_shares, len(scan.plan))), "epoch": self._job.epoch}

    def _resume(self, document: RunDocument, found: opening.Found) -> dict[str, Any]:
        manifest = self._take(found)
        if manifest is not None:
            return self._finished_by_another(document, manifest)
        if document.state == "open":
            self._check_source(document, may_be_gone=_load(document, self._store, self._try_token)[1].finished)
        else:
            self._check_source(document)
            document = opening.finish_clearing(self._store, document)
        if document.shares != self._most_shares:
            log.info("The run goes on with the %d shares it began with", document.shares)
        return self._go_on(document)

    def _go_on(self, document: RunDocument) -> dict[str, Any]:
        self._begun()
        self._check_stop()
        self._lease.release()
        return {"shares": list(range(document.shares))}


class _Share(JobRun):
    _shares_runs = True

    def __init__(
        self,
        job: BatchJob,
        store: RunStore,
        stop: StopSwitch,
        begun: Callable[[], None],
        told: Callable[[Occupancy, Totals], None] | None,
        *,
        share: int,
    ) -> None:
        self._share = share
        super().__init__(job, store, stop, begun, told)

    def run(self) -> dict[str, Any]:
        found = opening.find(self._store, self._job.identity, must_exist=True)
        document = found.document
        if document is None:
            raise AssertionError
        self._check_shaping(document)
        _check_shared(document, self._store)
        if found.manifest is not None:
            log.info("This run finished at %s; nothing is sent", found.manifest["finished_at"])
            return {"share": self._share}
        _check_open(document, self._store)
        if self._share >= document.shares:
            raise ConfigurationError(
                f"The run at {self._store.uri} has {document.shares} shares, and this task is to work at share "
                f"{self._share}. Clear the task that plans it"
            )
        ended = self._resume(document, found)
        if "share" in ended:
            return ended
        with suppress(RunStoppedError):  # whoever assembled has removed it
            self._lease.release()  # it is a manifest: others were faster
        return {"share": self._share}

    def _check_shaping(self, document: RunDocument) -> None:
        try:
            super()._check_shaping(document)
        except StaleRunError as error:
            raise StaleRunError(f"{error}. Of a run in shares the task that plans it decides that: clear it") from None

    def _tidy(self, document: RunDocument, manifest: dict[str, Any], take: Callable[[], object]) -> None:
        """Whoever assembles does that."""

    def _notes(self) -> RunStore:
        return self._store.below(layout.share(self._share))

    def _open(self, document: RunDocument) -> Opened:
        plan, shares = document.plan, document.shares
        chunks = plan.share(self._share, shares)
        parts = Parts(self._store, document.fingerprint, self._try_token, plan=plan, shares=shares)
        ledger = Ledger(plan, parts.load_share(chunks), chunks)
        listing = opening.whole_listing(self.notes, layout.LEASE)
        found = (name for name in listing if name.startswith(f"{layout.JOURNAL}/"))
        journal = Journal(self.notes, document.fingerprint, self._try_token, found)
        log.info(
            "Share %d of %d: chunks from %d on, %d of them; %s of %s rows lie in parts",
            *(self._share, shares, chunks.start, len(chunks)),
            *(f"{ledger.totals.done:,}", f"{ledger.total_rows:,}"),
        )
        return Opened(document, ledger, journal, parts)

    def _finish(self, opened: Opened) -> dict[str, Any]:
        self._lease.release()
        totals = opened.ledger.totals
        return {
            "share": self._share,
            "counts": totals.counts(),
            "usage": totals.usage.as_dict(),
        }


class _Assembly(JobRun):
    def run(self) -> dict[str, Any]:
        found = opening.find(self._store, self._job.identity, must_exist=True)
        document = found.document
        if document is None:
            raise AssertionError
        _check_shared(document, self._store)
        manifest = found.manifest
        if manifest is not None and lacks_sinks(self._job, manifest):
            self._take(found)
            manifest = add_sinks(self._job, document, self._store, manifest)
            self._tidy(document, manifest, lambda: None)
        elif manifest is not None:
            self._tidy(document, manifest, lambda: self._take(found))
        else:
            _check_open(document, self._store)
            manifest = self._take(found) or self._finish(self._open(document))
        return judge(self._job, manifest)

    def _open(self, document: RunDocument) -> Opened:
        plan, shares = document.plan, document.shares
        parts, ledger = _load(document, self._store, self._try_token)
        if not ledger.finished:
            missing = sorted(
                {plan.share_of(number, shares) for number in range(len(plan)) if number not in ledger.committed}
            )
            self._lease.release()
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            names = f"{', '.join(map(str, missing[:NAMED]))}{more}"
            raise UnfinishedSharesError(
                f"{ledger.totals.done:,} of {plan.total_rows:,} rows of the run at {self._store.uri} have an outcome. "
                f"Missing are rows of the shares {names}: clear their tasks, or those that failed"
            )
        return Opened(document, ledger, Journal(self._store, document.fingerprint, self._try_token, ()), parts)
