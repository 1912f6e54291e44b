"""Loads made to tell the terms of a step model apart, on a real server.

Owns which loads. Does not know the equations (`airflow_llm_provider.simulator.fit`).

Waves are requests sent at once that decode side by side, so that their number is known at every step. All kinds of load
are made in each turn, because a machine's speed changes while it is measured.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.closed_loop import Burst, Loop
from airflow_llm_provider.simulator.fit import ApiWork, Calibration, Churn, Prefill, Wave

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.simulator_fit.asking import Asker

SHORT, LONG = 16, 1500
ANSWER = 200
PREFILLS = (SHORT, 400, 1000, 1900)
_ALONE = 15
_BURSTS = 5
_CHURN_ANSWER, _CHURN_ROUNDS = 24, 12
_LOOP_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One measurement of each kind.

    Attributes:
        inter_token_s: of waves, by their size and prompt.
        prefill_s: by the prompt's length.
        churn: of short answers.
        work: the API server's, in an order that is the same each time.
        lone_ttfts_s: of short requests alone, at their client.
        lone_prefills_s: of the same, in the engine.
        burst_ttft_s: of as many short requests at once as there are slots, on average.
        loops_tokens_per_s: of closed loops, whole answers and streams.
    """

    inter_token_s: Mapping[tuple[int, int], float]
    prefill_s: Mapping[int, float]
    churn: Churn
    work: Sequence[ApiWork]
    lone_ttfts_s: Sequence[float]
    lone_prefills_s: Sequence[float]
    burst_ttft_s: float
    loops_tokens_per_s: tuple[float, float]


async def turn(asker: Asker, slots: int) -> Turn:
    """Measure a server that is otherwise idle."""
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size < slots] + [slots]
    kinds = [(size, SHORT) for size in sizes] + [(1, LONG), (slots, LONG)]
    waves = {kind: await _wave(asker, *kind, ANSWER) for kind in kinds}
    _, streams = await _wave(asker, slots, SHORT, ANSWER, stream=True)
    alone = [await _alone(asker) for _ in range(_ALONE)]
    return Turn(
        inter_token_s={kind: inter_token_s for kind, (inter_token_s, _) in waves.items()},
        prefill_s={length: await _prefill_s(asker, length) for length in PREFILLS},
        churn=await _churn(asker, 2 * slots),
        work=(waves[slots, SHORT][1], streams, await _short(asker, 20 * slots, slots)),
        lone_ttfts_s=[ttft_s for ttft_s, _ in alone],
        lone_prefills_s=[prefill_s for _, prefill_s in alone],
        burst_ttft_s=statistics.median([await _burst_ttft_s(asker, slots) for _ in range(_BURSTS)]),
        loops_tokens_per_s=(
            await _loop_tokens_per_s(asker, slots, stream=False),
            await _loop_tokens_per_s(asker, slots, stream=True),
        ),
    )


