"""What a look at a server's load costs: the server's API process, and the client, in CPU seconds.

Owns the measurement. A look is a task's: what `endpoint.load` asks for, over the connection it keeps; of the client the
law and the wake-ups are in it, too.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

from airflow_llm_provider.core.limit_headroom import HeadroomLimit
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.looks import LOOKS_PER_S
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.load import LoadReader
from airflow_llm_provider.endpoint.settings import EndpointSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from benchmarks.colocation.servers import Server


def server_look_cost_s(server: Server, looks: int = 200) -> float:
    """CPU seconds of the API server for one look, one right after the other; it is idle otherwise.

    Raises:
        RuntimeError: its load can't be read.
    """

    async def measure() -> float:
        async with _looking(server) as look:
            before_s = server.cpu_s()
            for _ in range(looks):
                await look()
            return (server.cpu_s() - before_s) / looks

    return asyncio.run(measure())


def client_look_cost_s(server: Server, looks: int = 300) -> float:
    """CPU seconds of a client for one look, as often as a task looks at most; the server is idle.

    Raises:
        RuntimeError: its load can't be read.
    """

    async def measure() -> float:
        law = HeadroomLimit(server.slots, rng=Random(0))
        loop = asyncio.get_running_loop()
        async with _looking(server) as look:
            before_s = time.process_time()
            for _ in range(looks):
                law.look(loop.time(), await look(), 0)
                await asyncio.sleep(1 / LOOKS_PER_S)
            return (time.process_time() - before_s) / looks

    return asyncio.run(measure())


@asynccontextmanager
async def _looking(server: Server) -> AsyncIterator[Callable[[], Awaitable[Load]]]:
    """What looks, once it is connected."""
    settings = EndpointSettings(base_urls=(server.url,), api_key=server.api_key, slots=server.slots)
    async with EndpointClient(settings, base_url=server.url) as client:
        reader = LoadReader(client)

        async def look() -> Load:
            load = await reader.read()
            if not isinstance(load, Load):
                raise RuntimeError(f"The load of {server.url} can't be read: {load}")  # noqa: TRY004 - a `Failure`
            return load

        await look()
        yield look
