"""A server as plain as can be, to close the loop around a limit: slots, two priorities, rows that run in slices.

Every sequence takes its tokens at a fixed rate whatever else runs; there is no memory, no prompt. What the model has is
what misleads a control law: a row between two slices is on no server for a moment, a cancelled one frees its slot
late, and tasks look at moments of their own.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.core.load import CHOSEN_COST_S, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow_llm_provider.core.limit import Limit

RATE = 390.0  # tokens/s of a sequence: the tiny model on a CPU
GPU_RATE = 48.0  # a large model on a GPU, 256 at once
SLICE = 128
HOP_S = 0.003  # from a client to the server and back again
CANCEL_S = 0.012


@dataclass(eq=False)
class Work:
    """A sequence in the server or on its way there."""

    arrived_s: float
    tokens: int
    task: Task | None = None  # None: real-time
    left: int = 0
    started_s: float | None = None
    gone: bool = False


@dataclass(eq=False)
class Task:
    """A batch task with rows without end."""

    law: Limit
    limit: int = 0
    own: list[Work] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)  # tokens left of rows that were given up or sliced
    held_s: float = 0.0  # sequences × seconds


class Model:
    """One server and its tasks.

    Args:
        slots: sequences that run at once.
        laws: a limit for each task.
        arrivals: real-time's, as (moment, tokens).
        joins_s: when each task begins.
        seed: of row lengths.
        cancel_s: until a server takes notice of a cancelled row.
        rate: tokens/s of a sequence.
        look_cost_s: what a look costs the server.
    """

    def __init__(
        self,
        slots: int,
        laws: Sequence[Limit],
        arrivals: Sequence[tuple[float, int]] = (),
        *,
        joins_s: Sequence[float] | None = None,
        seed: int = 0,
        cancel_s: float = CANCEL_S,
        rate: float = RATE,
        look_cost_s: float = CHOSEN_COST_S,
    ) -> None:
        self.slots = slots
        self.cancel_s = cancel_s
        self.rate = rate
        self.look_cost_s = look_cost_s
        self.tasks = [Task(law) for law in laws]
        self.waits: list[float] = []  # real-time's, for a slot
        self.batch_tokens = self.lost_tokens = self.looks = self.yields = 0
        self.realtime_s = 0.0
        self._rng = Random(seed)
        self._running: list[Work] = []
        self._waiting: list[tuple[int, int, Work]] = []
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._now = 0.0
        for number, task in enumerate(self.tasks):
            self._at((joins_s[number] if joins_s else 0.0) + self._rng.random() / 10, self._look, task)
        for moment, tokens in arrivals:
            self._at(moment, self._arrive, Work(moment, tokens))

    def run(self, until_s: float) -> Model:
        """Go on until then."""
        while self._events and self._events[0][0] <= until_s:
            moment, _, what, arguments = heapq.heappop(self._events)
            self._pass(moment)
            what(*arguments)
        self._pass(until_s)
        return self

    @property
    def total(self) -> int:
        """Running and waiting."""
        return len(self._running) + sum(not work.gone for _, _, work in self._waiting)

    @property
    def oracle_share(self) -> float:
        """Batch's tokens as a share of what the slots could have made that real-time left free."""
        return self.batch_tokens / ((self.slots * self._now - self.realtime_s) * self.rate)

    @property
    def jain(self) -> float:
        """Jain's fairness index of what the tasks held."""
        held = [task.held_s for task in self.tasks]
        return sum(held) ** 2 / (len(held) * sum(each * each for each in held))

    def waited(self, quantile: float) -> float:
        """Real-time's wait for a slot, in seconds."""
        return sorted(self.waits)[int(quantile * len(self.waits))]

    def _at(self, moment: float, what: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, what, arguments))

    def _pass(self, moment: float) -> None:
        seconds, self._now = moment - self._now, moment
        self.realtime_s += seconds * sum(work.task is None for work in self._running)
        for task in self.tasks:
            task.held_s += seconds * len(task.own)

    def _arrive(self, work: Work) -> None:
        if not work.gone:
            self._count += 1
            heapq.heappush(self._waiting, (work.task is not None, self._count, work))
            self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            work = heapq.heappop(self._waiting)[2]
            if work.gone:
                continue
            work.started_s = self._now
            self._running.append(work)
            if work.task is None:
                self.waits.append(self._now - work.arrived_s)
            self._at(self._now + work.tokens / self.rate, self._end, work)

    def _end(self, work: Work) -> None:
        if work in self._running:
            self._running.remove(work)
            self._admit()
            if work.task is not None:
                self.batch_tokens += work.tokens
                self._at(self._now + HOP_S, self._answered, work.task, work)

    def _answered(self, task: Task, work: Work) -> None:
        if work not in task.own:
            return  # given up while the answer was on its way
        task.own.remove(work)
        if work.left > work.tokens:
            task.begun.append(work.left - work.tokens)
        if not task.law.ended(self._now, self._now - work.arrived_s):
            task.limit = min(task.limit, len(task.own))
        self._send(task)

    def _send(self, task: Task) -> None:
        while len(task.own) < task.limit:
            left = task.begun.pop() if task.begun else self._rng.randint(160, 640)
            work = Work(self._now, min(SLICE, left) if left > 1.5 * SLICE else left, task, left)
            task.own.append(work)
            self._at(self._now + HOP_S, self._arrive, work)

    def _look(self, task: Task) -> None:
        self.looks += 1
        load = Load(running=len(self._running), waiting=self.total - len(self._running), cost_s=self.look_cost_s)
        verdict = task.law.look(self._now, load, len(task.own))
        task.limit = verdict.limit
        latest = sorted(task.own, key=lambda work: work.arrived_s, reverse=True)
        for work in latest[: verdict.give_up]:
            self.yields += 1
            task.own.remove(work)
            task.begun.append(work.left)
            self._at(self._now + self.cancel_s, self._dropped, work)
            task.law.gave_up(self._now, 1)
        self._send(task)
        self._at(self._now + verdict.look_in_s, self._look, task)

    def _dropped(self, work: Work) -> None:
        work.gone = True
        if work in self._running and work.started_s is not None:
            self.lost_tokens += int((self._now - work.started_s) * self.rate)
            self._running.remove(work)
            self._admit()


def bursts(seed: int, until_s: float, *, per_s: float = 8.0, burst_s: float = 10.0, quiet_s: float = 18.0) -> list[Any]:
    """Poisson bursts of 64-192 tokens with quiet in between, which comes first: (moment, tokens) each."""
    return list(_bursts(Random(seed), until_s, per_s, burst_s, quiet_s))


def _bursts(rng: Random, until_s: float, per_s: float, burst_s: float, quiet_s: float) -> Iterator[tuple[float, int]]:
    begins = quiet_s
    while begins < until_s:
        moment = begins + rng.expovariate(per_s)
        while moment < begins + burst_s:
            yield moment, rng.randint(64, 192)
            moment += rng.expovariate(per_s)
        begins += burst_s + quiet_s
