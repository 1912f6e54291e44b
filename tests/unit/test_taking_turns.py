"""How headroom tasks hand the room over: an offer is told from what somebody keeps free for real-time."""

from __future__ import annotations

from random import Random

import pytest

from airflow_llm_provider.core.limit_headroom import HeadroomLimit
from airflow_llm_provider.core.load import Load


class Task:
    """A task that looks when its law says so, and obeys at once."""

    def __init__(self, seed: int, *, begins_s: float = 0.0) -> None:
        self.limit = HeadroomLimit(8, rng=Random(seed))
        self.now, self.own, self.reason = begins_s, 0, ""

    def look(self, others: int) -> None:
        total = others + self.own
        load = Load(running=min(8, total), waiting=max(0, total - 8))
        verdict = self.limit.look(self.now, load, self.own)
        if verdict.give_up:
            self.limit.gave_up(self.now, verdict.give_up)
        self.own = self.own - verdict.give_up if verdict.give_up else max(self.own, verdict.limit)
        self.reason = verdict.reason
        self.now += verdict.look_in_s

    def beside(self, *others: int, each_s: float) -> int:
        """Look while there are so many others, one number after the other; the most it had in flight."""
        most = self.own
        for number in others:
            until_s = self.now + each_s
            while self.now < until_s:
                self.look(number)
                most = max(most, self.own)
        return most

    def takes_up(self, others: int) -> None:
        """Wait beside a server full of others, in a calm, until so many are left and it takes a place."""
        self.beside(9, each_s=25.0)
        assert self.own == 0
        until_s = self.now + 3.0
        while not self.own:
            self.look(others)
            assert self.now < until_s
        assert self.own == 1  # and no more, until it has seen who minds


@pytest.mark.parametrize("seed", range(5))
def test_whoever_takes_up_an_offer_fills_what_the_other_leaves(seed: int) -> None:
    task = Task(seed)
    task.takes_up(7)
    task.beside(7, 7, 6, 5, 4, 3, 2, 1, 0, each_s=0.06)
    task.beside(0, each_s=0.3)
    assert task.own == 9


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_free_for_real_time_is_no_offer(seed: int) -> None:
    """A burst has begun, unseen by who waits: the holder has given up rows, and keeps six of eight in use."""
    task = Task(seed)
    task.takes_up(6)
    assert task.beside(6, each_s=0.5) == 1
    assert not task.limit.ended(task.now, 0.3)  # the one is not replaced
    assert "calm" not in task.reason


@pytest.mark.parametrize("seed", range(5))
def test_somebody_who_comes_while_the_room_is_handed_over_is_real_time(seed: int) -> None:
    """Whoever offered only leaves: none of its rows begins any more."""
    task = Task(seed)
    task.takes_up(7)
    task.beside(7, 6, 5, each_s=0.06)
    assert "calm" in task.reason
    before = task.own
    task.beside(6, 7, 8, each_s=0.04)
    assert "calm" not in task.reason
    assert task.own < before


@pytest.mark.parametrize("seed", range(5))
def test_who_offers_leaves_one_place_empty_and_no_more(seed: int) -> None:
    """Where a calm begins, what was kept free is filled first: after a burst it is high time for an offer."""
    task = Task(seed)
    task.beside(0, each_s=4.0)
    assert task.own == 9
    task.beside(*[1, 3] * 15, each_s=0.25)  # longer than a turn
    assert task.own < 7
    until_s = task.now + 2.5
    while "a place is offered" not in task.reason:
        task.look(0)
        assert task.now < until_s
    task.beside(0, each_s=0.2)
    assert task.own == 7
    assert task.limit.ended(task.now, 0.3)  # its place is taken again
    task.own = 5  # two rows have failed
    task.beside(0, each_s=0.2)
    assert task.own == 7


@pytest.mark.parametrize("seed", range(5))
def test_who_offers_from_a_full_server_does_not_replace_two_rows(seed: int) -> None:
    """The one that waits in the server, and the one whose place is offered."""
    task = Task(seed)
    while "a place is offered" not in task.reason:
        task.look(0)
        assert task.now < 12.0
    assert task.own == 9
    assert [task.limit.ended(task.now, 0.3) for _ in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("begins_s", [-1e6, 0.0, 1e6])
def test_it_grows_whatever_the_clock_says(begins_s: float) -> None:
    task = Task(0, begins_s=begins_s)
    task.beside(0, each_s=6.0)
    assert task.own == 9
