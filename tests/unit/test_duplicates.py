from __future__ import annotations

import errno
import tempfile
from typing import TYPE_CHECKING

import pytest

from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage.duplicates import DuplicateFinder

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture


def search(labels: list[str]) -> tuple[int, int] | None:
    with DuplicateFinder() as finder:
        for index, label in enumerate(labels):
            if pair := finder.add(label, index):
                return pair
        return finder.finish()


LABELS = [f"label-{number}" for number in range(500)]
CASES = [
    (LABELS, None),
    ([], None),
    ([*LABELS, "label-0"], (0, 500)),
    ([*LABELS, "label-499", "label-3", "label-3"], (499, 500)),
    (["", ""], (0, 1)),
    (["\ud800", "\ud800"], (0, 1)),
    (["a", "A", "a ", "ä", "a\u0308"], None),
]


@pytest.mark.parametrize("in_memory", [1, 2, 100, 10_000])
@pytest.mark.parametrize(("labels", "pair"), CASES)
def test_names_the_first_repetition_in_memory_and_spilled(
    mocker: MockerFixture, labels: list[str], pair: tuple[int, int] | None, in_memory: int
) -> None:
    mocker.patch("airflow_llm_provider.storage.duplicates.IN_MEMORY_ROWS", in_memory)
    assert search(labels) == pair


def test_leaves_nothing_on_the_disk(mocker: MockerFixture, tmp_path: Path) -> None:
    mocker.patch("airflow_llm_provider.storage.duplicates.IN_MEMORY_ROWS", 10)
    mocker.patch.object(tempfile, "tempdir", str(tmp_path))
    with DuplicateFinder() as finder:
        for index, label in enumerate(LABELS):
            finder.add(label, index)
        assert len(list(tmp_path.iterdir())) == 1
        assert not finder._seen, "spilled labels stay in memory"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["tempfile.TemporaryDirectory", "_repetitions", "_spill"])
def test_a_full_local_disk_is_a_storage_error(mocker: MockerFixture, step: str) -> None:
    mocker.patch("airflow_llm_provider.storage.duplicates.IN_MEMORY_ROWS", 10)
    error = OSError(errno.ENOSPC, "No space left on device")
    if step.startswith("_"):
        mocker.patch.object(DuplicateFinder, step, side_effect=error)
    else:
        mocker.patch(step, side_effect=error)
    with pytest.raises(StorageError, match=r"duplicate ids in the local temporary folder.*disk is full"):
        search(LABELS)
