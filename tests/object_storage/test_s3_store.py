"""The store's promises on real S3 servers: whole objects, who comes first, and could not read ≠ nothing there."""

from __future__ import annotations

import os
import secrets
import threading
from typing import TYPE_CHECKING

import pytest

from airflow_llm_provider.exceptions import SourceError, StorageError
from airflow_llm_provider.storage.jsonl import JsonlSource
from airflow_llm_provider.storage.store import RunStore, read_all
from tools.s3_servers import SECRET, S3Server, Said, connect, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tools.s3_servers import Asked, S3Proxy

    Through = Callable[[str], RunStore]


def test_writes_reads_lists_and_deletes(store: RunStore) -> None:
    store.write("a.json", b"1")
    store.write("_run/journal/00000/x.jsonl", b"22", durable=False)
    store.write_from("big.jsonl", iter([b"33", b"3"]))
    assert store.read("a.json") == b"1"
    assert store.read("big.jsonl") == b"333"
    assert store.list("") == {"_run/journal/00000/x.jsonl": 2, "a.json": 1, "big.jsonl": 3}
    assert store.list("_run/journal") == {"_run/journal/00000/x.jsonl": 2}
    store.delete(["a.json", "never-was"])
    assert store.read("a.json") is None
    store.delete(list(store.list("_run/journal")))
    store.delete(["_run/journal/never-was"])
    assert list(store.list("")) == ["big.jsonl"]
    assert list(read_all(store, ["gone", "big.jsonl"])) == [("big.jsonl", b"333")]


def test_what_another_process_wrote_or_removed_is_seen(store: RunStore, bucket: str) -> None:
    """Fsspec remembers listings."""
    other = seen_by_another(store, bucket)
    assert store.list("") == {}
    other.write("_run/a", b"1")
    assert store.list("") == {"_run/a": 1}
    assert store.list("_run") == {"_run/a": 1}
    other.write("_run/a", b"22")
    other.write("b", b"")
    assert store.list("") == {"_run/a": 2, "b": 0}
    assert store.read("_run/a") == b"22"
    other.delete(["_run/a", "b"])
    assert store.list("") == {}
    assert store.read("b") is None


def test_what_a_listing_did_not_show_is_read_all_the_same(store: RunStore, bucket: str) -> None:
    """What s3fs keeps are listings, and would answer from them for ever."""
    other = seen_by_another(store, bucket)
    store.write("_run/a", b"1")
    assert store.list("") == {"_run/a": 1}
    other.write("_run/b", b"2")
    other.write("c", b"3")
    assert store.read("_run/b") == b"2"
    assert store.read("c") == b"3"
    assert not store.put_new("_run/b", b"ours") or other.read("_run/b") == b"ours"


def seen_by_another(store: RunStore, bucket: str) -> RunStore:
    """The same path through a connection of the same words under another name: a file system of its own."""
    conn_id = bucket.removeprefix("s3://").removesuffix("@rows")
    again = f"{conn_id}_again"
    os.environ[f"AIRFLOW_CONN_{again.upper()}"] = os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"]
    return RunStore(store.uri.replace(f"{conn_id}@", f"{again}@"))


def test_overwrites_whole_and_takes_what_is_large(store: RunStore) -> None:
    data = secrets.token_bytes(12 << 20)
    store.write("a", b"old")
    store.write("a", data)
    assert store.read("a") == data
    store.write_from("b", (data[at : at + 1_000_000] for at in range(0, len(data), 1_000_000)))
    assert store.read("b") == data
    store.write("a", b"new")
    assert store.read("a") == b"new"


@pytest.mark.parametrize("name", ["part-00000-ä ö.jsonl", "a+b%20c?.json", "_run/x=1&y/..z"])
def test_names_of_all_kinds(store: RunStore, name: str) -> None:
    store.write(name, b"1")
    assert store.read(name) == b"1"
    assert store.list("") == {name: 1}


def test_creates_only_where_nothing_lies(store: RunStore) -> None:
    assert store.create("_run/run.json", b"ours")
    assert not store.create("_run/run.json", b"theirs")
    assert store.read("_run/run.json") == b"ours"
    assert store.list("") == {"_run/run.json": 4}


def test_of_twelve_that_create_at_once_one_is_the_first(store: RunStore, s3: S3Server) -> None:
    """Where the store knows no condition, several may take themselves for it, but one object lies there, and whole."""
    start = threading.Barrier(12)
    won: list[bytes] = []

    def race(number: int) -> None:
        data = bytes([number]) * 1000
        start.wait()
        if store.create("first", data):
            won.append(data)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    there = store.read("first")
    assert there in won
    assert len(there or b"") == 1000
    if s3.kind == "moto":
        assert won == [there]


def test_a_bucket_that_is_not_there_is_an_error_at_each_write(bucket: str) -> None:
    store = RunStore(f"{bucket}-other/run")
    for act in (lambda: store.write("a", b"1"), lambda: store.create("a", b"1"), lambda: store.write_from("a", [b"1"])):
        with pytest.raises(StorageError, match=r"rows-other/run/a"):
            act()


