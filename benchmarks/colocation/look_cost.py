"""What a look at a server's load costs the client: the page, the law and the wake-ups, in CPU seconds of this process.

Owns the measurement. What it costs the server: `servers.Server.cost_of_a_look_s`.
"""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING

from airflow_llm_provider.core.limit_headroom import HeadroomLimit
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.looks import LOOKS_PER_S
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.load import LoadReader
from airflow_llm_provider.endpoint.settings import EndpointSettings

if TYPE_CHECKING:
    from benchmarks.colocation.servers import Server


def client_look_cost_s(server: Server, looks: int = 300) -> float:
    """CPU seconds of a client for one look, as often as a task looks at most; the server is idle."""
    return asyncio.run(_measure(server, looks))


async def _measure(server: Server, looks: int) -> float:
    settings = EndpointSettings(base_urls=(server.url,), api_key=server.api_key, slots=server.slots)
    law = HeadroomLimit(server.slots, rng=Random(0))
    loop = asyncio.get_running_loop()
    async with EndpointClient(settings, base_url=server.url) as client:
        reader = LoadReader(client)
        await reader.read()
        before_s = time.process_time()
        for _ in range(looks):
            load = await reader.read()
            if not isinstance(load, Load):
                raise TypeError(f"The load of {server.url} can't be read: {load}")
            law.look(loop.time(), load, 0)
            await asyncio.sleep(1 / LOOKS_PER_S)
        return (time.process_time() - before_s) / looks
