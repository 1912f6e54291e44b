"""How fast a real vLLM generates, here and now: loads are scaled to it, so that they are loads on any machine."""

from __future__ import annotations

import asyncio
import logging
import re
from math import ceil
from typing import TYPE_CHECKING

import aiohttp
from conftest import API_KEY

if TYPE_CHECKING:
    from conftest import RealVLLM

log = logging.getLogger(__name__)

GOES = 5
TOKENS = 200
MOST_TOKENS = 8000  # of the 8192 that conftest's servers take


async def token_s(server: RealVLLM, *, at_once: int) -> float:
    """Seconds from one token to the next with so many answers at once, by the server's own clock.

    Of a few goes the quickest: a load that is scaled to it lasts at least as long as it is meant to.
    """
    url = f"{server.url}/v1/chat/completions"
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": TOKENS}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    paces = []

    async def ask(session: aiohttp.ClientSession) -> None:
        async with session.post(url, json={**body, "ignore_eos": True}) as answer:
            answer.raise_for_status()
            await answer.read()

    async with aiohttp.ClientSession(headers=headers) as session:
        for _ in range(GOES):
            sum_s, tokens = await _generated(session, server)
            await asyncio.gather(*(ask(session) for _ in range(at_once)))
            later_s, more = await _generated(session, server)
            paces.append((later_s - sum_s) / (more - tokens))
    log.info("ms per token with %d at once: %s", at_once, " ".join(f"{pace * 1000:.2f}" for pace in paces))
    return min(paces)


async def _generated(session: aiohttp.ClientSession, server: RealVLLM) -> tuple[float, float]:
    async with session.get(f"{server.url}/metrics") as answer:
        page = await answer.text()
    sum_s, number = (
        float(re.findall(rf"^vllm:inter_token_latency_seconds_{what}\S* (\S+)$", page, re.MULTILINE)[0])
        for what in ("sum", "count")
    )
    return sum_s, number


def tokens_for(seconds: float, pace_s: float) -> int:
    """How long an answer takes so many seconds."""
    return min(ceil(seconds / pace_s), MOST_TOKENS)
