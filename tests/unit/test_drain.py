from __future__ import annotations

import pytest

from airflow_llm_provider.core.drain import MARGIN, REFRESH, SAMPLES, UNMEASURED_S, RowDurations


def noted(*durations_s: float, made: RowDurations | None = None) -> RowDurations:
    made = made or RowDurations()
    for duration_s in durations_s:
        made.note(duration_s)
    return made


def test_before_any_row_is_measured_a_row_is_taken_to_need_half_a_minute() -> None:
    assert RowDurations().predicted_s() == UNMEASURED_S == 30.0


def test_what_an_earlier_stretch_predicted_holds_until_the_first_answer() -> None:
    made = RowDurations(7.5)
    assert made.predicted_s() == 7.5
    made.note(100.0)
    assert made.predicted_s() == MARGIN * 100.0


@pytest.mark.parametrize(
    ("durations_s", "quantile_s"),
    [
        ([4.0], 4.0),
        ([3.0, 1.0, 2.0], 3.0),  # nearest rank: rounded up, so the longest while there are fewer than 20
        ([float(n) for n in range(1, 20)], 19.0),
        ([float(n) for n in range(1, 21)], 19.0),  # of 20 the 19th: one in twenty may take longer
    ],
)
def test_a_quarter_more_than_nineteen_of_twenty_rows_needed(durations_s: list[float], quantile_s: float) -> None:
    assert noted(*durations_s).predicted_s() == 1.25 * quantile_s


def test_the_order_of_answers_does_not_matter() -> None:
    durations_s = [float(n) for n in range(1, 25)]
    assert noted(*durations_s).predicted_s() == noted(*reversed(durations_s)).predicted_s()


def test_each_of_the_first_answers_counts_at_once() -> None:
    made = RowDurations()
    for n in range(1, REFRESH):
        made.note(float(n))
        assert made.predicted_s() == noted(*map(float, range(1, n + 1))).predicted_s()


def test_later_ones_count_when_there_are_enough_of_them() -> None:
    made = noted(*[1.0] * REFRESH)
    assert made.predicted_s() == MARGIN
    noted(*[9.0] * (REFRESH - 1), made=made)
    assert made.predicted_s() == MARGIN
    made.note(9.0)
    assert made.predicted_s() == 9 * MARGIN


def test_only_the_last_rows_count() -> None:
    one_in_twenty = SAMPLES // 20
    slow, quick = [100.0] * (one_in_twenty + 1), [1.0] * (SAMPLES - one_in_twenty - 1)
    made = noted(*slow, *quick)
    assert made.predicted_s() == 100 * MARGIN
    assert noted(*[1.0] * REFRESH, made=made).predicted_s() == MARGIN
    assert noted(*slow, *quick, 1.0).predicted_s() == MARGIN, "the first of them counts still"
