"""A simulated server counts our requests and others'; no knowledge of ours hides the others' true quantile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_llm_provider.core.histogram import Buckets, Histogram, Own, quantile_bounds
from airflow_llm_provider.core.own_requests import ABORT_LAG_S, Moment, OwnRequests, Period

BOUNDS = (0.01, 0.04, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, inf)
SECONDS = st.floats(0, 12)
DELAY = st.sampled_from([0.0, 0.01, 0.1]) | st.floats(0, 0.8)


@dataclass(frozen=True)
class Row:
    """One of our requests: the client's times, and the server's truth."""

    sent_s: float
    arrives_after_s: float
    first_after_s: float  # queue and prefill, by the server's own word
    behind_s: float  # the server's front end behind its engine, at the last token
    catches_up_s: float  # and how much more it was at the first one
    generation_s: float
    answer_takes_s: float
    tells: bool  # per-request metrics are on
    cut_s: float  # when we gave it up, counted from the first token

    @property
    def first_s(self) -> float:
        catches_up_s = min(self.catches_up_s, self.behind_s, self.generation_s)
        return self.sent_s + self.arrives_after_s + self.first_after_s + self.behind_s + catches_up_s

    @property
    def done_s(self) -> float:
        return self.sent_s + self.arrives_after_s + self.first_after_s + self.generation_s + self.behind_s

    @property
    def given_up_s(self) -> float:
        return max(self.sent_s, self.first_s + self.cut_s)

    @property
    def ended_s(self) -> float:
        return min(self.given_up_s, self.done_s + self.answer_takes_s)

    def samples(self):
        """(when counted, time to the first token), (when counted, whole request): what the server counts."""
        stops = self.given_up_s + ABORT_LAG_S / 2
        arrived = self.sent_s + self.arrives_after_s
        first = [(self.first_s, self.first_s - arrived)] if self.first_s < stops else []
        whole = [(self.done_s, self.done_s - arrived)] if self.done_s < stops else []
        return first, whole


a_row = st.builds(
    Row,
    sent_s=st.floats(0, 40),
    arrives_after_s=DELAY,
    first_after_s=SECONDS,
    behind_s=DELAY,
    catches_up_s=DELAY,
    generation_s=SECONDS,
    answer_takes_s=DELAY,
    tells=st.booleans(),
    cut_s=st.just(inf) | st.floats(-12, 12) | st.floats(-0.5, 0.5),
)
scrapes = st.tuples(st.floats(0, 40), st.floats(0, 40)).filter(lambda pair: pair[0] != pair[1])


def histogram(samples, period: tuple[float, float]) -> Histogram:
    inside = [value for counted_s, value in samples if period[0] < counted_s <= period[1]]
    empty = Histogram(bounds=BOUNDS, counts=(0,) * len(BOUNDS))
    counted = Counter(empty.bucket(value) for value in inside)
    return Histogram(bounds=BOUNDS, counts=tuple(counted[index] for index in range(len(BOUNDS))))


def record(rows, looks_at_s: float) -> OwnRequests:
    """What a client has noted by then."""
    own = OwnRequests()
    own.keep_from(0.0)
    events = [(row.sent_s, 0, number) for number, row in enumerate(rows)]
    events += [(row.ended_s, 1, number) for number, row in enumerate(rows)]
    for now_s, ends, number in sorted(event for event in events if event[0] <= looks_at_s):
        row = rows[number]
        if not ends:
            own.started(number, now_s)
        elif row.given_up_s <= now_s:
            own.abandoned(number, now_s)
        elif row.tells:
            own.ended(number, now_s, ttft_s=row.first_after_s, generation_s=row.generation_s)
        else:
            own.ended(number, now_s)
    return own


def check(others, whole: Histogram, own: Own, percent: int, scraped: tuple[float, float]) -> None:
    values = sorted(value for counted_s, value in others if scraped[0] < counted_s <= scraped[1])
    bounds = quantile_bounds(whole, percent / 100, own)
    if not values:
        return
    true = values[ceil(Fraction(percent, 100) * len(values)) - 1]
    assert bounds is not None
    assert bounds.lower <= true <= bounds.upper
    assert bounds.samples <= len(values)


def period_of(scraped: tuple[float, float], takes_s: tuple[float, float]) -> Period:
    return Period(*(Moment(at - took / 2, at + took / 2) for at, took in zip(scraped, takes_s, strict=True)))


PROMPT = Row(
    sent_s=5.0,
    arrives_after_s=0.0,
    first_after_s=0.85,
    behind_s=0.0,
    catches_up_s=0.0,
    generation_s=5.0,
    answer_takes_s=0.0,
    tells=True,
    cut_s=inf,
)
CATCHING_UP = replace(PROMPT, behind_s=0.1, catches_up_s=0.1)  # 0.95 s by the lag at the end, 1.05 s as counted
GIVEN_UP = replace(PROMPT, tells=False, cut_s=-0.4)  # after 0.45 s, and its first token was counted at 0.85 s
IN_FLIGHT = replace(PROMPT, arrives_after_s=0.8, generation_s=30.0)
AT_THE_END = replace(PROMPT, generation_s=0.0)  # counted while the last scrape was on its way


@given(
    row=a_row,
    near=st.sampled_from(["first_s", "done_s"]),
    where=st.floats(0.001, 1),
    at_begin=st.booleans(),
    takes_s=st.tuples(DELAY, DELAY),
)
@example(row=CATCHING_UP, near="first_s", where=0.001, at_begin=True, takes_s=(0.0, 0.0))
@example(row=GIVEN_UP, near="first_s", where=0.001, at_begin=True, takes_s=(0.0, 0.0))
@example(row=AT_THE_END, near="first_s", where=0.4, at_begin=False, takes_s=(0.0, 0.2))
@example(row=PROMPT, near="first_s", where=0.667, at_begin=True, takes_s=(0.2, 0.0))
@example(row=IN_FLIGHT, near="first_s", where=0.001, at_begin=True, takes_s=(0.0, 0.0))
@settings(max_examples=200)
def test_a_sample_lies_where_its_row_says_however_near_a_scrape(row, near, where, at_begin, takes_s):
    """One row and a scrape that was made about when its sample was counted: within how long the scrape took."""
    at = getattr(row, near) + (where - 0.5) * (takes_s[not at_begin] + 0.1)
    scraped = (at, at + 20) if at_begin else (at - 20, at)
    period = period_of(scraped, takes_s)
    own = record([row], looks_at_s=period.end.answered_s + 1.0)
    known = {
        "first_s": own.first_tokens(period, BOUNDS, flying_at_most=None),
        "done_s": own.whole_requests(period, BOUNDS),
    }[near]
    counted = row.samples()[near == "done_s"]
    whole = histogram(counted, scraped)
    claimed = [*known.certain, *known.possible, *known.flying]
    if whole.total:
        (lies_in,) = claimed
        assert lies_in.lowest <= whole.counts.index(1) <= lies_in.highest
    else:
        assert not known.certain


@given(
    rows=st.lists(a_row, max_size=15),
    others=st.lists(st.tuples(st.floats(0, 40), SECONDS), max_size=20),
    pair=scrapes,
    takes_s=st.tuples(DELAY, DELAY),
    percent=st.integers(1, 99),
)
def test_the_others_quantile_lies_within_the_bounds(rows, others, pair, takes_s, percent):
    scraped = (min(pair), max(pair))
    period = period_of(scraped, takes_s)
    own = record(rows, looks_at_s=period.end.answered_s + 1.0)  # every answer that was on its way is here
    first = [sample for row in rows for sample in row.samples()[0]]
    whole = [sample for row in rows for sample in row.samples()[1]]
    running = sum(row.first_s <= scraped[1] and row.ended_s > period.end.answered_s + 1.0 for row in rows)
    for at_most in (None, running):
        known = own.first_tokens(period, BOUNDS, flying_at_most=at_most)
        check(others, histogram([*others, *first], scraped), known, percent, scraped)
    check(others, histogram([*others, *whole], scraped), own.whole_requests(period, BOUNDS), percent, scraped)


# ── by examples ──────────────────────────────────────────────────────────────────────────────────────────────────────

PERIOD = Period(Moment(100.0, 100.01), Moment(130.0, 130.01))


def test_a_row_that_tells_is_taken_out_exactly():
    own = OwnRequests()
    own.keep_from(99.0)
    own.started("a", 105.0)
    own.ended("a", 125.0, ttft_s=4.0, generation_s=15.997)
    exact = Buckets(BOUNDS.index(5.0), BOUNDS.index(5.0))
    assert own.first_tokens(PERIOD, BOUNDS, flying_at_most=None).certain == {exact: 1}
    twenty = Buckets(BOUNDS.index(20.0), BOUNDS.index(20.0))
    assert own.whole_requests(PERIOD, BOUNDS).certain == {twenty: 1}


@pytest.mark.parametrize(
    ("sent_s", "told"),
    [(80.0, {"ttft_s": 20.0, "generation_s": 24.99}), (110.0, {"ttft_s": 1.0}), (110.0, {"generation_s": 1.0})],
    ids=["first token at a scrape", "half the story", "the other half"],
)
def test_a_row_that_cannot_be_placed_is_not_certain_of_its_bucket(sent_s, told):
    own = OwnRequests()
    own.keep_from(99.0)
    own.started("a", sent_s)
    own.ended("a", 125.0, **told)
    known = own.first_tokens(PERIOD, BOUNDS, flying_at_most=None)
    ranges = [*known.certain, *known.possible]
    assert len(ranges) == 1
    assert known.possible or ranges[0].lowest < ranges[0].highest


def test_rows_of_other_times_are_left_out():
    own = OwnRequests()
    own.keep_from(0.0)
    own.started("before", 50.0)
    own.ended("before", 60.0, ttft_s=1.0, generation_s=8.9)
    own.started("first token before", 50.0)
    own.ended("first token before", 128.0, ttft_s=1.0, generation_s=76.9)
    own.started("after", 131.0)
    assert own.first_tokens(PERIOD, BOUNDS, flying_at_most=None) == Own()
    assert sum(own.whole_requests(PERIOD, BOUNDS).certain.values()) == 1


def test_rows_in_flight_lie_between_their_ages_at_both_scrapes():
    own = OwnRequests()
    own.started("old", 95.0)
    own.started("young", 128.0, sequences=3)
    known = own.first_tokens(PERIOD, BOUNDS, flying_at_most=8)
    assert known.flying == {Buckets(BOUNDS.index(5.0), len(BOUNDS) - 1): 1, Buckets(0, BOUNDS.index(2.5)): 3}
    assert known.flying_at_most == 8
    assert own.whole_requests(PERIOD, BOUNDS) == Own()
    assert own.oldest_s == 95.0


def test_several_sequences_are_as_many_samples():
    own = OwnRequests()
    own.keep_from(99.0)
    own.started("a", 105.0, sequences=4)
    own.ended("a", 125.0, ttft_s=4.0, generation_s=15.0)
    assert sum(own.first_tokens(PERIOD, BOUNDS, flying_at_most=None).certain.values()) == 4
    assert sum(own.whole_requests(PERIOD, BOUNDS).certain.values()) == 4


def test_the_record_keeps_only_what_somebody_watches():
    own = OwnRequests()
    for number in range(100):
        own.started(number, float(number))
        own.ended(number, number + 0.5)
    assert not own._ended
    own.keep_from(100.0)
    for number in range(100, 200):
        own.started(number, float(number))
        own.ended(number, number + 0.5)
    assert len(own._ended) == 100
    own.keep_from(180.0)
    assert len(own._ended) == 21
    own.keep_from(inf)
    assert not own._ended
    own.ended("never started", 200.0)
    own.abandoned("never started", 200.0)


def test_what_may_be_in_the_server_are_those_in_flight_and_those_just_given_up():
    own = OwnRequests()
    own.keep_from(0.0)
    for number in range(5):
        own.started(number, 0.0, sequences=2)
    own.abandoned(0, 10.0)
    own.abandoned(1, 15.0)
    assert own.in_server(15.5) == 8
    assert own.in_server(16.5) == 6
