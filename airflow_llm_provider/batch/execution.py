"""A batch job from beginning to end: find or begin the run, work it off, write its manifest.

Owns the order of these steps and the decision to resume, restart or refuse. Does not know how rows are worked off
(`work`), how a run ends (`ending`) or what it looks like on storage (`storage`).
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.batch import replay, tries
from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.batch.ending import add_sinks, finish, judge, lacks_sinks, whole
from airflow_llm_provider.batch.gate import await_release
from airflow_llm_provider.batch.loop import run_apart
from airflow_llm_provider.batch.preflight import identify, what_serves
from airflow_llm_provider.batch.reporter import Earlier
from airflow_llm_provider.batch.server import check_swap
from airflow_llm_provider.batch.shaping import check_sample, shaping_of
from airflow_llm_provider.batch.work import work_off
from airflow_llm_provider.core.identity import differences, fingerprint
from airflow_llm_provider.core.ledger import Ledger
from airflow_llm_provider.endpoint.identity import ServedModel
from airflow_llm_provider.exceptions import (
    ConfigurationError,
    RetryLaterError,
    RunStoppedError,
    SourceError,
    StaleRunError,
    StorageError,
)
from airflow_llm_provider.storage import carrying, layout, opening
from airflow_llm_provider.storage.document import RunDocument
from airflow_llm_provider.storage.journal import Journal
from airflow_llm_provider.storage.lease import Lease
from airflow_llm_provider.storage.parts import Parts
from airflow_llm_provider.storage.source import Scan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.core.ledger import Totals
    from airflow_llm_provider.core.occupancy import Occupancy
    from airflow_llm_provider.core.request import Status
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)


class EmptySourceSkip(Exception):  # noqa: N818 - no error: the DAG asked for it
    """The source has no rows and ``on_empty`` is ``skip``."""


def run_job(
    job: BatchJob,
    store: RunStore,
    stop: StopSwitch,
    *,
    begun: Callable[[], None] | None = None,
    told: Callable[[Occupancy, Totals], None] | None = None,
) -> dict[str, Any]:
    """Find, begin or resume the run at `store` and work it off. Blocks until done.

    Args:
        job: what to do.
        store: where.
        stop: ends it early; what has settled is kept.
        begun: called once the intent lies in storage, before the first request.
        told: called every few seconds with how the try does; see `Reporter`.

    Returns:
        The manifest.

    Raises:
        LLMBatchError: see `exceptions` for which of them a retry mends.
        EmptySourceSkip: the source has no rows and the job says to skip then.
        RunHeld: the run may not begin or go on for a while; what has settled is kept.
    """
    return JobRun(job, store, stop, begun or (lambda: None), told).run()


@dataclass(frozen=True, slots=True)
class Opened:
    """A run that lies there, and what is done of it."""

    document: RunDocument
    ledger: Ledger
    journal: Journal
    parts: Parts


class JobRun:
    """One try of a job.

    What a task does of a run that several tasks share is a subclass each (`batch.shares`).

    Args:
        job: what to do.
        store: the run's.
        stop: see `run_job`.
        begun: see `run_job`.
        told: see `run_job`.

    Attributes:
        notes: where lease, journal and progress lie: the run's own storage, or a share's.
    """

    _shares_runs = False
    """Whether it does a part of runs that several tasks share."""

    def __init__(
        self,
        job: BatchJob,
        store: RunStore,
        stop: StopSwitch,
        begun: Callable[[], None],
        told: Callable[[Occupancy, Totals], None] | None = None,
    ) -> None:
        self._begun = begun
        self._told = told
        self._job = replace(job, source=job.source.beside(store))
        self._store = store
        self._stop = stop
        self._try_token = secrets.token_hex(4)
        self.notes = self._notes()
        self._lease = Lease(self.notes, token=self._try_token, try_number=job.try_number, guarded=[store])
        self._anew: opening.Found | None = None
        """What would be begun anew."""

    def run(self) -> dict[str, Any]:
        """Do it; see `run_job`."""
        return judge(self._job, self._begun_anew_if_asked())

    def _notes(self) -> RunStore:
        return self._store

    def _begun_anew_if_asked(self) -> dict[str, Any]:
        job = self._job
        found = opening.find(self._store, job.identity, must_exist=job.must_exist)
        self._anew = found
        try:
            return self._begin_or_go_on(found)
        except (StaleRunError, SourceError) as error:
            # Once per try: a model or an input that changes again and again would be begun anew for ever.
            if job.on_stale != "restart" or self._anew is None or self._anew.document is None:
                raise
            if self._anew.document.replays and job.replay:  # what has landed before is not given up because of these
                raise
            if self._lease.taken:
                self._lease.check()
            return self._begin(self._anew, why=str(error))

    # -- find, begin, resume

    def _begin_or_go_on(self, found: opening.Found) -> dict[str, Any]:
        document = found.document
        if document is None:
            return self._begin(found, why=None)
        if self._asked_to_rerun(found):  # whatever has changed since: that may be why
            return self._begin(found, why="rerun=True")
        if found.manifest is not None and (statuses := replay.asked_for(self._job, self._store, found)):
            return self._replay(document, found, found.manifest, statuses)
        self._check_shaping(document)
        if found.manifest is None:
            return self._resume(document, found)
        self._check_source(document, may_be_gone=True)
        if lacks_sinks(self._job, found.manifest):
            self._take(found)
            manifest = add_sinks(self._job, document, self._store, found.manifest)
            self._tidy(document, manifest, lambda: None)
            return manifest
        when = found.manifest["finished_at"]
        log.info("This run finished at %s; nothing is sent. rerun=True does it again", when)
        self._tidy(document, found.manifest, lambda: self._take(found))
        return found.manifest

    def _take(self, found: opening.Found) -> dict[str, Any] | None:
        """Take the lease, and look whether all is as it was when it was decided what to do of it.

        Getting so far may have taken minutes, or an hour in a machine that stood still: a source is read, a server is
        asked. Another try may have begun the run anew in the meantime.

        Returns:
            The manifest, where there is one, now.

        Raises:
            RunStoppedError: it has, or a newer try holds the lease.
        """
        self._lease.take(utc_now())
        now = opening.find(self._store, self._job.identity, must_exist=False)
        if not now.is_as(found):
            raise RunStoppedError(
                f"The run at {self._store.uri} was changed by another try while this one was getting ready. This one "
                "ends; the next sees what is there"
            )
        return now.manifest

    def _tidy(self, document: RunDocument, manifest: dict[str, Any], take: Callable[[], object]) -> None:
        """Remove what a finished run needs no more; what can't be removed may stay.

        Args:
            document: the run's.
            manifest: the run's: rows that can be had once stay where some did not succeed, for a replay.
            take: takes the lease, where it is not held.
        """
        try:
            if left := opening.untidy(self._store, document, keeps_input=not whole(manifest)):
                take()
                opening.tidy(self._store, left)
                self._lease.release()
        except (RunStoppedError, StorageError) as error:
            log.info("What only a resume would have needed stays there: %s", error)

    def _check_shaping(self, document: RunDocument) -> None:
        """Whether the run that lies there would be begun the same way today, as far as that is known by itself.

        Raises:
            StaleRunError: what shapes its answers has changed.
        """
        if document.epoch is not None and not self._shares_runs:
            raise StaleRunError(
                f"The run at {self._store.uri} was planned for shares by an LLMBatchGroup of the same id. Let that "
                "finish it, or set on_stale='restart' to begin it anew (what it has done is removed)"
            )
        if changed := differences(document.shaping, shaping_of(self._job)):
            raise StaleRunError(
                f"The run at {self._store.uri} was begun with other inputs: {'; '.join(changed)}. Put them back, "
                "or set on_stale='restart' to begin it anew (what it has done is removed)"
            )

    def _check_source(self, document: RunDocument, *, may_be_gone: bool = False) -> None:
        """Whether the pinned input is as it was; where every row has landed, it may have been archived since.

        Raises:
            SourceError: it has changed, or is gone and may not be.
        """
        for warning in self._job.source.check(document.snapshot, may_be_gone=may_be_gone):
            log.warning(warning)

    def _asked_to_rerun(self, found: opening.Found) -> bool:
        document, manifest = found.document, found.manifest
        if document is not None and document.state == "carrying":
            return self._job.rerun  # which whoever says it says since that can't be done
        return self._job.rerun and manifest is not None and manifest.get("epoch") != self._job.epoch

    def _begin(self, found: opening.Found, *, why: str | None) -> dict[str, Any]:
        """Scan, write the intent of a first generation, or of one more in place of what was found, and work it off."""
        after = found.document
        self._anew = None  # until the intent is written: what goes wrong before is nothing to begin anew for
        self._await_release(Earlier())
        left = self._store.list(layout.INPUT)  # by tries that were killed before they began, or are about to begin
        log.info("Reading the source once, to count, pin and check it")
        scan = self._job.source.scan(self._job.chunk_rows)
        try:
            document = self._intent(after, scan)
        except BaseException:
            self._job.source.forget(scan.snapshot)
            raise
        if after is None:
            opening.begin(self._store, document)
            self._anew = opening.Found(document, None)
            manifest = self._take(self._anew)
            if manifest is not None:
                return self._finished_by_another(document, manifest)
        else:
            self._take(found)
            self._check_source(document)  # whoever held the lease may have tidied up meanwhile
            log.warning("Beginning anew; what lies at %s is removed. Why: %s", self._store.uri, why)
            document = opening.restart(self._store, document)
        self._anew = opening.Found(document, None)
        self._store.delete(left)  # whoever is about to begin with one of them finds that the run is another's
        rows, chunks = f"{scan.plan.total_rows:,}", f"{len(scan.plan):,}"
        log.info("Begun: %s rows in %s chunks at %s", rows, chunks, self._store.uri)
        return self._go_on(document)

    def _intent(self, after: RunDocument | None, scan: Scan) -> RunDocument:
        """What the run is to be; asks the endpoint who answers."""
        rows = scan.plan.total_rows
        if self._job.most_rows is not None and rows > self._job.most_rows:
            raise ConfigurationError(
                f"The source has {rows:,} rows, and a run with checkpoint='xcom' may have {self._job.most_rows:,}. "
                "Leave checkpoint out, and give a result_path on object storage"
            )
        if rows == 0:
            self._check_empty_is_fine()
        served = self._ask_endpoint(self._job.model) if rows else {}
        shaping = shaping_of(self._job)
        if rows:
            check_sample(self._job, scan, served["model"])
        generation = after.generation + 1 if after else 1
        # Of another generation all names are others: what a try of before writes or removes late is none of ours.
        again = {"generation": generation} if generation > 1 else {}
        return RunDocument(
            identity=self._job.identity,
            generation=generation,
            state="clearing" if after else "open",
            fingerprint=fingerprint({**shaping, **again, "content": scan.digest, "root": served.get("root")}),
            shaping=shaping,
            served=served,
            snapshot=scan.snapshot,
            plan=scan.plan,
            created_at=utc_now().isoformat(),
            **self._shared(scan),
        )

    def _shared(self, scan: Scan) -> dict[str, Any]:  # noqa: ARG002 - `batch.shares` asks it
        """What the document says of shares."""
        return {}

    def _go_on(self, document: RunDocument) -> dict[str, Any]:
        """What follows when the intent has been written."""
        return self._work(self._open(document))

    def _replay(
        self, document: RunDocument, found: opening.Found, manifest: dict[str, Any], statuses: Sequence[Status]
    ) -> dict[str, Any]:
        """Open a finished run again, and ask for the rows that ended so once more."""
        self._anew = None  # what has landed is not given up because some of it is asked for again
        shaping = shaping_of(self._job)
        replay.check_input(document, shaping)
        carrying.check(self._store, manifest)
        self._check_source(document)
        self._await_release(Earlier())
        served = self._ask_endpoint(self._job.model)
        check_sample(self._job, Scan(document.snapshot, "", document.plan), served["model"])
        again = replay.intent(document, manifest, statuses, shaping=shaping, served=served)
        self._take(found)
        told = again.replays[-1]
        log.info("Replay: %s rows that ended %s are asked for again", f"{told['rows']:,}", ", ".join(told["statuses"]))
        for each in told["changed"]:
            log.info("Their answers are shaped otherwise: %s", each)
        carrying.begin(self._store, again)
        return self._go_on(self._carried(again))

    def _carried(self, document: RunDocument) -> RunDocument:
        document = carrying.finish(self._store, document, self._try_token)
        self._store.delete([layout.REPLAY])
        return document

    def _resume(self, document: RunDocument, found: opening.Found) -> dict[str, Any]:
        """Go on with the run that lies there, once no other try writes to it any more."""
        manifest = self._take(found)
        if manifest is not None:
            return self._finished_by_another(document, manifest)
        opened = self._open(document) if document.state == "open" else None
        if opened is not None and opened.ledger.finished:
            self._check_source(document, may_be_gone=True)
            return self._work(opened)
        self._check_source(document)
        self._await_release(Earlier.read(self.notes) if opened is not None else Earlier())
        then = document.served
        if then:
            now = self._ask_endpoint(then["model"])
            check_swap(ServedModel(now["model"], now["root"], None), ServedModel(then["model"], then["root"], None))
            if now["version"] != then["version"]:
                log.warning("The server's version was %s when the run began; it is %s", then["version"], now["version"])
        if document.plan.chunk_rows != self._job.chunk_rows:
            log.info("The run goes on with the chunk_rows it began with, %d", document.plan.chunk_rows)
        if document.state == "carrying":
            opened = self._open(self._carried(document))
        elif opened is None:
            document = opening.finish_clearing(self._store, document)
            self._anew = opening.Found(document, None)
            opened = self._open(document)
        return self._work(opened)

    def _finished_by_another(self, document: RunDocument, manifest: dict[str, Any]) -> dict[str, Any]:
        log.info("Another try finished this run while this one was getting ready")
        self._tidy(document, manifest, lambda: None)
        return manifest

    def _await_release(self, earlier: Earlier) -> None:
        """Wait a little for window and switch; raises RunHeld where it would be long. Latency is the gate's to see."""
        waiting = await_release(self._job.terms, self._job.switch, self._stop, remaining_s=earlier.remaining_s)
        run_apart(waiting, self._stop)

    def _ask_endpoint(self, wanted: str | None) -> dict[str, Any]:
        """What serves the model, in the form that ``run.json`` keeps."""
        self._check_stop()
        asking = identify(self._job.endpoint, self._stop, redaction=self._job.redaction)
        return what_serves(run_apart(asking, self._stop), wanted)

    def _check_stop(self) -> None:
        if self._stop.reason is not None:
            raise RunStoppedError(f"{self._stop.reason}: this try had sent nothing yet")

    def _check_empty_is_fine(self) -> None:
        if self._job.on_empty == "skip":
            raise EmptySourceSkip("The source has no rows, and on_empty='skip'")
        if self._job.on_empty == "fail":
            raise SourceError("The source has no rows, and on_empty='fail'")
        log.warning("The source has no rows: an empty run is written")

    # -- work

    def _open(self, document: RunDocument) -> Opened:
        """Find out what is done of the run."""
        listing = opening.whole_listing(self._store, layout.RUN)
        parts = Parts(self._store, document.fingerprint, self._try_token)
        ledger = Ledger(document.plan, parts.load(document.plan, listing))
        found = (name for name in listing if name.startswith(f"{layout.JOURNAL}/"))
        journal = Journal(self._store, document.fingerprint, self._try_token, found)
        if ledger.totals.done:
            log.info("Resuming: %s of %s rows lie in parts", f"{ledger.totals.done:,}", f"{document.plan.total_rows:,}")
        return Opened(document, ledger, journal, parts)

    def _work(self, opened: Opened) -> dict[str, Any]:
        self._begun()
        self._check_stop()
        if not opened.ledger.finished:
            tries.count(self._job, self.notes, done=opened.ledger.totals.done, journals=opened.journal.objects)
            work = work_off(
                self._job,
                opened.document,
                self.notes,
                ledger=opened.ledger,
                journal=opened.journal,
                parts=opened.parts,
                try_token=self._try_token,
                stop=self._stop,
                told=self._told,
            )
            try:
                run_apart(work, self._stop)
            except RetryLaterError as error:
                error.settled = opened.ledger.settled_here.done
                raise
        return self._finish(opened)

    def _finish(self, opened: Opened) -> dict[str, Any]:
        finished = finish(self._job, opened.document, self._store, ledger=opened.ledger, parts=opened.parts)
        self._tidy(opened.document, finished, lambda: None)
        return finished
