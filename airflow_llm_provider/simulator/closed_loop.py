"""Two simple loads, played against the engine: requests sent at once, and clients that send one after the other.

Owns these loads. Does not know what they are played for (`simulator.fit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.engine import Engine, Finished, SimRequest

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.spec import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Streams of one token, sent at once, and what came of them.

    Attributes:
        size: how many.
        prompt_tokens: of each.
        ttft_s: to the first token, on average.
    """

    size: int
    prompt_tokens: int
    ttft_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A closed loop, and what came of it.

    Attributes:
        clients: requests in flight.
        requests: of all clients together, until nobody sends another one.
        prompt_tokens: of each.
        max_tokens: of each, all of them generated.
        stream: whether they stream.
        tokens_per_s: of all of them together, from the first request to the last answer.
    """

    clients: int
    requests: int
    prompt_tokens: int
    max_tokens: int
    stream: bool
    tokens_per_s: float


def burst_ttft_s(spec: EngineSpec, burst: Burst) -> float:
    """Seconds to the first token, on average, of the simulated server, whatever `ttft_s` says."""
    engine = Engine(spec)
    for index in range(burst.size):
        engine.submit(0.0, SimRequest(request_id=str(index), prompt_tokens=burst.prompt_tokens, max_tokens=1))
    ttfts_s = []
    while (now := engine.next_s) is not None:
        ttfts_s += [event.ttft_s for event in engine.advance(now) if isinstance(event, Finished)]
    return sum(ttfts_s) / burst.size


def throughput(spec: EngineSpec, loop: Loop) -> float:
    """Tokens per second of the simulated server under that load, whatever `tokens_per_s` says."""
    engine = Engine(spec)
    names = count()

    def send(now: float) -> None:
        engine.submit(
            now,
            SimRequest(
                request_id=str(next(names)),
                prompt_tokens=loop.prompt_tokens,
                max_tokens=loop.max_tokens,
                every_token=loop.stream,
            ),
        )

    for _ in range(loop.clients):
        send(0.0)
    left, ended_s = loop.requests - loop.clients, 0.0
    while (now := engine.next_s) is not None:
        for event in engine.advance(now):
            if isinstance(event, Finished):
                ended_s = event.at_s
                if left > 0:
                    left -= 1
                    send(ended_s)
    return loop.requests * loop.max_tokens / ended_s
