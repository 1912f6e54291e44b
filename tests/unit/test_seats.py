"""What a server runs at once: its slots, or what its memory has room for."""

from __future__ import annotations

from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.seats import FULL_MEMORY, MANY, Seats


def starve(seats: Seats, *, running: int = 4, kv_usage: float | None = FULL_MEMORY, times: int = MANY) -> int:
    for _ in range(times):
        seats.look(Load(running=running, waiting=3, kv_usage=kv_usage))
    return seats.number


def test_memory_bounds_it_after_some_looks() -> None:
    seats = Seats(8)
    assert starve(seats, times=MANY - 1) == 8
    assert starve(seats, times=1) == 4


def test_waiting_beside_free_slots_with_memory_to_spare_says_nothing() -> None:
    assert starve(Seats(8), kv_usage=FULL_MEMORY - 0.01) == 8
    assert starve(Seats(8), kv_usage=None) == 8


def test_one_look_that_differs_begins_anew() -> None:
    seats = Seats(8)
    starve(seats, times=MANY - 1)
    seats.look(Load(running=8, waiting=3, kv_usage=1.0))
    assert starve(seats, times=MANY - 1) == 8


def test_it_comes_back_as_more_run_or_none_wait() -> None:
    seats = Seats(8)
    starve(seats)
    seats.look(Load(running=6, waiting=1, kv_usage=0.5))
    assert seats.number == 6
    for expected in (7, 8, 8):
        seats.look(Load(running=3, waiting=0))
        assert seats.number == expected


def test_it_is_never_less_than_one_nor_more_than_the_slots() -> None:
    assert starve(Seats(8), running=0) == 1
    seats = Seats(8)
    starve(seats)
    seats.look(Load(running=20, waiting=1))
    assert seats.number == 8
