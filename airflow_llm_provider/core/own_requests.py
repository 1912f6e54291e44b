"""Which samples of a server's latency histograms are our own requests', and where they may lie.

Owns the record of the requests a run sends, and what follows from it about a period between two scrapes. Does not know
histograms on the wire (`endpoint.exposition`) nor how they are scraped (`endpoint.latency_vllm`).

All times are one process's monotonic seconds. The server's clock is never compared with ours, only durations are. With

    s  sent, by our clock                        e  answer read, by our clock
    t  queue time + time to the first token      g  generation time, both by the word of the server's engine

what is left of e - s, the lag e - s - t - g, went by before the engine had the request and after it had the last token:
network, HTTP, and the server's front end, which counts a sample when it reads the engine's token. So a first token is
counted between s + t and s + t + lag, with a value between t and t + lag, if the front end is not further behind its
engine at the first token than at the last; twice the lag is allowed, for a front end that is catching up. The sample of
the whole request is between t + g and e - s. The lag is milliseconds, and where it is more, the bounds are wider.

A request in flight at a scrape has a first token there or has not: its sample, if there is one, is at most the
scrape's time - s. The same goes for a request that ended without saying t and g.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from airflow_llm_provider.core.histogram import Buckets, Own

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

RECORD_LAG_S = 0.05
"""A server counts a sample at most this long after it let go of the answer: one turn of its event loop."""

ARRIVAL_LAG_S = 1.0
"""A request reaches the server's clock at most this long after it was sent, and an answer us. Only the lower ends of
what is known of requests that say nothing, in flight or ended, hang on it."""

ABORT_LAG_S = 1.0
"""A server notices within this that a client has gone (measured: 0.5 s)."""


class Moment(NamedTuple):
    """When a scrape was made: after it was asked for, before it was answered."""

    asked_s: float
    answered_s: float


class Period(NamedTuple):
    """What lies between two scrapes."""

    begin: Moment
    end: Moment


@dataclass(frozen=True, slots=True)
class _Row:
    """A request that has ended; `first_s` and `generation_s` as the server said, or None, `answered` if it was."""

    started_s: float
    ended_s: float
    sequences: int
    first_s: float | None
    generation_s: float | None
    answered: bool


class _Event(NamedTuple):
    """A sample: counted between two moments, if at all, with a value between two others."""

    earliest_s: float
    latest_s: float
    least_s: float
    most_s: float
    surely: bool
    times: int


class OwnRequests:
    """The requests that a run has sent to one base URL. Used from one event loop.

    Ended ones are kept only while a source watches (`keep_from`), and only as long as it needs them.
    """

    def __init__(self) -> None:
        self._flying: dict[Hashable, tuple[float, int]] = {}
        self._ended: deque[_Row] = deque()
        self._keep_from_s = inf

    def started(self, key: Hashable, now_s: float, *, sequences: int = 1) -> None:
        """A request is sent now.

        Args:
            key: names it until it ends.
            now_s: monotonic seconds.
            sequences: answers it asks for (``n``): the server counts each as a request of its own.
        """
        self._flying[key] = (now_s, sequences)

    def ended(
        self, key: Hashable, now_s: float, *, ttft_s: float | None = None, generation_s: float | None = None
    ) -> None:
        """Its answer is here.

        Args:
            key: as given to `started`.
            now_s: monotonic seconds.
            ttft_s: `core.request.Completion.ttft_s`.
            generation_s: `core.request.Completion.generation_s`. Both are needed for either to be of use.
        """
        self._end(key, now_s, ttft_s, generation_s, answered=True)

    def abandoned(self, key: Hashable, now_s: float) -> None:
        """It ended without a usable answer: cancelled, refused, failed. The server may have counted it or not."""
        self._end(key, now_s, None, None, answered=False)

    @property
    def oldest_s(self) -> float | None:
        """When the oldest request in flight was sent; None where there is none."""
        return min((started_s for started_s, _ in self._flying.values()), default=None)

    def in_server(self, now_s: float) -> int:
        """Sequences that may be running or waiting in the server: those in flight, or given up just now."""
        lingering = 0
        for row in reversed(self._ended):
            if row.ended_s + ABORT_LAG_S < now_s:
                break
            lingering += row.sequences
        return lingering + sum(sequences for _, sequences in self._flying.values())

    def keep_from(self, moment_s: float) -> None:
        """Keep the requests that end from this moment on, and forget those that ended before; inf keeps none."""
        self._keep_from_s = moment_s
        while self._ended and self._ended[0].ended_s + ABORT_LAG_S < moment_s:
            self._ended.popleft()

    def first_tokens(self, period: Period, bounds: tuple[float, ...], *, flying_at_most: int | None) -> Own:
        """Our samples among those of time to the first token that were counted in the period.

        Args:
            period: no earlier than the moment given to `keep_from`.
            bounds: of the histogram's buckets.
            flying_at_most: how many sequences in flight can have had a first token, where that is known.
        """
        flying: Counter[Buckets] = Counter()
        for started_s, sequences in self._flying.values():
            event = _open_event(started_s, inf, period, sequences, surely=False)
            if event.earliest_s <= period.end.answered_s:
                flying[_buckets(event, bounds)] += sequences
        events = (_first_token(row, period) for row in self._ended)
        return _sorted_out(events, period, bounds, flying=flying, flying_at_most=flying_at_most)

    def whole_requests(self, period: Period, bounds: tuple[float, ...]) -> Own:
        """Our samples among those of whole requests that were counted in the period.

        One still in flight is not among them: whoever asks has waited for the answers that were on their way.
        """
        return _sorted_out((_whole(row) for row in self._ended), period, bounds, flying=Counter(), flying_at_most=None)

    def _end(
        self, key: Hashable, now_s: float, ttft_s: float | None, generation_s: float | None, *, answered: bool
    ) -> None:
        known = self._flying.pop(key, None)
        if known is None or now_s < self._keep_from_s:
            return
        started_s, sequences = known
        if (
            sequences > 1  # then they are one sequence's
            or ttft_s is None
            or generation_s is None
            or ttft_s + generation_s > now_s - started_s  # more than it took: whatever it is, it is not about this
        ):
            ttft_s = generation_s = None
        self._ended.append(_Row(started_s, now_s, sequences, ttft_s, generation_s, answered))


def _first_token(row: _Row, period: Period) -> _Event:
    if row.first_s is None or row.generation_s is None:
        return _open_event(row.started_s, row.ended_s, period, row.sequences, surely=row.answered)
    lag_s = row.ended_s - row.started_s - row.first_s - row.generation_s
    most_s = row.first_s + 2 * lag_s
    return _Event(row.started_s + row.first_s, row.started_s + most_s, row.first_s, most_s, surely=True, times=1)


def _open_event(started_s: float, ended_s: float, period: Period, sequences: int, *, surely: bool) -> _Event:
    """The first token of a request that said nothing of it: if it came in the period, the value is bounded by that."""
    latest_s = ended_s if surely else ended_s + ABORT_LAG_S
    return _Event(
        earliest_s=started_s,
        latest_s=latest_s,
        least_s=max(0.0, period.begin.asked_s - started_s - ARRIVAL_LAG_S),
        most_s=max(0.0, min(latest_s, period.end.answered_s) - started_s),
        surely=surely,
        times=sequences,
    )


def _whole(row: _Row) -> _Event:
    took_s = row.ended_s - row.started_s
    if row.first_s is not None and row.generation_s is not None:
        at_least_s = row.first_s + row.generation_s
        return _Event(row.started_s + at_least_s, row.ended_s, at_least_s, took_s, surely=True, times=1)
    if row.sequences > 1:  # each ends when it ends
        return _Event(row.started_s, row.ended_s, 0.0, took_s, surely=row.answered, times=row.sequences)
    at_least_s = max(0.0, took_s - 2 * ARRIVAL_LAG_S)
    lag_s = 0.0 if row.answered else ABORT_LAG_S
    return _Event(row.started_s + at_least_s, row.ended_s + lag_s, at_least_s, took_s + lag_s, row.answered, 1)


def _sorted_out(
    events: Iterator[_Event],
    period: Period,
    bounds: tuple[float, ...],
    *,
    flying: Counter[Buckets],
    flying_at_most: int | None,
) -> Own:
    certain: Counter[Buckets] = Counter()
    possible: Counter[Buckets] = Counter()
    begin, end = period
    for event in events:
        counted_s = event.latest_s + RECORD_LAG_S
        if counted_s < begin.asked_s or event.earliest_s > end.answered_s:
            continue
        inside = event.surely and event.earliest_s > begin.answered_s and counted_s < end.asked_s
        (certain if inside else possible)[_buckets(event, bounds)] += event.times
    return Own(certain=certain, possible=possible, flying=flying, flying_at_most=flying_at_most)


def _buckets(event: _Event, bounds: tuple[float, ...]) -> Buckets:
    return Buckets(bisect_left(bounds, event.least_s), bisect_left(bounds, event.most_s))
