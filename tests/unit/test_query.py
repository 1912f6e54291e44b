"""Rows of a query through a hook without a SQLAlchemy dialect; on a real PostgreSQL: tests/distributed."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import BaseHook

from airflow_llm_provider.exceptions import SourceError
from airflow_llm_provider.hooks.query import FETCH_ROWS, stream

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture


@pytest.fixture
def hook(tmp_path: Path, mocker: MockerFixture) -> Any:
    """A hook of SQLite's driver alone, with two and a half fetches of rows in a table."""

    class Hook:
        closed = 0

        def get_sqlalchemy_engine(self) -> None:
            raise NotImplementedError("no dialect")

        def get_conn(self) -> sqlite3.Connection:
            outer = self

            class Connection(sqlite3.Connection):
                def close(self) -> None:
                    outer.closed += 1
                    super().close()

            return sqlite3.connect(tmp_path / "db", factory=Connection)

    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("CREATE TABLE t (a, b)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"b{n}") for n in range(FETCH_ROWS * 5 // 2)])
    connection.close()
    made = Hook()
    mocker.patch.object(BaseHook, "get_hook", return_value=made)
    return made


def test_rows_come_as_mappings(hook: Any) -> None:
    rows = list(stream("db", "SELECT a, b AS text FROM t ORDER BY a"))
    assert rows[0] == {"a": 0, "text": "b0"}
    assert [row["a"] for row in rows] == list(range(FETCH_ROWS * 5 // 2))
    assert hook.closed == 1


def test_parameters_are_the_drivers(hook: Any) -> None:
    assert list(stream("db", "SELECT b FROM t WHERE a = ?", [7])) == [{"b": "b7"}]
    assert list(stream("db", "SELECT b FROM t WHERE a = :a", {"a": 8})) == [{"b": "b8"}]
    assert hook.closed == 2


@pytest.mark.parametrize(
    ("sql", "told"),
    [("SELECT a, a FROM t", "two columns of one name"), ("CREATE TABLE u (x)", "gives no rows")],
)
def test_what_gives_no_rows(hook: Any, sql: str, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        list(stream("db", sql))
    assert hook.closed == 1
