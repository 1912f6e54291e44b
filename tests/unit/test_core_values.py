"""Chunks, ledger, tolerance and progress."""

from __future__ import annotations

import pytest

from airflow_llm_provider.core.chunks import Chunk, ChunkPlan
from airflow_llm_provider.core.ledger import ChunkSummary, Ledger, SettledLine
from airflow_llm_provider.core.progress import RATE_WINDOW_S, Pace, PaceMeter, duration
from airflow_llm_provider.core.request import Status, Usage
from airflow_llm_provider.core.tolerance import EARLY_ROWS, Tolerance
from airflow_llm_provider.exceptions import ConfigurationError

PLAN = ChunkPlan(3, 7, ((0, 0, 1), (0, 30, 4), (1, 0, 1)))
GOOD = SettledLine(b"line\n", Status.SUCCEEDED, Usage(3, 2, 1))
BAD = SettledLine(b"line\n", Status.ERRORED, Usage(), b"letter\n")


def summary(number: int, rows: int = 3, errored: int = 0) -> ChunkSummary:
    return ChunkSummary(
        number=number, rows=rows, succeeded=rows - errored, errored=errored, usage=Usage(9, 6, 3), bytes=10, sha256="x"
    )


# -- chunks


def test_chunks_of_a_plan() -> None:
    assert len(PLAN) == 3
    assert PLAN.chunk(1) == Chunk(number=1, first_index=3, rows=3, file=0, offset=30, line=4)
    assert PLAN.chunk(2).rows == 1
    assert [PLAN.number_of(index) for index in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_a_plan_comes_back_from_its_json_form() -> None:
    assert ChunkPlan.from_dict(PLAN.as_dict()) == PLAN
    as_json = {"chunk_rows": 3, "total_rows": 7, "starts": [[0, 0, 1], [0, 30, 4], [1, 0, 1]]}
    assert ChunkPlan.from_dict(as_json) == PLAN


def test_an_empty_plan() -> None:
    assert len(ChunkPlan(10, 0, ())) == 0


@pytest.mark.parametrize(("chunk_rows", "total_rows", "starts"), [(0, 0, 0), (3, 7, 2), (3, 7, 4), (3, 0, 1)])
def test_starts_that_do_not_fit_the_rows(chunk_rows: int, total_rows: int, starts: int) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        ChunkPlan(chunk_rows, total_rows, ((0, 0, 1),) * starts)


# -- ledger


def test_a_chunks_life() -> None:
    ledger = Ledger(PLAN, {})
    chunk = next(ledger.pending_chunks())
    opened = ledger.open_chunk(chunk, {1: BAD})
    assert list(opened.settled) == [1]
    assert (ledger.totals.done, ledger.unjournalled_rows, ledger.open_rows) == (1, 0, 3)
    ledger.settle(2, GOOD)
    ledger.settle(0, GOOD)
    assert opened.complete
    assert opened.unjournalled == [2, 0]
    ledger.journalled(opened, [2])
    assert (opened.unjournalled, ledger.unjournalled_rows) == ([0], 1)
    ledger.commit(summary(0, errored=1))
    assert (ledger.unjournalled_rows, ledger.open_rows, ledger.open) == (0, 0, {})
    assert [pending.number for pending in ledger.pending_chunks()] == [1, 2]
    assert (ledger.totals.succeeded, ledger.totals.errored, ledger.totals.usage) == (2, 1, Usage(9, 6, 3))
    assert not ledger.finished


def test_a_row_settles_once_and_only_while_its_chunk_is_open() -> None:
    ledger = Ledger(PLAN, {})
    ledger.open_chunk(PLAN.chunk(0), {})
    ledger.settle(0, GOOD)
    with pytest.raises(ValueError, match="row 0 settled twice"):
        ledger.settle(0, GOOD)
    with pytest.raises(KeyError):
        ledger.settle(3, GOOD)
    assert ledger.totals.done == 1


def test_a_resume_counts_what_is_committed() -> None:
    ledger = Ledger(PLAN, {0: summary(0, errored=2), 2: summary(2, rows=1)})
    assert (ledger.totals.succeeded, ledger.totals.errored) == (2, 2)
    assert ledger.totals.usage == Usage(18, 12, 6)
    assert [chunk.number for chunk in ledger.pending_chunks()] == [1]


def test_a_run_without_rows_is_finished() -> None:
    assert Ledger(ChunkPlan(3, 0, ()), {}).finished


def test_a_summary_comes_back() -> None:
    assert ChunkSummary.from_dict(summary(1, errored=1).as_dict()) == summary(1, errored=1)


# -- tolerance


@pytest.mark.parametrize(
    ("rate", "rows", "borne"),
    [
        (0.0, 100, 0),
        (0.1, 100, 10),
        (0.1, 99, 9),
        (0.1, 5, 1),  # one bad row is one bad row
        (0.1, 2, 1),
        (0.1, 1, 0),  # every row errored
        (0.999, 2, 1),
        (1.0, 1, 1),
        (1.0, 7, 7),
        (0.1, 0, 0),
        (1.0, 0, 0),
    ],
)
def test_how_many_errors_a_run_bears(rate: float, rows: int, borne: int) -> None:
    tolerance = Tolerance(rate)
    assert tolerance.borne(rows) == borne
    assert not tolerance.exceeded(errored=borne, rows=rows)
    assert tolerance.exceeded(errored=borne + 1, rows=rows)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_share(rate: float) -> None:
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        Tolerance(rate)


@pytest.mark.parametrize(
    ("errored", "done", "rows", "hopeless"),
    [
        (EARLY_ROWS - 1, EARLY_ROWS - 1, 10_000, False),
        (EARLY_ROWS, EARLY_ROWS, 10_000, True),
        (20, EARLY_ROWS, 10_000, False),
        (21, EARLY_ROWS, 10_000, True),
        (1001, 9_999, 10_000, True),
        (1000, 10_000, 10_000, False),
    ],
)
def test_when_to_stop_early(errored: int, done: int, rows: int, *, hopeless: bool) -> None:
    assert Tolerance(0.1).hopeless(errored=errored, done=done, rows=rows) is hopeless


def test_a_rate_of_one_never_stops() -> None:
    assert not Tolerance(1).hopeless(errored=5000, done=5000, rows=10_000)


# -- progress


def test_the_pace_is_an_average_over_the_last_minute() -> None:
    meter = PaceMeter()
    assert meter.sample(now=0, done=100, total=1000, completion_tokens=0).rows_per_s == 0
    pace = meter.sample(now=10, done=120, total=1000, completion_tokens=500)
    assert (pace.rows_per_s, pace.tokens_per_s, pace.eta_s) == (2.0, 50.0, 440.0)
    for second in range(20, 10 * 60, 10):
        pace = meter.sample(now=second, done=120, total=1000, completion_tokens=500)
    assert (pace.rows_per_s, pace.eta_s) == (0.0, None)
    assert len(meter._samples) <= RATE_WINDOW_S / 10 + 2


def test_the_progress_line() -> None:
    pace = Pace(done=1200, total=4800, rows_per_s=12.34, tokens_per_s=1234.5, eta_s=292)
    assert str(pace) == "1,200/4,800 rows (25.0 %), 12.3 rows/s, 1234 tokens/s, ETA 4 min 52 s"
    assert str(Pace(done=0, total=0, rows_per_s=0, tokens_per_s=0, eta_s=None)).startswith("0/0 rows (-)")
    done = Pace(done=4800, total=4800, rows_per_s=12.34, tokens_per_s=1234.5, eta_s=None)
    assert str(done) == "4,800/4,800 rows (100.0 %), 12.3 rows/s, 1234 tokens/s"


def test_at_the_end_a_short_try_has_its_own_average_and_a_long_one_the_last_minutes() -> None:
    pace = Pace(done=30, total=40, rows_per_s=0.0, tokens_per_s=0.0, eta_s=5.0)
    short = pace.at_the_end(settled=30, completion_tokens=600, elapsed_s=RATE_WINDOW_S / 2)
    assert (short.rows_per_s, short.tokens_per_s, short.eta_s) == (1.0, 20.0, 5.0)
    assert pace.at_the_end(settled=30, completion_tokens=600, elapsed_s=RATE_WINDOW_S) == pace
    assert pace.at_the_end(settled=30, completion_tokens=600, elapsed_s=0.0) == pace
    done = Pace(done=40, total=40, rows_per_s=0.0, tokens_per_s=0.0, eta_s=None)
    assert done.at_the_end(settled=0, completion_tokens=0, elapsed_s=0.0).eta_s == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
