"""How many tries in a row have brought a run nowhere: ``_run/tries.json``.

Owns the count and its end. Does not know Airflow's own count of tries, which cannot be given back what a killed worker
spent: whoever wants kills to cost nothing gives Airflow many retries, and this few.

A try counts when the next one begins to work, since one that is killed says nothing itself. It brought the run on where
more rows lie in parts than did, or as many and more journal objects. One that did not get so far as to work, since the
endpoint was away or the source could not be read, is none of them: it says nothing of the run. A task that comes back
from the triggerer is the same try; a failed one that is cleared begins to count anew, and so does a DAG run that is
deleted and made again.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import orjson

from airflow_llm_provider.exceptions import FruitlessTriesError
from airflow_llm_provider.storage import layout

if TYPE_CHECKING:
    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """Where a try found the run.

    Attributes:
        epoch: the task instance's, which changes when it is cleared.
        try_number: Airflow's.
        done: rows in parts.
        journals: journal objects.
        fruitless: tries in a row before this one that had found the run where the next did.
    """

    epoch: int
    try_number: int
    done: int
    journals: int
    fruitless: int = 0


def count(job: BatchJob, notes: RunStore, *, done: int, journals: int) -> None:
    """Note where this try finds the run, and look whether those before it have brought it on.

    Args:
        job: says whether it is counted at all, and how many may be fruitless.
        notes: where it is noted.
        done: rows in parts.
        journals: journal objects.

    Raises:
        FruitlessTriesError: more tries in a row than the job bears have not.
        StorageError: it could not be read or written.
    """
    most = job.fruitless_retries
    if most is None:
        return
    before, fruitless = _read(notes), 0
    if before is not None and before.epoch == job.epoch and before.try_number <= job.try_number:
        if before.try_number == job.try_number:  # back from the triggerer
            return
        fruitless = before.fruitless + 1 if (done, journals) <= (before.done, before.journals) else 0
    if fruitless > most:
        raise FruitlessTriesError(
            f"{fruitless} tries in a row ended, or were killed, without a row more than before, and fruitless_retries "
            f"is {most}. {done:,} rows lie in parts. Their logs say why; clear the task to go on from here"
        )
    if fruitless:
        log.warning("%d tries in a row before this one were fruitless; %d may be", fruitless, most)
    now = _Standing(epoch=job.epoch, try_number=job.try_number, done=done, journals=journals, fruitless=fruitless)
    noted = {"format_version": layout.FORMAT_VERSION, **asdict(now)}
    notes.write(layout.TRIES, orjson.dumps(noted, option=orjson.OPT_APPEND_NEWLINE))


def _read(store: RunStore) -> _Standing | None:
    """What was noted last; None where there is nothing, or nothing that makes sense."""
    data = store.read(layout.TRIES)
    if data is None:
        return None
    try:
        noted = orjson.loads(data)
        return _Standing(**{name: int(noted[name]) for name in _Standing.__slots__})
    except (ValueError, KeyError, TypeError):
        log.warning("%s/%s is damaged; fruitless tries are counted from here", store.uri, layout.TRIES)
        return None