def calibration(turns: Sequence[Turn], slots: int, batched_tokens: int = 2048) -> Calibration:
    """The medians over the turns.

    Args:
        turns: one at least.
        slots: `max_num_seqs`.
        batched_tokens: `max_num_batched_tokens`.
    """
    median = statistics.median
    loops = [
        Loop(
            clients=slots,
            requests=_LOOP_ROUNDS * slots,
            prompt_tokens=SHORT,
            max_tokens=ANSWER,
            stream=stream,
            tokens_per_s=median(one.loops_tokens_per_s[stream] for one in turns),
        )
        for stream in (False, True)
    ]
    return Calibration(
        waves=tuple(
            Wave(
                size=size,
                context_tokens=prompt + ANSWER / 2,
                inter_token_s=median(one.inter_token_s[size, prompt] for one in turns),
            )
            for size, prompt in turns[0].inter_token_s
        ),
        prefills=tuple(
            Prefill(
                prompt_tokens=length,
                steps=-(-length // batched_tokens),
                prefill_s=median(one.prefill_s[length] for one in turns),
            )
            for length in PREFILLS
        ),
        churn=sorted((one.churn for one in turns), key=lambda churn: churn.inter_token_s)[len(turns) // 2],
        api=tuple(
            sorted(same, key=lambda work: work.cpu_s)[len(turns) // 2]
            for same in zip(*(one.work for one in turns), strict=True)
        ),
        lone_ttft_s=median(ttft_s for one in turns for ttft_s in one.lone_ttfts_s),
        lone_prompt_tokens=SHORT,
        lone_prefills_s=tuple(prefill_s for one in turns for prefill_s in one.lone_prefills_s),
        burst=Burst(size=slots, prompt_tokens=SHORT, ttft_s=median(one.burst_ttft_s for one in turns)),
        loops=(loops[0], loops[1]),
    )


async def _wave(asker: Asker, size: int, prompt: int, tokens: int, *, stream: bool = False) -> tuple[float, ApiWork]:
    """Seconds between two tokens, and what the API server did."""
    before = await asker.metrics()
    await asyncio.gather(*(asker.ask(prompt, tokens, stream=stream) for _ in range(size)))
    after = await asker.metrics()
    spent = {name: after[name] - before[name] for name in before}
    api = ApiWork(
        requests=size, tokens=size * tokens, chunks=size * tokens if stream else size, cpu_s=spent["api_cpu_s"]
    )
    return spent["inter_token_s"] / spent["inter_tokens"], api


async def _alone(asker: Asker) -> tuple[float, float]:
    """A short request's time to its first token at the client, and in the engine."""
    before = await asker.metrics()
    answer = await asker.ask(SHORT, 1, stream=True)
    after = await asker.metrics()
    return answer.ttft_s, after["prefill_s"] - before["prefill_s"]


async def _churn(asker: Asker, clients: int) -> Churn:
    before = await asker.metrics()

    async def client() -> None:
        for _ in range(_CHURN_ROUNDS):
            await asker.ask(SHORT, _CHURN_ANSWER, stream=False)

    await asyncio.gather(*(client() for _ in range(clients)))
    after = await asker.metrics()
    spent = {name: after[name] - before[name] for name in before}
    decoding, starts = spent["generated"] / spent["steps"], clients * _CHURN_ROUNDS / spent["steps"]
    return Churn(
        decoding=decoding,
        prefill_tokens=starts * SHORT,
        context_tokens=decoding * (SHORT + _CHURN_ANSWER / 2),
        starts=starts,
        inter_token_s=spent["inter_token_s"] / spent["inter_tokens"],
    )


async def _burst_ttft_s(asker: Asker, size: int) -> float:
    answers = await asyncio.gather(*(asker.ask(SHORT, 1, stream=True) for _ in range(size)))
    return statistics.mean(answer.ttft_s for answer in answers)


async def _short(asker: Asker, requests: int, at_once: int) -> ApiWork:
    """Requests of one token."""
    before = await asker.metrics()
    for _ in range(0, requests, at_once):
        await asyncio.gather(*(asker.ask(SHORT, 1, stream=False) for _ in range(at_once)))
    after = await asker.metrics()
    return ApiWork(requests=requests, tokens=requests, chunks=requests, cpu_s=after["api_cpu_s"] - before["api_cpu_s"])


async def _prefill_s(asker: Asker, length: int) -> float:
    before = await asker.metrics()
    for _ in range(3):
        await asker.ask(length, 1, stream=False)
    after = await asker.metrics()
    return (after["prefill_s"] - before["prefill_s"]) / (after["prefills"] - before["prefills"])


async def _loop_tokens_per_s(asker: Asker, clients: int, *, stream: bool) -> float:
    """A closed loop's throughput, its beginning and end included."""
    clock = asyncio.get_running_loop().time
    begun_s, left = clock(), _LOOP_ROUNDS * clients

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await asker.ask(SHORT, ANSWER, stream=stream)

    await asyncio.gather(*(client() for _ in range(clients)))
    return _LOOP_ROUNDS * clients * ANSWER / (clock() - begun_s)
