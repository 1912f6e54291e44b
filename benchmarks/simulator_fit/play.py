"""Plays traffic: against a real server in real time, against the engine in no time.

Owns who sends what when. Does not know what the figures are compared with (`__main__`).
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.engine import Engine, EngineSpec, Finished, SimRequest

if TYPE_CHECKING:
    from benchmarks.simulator_fit.asking import Asker
    from benchmarks.simulator_fit.traffic import Asked, Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What became of it.

    Attributes:
        ttfts_s: of the streams, in no order.
        tokens: generated for requests that ended while the traffic lasted.
        duration_s: how long it lasted.
    """

    ttfts_s: tuple[float, ...]
    tokens: int
    duration_s: float

    @property
    def tokens_per_s(self) -> float:
        """Throughput."""
        return self.tokens / self.duration_s


async def play_real(traffic: Traffic, asker: Asker) -> Played:
    """Send it over HTTP, and wait for the last answer."""
    clock = asyncio.get_running_loop().time
    begin_s = clock()
    ttfts_s: list[float] = []
    tokens = 0

    async def one(asked: Asked) -> None:
        nonlocal tokens
        answer = await asker.ask(asked.prompt_tokens, asked.max_tokens, stream=asked.stream)
        if asked.stream:
            ttfts_s.append(answer.ttft_s)
        if answer.ended_s - begin_s <= traffic.duration_s:
            tokens += asked.max_tokens

    async def client(requests: tuple[Asked, ...]) -> None:
        for asked in requests:
            if clock() - begin_s >= traffic.duration_s:
                return
            await one(asked)

    async with asyncio.TaskGroup() as clients:
        for requests in traffic.loops:
            clients.create_task(client(requests))
        for at_s, asked in traffic.arrivals:
            await asyncio.sleep(max(0.0, begin_s + at_s - clock()))
            clients.create_task(one(asked))
    return Played(ttfts_s=tuple(ttfts_s), tokens=tokens, duration_s=traffic.duration_s)


def play_simulated(traffic: Traffic, spec: EngineSpec, *, seed: int = 0) -> Played:
    """The same, with the engine's own time."""
    engine = Engine(spec, seed=seed)
    numbers = count()
    loops = [iter(requests) for requests in traffic.loops]
    sending: list[tuple[float, int, Asked, int | None]] = []  # when, in which order, what, for which loop
    for at_s, asked in traffic.arrivals:
        sending.append((at_s, next(numbers), asked, None))
    for index, loop in enumerate(loops):
        sending.append((0.0, next(numbers), next(loop), index))
    heapq.heapify(sending)
    under_way: dict[str, tuple[Asked, int | None]] = {}
    ttfts_s: list[float] = []
    tokens = 0
    while sending or engine.next_s is not None:
        end_s = engine.next_s
        if end_s is None or (sending and sending[0][0] < end_s):
            at_s, number, asked, client = heapq.heappop(sending)
            under_way[str(number)] = asked, client
            engine.submit(at_s, _request(str(number), asked))
            continue
        for event in engine.advance(end_s):
            if not isinstance(event, Finished):
                continue
            asked, client = under_way.pop(event.request_id)
            if asked.stream:
                ttfts_s.append(event.ttft_s)
            if event.at_s <= traffic.duration_s:
                tokens += asked.max_tokens
                if client is not None:
                    heapq.heappush(sending, (event.at_s, next(numbers), next(loops[client]), client))
    return Played(ttfts_s=tuple(ttfts_s), tokens=tokens, duration_s=traffic.duration_s)


def _request(name: str, asked: Asked) -> SimRequest:
    return SimRequest(
        request_id=name, prompt_tokens=asked.prompt_tokens, max_tokens=asked.max_tokens, every_token=asked.stream
    )
