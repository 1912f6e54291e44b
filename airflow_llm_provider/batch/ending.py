"""The end of a run whose every row has an outcome: dead letters, manifest, and what the task makes of it.

Owns the order of the last writes, and the looks before them. Does not know how rows are worked off (`work`).
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.core.prompt import PATHS
from airflow_llm_provider.exceptions import SinkError, SourceError, TooManyErrorsError
from airflow_llm_provider.storage import layout, manifest, opening
from airflow_llm_provider.storage.sink import FinishedRows

if TYPE_CHECKING:
    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.core.ledger import Ledger
    from airflow_llm_provider.storage.document import RunDocument
    from airflow_llm_provider.storage.parts import Parts
    from airflow_llm_provider.storage.store import RunStore


log = logging.getLogger(__name__)


def finish(job: BatchJob, document: RunDocument, store: RunStore, *, ledger: Ledger, parts: Parts) -> dict[str, Any]:
    """Assemble the dead letters and write the manifest: the run is finished when it lies there.

    Nothing is written or removed unless the run that lies there is still this one, with every part it committed.

    Raises:
        ForeignRunError, RunMissingError: another run, or none, lies there now.
        RunStoppedError: another try of this task took the run over.
        StorageError: a part or a dead letter is not there, or storage failed.
    """
    opening.confirm(store, document)
    listing = store.list("")
    parts.check(ledger.committed, listing)
    letters = ledger.totals.done - ledger.totals.succeeded
    if letters:
        parts.assemble_dead_letters(ledger.committed, listing)
    elif (name := layout.dead_letter(document.fingerprint)) in listing:
        store.delete([name])  # of before a replay
    opening.remove_foreign(store, listing, document.fingerprint)
    written = _write_sinks(job, document, store)
    now = utc_now()
    age = now - datetime.fromisoformat(document.created_at)
    built = manifest.build(
        document,
        ledger,
        uri=store.uri,
        finished_at=now.isoformat(),
        duration_s=max(0.0, age.total_seconds()),  # clocks of two workers, or one that was set
        dead_letters=letters,
    )
    built["epoch"] = job.epoch if document.epoch is None else document.epoch
    built["release"] = dict(job.agreed)
    built["sinks"] = written
    opening.finish(store, built)
    counts = built["counts"]
    told = f"; {ledger.totals.otherwise}, their dead letters are at {built['dead_letter']}" if letters else ""
    log.info("Finished: %s of %s rows succeeded%s", f"{counts['succeeded']:,}", f"{counts['total']:,}", told)
    if counts["truncated"]:
        log.warning(
            "%s answers were cut off at the limit of their tokens, and landed as truncated: raise max_tokens, set "
            "retry_max_tokens, or say on_truncated='accept'",
            f"{counts['truncated']:,}",
        )
    log.info("The results are at %s", built["parts"])
    return built


def whole(finished: dict[str, Any]) -> bool:
    """Whether every row of a finished run succeeded."""
    return bool(finished["counts"]["total"] == finished["counts"]["succeeded"])


def add_sinks(job: BatchJob, document: RunDocument, store: RunStore, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write a finished run's rows as the job wants them besides; returns the manifest that says so."""
    log.info("This run is finished; what its results are to be written as besides is written now")
    added = {**manifest, "sinks": {**manifest.get("sinks", {}), **_write_sinks(job, document, store)}}
    opening.finish(store, added)
    return added


def lacks_sinks(job: BatchJob, manifest: dict[str, Any]) -> bool:
    """Whether the job wants a finished run's rows as something that its end did not write."""
    written = manifest.get("sinks", {})
    return any(not sink.spec().items() <= written.get(sink.name, {}).items() for sink in job.sinks)


def _write_sinks(job: BatchJob, document: RunDocument, store: RunStore) -> dict[str, Any]:
    spec = job.requests
    rows = FinishedRows(
        store=store,
        document=document,
        source=job.source,
        url=PATHS[spec.endpoint] if spec.templated else None,
        schema=job.answers.schema,
    )
    written = {}
    for sink in job.sinks:
        try:
            where = sink.write(rows)
        except SourceError as error:
            raise SinkError(
                f"The results could not be written as {sink.name}, which shows something of the input: {error}. All "
                "rows have landed: leave that sink, or its columns, out, and clear the task; nothing is asked again. "
                "Rows of a query or a function are kept until a run is finished, and no longer: rerun=True asks anew"
            ) from error
        written[sink.name] = {**sink.spec(), **where}
        log.info("The results as %s: %s", sink.name, where)
    return written


def judge(job: BatchJob, finished: dict[str, Any]) -> dict[str, Any]:
    """Hand out the manifest, or say that the run it tells of failed.

    Raises:
        TooManyErrorsError: more rows errored than the run bears; everything has landed all the same.
    """
    counts = finished["counts"]
    invalid = counts.get("invalid_output", 0)  # an older run's manifest knows none
    if job.tolerance.exceeded(errored=counts["errored"] + invalid, rows=counts["total"]):
        of_these = f" ({invalid:,} of them: their answers are not valid)" if invalid else ""
        raise TooManyErrorsError(
            f"{counts['errored'] + invalid:,} of {counts['total']:,} rows errored{of_these}, more than "
            f"max_error_rate={job.tolerance.max_error_rate:g} bears. All results have landed at "
            f"{finished['result_path']}; the errored rows, with requests and errors, are in "
            f"{finished['dead_letter']}. Mend the cause and clear the task with rerun=True, or raise max_error_rate"
        )
    return finished
