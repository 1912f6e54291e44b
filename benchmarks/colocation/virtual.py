"""The same comparison without sockets, processes or clocks: the simulated engine and our core, in virtual time.

Owns the events between them. The dispatcher, the row queue and the control laws are the ones that run in production; of
the runner, only what it does with their word is done again, here and in `virtual_task`. A day on 256 slots takes
a minute, and a change of a control law shows at once; what it says of a real server is as good as the engine's model.

What takes time: a request to the server and an answer back `NETWORK_S` each, a look at the load twice that, and a
cancelled request frees its slot at the next step after `CANCEL_S`. The policy ``ideal`` is spared all that, and gives
up any row: it shows what is left of real-time's latency, and of batch, where control is perfect and steps are as long
as the batch makes them.
"""

from __future__ import annotations

import heapq
from functools import partial
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from airflow_llm_provider.core.commands import Send
from airflow_llm_provider.core.limit import Verdict
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.yielding import OFTEN, cheapest
from airflow_llm_provider.simulator.engine import Engine, Finished, SimRequest, Tokens
from benchmarks.colocation.arm import Arm
from benchmarks.colocation.look import Look
from benchmarks.colocation.realtime import PATIENCE_S, Sample
from benchmarks.colocation.virtual_task import task_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.simulator.engine import EngineSpec
    from benchmarks.colocation.policies import Policy
    from benchmarks.colocation.traffic import Arrival, Traffic
    from benchmarks.colocation.virtual_task import VirtualTask

NETWORK_S = 0.001
CANCEL_S = 0.012
WARM_S = 10.0
GAUGE_PERIOD_S = 0.5


