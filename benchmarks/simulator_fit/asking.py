"""A real server, asked: requests with so many tokens, and its own metrics.

Owns HTTP. Does not know what is measured (`calibrate`) nor what for (`play`).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import aiohttp
import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_VOCABULARY = (200, 4000)
"""Token ids that every tokenizer has; none of them is special in the models of `tools/vllm`."""

_METRICS = {
    "inter_token_s": "vllm:inter_token_latency_seconds_sum",
    "inter_tokens": "vllm:inter_token_latency_seconds_count",
    "prefill_s": "vllm:request_prefill_time_seconds_sum",
    "prefills": "vllm:request_prefill_time_seconds_count",
    "steps": "vllm:iteration_tokens_total_count",
    "generated": "vllm:generation_tokens_total",
    "api_cpu_s": "process_cpu_seconds_total",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request's answer, as its client saw it. Moments are on the loop's clock.

    Attributes:
        sent_s: when it was sent.
        chunks_s: when each part of the answer came; of a whole answer there is one.
        ended_s: when all of it was there.
    """

    sent_s: float
    chunks_s: tuple[float, ...]
    ended_s: float

    @property
    def ttft_s(self) -> float:
        """To the first token."""
        return self.chunks_s[0] - self.sent_s


class Asker:
    """A client of one server.

    Args:
        session: its connections.
        url: the server's root.
        model: the name it serves.
        seed: of the prompts: random token ids, so that no prefix cache knows them.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, seed: int) -> None:
        self._session = session
        self._url = url
        self._model = model
        self._rng = Random(seed)

    async def ask(self, prompt_tokens: int, max_tokens: int, *, stream: bool) -> Answer:
        """Send a request that is answered with exactly `max_tokens`.

        Raises:
            aiohttp.ClientError: it could not be sent, or the answer is no 200.
        """
        body = {
            "model": self._model,
            "prompt": [self._rng.randrange(*_VOCABULARY) for _ in range(prompt_tokens)],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": stream,
        }
        data = orjson.dumps(body)
        clock = asyncio.get_running_loop().time
        sent_s = clock()
        async with self._session.post(f"{self._url}/v1/completions", data=data) as response:
            response.raise_for_status()
            parts = response.content.iter_any()
            chunks_s = [clock() async for part in parts if not stream or b"data: {" in part]
        return Answer(sent_s=sent_s, chunks_s=tuple(chunks_s if stream else chunks_s[-1:]), ended_s=clock())

    async def metrics(self) -> Mapping[str, float]:
        """The server's counters that are needed here, summed over their labels."""
        async with self._session.get(f"{self._url}/metrics") as response:
            response.raise_for_status()
            text = await response.text()
        totals = dict.fromkeys(_METRICS.values(), 0.0)
        for line in text.splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name in totals:
                totals[name] += float(line.rpartition(" ")[2])
        return {short: totals[name] for short, name in _METRICS.items()}


@asynccontextmanager
async def asker(url: str, model: str, api_key: str | None, seed: int) -> AsyncIterator[Asker]:
    """A client with connections of its own."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)  # vLLM closes idle ones after 5 s
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        yield Asker(session, url, model, seed)
