"""Where a task's run is kept: on object storage, or, of a small run, in Airflow itself.

Owns the choice, and what is handed on as XComs. Does not know how files are kept in Airflow (`storage.state_files`).

Airflow removes a task's XComs when its next try begins, so nothing that a retry needs may lie there. It lies in the
task state store, which Airflow has from 3.3 on and keeps over retries and deferrals; when the run has ended, its
results are pushed as an XCom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import orjson

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.state_files import StateFiles
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

    from airflow_llm_provider.core.identity import RunIdentity

Checkpoint = Literal["storage", "xcom"]

SCHEME = "xcom"
MOST_ROWS = 10_000

PROGRESS_INTERVAL_S = 15.0
"""Each time costs a few calls of Airflow's API."""

RESULTS = "results"
DEAD_LETTERS = "dead_letters"


def check_arguments(checkpoint: Any, result_path: Any) -> None:
    """Whether the DAG makes sense.

    Raises:
        ConfigurationError: it does not.
    """
    if checkpoint not in ("storage", SCHEME):
        raise ConfigurationError(f"checkpoint is 'storage' or 'xcom', not {checkpoint!r}")
    if checkpoint == SCHEME and result_path is not None:
        raise ConfigurationError(
            "checkpoint='xcom' keeps the run in Airflow, so there is no result_path; give one of them"
        )


def xcom_uri(identity: RunIdentity) -> str:
    """What stands for the run's path."""
    return f"{SCHEME}://{identity.path()}"


def open_store(uri: str, context: Context) -> RunStore:
    """The storage of the run at `uri`.

    Raises:
        ConfigurationError: no file system serves it, or this Airflow keeps no task state.
    """
    if not uri.startswith(f"{SCHEME}://"):
        return RunStore(uri)
    values: Any = context.get("task_state_store")
    if values is None:
        raise ConfigurationError(
            "checkpoint='xcom' needs Airflow 3.3 or newer: before, nothing that Airflow keeps for a task survives a "
            "retry. Leave it out, and give a result_path on object storage"
        )
    return RunStore(uri, files=StateFiles(values))


def hand_over(store: RunStore, context: Context) -> None:
    """Push what has landed as XComs: the results, in order, and the dead letters, where there are any.

    Raises:
        StorageError: it could not be read.
    """
    manifest: Mapping[str, Any] = orjson.loads(store.read(layout.MANIFEST) or b"{}")
    parts = [chunk["part"] for chunk in manifest.get("chunks", ())]
    push = context["ti"].xcom_push
    push(key=RESULTS, value=[row for name in parts for row in _lines(store, name)])
    if manifest.get("dead_letter"):
        push(key=DEAD_LETTERS, value=_lines(store, layout.DEAD_LETTER))


def _lines(store: RunStore, name: str) -> list[Any]:
    return [orjson.loads(line) for line in (store.read(name) or b"").splitlines()]