class World:
    """One engine, real-time and batch.

    Args:
        spec: the engine's.
        traffic: real-time's.
        policy: batch's.
        processes: of batch.
        seed: of everything that is random.
    """

    def __init__(self, spec: EngineSpec, traffic: Traffic, policy: Policy, *, processes: int, seed: int = 0) -> None:
        self._engine = Engine(spec, seed=seed)
        self._spec = spec
        self._traffic = traffic
        self._policy = policy
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._ids = count()
        self._samples: dict[str, Sample] = {}
        self._tasks = [
            task_of(policy, slots=spec.max_num_seqs, number=number, seed=seed) for number in range(processes)
        ]
        self._gauges: list[tuple[float, float, float, float]] = []
        self._endings: dict[str, int] = {}
        self._realtime = 0  # sequences of it in the engine

    def run(self) -> Arm:
        """Play it to the end."""
        for task in self._tasks:
            self._at(-WARM_S + 0.1 * task.rng.random(), partial(self._begin, task=task))
        for arrival in self._traffic.arrivals if self._policy.realtime else ():
            self._at(arrival.at_s, partial(self._arrive, arrival=arrival))
        self._at(0.0, self._gauge)
        end_s = self._traffic.duration_s + WARM_S  # and until real-time has its answers, which batch may not hinder
        while True:
            event_s = self._heap[0][0] if self._heap else end_s + PATIENCE_S
            step_s = self._engine.next_s
            now = event_s if step_s is None else min(event_s, step_s)
            if now >= end_s + (PATIENCE_S if self._realtime else 0.0):
                break
            for event in self._engine.advance(now):
                if isinstance(event, Tokens):
                    self._first(event)
                elif isinstance(event, Finished):
                    self._finished(event)
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2](now)
        return Arm(
            policy=self._policy,
            processes=len(self._tasks),
            traffic=self._traffic,
            slots=self._spec.max_num_seqs,
            samples=list(self._samples.values()),
            batch=[task.landed for task in self._tasks],
            endings=self._endings,
            looks=[task.looks for task in self._tasks],
            gauges=self._gauges,
            batch_cpu_s=0.0,
        )

    def _at(self, at_s: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._heap, (at_s, next(self._order), what))

    # -- real-time

    def _arrive(self, now: float, arrival: Arrival) -> None:
        request_id = f"realtime-{next(self._ids)}"
        self._samples[request_id] = Sample(arrival=arrival, due_s=now, sent_s=now, error="it has not ended")
        request = SimRequest(
            request_id=request_id,
            prompt_tokens=arrival.prompt_tokens,
            max_tokens=arrival.max_tokens,
            every_token=False,
        )
        self._at(now + NETWORK_S, partial(self._submit, request=request))

    def _submit(self, now: float, request: SimRequest) -> None:
        self._realtime += 1
        if self._policy.law == "ideal":
            self._make_room(now)
        self._engine.submit(now, request)

    def _make_room(self, now: float) -> None:
        """The ideal: batch has what real-time has not, at once."""
        task = self._tasks[0]
        free = self._spec.max_num_seqs - self._realtime
        if task.dispatcher.learnt is not None:
            task.dispatcher.learnt.limit = max(0, free)
        if (excess := task.dispatcher.in_flight - free) > 0:
            self._give_up(now, task, Verdict(limit=max(0, free), give_up=excess), cancel_s=0.0)
        self._pump(now, task)

    def _first(self, event: Tokens) -> None:
        if (sample := self._samples.get(event.request_id)) is not None and sample.first_s is None:
            sample.first_s = event.at_s + NETWORK_S

    # -- batch

    def _begin(self, now: float, task: VirtualTask) -> None:
        if self._policy.law == "ideal":
            self._make_room(now)
        elif task.dispatcher.learnt is not None:
            self._look(now, task)
        else:
            self._pump(now, task)

    def _pump(self, now: float, task: VirtualTask) -> None:
        while True:
            while task.dispatcher.queued < self._spec.max_num_seqs:
                task.dispatcher.feed([task.next_row(next(self._ids))])
            command = task.dispatcher.next(now)
            if not isinstance(command, Send):
                return
            for ticket in command.tickets:
                self._send(now, task, ticket)

    def _send(self, now: float, task: VirtualTask, ticket: Ticket) -> None:
        request = task.request(ticket, f"batch-{next(self._ids)}", block_size=self._spec.block_size)
        task.flights[request.request_id] = ticket

        def submit(now: float) -> None:
            if request.request_id in task.flights:  # not given up on the way
                self._engine.submit(now, request)

        self._at(now + NETWORK_S, submit)

    def _finished(self, event: Finished) -> None:
        if (sample := self._samples.get(event.request_id)) is not None:
            sample.ended_s, sample.error = event.at_s, None
            self._realtime -= 1
            if self._policy.law == "ideal":
                self._at(event.at_s, self._make_room)
            return
        self._at(event.at_s + NETWORK_S, partial(self._answered, event=event))

    def _answered(self, now: float, event: Finished) -> None:
        task = next((task for task in self._tasks if event.request_id in task.flights), None)
        if task is None:
            return  # given up while its answer was on its way
        self._count(now, "ok")
        task.answered(now, event)
        self._pump(now, task)

    # -- control

    def _look(self, now: float, task: VirtualTask) -> None:
        """The load as it is now, which is in our hands a little later."""
        gauges = self._engine.gauges
        load = Load(
            running=gauges.running,
            waiting=gauges.waiting,
            preemptions=self._engine.preemptions,
            kv_usage=gauges.kv_usage,
            generated=self._engine.totals.generation_tokens,
        )
        self._at(now + 2 * NETWORK_S, partial(self._obey, task=task, load=load))

    def _obey(self, now: float, task: VirtualTask, load: Load) -> None:
        learnt = task.dispatcher.learnt
        if learnt is None:
            raise AssertionError
        own = task.dispatcher.in_flight
        verdict = learnt.look(now, load, own, needs=task.dispatcher.needs)
        task.looks.append(Look(now, load.running, load.waiting, own, verdict.limit, verdict.give_up))
        if verdict.give_up:
            self._give_up(now, task, verdict)
        self._pump(now, task)
        self._at(now + verdict.look_in_s, partial(self._look, task=task))

    def _give_up(self, now: float, task: VirtualTask, verdict: Verdict, *, cancel_s: float = CANCEL_S) -> None:
        often = inf if self._policy.law == "ideal" else OFTEN
        for request_id in cheapest(dict(task.flights), verdict.give_up, often=often):
            ticket = task.flights.pop(request_id)
            self._count(now, "given-up")
            task.dispatcher.yielded(ticket, now)
            if cancel_s:
                self._at(now + cancel_s, partial(self._abort, request_id=request_id))
            else:
                self._abort(now, request_id)

    def _abort(self, now: float, request_id: str) -> None:
        self._engine.abort(now, request_id)

    # -- notes

    def _count(self, now: float, ending: str) -> None:
        if 0 <= now < self._traffic.duration_s:
            self._endings[ending] = self._endings.get(ending, 0) + 1

    def _gauge(self, now: float) -> None:
        gauges = self._engine.gauges
        self._gauges.append((now, gauges.running, gauges.waiting, self._engine.totals.generation_tokens))
        self._at(now + GAUGE_PERIOD_S, self._gauge)
