"""Files in a store of keys and values: whole or not there, whenever the process dies; and runs that are kept so."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import Try, job_of, texts, write_rows
from state_fakes import Values

from airflow_llm_provider.exceptions import ConfigurationError, StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.state_files import PIECE, PREFIX, StateFiles
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_llm_provider.testing import StubVLLM

URI = "xcom://dag/run/task"


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_files_are_what_was_written() -> None:
    files = StateFiles(Values())
    data = {f"a/{size}": noise(size) for size in (0, 1, PIECE - 1, PIECE, 4 * PIECE)}
    for path, each in data.items():
        files.pipe_file(path, each)
    for path, each in data.items():
        assert files.cat_file(path) == each
        assert files.info(path)["size"] == len(each)
    assert {path: info["size"] for path, info in files.find("a", detail=True).items()} == {
        path: len(each) for path, each in data.items()
    }
    assert list(files.find("a/1", detail=True)) == ["a/1"], "a name that begins so is no folder"


def test_values_stay_below_what_airflow_warns_of_and_are_plain_text() -> None:
    values = Values()
    StateFiles(values).pipe_file("a", noise(5 * PIECE))
    pieces = [value for key, value in values.kept.items() if key != PREFIX]
    assert len(pieces) > 5
    assert all(len(piece.encode()) <= 65_535 and piece.isascii() for piece in pieces)


def test_what_is_not_there() -> None:
    files = StateFiles(Values())
    calls: list[Any] = [
        lambda: files.cat_file("a"),
        lambda: files.info("a"),
        lambda: files.find("a", detail=True),
        lambda: files.rm_file("a"),
    ]
    for call in calls:
        with pytest.raises(FileNotFoundError):
            call()
    assert files.remove(["a"]) == 0


def test_created_once() -> None:
    files = StateFiles(Values())
    files.pipe_file("a", b"1", mode="create")
    with pytest.raises(FileExistsError):
        files.pipe_file("a", b"2", mode="create")
    files.pipe_file("a", b"3")
    assert files.cat_file("a") == b"3"


def test_what_is_replaced_or_removed_leaves_no_values_behind() -> None:
    values = Values()
    files = StateFiles(values)
    for path in ("run/a", "run/b", "runs"):
        for size in (PIECE * 3, 10):
            files.pipe_file(path, noise(size))
    assert files.remove(["run/a", "run/none", "run/b"]) == 2
    assert list(files.find("runs", detail=True)) == ["runs"]
    files.rm_file("runs")
    assert list(values.kept) == [PREFIX]


def test_more_than_airflow_should_keep_is_refused_and_what_was_there_stays() -> None:
    files = StateFiles(Values(), most_bytes=2000)
    files.pipe_file("a", noise(1000))
    with pytest.raises(ConfigurationError, match=r"may keep 2,000: .* result_path on object storage, and clear"):
        files.pipe_file("b", noise(1500))
    assert list(files.find("a", detail=True)) == ["a"]
    files.pipe_file("a", noise(1500))  # it takes the old one's place
    assert files.cat_file("a") == noise(1500)
    files.pipe_file("part", noise(1500), mode="create")  # as a part does, whose journal goes next
    with pytest.raises(ConfigurationError):
        files.pipe_file("more", noise(1500), mode="create")


def test_a_piece_that_is_gone_is_no_empty_file() -> None:
    values = Values()
    files = StateFiles(values)
    files.pipe_file("run/a", noise(PIECE * 2))
    del values.kept[f"{PREFIX}.0.1"]
    with pytest.raises(StorageError, match="no longer in the task state store"):
        RunStore("run", files=files).read("a")


def test_a_try_that_was_superseded_finds_an_error_and_not_nothing() -> None:
    values = Values()
    store = RunStore("run", files=StateFiles(values))
    store.write("a", b"1")
    values.superseded = True
    for call in (
        lambda: store.read("a"),
        lambda: store.list(""),
        lambda: store.write("b", b"2"),
        lambda: store.size("a"),
    ):
        with pytest.raises(StorageError, match="nothing of this run any more"):
            call()


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_change_a_file_is_the_old_one_or_the_new_one(*, after: bool) -> None:
    old, new = noise(PIECE * 2), noise(PIECE * 3)
    seen = set()
    for at in range(1, 12):
        values = Values()
        StateFiles(values).pipe_file("a", old)
        values.dies_at, values.after = values.changes + at, after
        try:
            StateFiles(values).pipe_file("a", new)
        except RuntimeError:
            found = StateFiles(values.reborn()).cat_file("a")
            assert found in (old, new)
            seen.add(found == new)
        else:
            break
    assert seen == {False, True}


def test_threads_lose_nothing_of_each_other() -> None:
    files = StateFiles(Values())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: files.pipe_file(f"run/{number}", b"%d" % number), range(200)))
    assert len(files.find("run", detail=True)) == 200
    assert files.cat_file("run/77") == b"77"


def landed(values: Values) -> list[int]:
    store = RunStore(URI, files=StateFiles(values))
    manifest = json.loads(store.read(layout.MANIFEST) or b"")
    names = [chunk["part"] for chunk in manifest["chunks"]]
    lines = [json.loads(line) for name in names for line in (store.read(name) or b"").splitlines()]
    assert manifest["counts"]["total"] == len(lines)
    return [line["index"] for line in lines]


def test_a_run_that_is_killed_at_any_change_lands_every_row_once(stub: StubVLLM, tmp_path: Path) -> None:
    """Each try dies a little later than the one before, until one comes through; with everything kept in Airflow."""
    source = write_rows(tmp_path / "rows.jsonl", texts(6))
    job = job_of(stub, source, flush_rows=1)
    met: set[int] = set()
    for at in range(1, 200):
        values = Values()
        values.dies_at = at
        with suppress(StorageError):  # its last changes are of what only a resume would need
            Try(job, RunStore(URI, files=StateFiles(values)))()
        if values.changes < at:
            assert at > 15, "19 changes are the least: where one flush takes in all rows"
            assert {0, 6} < met, "killed before there were rows, among them, and after"
            return
        then = values.reborn()
        kept = journalled(then)
        met.add(len(kept))
        following = Try(job, RunStore(URI, files=StateFiles(then)))
        following()
        assert landed(then) == list(range(6))
        assert not kept & set(following.requested(stub))
    raise AssertionError("it never comes through")


def journalled(values: Values) -> set[int]:
    files = StateFiles(values)
    try:
        found = list(files.find(URI, detail=True))
    except FileNotFoundError:
        return set()
    names = [path for path in found if path.removeprefix(f"{URI}/").startswith((layout.JOURNAL, "part-"))]
    lines = [json.loads(line) for name in names for line in files.cat_file(name).splitlines()]
    return {line["index"] for line in lines if "index" in line}


def test_a_run_of_more_rows_is_refused_before_anything_is_sent(stub: StubVLLM, tmp_path: Path) -> None:
    values = Values()
    job = job_of(stub, write_rows(tmp_path / "rows.jsonl", texts(6)), most_rows=5)
    with pytest.raises(ConfigurationError, match=r"6 rows, .* checkpoint='xcom' may have 5\. .* object storage"):
        Try(job, RunStore(URI, files=StateFiles(values)))()
    assert (stub.received, values.kept) == (0, {})


def test_a_run_that_became_too_large_can_be_begun_anew() -> None:
    files = StateFiles(Values(), most_bytes=20_000)
    files.pipe_file("lease.json", b"1234")
    files.pipe_file("run.json", noise(500))
    files.pipe_file("part", noise(30_000), mode="create")
    files.pipe_file("lease.json", b"12345")
    files.pipe_file("run.json", noise(505))
    with pytest.raises(ConfigurationError):
        files.pipe_file("journal", noise(3000))
    assert files.remove(["part"]) == 1
    files.pipe_file("journal", noise(3000))
