"""Which rows of a finished run are asked for again, and when: `LLMBatchOperator(replay=…)`, or a note beside the run.

Owns the decision, and what the run's document says of it. Does not know how what stays is carried over to the next
generation (`storage.carrying`), nor how rows are worked off: from there it is an unfinished run like any other.

A replay is of a finished run whose task was cleared: once per clear, as a rerun is. Rows are made into requests anew,
by the DAG as it is now, from the pinned input: prompt, parameters, schema and model may be others, the input may not.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.core.identity import differences, fingerprint
from airflow_llm_provider.core.request import Status
from airflow_llm_provider.exceptions import ConfigurationError, StaleRunError
from airflow_llm_provider.storage import layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.storage.document import RunDocument
    from airflow_llm_provider.storage.opening import Found
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)

STATUSES: Final = tuple(status for status in Status if status is not Status.SUCCEEDED)


def statuses_of(words: str | Iterable[str] | None) -> tuple[Status, ...]:
    """The outcomes that ``replay`` names.

    Raises:
        ConfigurationError: one that is none.
    """
    if words is None:
        return ()
    named = [words] if isinstance(words, str) else list(words)
    if unknown := [word for word in named if word not in STATUSES]:
        raise ConfigurationError(f"replay: {', '.join(map(repr, unknown))}: give some of {', '.join(STATUSES)}")
    return tuple(status for status in STATUSES if status in named)


def asked_for(job: BatchJob, store: RunStore, found: Found) -> tuple[Status, ...]:
    """The outcomes whose rows are to be asked for again; none where there are no such rows, or nobody wants it now."""
    manifest, document = found.manifest, found.document
    if manifest is None or document is None:
        return ()
    wanted = set(_note(store))
    if wanted and document.epoch is not None:
        log.warning("%s/%s is not looked at: tasks share this run", store.uri, layout.REPLAY)
        return ()
    if manifest.get("epoch") != job.epoch:
        wanted |= set(job.replay)
    return tuple(status for status in STATUSES if status in wanted and manifest["counts"].get(status, 0))


def intent(
    document: RunDocument,
    manifest: dict[str, Any],
    statuses: Iterable[Status],
    *,
    shaping: dict[str, Any],
    served: dict[str, Any],
) -> RunDocument:
    """What the run's document says while rows are carried over to its next generation.

    Args:
        document: as it stands.
        manifest: the finished run's.
        statuses: rows of these outcomes are asked for again.
        shaping: what shapes their answers now.
        served: who gives them now.

    """
    told = {
        "at": utc_now().isoformat(),
        "statuses": [str(status) for status in statuses],
        "rows": sum(manifest["counts"].get(status, 0) for status in statuses),
        "of": document.fingerprint,
        "changed": differences(
            {**document.shaping, "served": document.served},
            {**shaping, "served": served},
        ),
    }
    shaped = {**shaping, "generation": document.generation + 1, "of": document.fingerprint, "root": served.get("root")}
    return replace(
        document,
        generation=document.generation + 1,
        state="carrying",
        fingerprint=fingerprint(shaped),
        shaping=shaping,
        served=served,
        created_at=utc_now().isoformat(),
        replays=(*document.replays, told),
    )


def check_input(document: RunDocument, shaping: dict[str, Any]) -> None:
    """Whether the task names the input that the run began with, and the same kind of endpoint.

    Raises:
        StaleRunError: it does not.
    """
    if differences({"source": document.shaping["source"]}, {"source": shaping["source"]}):
        raise StaleRunError(
            "A replay is of the rows that the run began with, and the task names another source now. Put it back, or "
            "set rerun=True to begin the run anew"
        )
    if (then := document.shaping["endpoint"]) != (now := shaping["endpoint"]):
        raise StaleRunError(
            f"A replay's rows land beside those that stay, whose endpoint is {then!r}, and the task says {now!r} now. "
            "Put it back, or set rerun=True to begin the run anew"
        )


def note(store: RunStore, statuses: Iterable[Status]) -> None:
    """Leave word at a finished run that rows are to be asked for again, for whoever clears its task."""
    store.write(layout.REPLAY, orjson.dumps({"statuses": [str(status) for status in statuses]}))


def _note(store: RunStore) -> tuple[Status, ...]:
    data = store.read(layout.REPLAY)
    if data is None:
        return ()
    try:
        return statuses_of(orjson.loads(data)["statuses"])
    except (ValueError, KeyError, TypeError, ConfigurationError):
        log.warning("%s/%s is damaged, and not looked at", store.uri, layout.REPLAY)
        return ()