ACTS: dict[str, Callable[[RunStore], object]] = {
    "read": lambda store: store.read("a"),
    "list": lambda store: store.list(""),
    "write": lambda store: store.write("a", b"2"),
    "write_from": lambda store: store.write_from("a", [b"2"]),
    "create": lambda store: store.create("b", b"2"),
    "delete": lambda store: store.delete(["a"]),
    "delete many": lambda store: store.delete([f"a{number}" for number in range(40)]),
}
EVERY_ACT = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)

TROUBLES: dict[str, tuple[Said, str]] = {
    "denied": (Said(status=403, code="AccessDenied"), "Permission is denied"),
    "slow down": (Said(status=503, code="SlowDown"), "Nothing is lost"),
    "internal error": (Said(status=500, code="InternalError"), "Nothing is lost"),
    "reset": (Said(), "Nothing is lost"),
    "full": (Said(status=507, code="InsufficientStorage"), "Nothing is lost"),
    "no XML": (Said(status=502, code="<html>"), "Nothing is lost"),
}


@EVERY_ACT
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.impatient
def test_could_not_is_never_nothing_there(
    proxy: S3Proxy, through: Through, act: Callable[[RunStore], object], trouble: str
) -> None:
    said, words = TROUBLES[trouble]
    store = through(secrets.token_hex(4))
    store.write("a", b"1")
    store.write("_run/x", b"1")
    proxy.fault = lambda _: said
    with pytest.raises(StorageError, match=words) as raised:
        act(store)
    assert SECRET not in str(raised.value)
    assert store.uri in str(raised.value)
    proxy.fault = lambda _: None
    assert store.list("") == {"_run/x": 1, "a": 1}
    assert store.read("a") == b"1"


@EVERY_ACT
@pytest.mark.parametrize("said", [Said(status=503, code="SlowDown"), Said(), Said(status=500, code="InternalError")])
def test_a_store_that_stumbles_once_is_asked_again(
    proxy: S3Proxy, through: Through, act: Callable[[RunStore], object], said: Said
) -> None:
    store = through(secrets.token_hex(4))
    store.write("a", b"1")
    once = iter([said])
    proxy.fault = lambda _: next(once, None)
    act(store)
    assert next(once, None) is None, "nothing was asked of it"


def test_an_answer_that_was_lost_does_not_make_us_our_own_rival(proxy: S3Proxy, through: Through) -> None:
    store = through(secrets.token_hex(4))

    def lose(asked: Asked) -> Said | None:
        return next(once, None) if asked.method == "PUT" else None

    for said in (Said(after=True), Said(after=True, status=500, code="InternalError")):
        name = secrets.token_hex(4)
        once = iter([said])
        proxy.fault = lose
        assert store.create(name, b"ours")
        proxy.fault = lambda _: None
        assert store.read(name) == b"ours"


def test_conditions_are_asked_for_where_a_part_or_a_run_is_put(proxy: S3Proxy, through: Through) -> None:
    store = through(secrets.token_hex(4))
    store.put_new("a", b"1")
    store.write("b", b"1")
    assert [asked.conditional for asked in proxy.asked if asked.method == "PUT"] == [True, False]


@pytest.mark.impatient
@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_server_that_is_gone_is_an_error_and_its_return_is_found(kind: str, tmp_path: Path) -> None:
    with S3Server(kind, tmp_path) as server:
        store = RunStore(f"s3://{connect(server.url)}@rows/run")
        store._fs.mkdir("rows")
        store.write("a", b"1")
        port = server.port
        server.kill()
        for act in ACTS.values():
            with pytest.raises(StorageError):
                act(store)
        server.start(port)
        if kind == "rclone":  # the other kept all in memory, and lost it
            assert store.read("a") == b"1"


@pytest.mark.impatient
def test_nobody_listens(tmp_path: Path) -> None:
    store = RunStore(f"s3://{connect(f'http://127.0.0.1:{free_port()}')}@rows/run")
    with pytest.raises(StorageError, match=r"read s3://.*run/a"):
        store.read("a")


def test_a_wrong_key_is_permission_denied(tmp_path: Path) -> None:
    """Of the two, rclone's checks signatures."""
    with S3Server("rclone", tmp_path) as server:
        store = RunStore(f"s3://{connect(server.url, secret='wrong')}@rows/run")
        for act in ACTS.values():
            with pytest.raises(StorageError, match="Permission is denied") as raised:
                act(store)
            assert "wrong" not in str(raised.value)


def test_a_bucket_that_is_not_there_is_no_empty_input(store: RunStore, bucket: str) -> None:
    store.write("in/a.jsonl", b"1\n")
    conn = bucket.removesuffix("rows")
    with pytest.raises(SourceError, match="no file matches"):
        JsonlSource([f"{bucket}/none/*.jsonl"]).scan(9)
    for pattern in (f"{conn}nowhere/in/*.jsonl", f"{conn}nowhere/in/a.jsonl"):
        with pytest.raises(StorageError, match="there is no bucket nowhere, or this connection may not see it"):
            JsonlSource([pattern]).scan(9)
