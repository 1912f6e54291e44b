"""A short chaos: processes killed at every third of their changes to files; bugs put in on purpose are found."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from airflow_llm_provider.testing import StubVLLM
from benchmarks.chaos import files
from benchmarks.chaos.scene import refuse, write_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.chaos.scene import Tally


@pytest.fixture
def stub() -> Iterator[StubVLLM]:
    with StubVLLM(fault=refuse, delay_s=0.002) as running:
        yield running


def check(tally: Tally, kills: int) -> None:
    assert tally.kills >= kills
    assert tally.runs > kills // 8
    assert not tally.broken


def test_killed_at_each_change(tmp_path: Path, stub: StubVLLM) -> None:
    made = files.Files(tmp_path / "runs", write_source(tmp_path / "rows.jsonl"), stub)
    check(made.at_each_change(torn=True, step=3), kills=15)


def test_killed_again_and_again(tmp_path: Path, stub: StubVLLM) -> None:
    seed = Random().randrange(1 << 31)
    print(f"seed {seed}")  # noqa: T201 - it is shown where the test fails
    made = files.Files(tmp_path / "runs", write_source(tmp_path / "rows.jsonl"), stub)
    check(made.again_and_again(25, Random(seed)), kills=25)


def test_a_journal_dropped_before_its_part_lies_there_is_found(tmp_path: Path, stub: StubVLLM) -> None:
    made = files.Files(tmp_path / "runs", write_source(tmp_path / "rows.jsonl"), stub, plant="journal-first")
    tally = made.at_each_change_of_the_next()
    assert any("lay there, and do not any more" in broken for broken in tally.broken)


def test_dead_letters_written_after_their_part_are_found(tmp_path: Path, stub: StubVLLM) -> None:
    made = files.Files(tmp_path / "runs", write_source(tmp_path / "rows.jsonl"), stub, plant="letters-last")
    tally = made.at_each_change(torn=False)
    assert any("The dead letters of" in broken for broken in tally.broken)


def test_who_stood_still_while_the_next_one_worked_does_no_harm(tmp_path: Path, stub: StubVLLM) -> None:
    made = files.Files(tmp_path / "runs", write_source(tmp_path / "rows.jsonl"), stub)
    tally = made.goes_on_after_the_next(step=4)
    assert tally.stood >= 12
    assert not tally.broken
    tally = made.goes_on_beside_the_next(Random(1), step=4)
    assert tally.stood >= 12
    assert not tally.broken


def test_a_try_that_does_not_look_whether_it_may_write_is_found(tmp_path: Path, stub: StubVLLM) -> None:
    made = files.Files(tmp_path / "runs", write_source(tmp_path / "rows.jsonl"), stub, plant="no-look")
    tally = made.goes_on_after_the_next(step=3)
    assert any("changed" in broken and "had ended" in broken for broken in tally.broken)
