"""Tasks with rows against a server of their own, in virtual time: dispatcher, limit and server, and no sockets.

Owns the clock and the way between client and server. Does not know the server (`Served`: the simulator's engine, or a
model of a test), nor which limit it plays.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Protocol

from airflow_llm_provider.core.circuit import Circuit
from airflow_llm_provider.core.commands import Send, Wait
from airflow_llm_provider.core.dispatch import Dispatcher
from airflow_llm_provider.core.limit import Learnt
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.request import Position, RowRequest
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.simulator.engine import Finished, SimRequest

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from airflow_llm_provider.core.limit import Limit
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.simulator.engine import Engine

ONE_WAY_S = 0.004
"""From client to server, and back: a network, an HTTP server, and a client that is busy itself."""

BUSY = Failure(FailureKind.BUSY, "engine is currently busy", 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a row asks of the server."""

    prompt_tokens: int
    answer_tokens: int


class Served(Protocol):
    """A server."""

    def submit(self, now: float, key: str, row: Row) -> bool:
        """Take a request in; False: refused."""
        ...

    @property
    def next_s(self) -> float | None:
        """When something happens there next; None: never by itself."""
        ...

    def advance(self, now: float) -> list[str]:
        """The requests that ended by `now`."""
        ...

    def load(self) -> Load | None:
        """What its gauges say; None where it has none."""
        ...

    @property
    def running(self) -> int:
        """Sequences in its batch."""
        ...


class Simulated:
    """The simulator's engine.

    Args:
        engine: it.
        readable: whether its load can be read.
    """

    def __init__(self, engine: Engine, *, readable: bool = True) -> None:
        self.engine = engine
        self._readable = readable

    def submit(self, now: float, key: str, row: Row) -> bool:
        """Take a request in; False: refused."""
        request = SimRequest(
            request_id=key, prompt_tokens=row.prompt_tokens, max_tokens=row.answer_tokens, every_token=False
        )
        return self.engine.submit(now, request) is None

    @property
    def next_s(self) -> float | None:
        """When a step ends, or a request reaches the engine."""
        return self.engine.next_s

    def advance(self, now: float) -> list[str]:
        """The requests that ended by `now`."""
        return [event.request_id for event in self.engine.advance(now) if isinstance(event, Finished)]

    def load(self) -> Load | None:
        """As vLLM's gauges."""
        if not self._readable:
            return None
        running, waiting, kv_usage = self.engine.gauges
        return Load(running=running, waiting=waiting, preemptions=self.engine.preemptions, kv_usage=kv_usage)

    @property
    def running(self) -> int:
        """Sequences in its batch."""
        return self.engine.running


@dataclass(slots=True)
class Task:
    """One batch task: its rows and its limit.

    Attributes:
        rows: what is to be done.
        limit: the law.
        starts_s: when it begins.
        most: ``max_in_flight``.
    """

    rows: Sequence[Row]
    limit: Limit
    starts_s: float = 0.0
    most: int = 10_000
    learnt: Learnt = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    refused: int = 0
    answered: int = 0
    ended_s: float = 0.0
    looks: list[tuple[float, int, int, str]] = field(default_factory=list)
    """Each look: when, own, the limit, why."""

    def __post_init__(self) -> None:
        self.learnt = Learnt(self.limit)
        self.dispatcher = Dispatcher(
            limit=self.most,
            max_attempts=5,
            wait_s=partial(_back_off_s, 1.0),
            circuit=Circuit(wait_s=partial(_back_off_s, 0.5), patience_s=600.0),
            learnt=self.learnt,
        )
        self.dispatcher.feed(
            RowRequest(index, str(index), "/v1/completions", b"", Position(file="", line=index))
            for index in range(len(self.rows))
        )

    @property
    def done(self) -> bool:
        """Whether every row has its answer."""
        return self.answered == len(self.rows)


def _back_off_s(first_s: float, attempt: int) -> float:
    """As `batch.backoff.exponential`, with its jitter's mean."""
    return min(30.0, first_s * 2.0 ** (attempt - 1)) + first_s / 2


