"""The loop of batch's own server obeys a law as production does: through `Learnt`, with all it makes of a word."""

from __future__ import annotations

from random import Random

from airflow_llm_provider.core.limit import FixedLimit
from airflow_llm_provider.simulator.engine import Engine, EngineSpec
from benchmarks.dedicated_loop import ClosedLoop, Row, Simulated, Task


class Law(FixedLimit):
    """It would have places that fall free stay empty until it has looked again, in 5 s."""

    def __init__(self, limit):
        super().__init__(limit)
        self.refused, self.ends = 0, 0

    def capacity(self, now):
        self.refused += 1

    def ended(self, now, duration_s):
        self.ends += 1
        return False


def played(until_s, refuses=lambda _: False, most=10_000):
    law = Law(4)
    task = Task([Row(prompt_tokens=10, answer_tokens=20)] * 12, law, most=most)
    ClosedLoop(Simulated(Engine(EngineSpec(max_num_seqs=8))), [task], Random(0), refuses).run(until_s)
    return law, task


def test_a_place_that_should_stay_empty_does_until_the_next_look():
    assert played(4.0)[1].answered == 4
    assert played(9.0)[1].answered == 8


def test_the_law_hears_of_each_end_and_each_refusal_once():
    law, task = played(60.0, refuses=lambda now: now < 0.01)
    assert task.done
    assert (law.ends, law.refused) == (12, task.refused)
    assert law.refused > 0


def test_no_more_than_max_in_flight_is_sent_whatever_the_law_says():
    assert played(4.0, most=3)[1].answered == 3
