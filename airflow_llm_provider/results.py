"""What a finished run has landed, for whoever comes next in the DAG.

Owns the row as its readers see it. Does not know how a run comes about (`batch`) nor the names of its objects
(`storage.layout`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import orjson
from pydantic import TypeAdapter

from airflow_llm_provider.exceptions import ConfigurationError, StaleRunError, StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.sink import landed_lines
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Generic[T]):
    """A row's outcome: the line of its part, see `docs/run-format.md`.

    Attributes:
        index: the row's position in the input, from 0.
        custom_id: its label.
        status: ``succeeded``, ``truncated``, ``invalid_output`` or ``errored``.
        output: the answer's text; of a row that is not ``succeeded``, what there is of it.
        parsed: the value that the text is, where the run had an `output_schema` and the row succeeded.
        finish_reason: ``stop``, ``length`` ….
        usage: tokens: ``prompt_tokens``, ``completion_tokens``, ``cached_tokens``.
        error: ``kind``, ``message`` and ``http_status``, of a row that did not succeed.
        attempts: requests sent for it.
        reasoning: the reasoning text, where the server parses one.
        tool_calls: as the server sent them.
        choices: all choices, where the request asked for more than a text.
    """

    index: int
    custom_id: str
    status: str
    output: str | None
    parsed: T | None
    finish_reason: str | None
    usage: dict[str, int]
    error: dict[str, Any] | None
    attempts: int
    reasoning: str | None
    tool_calls: list[Any] | None
    choices: list[Any] | None

    @property
    def succeeded(self) -> bool:
        """Whether it is of use."""
        return self.status == "succeeded"


@overload
def read_results(manifest: Mapping[str, Any]) -> Iterator[Result[Any]]: ...


@overload
def read_results(manifest: Mapping[str, Any], output_schema: type[T]) -> Iterator[Result[T]]: ...


def read_results(manifest: Mapping[str, Any], output_schema: Any = None) -> Iterator[Result[Any]]:
    """All rows of a finished run, in input order, one part in memory at a time.

    ::

        @task
        def load(manifest):
            for row in read_results(manifest, Ticket):
                if row.succeeded:
                    insert(row.custom_id, row.parsed.priority)

    Args:
        manifest: the batch task's XCom.
        output_schema: the type that the task had; `parsed` is made one of it. None: JSON values.

    Raises:
        ConfigurationError: `manifest` is none, or the run was kept in Airflow (``checkpoint="xcom"``).
        StaleRunError: the run was done again since: the manifest is not that of what lies there.
        StorageError: what the run landed could not be read.
        pydantic.ValidationError: a value is not of `output_schema`: the task had another one.
    """
    store, there = _open(manifest)
    adapter = None if output_schema is None else TypeAdapter(output_schema)
    for chunk in there["chunks"]:
        for line in landed_lines(store, chunk["part"], rows=chunk["rows"]):
            row = orjson.loads(line)
            parsed = row.get("parsed")  # runs of before there was a schema have none
            if adapter is not None and row["status"] == "succeeded":
                parsed = adapter.validate_python(parsed)
            yield Result(
                index=row["index"],
                custom_id=row["custom_id"],
                status=row["status"],
                output=row["output"],
                parsed=parsed,
                finish_reason=row["finish_reason"],
                usage=row["usage"],
                error=row["error"],
                attempts=row["attempts"],
                reasoning=row["reasoning"],
                tool_calls=row["tool_calls"],
                choices=row["choices"],
            )


def _open(manifest: Mapping[str, Any]) -> tuple[RunStore, dict[str, Any]]:
    path = manifest.get("result_path") if hasattr(manifest, "get") else None
    if not isinstance(path, str) or "fingerprint" not in manifest:
        raise ConfigurationError(f"read_results takes the batch task's XCom, its manifest; this is {manifest!r:.200}")
    if path.startswith("xcom://"):
        raise ConfigurationError(
            f"The run at {path} is kept in Airflow: its results are the task's XCom of the key 'results'"
        )
    store = RunStore(path)
    data = store.read(layout.MANIFEST)
    if data is None:
        raise StorageError(f"There is no {path}/{layout.MANIFEST}: the run is being done again, or was moved away")
    there: dict[str, Any] = orjson.loads(data)
    if there["fingerprint"] != manifest["fingerprint"]:
        raise StaleRunError(
            f"The run at {path} was done again, or differently, since this manifest was written: clear the task that "
            "reads it together with the batch task"
        )
    return store, there
