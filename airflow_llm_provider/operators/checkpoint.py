"""Where a task's run is kept: on object storage, or, of a small run, in Airflow itself.

Owns the choice, and what is handed on as XComs. Does not know how files are kept in Airflow (`storage.state_files`).

Airflow removes a task's XComs when its next try begins, so nothing that a retry needs may lie there. It lies in the
task state store, which Airflow has from 3.3 on and keeps over retries and deferrals; when the run has ended, its
results are pushed as an XCom.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import orjson
from airflow.configuration import conf

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.operators.marker import IN_AIRFLOW, never_expire
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.sink import landed_lines
from airflow_llm_provider.storage.state_files import StateFiles
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.core.identity import RunIdentity

Checkpoint = Literal["storage", "xcom"]

MOST_ROWS = 10_000
LEAST_CHUNK_ROWS = 100
"""The index of what is kept has a line for each part, and is written at each change."""

PROGRESS_INTERVAL_S = 15.0
"""Each time costs a few calls of Airflow's API."""

RESULTS = "results"
DEAD_LETTERS = "dead_letters"

_MEANT = frozenset({"__classname__", "__version__", "__data__", "__id__", "__type", "__source", "__var"})
"""Keys with which Airflow's serialisation of XComs marks what is no plain object."""

_NOT_PLAIN = re.compile(rb'\\u0000|"__')

_STORAGE = "Leave checkpoint out, and give a result_path on object storage"


def check_arguments(checkpoint: Any, *, result_path: Any, chunk_rows: int) -> None:
    """Whether the DAG makes sense.

    Raises:
        ConfigurationError: it does not.
    """
    if checkpoint not in ("storage", "xcom"):
        raise ConfigurationError(f"checkpoint is 'storage' or 'xcom', not {checkpoint!r}")
    if checkpoint == "xcom" and result_path is not None:
        raise ConfigurationError(
            "checkpoint='xcom' keeps the run in Airflow, so there is no result_path; give one of them"
        )
    if checkpoint == "xcom" and chunk_rows < LEAST_CHUNK_ROWS:
        raise ConfigurationError(f"chunk_rows must be {LEAST_CHUNK_ROWS} or more with checkpoint='xcom'")


def xcom_uri(identity: RunIdentity) -> str:
    """What stands for the run's path."""
    return f"{IN_AIRFLOW}{identity.path()}"


def open_store(uri: str, context: Context) -> RunStore:
    """The storage of the run at `uri`.

    Raises:
        ConfigurationError: no file system serves it, or this Airflow does not keep a task's state so that it can be
            relied on.
    """
    if not uri.startswith(IN_AIRFLOW):
        return RunStore(uri)
    values: Any = context.get("task_state_store")
    if values is None:
        raise ConfigurationError(
            "checkpoint='xcom' needs Airflow 3.3 or newer: before, nothing that Airflow keeps for a task survives a "
            f"retry. {_STORAGE}"
        )
    if backend := conf.get("workers", "state_store_backend", fallback=""):
        raise ConfigurationError(
            f"checkpoint='xcom' keeps a run in Airflow's database, and [workers] state_store_backend is {backend}: "
            f"there a try that was given up for dead could overwrite its successor's. {_STORAGE}"
        )
    return RunStore(uri, files=StateFiles(_Lasting(values)))


class _Lasting:
    """Values that last as long as the DAG run.

    Args:
        values: Airflow's accessor.
    """

    def __init__(self, values: Any) -> None:
        self._values = values
        self._retention = never_expire()

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: Any) -> None:
        self._values.set(key, value, retention=self._retention)

    def delete(self, key: str) -> None:
        self._values.delete(key)


def hand_over(store: RunStore, context: Context) -> None:
    """Push what has landed as XComs: the results, in order, and the dead letters. Of an unfinished run nothing.

    Raises:
        StorageError: it could not be read, or not all of it is there.
    """
    data = store.read(layout.MANIFEST)
    if data is None:
        return
    manifest = orjson.loads(data)
    results = [row for chunk in manifest["chunks"] for row in _lines(store, chunk["part"], rows=chunk["rows"])]
    failed = manifest["counts"]["total"] - manifest["counts"]["succeeded"]
    letters = _lines(store, layout.dead_letter(manifest["fingerprint"]), rows=failed) if failed else []
    push = context["ti"].xcom_push
    push(key=RESULTS, value=results)
    push(key=DEAD_LETTERS, value=letters)


def _lines(store: RunStore, name: str, *, rows: int) -> list[Any]:
    lines = landed_lines(store, name, rows=rows)
    return [_plain(orjson.loads(line)) if _NOT_PLAIN.search(line) else orjson.loads(line) for line in lines]


def _plain(value: Any) -> Any:
    """The same for Airflow and its database.

    Postgres keeps XComs as JSONB, which knows no NUL: it is replaced as what cannot be shown is. An object with a key
    of `_MEANT` is for Airflow one of its own serialised values: such a key gets a ``_`` more in front.
    """
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {f"_{name}" if name in _MEANT else _plain(name): _plain(each) for name, each in value.items()}
    return value
