"""``airflow llm-batch status`` and ``replay``: a look at one run where it lies, and a note left there.

Owns finding it by what its user knows of it, and the words. Everything is read from storage: no server is asked.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
from airflow.configuration import AIRFLOW_HOME
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.batch.replay import note, statuses_of
from airflow_llm_provider.core.effective import first_set
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.progress import duration
from airflow_llm_provider.exceptions import LLMBatchError
from airflow_llm_provider.operators.effective import configured
from airflow_llm_provider.operators.paths import result_uri
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from argparse import Namespace

_BAR_CHARS = 30
_STALE_S = 60.0
"""Progress is written every 2 s, or 15, while a try works."""


@suppress_logs_and_warning
@providers_configuration_loaded
def status(args: Namespace) -> None:
    """Print how far a run is.

    Raises:
        SystemExit: with 1, where there is none, or it can't be read.
    """
    try:
        store = _store(args.run)
        document, manifest, progress = (_read(store, name) for name in (layout.RUN, layout.MANIFEST, layout.PROGRESS))
        if document is None:
            raise SystemExit(f"No run lies at {store.uri}. A run's path is in its task's log: result_path")
        if manifest is not None and manifest["generation"] != document["generation"]:
            manifest = None  # of before a restart
        if args.output == "json":
            summary = _summary(document, manifest, progress)
            print(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode())  # noqa: T201
        else:
            print("\n".join([store.uri, *_lines(document, manifest, progress)]))  # noqa: T201
    except LLMBatchError as error:
        raise SystemExit(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"What lies there is not what a run writes: {type(error).__name__}: {error}") from error


@suppress_logs_and_warning
@providers_configuration_loaded
def replay(args: Namespace) -> None:
    """Leave word at a finished run that rows of it are to be asked for again.

    Raises:
        SystemExit: with 1, where there is no finished run, or no such rows in it.
    """
    try:
        store = _store(args.run)
        statuses = statuses_of(args.status)
        document, manifest = _read(store, layout.RUN), _read(store, layout.MANIFEST)
        if document is not None and document.get("epoch") is not None:
            raise SystemExit(
                f"Tasks share the run at {store.uri}: it cannot be replayed. rerun=True does all of its rows"
            )
        if document is None or manifest is None or manifest["generation"] != document["generation"]:
            raise SystemExit(f"No finished run lies at {store.uri}: an unfinished one is resumed as it is")
        rows = {status: manifest["counts"].get(status, 0) for status in statuses}
        if not any(rows.values()):
            raise SystemExit(f"{store.uri}: no row ended {' or '.join(rows)}")
        note(store, statuses)
    except LLMBatchError as error:
        raise SystemExit(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"What lies there is not what a run writes: {type(error).__name__}: {error}") from error
    named = manifest["identity"]
    told = ", ".join(f"{number:,} {status}" for status, number in rows.items() if number)
    print(  # noqa: T201
        f"Noted: {told}. They are asked for again when task {named['task_id']} of run {named['run_id']} of DAG "
        f"{named['dag_id']} is cleared, by the DAG as it is then; all other rows stay"
    )


def _store(words: list[str]) -> RunStore:
    """The run's path, or its DAG, task, run, and map index where it has one."""
    if len(words) == 1:
        return RunStore(words[0])
    if len(words) not in (3, 4) or (len(words) == 4 and not words[3].isdecimal()):  # noqa: PLR2004
        raise SystemExit("Name the run's path, or its DAG, task and run id, and the map index of a mapped task")
    dag_id, task_id, run_id, *index = words
    identity = RunIdentity(dag_id=dag_id, task_id=task_id, run_id=run_id, map_index=int(index[0]) if index else -1)
    base = first_set("results_base", [configured("results_base", str)], f"file://{AIRFLOW_HOME}/llm_batch")
    return RunStore(result_uri(None, base=base.value, identity=identity))


def _read(store: RunStore, name: str) -> dict[str, Any] | None:
    data = store.read(name)
    try:
        return None if data is None else dict(orjson.loads(data))
    except ValueError as error:
        raise SystemExit(f"{store.uri}/{name} is damaged: {error}") from error


def _summary(run: dict[str, Any], manifest: dict[str, Any] | None, progress: dict[str, Any] | None) -> dict[str, Any]:
    """The same for programs."""
    return {
        "state": "finished" if manifest is not None else run["state"],
        "identity": run["identity"],
        "generation": run["generation"],
        "total": run["plan"]["total_rows"],
        "progress": progress,
        "manifest": {name: value for name, value in (manifest or {}).items() if name != "chunks"} or None,
    }


def _lines(run: dict[str, Any], manifest: dict[str, Any] | None, progress: dict[str, Any] | None) -> list[str]:
    identity, total = run["identity"], run["plan"]["total_rows"]
    index = f", map index {identity['map_index']}" if identity["map_index"] >= 0 else ""
    lines = [f"DAG {identity['dag_id']}, task {identity['task_id']}, run {identity['run_id']}{index}"]
    if manifest is not None:
        took = duration(manifest["duration_s"])
        lines.append(f"{_bar(total, total)}  finished at {manifest['finished_at']}, {took} after it began")
        lines.append(_counts(manifest["counts"]))
        lines.append(f"results: {manifest['parts']}")
        if manifest["dead_letter"] is not None:
            lines.append(f"dead letters: {manifest['dead_letter']}")
        return lines
    if progress is None:
        return [*lines, f"{_bar(0, total)}  begun at {run['created_at']}; nothing has been told of it yet"]
    age_s = (utc_now() - datetime.fromisoformat(progress["updated_at"])).total_seconds()
    eta = "" if progress["eta_s"] is None else f", {duration(progress['eta_s'])} to go at this pace"
    lines.append(
        f"{_bar(progress['done'], total)}  {progress['done']:,} of {total:,} rows, {progress['rows_per_s']:g} rows/s, "
        f"{progress['tokens_per_s']:g} tokens/s{eta}"
    )
    lines.append(_counts(progress))
    lines.append(f"{progress['in_flight']} in flight of {progress['limit']}; the endpoint is {progress['endpoint']}")
    if progress["hold_reason"] is not None:
        lines.append(f"on hold: {progress['hold_reason']}")
    if age_s > _STALE_S:
        lines.append(f"That was {duration(age_s)} ago: no try works at it now, or it waits in the triggerer")
    return lines


def _bar(done: int, total: int) -> str:
    filled = _BAR_CHARS if done >= total else _BAR_CHARS * done // total
    share = 100.0 if done >= total else 100 * done / total
    return f"[{'#' * filled}{'.' * (_BAR_CHARS - filled)}] {share:5.1f} %"


def _counts(counts: dict[str, Any]) -> str:
    names = ("succeeded", "truncated", "invalid_output", "errored")
    return ", ".join(f"{counts.get(name, 0):,} {name}" for name in names if name == "succeeded" or counts.get(name, 0))