class ClosedLoop:
    """Plays `tasks` against `server` until all rows are answered.

    Args:
        server: the server.
        tasks: whose rows.
        rng: the jitter of looks and ways.
        refuses: whether a request that arrives at a moment is refused whatever the server thinks.
    """

    def __init__(
        self,
        server: Served,
        tasks: Sequence[Task],
        rng: random.Random,
        refuses: Callable[[float], bool] = lambda _: False,
    ) -> None:
        self.server = server
        self.tasks = tasks
        self.now = 0.0
        self.trace: list[tuple[float, int]] = []
        """When the number of running sequences changed, and to what."""
        self.tail_s: float | None = None
        """When no row was left to send."""
        self._rng = rng
        self._refuses = refuses
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._flying: dict[str, tuple[Task, Ticket]] = {}
        self._keys = count()
        for task in tasks:
            self._at(task.starts_s, partial(self._look, task))

    def run(self, until_s: float = 1e6) -> None:
        """Play to the end, or to `until_s`.

        Raises:
            AssertionError: when rows are left and nothing will happen any more.
        """
        while not all(task.done for task in self.tasks):
            step_s = self.server.next_s
            event_s = self._events[0][0] if self._events else None
            if step_s is None and event_s is None:
                raise AssertionError("nothing will happen any more, and rows are left")
            now = min(moment for moment in (step_s, event_s) if moment is not None)
            if now > until_s:
                return
            self.now = now
            if step_s is not None and step_s <= self.now:
                for key in self.server.advance(self.now):
                    self._at(self.now + self._way_s(), partial(self._answered, *self._flying.pop(key)))
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            if not self.trace or self.trace[-1][1] != self.server.running:
                self.trace.append((self.now, self.server.running))

    def busy(self, slots: int) -> float:
        """Share of the slot time used between the first moment all slots ran and the tail."""
        begin = next((moment for moment, running in self.trace if running >= slots), None)
        end = self.tail_s
        if begin is None or end is None or end <= begin:
            return 0.0
        used = 0.0
        for (since, running), (until, _) in zip(self.trace, [*self.trace[1:], (self.now, 0)], strict=True):
            used += max(0.0, min(until, end) - max(since, begin)) * min(running, slots)
        return used / ((end - begin) * slots)

    def ramp_s(self, slots: int) -> float:
        """When all slots ran for the first time; infinite: never."""
        return next((moment for moment, running in self.trace if running >= slots), float("inf"))

    def _at(self, moment: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), what))

    def _way_s(self) -> float:
        return ONE_WAY_S * self._rng.uniform(0.5, 1.5)

    def _look(self, task: Task) -> None:
        load, own = self.server.load(), task.dispatcher.in_flight
        verdict = task.learnt.look(self.now, load, own)
        task.looks.append((self.now, own, verdict.limit, verdict.reason))
        self._pump(task)
        if not task.done:
            self._at(self.now + verdict.look_in_s * self._rng.uniform(0.9, 1.1), partial(self._look, task))

    def _pump(self, task: Task) -> None:
        while True:
            match task.dispatcher.next(self.now):
                case Send(tickets):
                    for ticket in tickets:
                        self._at(self.now + self._way_s(), partial(self._arrive, task, ticket))
                case Wait(until):
                    if until is not None:
                        self._at(max(until, self.now), partial(self._pump_late, task, until))
                    break
                case command:
                    raise AssertionError(command)
        if self.tail_s is None and not any(each.dispatcher.queued for each in self.tasks):
            self.tail_s = self.now

    def _pump_late(self, task: Task, until: float) -> None:
        if self.now >= until:
            self._pump(task)

    def _arrive(self, task: Task, ticket: Ticket) -> None:
        key = str(next(self._keys))
        if self._refuses(self.now) or not self.server.submit(self.now, key, task.rows[ticket.request.index]):
            self._at(self.now + self._way_s(), partial(self._refused, task, ticket))
        else:
            self._flying[key] = task, ticket

    def _refused(self, task: Task, ticket: Ticket) -> None:
        task.refused += 1
        task.dispatcher.failed(ticket, BUSY, self.now)
        self._pump(task)

    def _answered(self, task: Task, ticket: Ticket) -> None:
        task.dispatcher.answered(ticket, self.now)
        task.answered += 1
        if task.done:
            task.ended_s = self.now
        self._pump(task)
