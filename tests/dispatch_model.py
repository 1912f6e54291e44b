"""Plays server and clock for a dispatcher, and checks what must always hold."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

from airflow_llm_provider.core.circuit import Circuit
from airflow_llm_provider.core.commands import Probe, Send, Stop, Wait
from airflow_llm_provider.core.dispatch import Dispatcher
from airflow_llm_provider.core.request import Position, RowRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_llm_provider.core.request import RowError
    from airflow_llm_provider.core.retry import Failure
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.exceptions import LLMBatchError

    Answer = tuple[float, Failure | None]
    """Seconds from sending to the end, and how it ends; None is an answer."""

    Order = Callable[["World"], None]
    """What a gate does: `World.hold` or `World.release`."""


def request(index: int) -> RowRequest:
    return RowRequest(index, f"row-{index}", "/v1/chat/completions", b"{}", Position(file="", line=index))


def wait_s(attempt: int) -> float:
    return min(30.0, 0.5 * 2**attempt)


def dispatcher(*, limit: int = 4, max_attempts: int = 3, patience_s: float = 600.0) -> Dispatcher:
    circuit = Circuit(wait_s=wait_s, patience_s=patience_s)
    return Dispatcher(limit=limit, max_attempts=max_attempts, wait_s=wait_s, circuit=circuit)


class World:
    """A server that does to each sending what `serve` says, in virtual time.

    Args:
        made: the dispatcher under test.
        serve: called with the ticket and the tickets in flight beside it.
        probe: what a probe ends with.
        low_water: rows are fed in order while fewer are queued, as the feeder does; 0 feeds them all at once.
        gate: orders, each with the seconds after the one before.
    """

    def __init__(
        self,
        made: Dispatcher,
        rows: int,
        serve: Callable[[Ticket, World], Answer],
        *,
        probe: Callable[[World], Answer] = lambda _: (0.01, None),
        low_water: int = 0,
        gate: Iterable[tuple[float, Order]] = (),
    ) -> None:
        self.made = made
        self.now = 1000.0
        self.flying: dict[int, Ticket] = {}
        self.settled: dict[int, RowError | None] = {}
        self.sent: list[int] = []
        self.stopped: LLMBatchError | None = None
        self._rows = rows
        self._fed = 0
        self._serve = serve
        self._probe = probe
        self._low_water = low_water or rows
        self._gate = deque(gate)
        self._ordered_s = self.now
        self._closes_s: float | None = None
        self._owed: dict[int, Ticket] = {}
        self._events: list[tuple[float, int, Ticket | None, Failure | None]] = []
        self._order = count()

    def run(self, *, steps: int = 5_000) -> World:
        """Until every row has settled or the dispatcher says stop."""
        for _ in range(steps):
            self._feed()
            match self.made.next(self.now):
                case Send(tickets):
                    self._send(tickets)
                case Probe():
                    self._schedule(None, *self._probe(self))
                case Stop(error):
                    self.stopped = error
                    return self
                case Wait(until):
                    assert until is None or until > self.now, "to wait for a moment that is past is a busy loop"
                    if len(self.settled) == self._rows and not self.made.in_flight:
                        assert not self.made.queued
                        return self
                    self._pass_time(until)
        raise AssertionError(f"no end after {steps} steps")

    def _feed(self) -> None:
        while self._fed < self._rows and self.made.queued < self._low_water:
            self.made.feed([request(self._fed)])
            self._fed += 1

    def _send(self, tickets: list[Ticket]) -> None:
        assert tickets
        assert not self.made.held, "rows are sent during a hold"
        assert self._closes_s is None or self.now + self.made.durations.predicted_s() <= self._closes_s
        for ticket in tickets:
            self._owed.pop(ticket.request.index, None)
        if any(ticket.sends == 1 for ticket in tickets):
            assert all(ticket.goes_alone for ticket in self._owed.values()), "a new row goes before one that yielded"
        for ticket in tickets:
            index = ticket.request.index
            assert index not in self.flying, "a row is in flight twice"
            assert index not in self.settled or ticket.answered, "a settled row is sent again"
            assert not ticket.answered or len(tickets) == 1, "a row that was answered is sent for its answer's sake"
            self.flying[index] = ticket
            self.sent.append(index)
        assert len(self.flying) == self.made.in_flight
        assert self.made.in_flight <= self.made.limit
        for ticket in tickets:
            self._schedule(ticket, *self._serve(ticket, self))

    def _schedule(self, ticket: Ticket | None, after_s: float, failure: Failure | None) -> None:
        heapq.heappush(self._events, (self.now + after_s, next(self._order), ticket, failure))

    def _pass_time(self, until: float | None) -> None:
        if self._gate:
            order_s = self._ordered_s + self._gate[0][0]
            if (not self._events or order_s <= self._events[0][0]) and (until is None or order_s <= until):
                self.now = self._ordered_s = order_s
                self._gate.popleft()[1](self)
                return
        if not self._events or (until is not None and until < self._events[0][0]):
            assert until is not None, "nothing is in flight and nothing is waited for: the run hangs"
            self.now = until
            return
        self.now, _, ticket, failure = heapq.heappop(self._events)
        if ticket is None:
            self.made.probed(failure, self.now)
        else:
            self._settle(ticket, failure)

    def hold(self, *, yields: bool = False) -> None:
        """Nothing more is sent; with `yields`, what is in flight is given up."""
        self.made.hold()
        if not yields:
            return
        for ticket in self.flying.values():
            before = (ticket.spent, ticket.suspicions, ticket.immediate, ticket.attempts - 1)
            self.made.yielded(ticket, 0.0)
            assert before == (ticket.spent, ticket.suspicions, ticket.immediate, ticket.attempts)
            if ticket.request.index not in self.settled:
                self._owed[ticket.request.index] = ticket
        self.flying.clear()
        self._events = [event for event in self._events if event[2] is None]
        heapq.heapify(self._events)

    def release(self, *, limit: int, closes_in_s: float | None = None) -> None:
        """Send again."""
        self._closes_s = None if closes_in_s is None else self.now + closes_in_s
        self.made.release(limit=limit, closes_s=self._closes_s)

    def end_all(self, failure: Failure) -> None:
        """Everything in flight ends with `failure` in this moment: the server died."""
        died = [event for event in self._events if event[2] is not None]
        self._events = [event for event in self._events if event[2] is None]
        heapq.heapify(self._events)
        for _, _, ticket, _ in died:
            self._schedule(ticket, 0.001, failure)

    def _settle(self, ticket: Ticket, failure: Failure | None) -> None:
        index = ticket.request.index
        del self.flying[index]
        if failure is None:
            assert self.made.answered(ticket, self.now) is (index not in self.settled)
            self.settled[index] = None
        elif (error := self.made.failed(ticket, failure, self.now)) is not None:
            assert index not in self.settled
            self.settled[index] = error
