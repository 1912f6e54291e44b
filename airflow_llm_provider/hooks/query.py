"""The rows of a query through any of Airflow's SQL hooks, a few at a time.

Owns streaming them: a cursor on the server, where the database and its driver have one. Does not know what becomes of
the rows.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_llm_provider.exceptions import (
    ConfigurationError,
    ConnectionMissingError,
    LLMBatchError,
    SourceError,
    SourceUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Parameters = Mapping[str, Any] | Sequence[Any] | None

log = logging.getLogger(__name__)

FETCH_ROWS = 1000
"""At a time."""

_MISTAKES = ("ProgrammingError", "NotSupportedError", "ArgumentError", "DataError")
"""Of DB-API's and SQLAlchemy's errors, those that the next try meets again; their classes are each driver's own."""


def stream(conn_id: str, sql: str, parameters: Parameters = None) -> Iterator[dict[str, Any]]:
    """Each row of the query, as a mapping of its columns.

    Args:
        conn_id: a connection whose hook is a `DbApiHook`.
        sql: one statement that gives rows.
        parameters: in the driver's own style.

    Raises:
        ConfigurationError: the connection is to no database that speaks SQL.
        ConnectionMissingError: Airflow does not know the connection.
        SourceError: the statement is wrong, or gives no rows, or two columns of one name.
        SourceUnavailableError: the database could not be asked, or went away.
    """
    hook = _hook(conn_id)
    with ExitStack() as stack, _naming(conn_id):
        names, cursor = _open(hook, sql, parameters, stack)
        if not names:
            raise SourceError(f"The query on {conn_id} gives no rows: it must be a statement that does, such as SELECT")
        if len(set(names)) != len(names):
            raise SourceError(
                f"The query on {conn_id} has two columns of one name: {', '.join(names)}. Name them apart, with AS"
            )
        while rows := cursor.fetchmany(FETCH_ROWS):
            for row in rows:
                yield dict(zip(names, row, strict=True))


def _hook(conn_id: str) -> Any:
    try:
        hook = BaseHook.get_hook(conn_id)
    except Exception as error:  # of several types over Airflow's versions
        raise ConnectionMissingError(
            f"The query's connection {conn_id} is not known to Airflow, or its provider is not installed: {error}"
        ) from error
    if not hasattr(hook, "get_sqlalchemy_engine"):
        raise ConfigurationError(
            f"The query's connection {conn_id} is of a {type(hook).__name__}, which is no DbApiHook: it takes no SQL"
        )
    return hook


def _open(hook: Any, sql: str, parameters: Parameters, stack: ExitStack) -> tuple[list[str], Any]:
    """The names of the columns, and what fetches rows."""
    try:
        engine = hook.get_sqlalchemy_engine()
    except Exception as error:  # noqa: BLE001 - hooks without a dialect say so in many ways
        log.info("Its hook has no SQLAlchemy engine (%s): the driver decides how many rows it holds", error)
        connection = stack.enter_context(closing(hook.get_conn()))
        cursor = stack.enter_context(closing(connection.cursor()))
        cursor.execute(sql, *([] if parameters is None else [parameters]))
        return [str(each[0]) for each in cursor.description or ()], cursor
    stack.callback(engine.dispose)
    connection = stack.enter_context(engine.connect())
    if isinstance(parameters, list):  # which SQLAlchemy takes for the parameters of many executions
        parameters = tuple(parameters)
    streaming = connection.execution_options(stream_results=True, max_row_buffer=FETCH_ROWS, no_parameters=True)
    result = stack.enter_context(closing(streaming.exec_driver_sql(sql, parameters)))
    return [*map(str, result.keys())] if result.returns_rows else [], result


@contextmanager
def _naming(conn_id: str) -> Iterator[None]:
    try:
        yield
    except LLMBatchError:
        raise
    except Exception as error:
        # SQLAlchemy's own words have the statement's parameters in them, which may be nobody's to read.
        words = " ".join(str(getattr(error, "orig", None) or error).split())
        if any(each.__name__ in _MISTAKES for each in type(error).__mro__):
            raise SourceError(f"The query on {conn_id} is refused: {words}") from error
        raise SourceUnavailableError(f"The query on {conn_id} failed: {words}. The next try asks again") from error
