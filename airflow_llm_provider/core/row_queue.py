"""The rows of a run that wait to be sent, and the order in which they go.

Owns the queue, the back-off of rows that failed, and the lane of rows that are suspected of killing the server. Does
not know what a failure means for a row (`core.dispatch`), nor whether anything may be sent.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from airflow_llm_provider.core.answers import Asked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_llm_provider.core.request import RowRequest
    from airflow_llm_provider.core.slices import SlicedRow

ALONE_FROM = 2
"""From this many deaths on, a row is in flight only while no other such row is: its next death convicts it alone. Rows
that happened to be beside the cause each time would otherwise end with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a row had spent when its try was held.

    Attributes:
        attempts: requests that were not given up by ourselves.
        spent: how many of them count against its budget.
        suspicions: deaths of the server that happened with the row in flight.
        repairs: how often it was asked again since its answer was not what was wanted.
    """

    attempts: int = 0
    spent: int = 0
    suspicions: int = 0
    repairs: int = 0


@dataclass(slots=True)
class Ticket:
    """A row on its way, with what it has spent.

    Attributes:
        request: what to send.
        sends: requests made for the row in this try, of whatever end.
        yields: how many of them were given up for real-time's sake or at the window's close.
        fruitless: how many were given up in a row, without anything kept of them.
        sent_s: when the last one was sent, monotonic.
        spent: attempts that count against the row's budget.
        doubtful: whether the server was lost with the row in flight, so that the next loss may be its fault.
        suspicions: deaths of the server that happened with the row in flight.
        immediate: stale connections met in a row.
        answered: whether the row has its answer; it may be sent again to see whether the endpoint answers anything.
        sliced: the row's way where it runs in slices.
        whole: whether it must run whole.
        parts: how many of the requests were slices that others followed.
        begun: whether slices of it are kept, and the next one follows them.
        took_s: how long those were in flight together.
        asked: what it was asked before, where its first answer did not land.
    """

    request: RowRequest
    sends: int = 0
    yields: int = 0
    fruitless: int = 0
    sent_s: float = 0.0
    spent: int = 0
    doubtful: bool = False
    suspicions: int = 0
    immediate: int = 0
    answered: bool = False
    sliced: SlicedRow | None = None
    whole: bool = False
    parts: int = 0
    begun: bool = False
    took_s: float = 0.0
    asked: Asked | None = None

    @property
    def attempts(self) -> int:
        """Requests that were not given up by ourselves; all slices that follow each other count as one.

        A row that began in slices, and then anew, has two: the slices, and the whole row.
        """
        return self.sends - self.yields - self.parts

    @property
    def goes_alone(self) -> bool:
        """Whether it must not be in flight together with another such row."""
        return self.suspicions >= ALONE_FROM


class RowQueue:
    """Tickets in the order in which they should go; those that go alone have a lane of their own.

    Args:
        spent: what rows had spent before, by index.

    Attributes:
        ready_bytes: of the bodies of rows that wait for their turn, back-offs not included.
    """

    def __init__(self, spent: Mapping[int, Spent] | None = None) -> None:
        self._spent = dict(spent or {})
        self.ready_bytes = 0
        self._ready: deque[Ticket] = deque()
        self._suspects: deque[Ticket] = deque()  # those that go alone
        self._alone: Ticket | None = None  # the one of them that is in flight
        self._delayed: list[tuple[float, int, Ticket]] = []
        self._order = count()

    def __len__(self) -> int:
        """Rows that wait, back-offs included."""
        return len(self._ready) + len(self._suspects) + len(self._delayed)

    @property
    def begun(self) -> bool:
        """Whether a row waits of which slices are kept."""
        return any(ticket.begun for ticket in self._ready)

    def feed(self, requests: Iterable[RowRequest]) -> None:
        """Take in new rows, behind all others."""
        for request in requests:
            ticket = Ticket(request)
            if self._spent and (before := self._spent.pop(request.index, None)) is not None:
                ticket.sends, ticket.spent = before.attempts, before.spent
                ticket.suspicions, ticket.doubtful = before.suspicions, before.suspicions > 0
                ticket.asked = Asked(request, repairs=before.repairs) if before.repairs else None
            self._lane(ticket).append(ticket)
            self.ready_bytes += len(request.body)

    def spent(self) -> dict[int, Spent]:
        """What the rows that wait, or were never fed, have spent; those that have spent nothing are left out."""
        waiting = (*self._ready, *self._suspects, *(ticket for _, _, ticket in self._delayed))
        found = {
            ticket.request.index: Spent(
                attempts=ticket.attempts,
                spent=ticket.spent,
                suspicions=ticket.suspicions,
                repairs=ticket.asked.repairs if ticket.asked is not None else 0,
            )
            for ticket in waiting
            if ticket.spent or ticket.suspicions or ticket.asked is not None
        }
        return {**self._spent, **found}

    def first(self, ticket: Ticket) -> None:
        """Have it go again before others."""
        self._lane(ticket).appendleft(ticket)
        self.ready_bytes += len(ticket.request.body)

    def last(self, ticket: Ticket) -> None:
        """Have it go again after others."""
        self._lane(ticket).append(ticket)
        self.ready_bytes += len(ticket.request.body)

    def later(self, ticket: Ticket, due_s: float) -> None:
        """Have it go again at `due_s` (monotonic seconds), after those that are waiting then."""
        heapq.heappush(self._delayed, (due_s, next(self._order), ticket))

    def due_s(self, now: float) -> float | None:
        """End the back-offs that are over at `now`, and say when the next one is."""
        while self._delayed and self._delayed[0][0] <= now:
            self.last(heapq.heappop(self._delayed)[2])
        return self._delayed[0][0] if self._delayed else None

    @property
    def head(self) -> Ticket | None:
        """Which one is to go where only one may; one that goes alone only if there is no other."""
        if self._ready:
            return self._ready[0]
        return self._suspects[0] if self._suspects and self._alone is None else None

    def take_head(self) -> list[Ticket]:
        """The head, if there is one."""
        return [self._taken(self._ready)] if self._ready else self.take(1)

    def take(self, room: int, *, idle: bool = False, begun: bool = False) -> list[Ticket]:
        """Tickets for `room` sequences, at most one of them of those that go alone.

        Args:
            room: a request for several answers takes as many.
            idle: nothing is in flight: one ticket may go that asks for more than there is room for.
            begun: only rows of which slices are kept, as far as they stand first.
        """
        tickets: list[Ticket] = []
        if room > 0 and self._suspects and self._alone is None and not begun:
            self._alone = self._taken(self._suspects)
            tickets.append(self._alone)
            room -= self._alone.request.sequences
        while self._ready and room > 0:
            if begun and not self._ready[0].begun:
                break
            sequences = self._ready[0].request.sequences
            if sequences > room and (tickets or not idle):
                break
            tickets.append(self._taken(self._ready))
            room -= sequences
        return tickets

    def landed(self, ticket: Ticket) -> None:
        """It is not in flight any more, however it ended."""
        if ticket is self._alone:
            self._alone = None

    def _taken(self, lane: deque[Ticket]) -> Ticket:
        ticket = lane.popleft()
        self.ready_bytes -= len(ticket.request.body)
        return ticket

    def _lane(self, ticket: Ticket) -> deque[Ticket]:
        return self._suspects if ticket.goes_alone else self._ready
