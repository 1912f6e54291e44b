"""A query's rows on a real PostgreSQL: they stream through a cursor on the server, are asked for once, and resumed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg2
import psycopg2.errors
import pytest
from batch_fakes import KilledStore, job_of, part_lines, run

from airflow_llm_provider.exceptions import (
    ConfigurationError,
    ConnectionMissingError,
    LLMBatchError,
    SourceError,
    SourceUnavailableError,
)
from airflow_llm_provider.hooks.query import FETCH_ROWS, stream
from airflow_llm_provider.sources import Query
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import StubVLLM

if TYPE_CHECKING:
    from pathlib import Path

    from tools.postgres import Postgres

ROWS = 5_000


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    """Its address, with a table of rows in it."""
    address = postgres.url.replace("postgresql+psycopg2", "postgresql")
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE tickets AS SELECT n AS id, 'body ' || n AS body, DATE '2026-01-01' + n %% 3 AS day, "
            "n * 1.10 AS price, decode('00ff', 'hex') AS picture, ARRAY[n, n] AS pair, "
            "jsonb_build_object('n', n) AS more, NULL::text AS nothing FROM generate_series(0, %s) AS n",
            [ROWS - 1],
        )
    return address


@pytest.fixture(autouse=True)
def connection(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow knows it as `crm`."""
    parts = urlsplit(database)
    about = {
        "conn_type": "postgres",
        "host": parts.hostname,
        "port": parts.port,
        "login": parts.username,
        "password": parts.password,
        "schema": parts.path.lstrip("/"),
    }
    monkeypatch.setenv("AIRFLOW_CONN_CRM", json.dumps(about))
    monkeypatch.setenv("AIRFLOW_CONN_NOWHERE", json.dumps({**about, "port": 1}))
    monkeypatch.setenv("AIRFLOW_CONN_MODEL", json.dumps({"conn_type": "vllm", "host": "http://127.0.0.1:1"}))


def source(sql: str = "SELECT id, body, day, price FROM tickets ORDER BY id", **words: Any) -> Any:
    return Query(sql, conn_id="crm", **words).open()


def test_rows_have_their_columns_as_fields() -> None:
    (row,) = stream("crm", "SELECT * FROM tickets WHERE id = 7")
    assert list(row) == ["id", "body", "day", "price", "picture", "pair", "more", "nothing"]
    assert (row["id"], row["body"], row["pair"], row["more"], row["nothing"]) == (7, "body 7", [7, 7], {"n": 7}, None)


def test_parameters_go_in_the_drivers_style_and_a_percent_sign_without_any_is_one() -> None:
    assert [row["id"] for row in stream("crm", "SELECT id FROM tickets WHERE id = %(id)s", {"id": 3})] == [3]
    assert [row["id"] for row in stream("crm", "SELECT id FROM tickets WHERE id = %s", [4])] == [4]
    assert len(list(stream("crm", "SELECT id FROM tickets WHERE body LIKE 'body 499%'"))) == 11


def test_they_stream_from_a_cursor_on_the_server(database: str) -> None:
    """The first row is there while the statement is not through: it would fail at its last one."""
    rows = stream("crm", "SELECT 1 / (%(last)s - id) AS x, id FROM tickets", {"last": ROWS - 1})
    assert next(rows)["id"] == 0
    with psycopg2.connect(database) as other, other.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'")
        assert cursor.fetchone() == (1,)
    with pytest.raises(SourceError, match="division by zero"):
        list(rows)
    assert FETCH_ROWS < ROWS


def test_what_is_left_in_the_middle_is_closed(database: str) -> None:
    rows = stream("crm", "SELECT id FROM tickets")
    next(rows)
    rows.close()
    with psycopg2.connect(database) as other, other.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'")
        assert cursor.fetchone() == (0,)


@pytest.mark.parametrize(
    ("conn_id", "sql", "error", "told"),
    [
        ("crm", "SELEC 1", SourceError, "The query on crm is refused: .*syntax error"),
        ("crm", "SELECT x FROM missing", SourceError, 'relation "missing" does not exist'),
        ("crm", "SELECT 1 AS a, 2 AS a", SourceError, "two columns of one name: a, a"),
        ("crm", "CREATE TEMP TABLE t (x int)", SourceError, "The query on crm is refused: .*CREATE"),
        ("nowhere", "SELECT 1", SourceUnavailableError, "The query on nowhere failed: .*The next try asks again"),
        ("missing", "SELECT 1", ConnectionMissingError, "connection missing is not known"),
        ("model", "SELECT 1", ConfigurationError, "is no DbApiHook"),
    ],
)
def test_what_cannot_be_asked(conn_id: str, sql: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=f"(?s){told}"):
        list(stream(conn_id, sql))


def test_a_database_that_goes_away_meanwhile_is_asked_again_later(database: str) -> None:
    rows = stream("crm", "SELECT id FROM tickets")
    next(rows)
    with psycopg2.connect(database) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction' "
            "AND pid <> pg_backend_pid()"
        )
    with pytest.raises(SourceUnavailableError, match="The query on crm failed"):
        list(rows)


def test_a_run_is_killed_and_resumed_though_the_table_has_changed(database: str, tmp_path: Path) -> None:
    """Half of it is through when the table is emptied; what was asked once is worked off."""
    folder = tmp_path / "run"
    query = source(custom_id="id", columns=["body", "day", "price"], limit=200)
    with StubVLLM() as stub:
        job = job_of(stub, query, prompt="{{ row.body }} {{ row.day }} {{ row.price }}", chunk_rows=20)
        with pytest.raises(LLMBatchError):
            run(job, KilledStore(str(folder), with_rows=40))
        assert 0 < stub.received < 200
        with psycopg2.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER TABLE tickets RENAME TO archived")
        again = source(custom_id="id", columns=["body", "day", "price"], limit=200)
        job = job_of(stub, again, prompt="{{ row.body }} {{ row.day }} {{ row.price }}", chunk_rows=20, try_number=2)
        manifest = run(job, RunStore(str(folder)))
        with psycopg2.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER TABLE archived RENAME TO tickets")
    assert manifest["counts"]["succeeded"] == 200
    lines = part_lines(folder)
    assert [line["custom_id"] for line in lines] == [str(number) for number in range(200)]
    assert lines[7]["output"] == "echo: body 7 2026-01-02 7.70"
