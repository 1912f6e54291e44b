"""Requests given up that the server still counts."""

from __future__ import annotations

from airflow_llm_provider.core.departing import LAG_S, Departing


def test_they_count_until_the_total_falls() -> None:
    departing = Departing()
    departing.look(0.0, 8, 6)
    departing.given_up(3, 0.0)
    assert departing.look(0.01, 8, 3) == 3
    assert departing.look(0.02, 6, 3) == 1
    assert departing.look(0.03, 5, 3) == 0


def test_a_fall_that_our_own_ends_explain_is_not_theirs() -> None:
    departing = Departing()
    departing.look(0.0, 8, 6)
    departing.given_up(2, 0.0)
    assert departing.look(0.01, 8, 4) == 2
    assert departing.look(0.02, 6, 2) == 2


def test_each_is_forgotten_in_its_time() -> None:
    """One that an arrival hides, again and again: they do not add up for ever."""
    departing = Departing()
    departing.look(0.0, 8, 8)
    numbers = []
    for step in range(1, 21):
        now = step * LAG_S / 2
        departing.given_up(1, now)
        numbers.append(departing.look(now + 0.01, 8, 8 - step))
    assert max(numbers) <= 3
    assert departing.look(now + 1.01 * LAG_S, 8, 8 - step) == 0


def test_part_of_those_given_up_at_once_may_be_gone() -> None:
    departing = Departing()
    departing.look(0.0, 20, 20)
    departing.given_up(4, 0.0)
    departing.given_up(4, 0.1)
    assert departing.look(0.11, 15, 12) == 3
    assert departing.look(LAG_S + 0.05, 15, 12) == 3  # the first are gone, and one of the second
    assert departing.look(LAG_S + 0.11, 15, 12) == 0
