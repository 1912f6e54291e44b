"""What rows have spent so far, over the stretches of one try: ``_run/attempts.json``.

A try that is held gives its worker back and comes again, for each night or shift. Rows that fail by themselves would
otherwise begin to count anew each time, so that one which times out in each shift would keep a run from ever ending.

Owns the object. Does not know what a row may spend (`core.row_budget`). Another try, or one after a clear, counts anew;
so does one whose process was killed.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import orjson

from airflow_llm_provider.core.row_queue import Spent
from airflow_llm_provider.exceptions import LLMBatchError
from airflow_llm_provider.storage import layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)


def read(job: BatchJob, notes: RunStore) -> dict[int, Spent]:
    """What rows had spent when this try was held last, by index; blocks.

    Raises:
        StorageError: it could not be read.
    """
    data = notes.read(layout.ATTEMPTS)
    if data is None:
        return {}
    try:
        noted = orjson.loads(data)
        if (noted["epoch"], noted["try_number"]) != (job.epoch, job.try_number):
            return {}
        return {int(row["index"]): Spent(**{name: int(row[name]) for name in Spent.__slots__}) for row in noted["rows"]}
    except (ValueError, KeyError, TypeError):
        log.warning("%s/%s is damaged; attempts are counted from here", notes.uri, layout.ATTEMPTS)
        return {}


def keep(job: BatchJob, notes: RunStore, spent: Mapping[int, Spent], *, before: Mapping[int, Spent]) -> None:
    """Note what rows that have no outcome yet have spent; blocks. What can't be written is counted anew."""
    if not spent and not before:
        return
    noted = {
        "format_version": layout.FORMAT_VERSION,
        "epoch": job.epoch,
        "try_number": job.try_number,
        "rows": [{"index": index, **asdict(each)} for index, each in sorted(spent.items())],
    }
    try:
        notes.write(layout.ATTEMPTS, orjson.dumps(noted, option=orjson.OPT_APPEND_NEWLINE))
    except LLMBatchError as error:
        log.warning("%s could not be written, so that rows that failed begin to count anew: %s", layout.ATTEMPTS, error)
