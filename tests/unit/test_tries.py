"""Tries that bring a run nowhere: counted, bounded, and forgotten as soon as one does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from batch_fakes import HookedStore, Try, job_of, part_lines, run, texts, write_rows

from airflow_llm_provider.batch import tries
from airflow_llm_provider.exceptions import EndpointDownError, FruitlessTriesError, StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.testing import StubVLLM

ROWS = 6


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", texts(ROWS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def job(stub: StubVLLM, source: str) -> BatchJob:
    return job_of(stub, source)


class Vain(HookedStore):
    """Of a process that is killed before it keeps its first row; or its `after`-th piece of them."""

    after_pieces = 0

    def before(self, name: str) -> None:
        if name.startswith((layout.JOURNAL, "part-")):
            if not self.after_pieces:
                raise StorageError("killed")
            self.after_pieces -= 1


def vain(stub: StubVLLM, source: str, folder: Path, *, pieces: int = 0, **changes: Any) -> None:
    store = Vain(str(folder))
    store.after_pieces = pieces
    with pytest.raises(StorageError, match="killed"):
        run(job_of(stub, source, **changes), store)


def noted(folder: Path) -> Any:
    return json.loads((folder / layout.TRIES).read_bytes())


def test_so_many_may_follow_the_first_that_was_in_vain(stub: StubVLLM, source: str, folder: Path) -> None:
    for number in (1, 2, 3):
        vain(stub, source, folder, try_number=number, fruitless_retries=2)
        assert noted(folder)["fruitless"] == number - 1
    asked = stub.received
    with pytest.raises(FruitlessTriesError, match=r"3 tries in a row .* fruitless_retries is 2\. 0 rows lie in parts"):
        run(job_of(stub, source, try_number=4, fruitless_retries=2), RunStore(str(folder)))
    assert stub.received == asked
    manifest = run(job_of(stub, source, try_number=5, epoch=4, fruitless_retries=2), RunStore(str(folder)))
    assert manifest["counts"]["succeeded"] == ROWS, "cleared, it goes on"
    assert not (folder / layout.TRIES).exists()


def test_whoever_brings_it_on_gives_all_of_them_back(stub: StubVLLM, source: str, folder: Path) -> None:
    stub.behaviour.delay_s = 0.02
    slow: dict[str, Any] = {"fruitless_retries": 1, "max_in_flight": 1, "flush_rows": 1}
    for number in range(1, 7):
        vain(stub, source, folder, pieces=1 - number % 2, try_number=number, **slow)
        assert noted(folder)["fruitless"] == (number + 1) % 2
    stub.behaviour.delay_s = 0
    run(job_of(stub, source, try_number=7, fruitless_retries=1), RunStore(str(folder)))
    assert [line["index"] for line in part_lines(folder)] == list(range(ROWS))


def test_who_comes_back_from_the_triggerer_is_the_same_try(stub: StubVLLM, source: str, folder: Path) -> None:
    for _ in range(4):
        vain(stub, source, folder, try_number=1, fruitless_retries=0)
    with pytest.raises(FruitlessTriesError):
        run(job_of(stub, source, try_number=2, fruitless_retries=0), RunStore(str(folder)))


def test_nobody_counts_where_nobody_asked(stub: StubVLLM, source: str, folder: Path) -> None:
    for number in range(1, 5):
        vain(stub, source, folder, try_number=number)
    assert not (folder / layout.TRIES).exists()
    run(job_of(stub, source, try_number=5), RunStore(str(folder)))


def test_who_did_not_get_so_far_as_to_work_does_not_count(stub: StubVLLM, source: str, folder: Path) -> None:
    """The endpoint was away: that says nothing of the run."""
    vain(stub, source, folder, try_number=1, fruitless_retries=1)
    for number in range(2, 9):
        away = Try(job_of(stub, source, try_number=number, fruitless_retries=1), RunStore(str(folder)))
        away._run._ask_endpoint = Mock(side_effect=EndpointDownError("away"))  # type: ignore[method-assign]
        with pytest.raises(EndpointDownError):
            away()
    vain(stub, source, folder, try_number=9, fruitless_retries=1)
    with pytest.raises(FruitlessTriesError):
        run(job_of(stub, source, try_number=10, fruitless_retries=1), RunStore(str(folder)))


def test_a_run_whose_every_row_has_landed_is_ended_whoever_came_before(
    stub: StubVLLM, source: str, folder: Path
) -> None:
    class Unended(HookedStore):
        def before(self, name: str) -> None:
            if name == layout.MANIFEST:
                raise StorageError("killed")

    for number in range(1, 5):
        with pytest.raises(StorageError, match="killed"):
            run(job_of(stub, source, try_number=number, fruitless_retries=0), Unended(str(folder)))
    run(job_of(stub, source, try_number=5, fruitless_retries=0), RunStore(str(folder)))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"epoch": "x"}', b'{"epoch": null, "try_number": 1}'])
def test_a_note_that_makes_no_sense_counts_from_here(job: BatchJob, folder: Path, damage: bytes) -> None:
    store = RunStore(str(folder))
    store.write(layout.TRIES, damage)
    tries.count(replace(job, fruitless_retries=0), store, done=0, journals=0)
    assert noted(folder)["fruitless"] == 0


def test_a_run_that_is_begun_anew_begins_to_count_anew(stub: StubVLLM, source: str, folder: Path) -> None:
    vain(stub, source, folder, try_number=1, fruitless_retries=0)
    other: dict[str, Any] = {"prompt": "Sing: {{ row.text }}", "on_stale": "restart", "fruitless_retries": 0}
    vain(stub, source, folder, try_number=2, **other)
    assert noted(folder) == {
        "format_version": layout.FORMAT_VERSION,
        "epoch": 0,
        "try_number": 2,
        "done": 0,
        "journals": 0,
        "fruitless": 0,
    }


def test_a_try_that_ends_tells_how_many_rows_it_settled(stub: StubVLLM, source: str, folder: Path) -> None:
    store = Vain(str(folder))
    store.after_pieces = 1
    stub.behaviour.delay_s = 0.02
    late = Try(job_of(stub, source, max_in_flight=1, flush_rows=1), store)
    with pytest.raises(StorageError, match="killed") as raised:
        late()
    assert 1 <= raised.value.settled <= ROWS


def test_a_dag_run_that_is_made_again_counts_anew(stub: StubVLLM, source: str, folder: Path) -> None:
    """Its tries begin at 1; those before are another's."""
    for number in (3, 4, 5):
        vain(stub, source, folder, try_number=number, fruitless_retries=2)
    (folder / layout.LEASE).unlink()  # or it waits a minute, since the other might live
    manifest = run(job_of(stub, source, try_number=1, fruitless_retries=2), RunStore(str(folder)))
    assert manifest["counts"]["succeeded"] == ROWS
