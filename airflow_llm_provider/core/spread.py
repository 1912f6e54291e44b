"""How a run's requests are spread over the servers of its endpoint.

Owns one dispatcher for each server, over one queue of rows: each has its own circuit, limit and hold, and a row that
one of them gives back may go to another. Pure, like the dispatchers. Does not know URLs.

A server's share is an equal part of the run's limit among the servers that take requests just now. One that is down or
held leaves its part to the others; one whose own limit, as agreed on or learned, is less than its part leaves them the
rest of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_llm_provider.core.circuit import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_llm_provider.core.commands import Command
    from airflow_llm_provider.core.dispatch import Dispatcher
    from airflow_llm_provider.core.request import RowRequest
    from airflow_llm_provider.core.row_queue import RowQueue, Spent
    from airflow_llm_provider.exceptions import LLMBatchError


class Spread:
    """A run's dispatchers.

    Args:
        dispatchers: one for each server, over `queue`.
        queue: the rows that wait.
        limit: requests in flight at most, over all servers; a single dispatcher's own is not larger.
    """

    def __init__(self, dispatchers: Sequence[Dispatcher], queue: RowQueue, *, limit: int) -> None:
        self.dispatchers = tuple(dispatchers)
        self.limit = limit
        self._queue = queue

    @property
    def queued(self) -> int:
        """Rows that wait to be sent, back-offs included."""
        return len(self._queue)

    @property
    def ready_bytes(self) -> int:
        """Of the bodies of rows that wait for their turn."""
        return self._queue.ready_bytes

    @property
    def in_flight(self) -> int:
        """Requests in flight, over all servers."""
        return sum(each.in_flight for each in self.dispatchers)

    @property
    def measured_s(self) -> float | None:
        """How long a row is taken to need, on the slowest server where that was measured; None where it was nowhere."""
        known = [each.durations.predicted_s() for each in self.dispatchers if each.durations.known]
        return max(known, default=None)

    def sending(self, now: float) -> bool:
        """Whether a row may be sent to some server at `now`, if there is room: only then does a pace say anything."""
        return any(not each.held and each.circuit.state is State.UP and each.fits(now) for each in self.dispatchers)

    def feed(self, requests: Iterable[RowRequest]) -> None:
        """Take in rows, in the order in which they should go."""
        self._queue.feed(requests)

    def spent(self) -> dict[int, Spent]:
        """What rows without an outcome have spent, once none is in flight."""
        return self._queue.spent()

    def stop(self, error: LLMBatchError) -> None:
        """Make every next command `Stop` with `error`; the first reason stands."""
        for each in self.dispatchers:
            each.stop(error)

    def order(self) -> list[int]:
        """The servers' numbers, the least loaded first."""
        return sorted(range(len(self.dispatchers)), key=lambda number: self.dispatchers[number].in_flight)

    def next(self, number: int, now: float) -> Command:
        """What to do with one server at `now`."""
        dispatcher = self.dispatchers[number]
        if len(self.dispatchers) == 1:  # asked twice for each row: nothing to share, and nobody else to go on
            return dispatcher.next(now)
        dispatcher.share = self._share(dispatcher)
        dispatcher.alone = self.in_flight == dispatcher.in_flight
        return dispatcher.next(now, may_give_up=self._all_lost(now))

    def _share(self, dispatcher: Dispatcher) -> int:
        """How many requests `dispatcher` may have in flight, those that it has included."""
        taking = [_own_limit(each) for each in self.dispatchers if not each.held and each.circuit.state is State.UP]
        room = self.limit - self.in_flight
        return min(_part(self.limit, taking), dispatcher.in_flight + max(0, room))

    def _all_lost(self, now: float) -> bool:
        """Whether the try may end for want of answers: one server that works is enough to go on."""
        return all(each.lost(now) for each in self.dispatchers)


def _own_limit(dispatcher: Dispatcher) -> int:
    """How many requests `dispatcher` may have in flight, whatever its share is."""
    return dispatcher.limit if dispatcher.learnt is None else min(dispatcher.limit, dispatcher.learnt.limit)


def _part(limit: int, most: list[int]) -> int:
    """The least equal part with which servers that take `most` each take all of `limit`; `limit` where they can't."""
    left = limit
    for number, one in enumerate(sorted(most)):
        part = -(-left // (len(most) - number))
        if part <= one:
            return part
        left -= one
    return limit
