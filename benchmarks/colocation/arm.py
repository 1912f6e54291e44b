"""One measurement: some traffic, some policy, so many batch processes, on a server that is idle before and after.

Owns its order and what is noted. Does not know the formulas (`measures`) nor how it is told (`report`).

Batch begins `WARM_S` before the traffic and goes on for `TAIL_S` after it, so that each token that is counted belongs
to an answer whose end was seen. Everything noted is moved to the traffic's zero.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_llm_provider.endpoint.load import GENERATED, RUNNING, WAITING
from benchmarks.colocation.measures import Stretch, by_phase, falls_into, held, jain, oracle_tokens, quantile
from benchmarks.colocation.realtime import Sample, play

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.colocation.fleet import Fleet, Noted
    from benchmarks.colocation.look import Look
    from benchmarks.colocation.policies import Policy
    from benchmarks.colocation.servers import Server
    from benchmarks.colocation.traffic import Traffic

WARM_S = 6.0
TAIL_S = 3.0
GAUGE_PERIOD_S = 0.25
PREFILL_S = 0.01
"""Real-time is taken to hold its slot for so long before its first token."""

REACTED_S = 2.0
"""A verdict later than this after a burst's begin has another cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What was noted. All moments count from the traffic's zero.

    Attributes:
        policy: under which.
        processes: of batch.
        traffic: beside which.
        slots: of the server.
        samples: real-time's requests.
        batch: per process, the answers that ended, as stretches of tokens.
        endings: of batch's requests within the traffic: how many ended how.
        looks: per process, its looks at the load.
        gauges: ``(at_s, running, waiting, generated tokens)``, by the server's own word.
        batch_cpu_s: of all batch processes together, warm-up and tail included.
        saturation_per_s: tokens/s of batch alone just before and after; None where that was not measured.
    """

    policy: Policy
    processes: int
    traffic: Traffic
    slots: int
    samples: list[Sample]
    batch: list[list[Stretch]]
    endings: dict[str, int]
    looks: list[list[Look]]
    gauges: list[tuple[float, float, float, float]]
    batch_cpu_s: float
    saturation_per_s: float | None = None

    @property
    def duration_s(self) -> float:
        """The traffic's."""
        return self.traffic.duration_s

    def ttft_s(self, phase: str | None = None) -> list[float]:
        """Real-time's times to the first token; of those sent in `phase` alone, where it is named."""
        return [
            sample.ttft_s
            for sample in self.samples
            if sample.ttft_s is not None and phase in (None, self.traffic.phase_at(sample.arrival.at_s))
        ]

    def found_full(self) -> list[bool]:
        """For each of real-time's requests, whether real-time itself held all slots when it came.

        It waits then whatever batch does: for a slot of its own kind.
        """
        ends: list[float] = []
        full = []
        for sample in self.samples:  # in the order in which they were sent
            while ends and ends[0] <= sample.sent_s:
                heapq.heappop(ends)
            full.append(len(ends) >= self.slots)
            heapq.heappush(ends, sample.ended_s)
        return full

    @property
    def failed(self) -> list[str]:
        """What went wrong with real-time's requests."""
        return [sample.error for sample in self.samples if sample.error is not None]

    @property
    def late_s(self) -> float:
        """The generator's own delay, 99th percentile: above some ms, it has no CPU, and its figures are its own."""
        return quantile([sample.sent_s - sample.due_s for sample in self.samples], 0.99)

    @property
    def realtime(self) -> list[Stretch]:
        """Real-time's answers, as stretches of tokens."""
        return [
            Stretch(
                from_s=max(sample.sent_s, sample.first_s - PREFILL_S),
                to_s=sample.ended_s,
                amount=sample.arrival.max_tokens,
            )
            for sample in self.samples
            if sample.first_s is not None
        ]

    @property
    def batch_tokens(self) -> float:
        """Tokens of batch answers, generated within the traffic's time."""
        return sum(falls_into(each, 0.0, self.duration_s) for each in self.batch)

    @property
    def batch_per_s(self) -> float:
        """Batch tokens/s."""
        return self.batch_tokens / self.duration_s

    def batch_per_s_in(self, phase: str) -> float:
        """Batch tokens/s in the phases of that name."""
        whole = [stretch for each in self.batch for stretch in each]
        return by_phase(whole, self.traffic)[phase] / self.traffic.share_s(phase)

    @property
    def realtime_share(self) -> float:
        """The share of the slots that real-time held."""
        return falls_into(held(self.realtime), 0.0, self.duration_s) / (self.slots * self.duration_s)

    def oracle_per_s(self, saturation_per_s: float) -> float:
        """What batch could have got, in tokens/s; see `measures`."""
        realtime_slot_s = falls_into(held(self.realtime), 0.0, self.duration_s)
        tokens = oracle_tokens(
            slots=self.slots,
            time_s=self.duration_s,
            realtime_slot_s=realtime_slot_s,
            saturation_per_s=saturation_per_s,
        )
        return tokens / self.duration_s

    @property
    def thrown_away_tokens(self) -> float:
        """Tokens that were generated for batch and came to nothing, by the server's count."""
        inside = [each for each in self.gauges if 0.0 <= each[0] <= self.duration_s]
        if len(inside) < 2:
            return math.nan
        from_s, to_s = inside[0][0], inside[-1][0]
        landed = sum(falls_into(each, from_s, to_s) for each in (self.realtime, *self.batch))
        return max(0.0, inside[-1][3] - inside[0][3] - landed)

    @property
    def shares(self) -> list[float]:
        """Tokens that each of the processes got."""
        return [falls_into(each, 0.0, self.duration_s) for each in self.batch]

    @property
    def fairness(self) -> float:
        """Jain's index of them."""
        return jain(self.shares)

    @property
    def looks_per_s(self) -> float:
        """How often all processes together looked at the load."""
        count = sum(1 for each in self.looks for look in each if 0.0 <= look.at_s < self.duration_s)
        return count / self.duration_s

    def reactions_s(self) -> list[float]:
        """For each burst that came where batch was: from its first request until a look makes room, or finds some.

        A look makes room by giving up rows, and finds some where a slot is free: a task on its way out that gives
        nothing up has not reacted. Infinite where none did within `REACTED_S`.
        """
        if not self.processes:
            return []
        reactions = []
        for before, phase in zip(self.traffic.phases, self.traffic.phases[1:], strict=False):
            if (before.name, phase.name) not in {("quiet", "burst"), ("between", "herd")}:
                continue
            first_s = min((s.sent_s for s in self.samples if phase.from_s <= s.arrival.at_s < phase.to_s), default=None)
            if first_s is None:
                continue
            made = (
                look.at_s - first_s
                for each in self.looks
                for look in each
                if 0 <= look.at_s - first_s < REACTED_S and look.has_room(self.slots)
            )
            reactions.append(min(made, default=math.inf))
        return reactions


def measure(
    server: Server, fleet: Fleet, traffic: Traffic, policy: Policy, *, processes: int, warm_s: float = WARM_S
) -> Arm:
    """Do one.

    Raises:
        RuntimeError: batch ended otherwise than it was told to, or the server does not come to rest.
    """
    server.settle()
    if processes:
        fleet.run(policy, processes=processes, url=server.url, api_key=server.api_key, slots=server.slots)
    try:
        zero_s, samples, gauges = asyncio.run(_play(server, traffic, policy, warm_s=warm_s if processes else 1.0))
        if processes:
            time.sleep(TAIL_S)  # noqa: TID251 - batch goes on alone
    finally:
        noted = fleet.stop(processes) if processes else []
    return _arm(server, traffic, policy, samples=samples, gauges=gauges, noted=noted, zero_s=zero_s)


async def _play(
    server: Server, traffic: Traffic, policy: Policy, *, warm_s: float
) -> tuple[float, list[Sample], list[tuple[float, float, float, float]]]:
    loop = asyncio.get_running_loop()
    zero_s = loop.time() + warm_s
    gauges: list[tuple[float, float, float, float]] = []

    async def watch() -> None:
        while True:
            counters = await asyncio.to_thread(server.counters)
            gauges.append((loop.time() - zero_s, counters[RUNNING], counters[WAITING], counters[GENERATED]))
            await asyncio.sleep(GAUGE_PERIOD_S)

    watching = asyncio.create_task(watch())
    try:
        if policy.realtime:
            samples = await play(traffic, server.url, model=server.model, headers=server.headers, begin_s=zero_s)
        else:
            samples = []
            await asyncio.sleep(zero_s + traffic.duration_s - loop.time())
    finally:
        watching.cancel()
    return zero_s, samples, gauges


def _arm(
    server: Server,
    traffic: Traffic,
    policy: Policy,
    *,
    samples: list[Sample],
    gauges: list[tuple[float, float, float, float]],
    noted: Sequence[Noted],
    zero_s: float,
) -> Arm:
    for sample in samples:
        sample.due_s -= zero_s
        sample.sent_s -= zero_s
        sample.ended_s -= zero_s
        if sample.first_s is not None:
            sample.first_s -= zero_s
    endings: dict[str, int] = {}
    batch: list[list[Stretch]] = []
    for each in noted:
        batch.append([])
        for sent_s, ended_s, generation_s, tokens, ending in each.requests:
            to_s = ended_s - zero_s
            from_s = sent_s - zero_s if generation_s is None else to_s - generation_s
            if ending == "ok":
                batch[-1].append(Stretch(from_s=from_s, to_s=to_s, amount=tokens))
            if 0 <= to_s < traffic.duration_s:
                endings[ending] = endings.get(ending, 0) + 1
    return Arm(
        policy=policy,
        processes=len(noted),
        traffic=traffic,
        slots=server.slots,
        samples=samples,
        batch=batch,
        endings=endings,
        looks=[[look._replace(at_s=look.at_s - zero_s) for look in each.looks] for each in noted],
        gauges=gauges,
        batch_cpu_s=sum(each.cpu_s for each in noted),
    )
