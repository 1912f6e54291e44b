"""Small servers for the latency sources: one that answers what it is told, and one with a vLLM's metrics page."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

from aiohttp import web

from airflow_llm_provider.core.objective import Metric

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

FAMILIES = {
    Metric.TTFT: ("vllm:time_to_first_token_seconds", (0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, inf)),
    Metric.ITL: ("vllm:inter_token_latency_seconds", (0.01, 0.025, 0.05, 0.1, 0.25, 1.0, inf)),
    Metric.E2E: ("vllm:e2e_request_latency_seconds", (0.3, 1.0, 2.5, 5.0, 10.0, inf)),
}


@asynccontextmanager
async def serving(handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serves `handle` on a free port of the loopback interface; yields the root's URL."""
    runner = web.ServerRunner(web.Server(handle, handler_cancellation=True, access_log=None), shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class FakeMetrics:
    """A vLLM's metrics page.

    Attributes:
        samples: by metric, every sample the server has counted since its start.
        running, waiting, preemptions, started, model: the other families' values.
        status: of the answer.
        body: sent instead of a page.
        on_scrape: called with the number of each scrape, from 1, before it is answered.
        scrapes: how many there were.
    """

    samples: dict[Metric, list[float]] = field(default_factory=lambda: {metric: [] for metric in Metric})
    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    started: float = 1000.0
    model: str = "tiny"
    status: int = 200
    body: bytes | None = None
    on_scrape: Callable[[int], None] = lambda number: None
    scrapes: int = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a scrape."""
        if request.path != "/metrics":
            return web.Response(status=404)
        self.scrapes += 1
        self.on_scrape(self.scrapes)
        return web.Response(status=self.status, body=self.page() if self.body is None else self.body)

    def page(self) -> bytes:
        """The page as it is now."""
        label = f'engine="0",model_name="{self.model}"'
        lines = [
            f"process_start_time_seconds {self.started}",
            f"vllm:num_requests_running{{{label}}} {self.running}.0",
            f"vllm:num_requests_waiting{{{label}}} {self.waiting}.0",
            f"vllm:num_preemptions_total{{{label}}} {self.preemptions}.0",
        ]
        for metric, values in self.samples.items():
            family, bounds = FAMILIES[metric]
            counts = [0] * len(bounds)
            for value in values:
                counts[bisect_left(bounds, value)] += 1
            for bound, count in zip(bounds, accumulate(counts), strict=True):
                le = "+Inf" if bound == inf else str(bound)
                lines.append(f'{family}_bucket{{engine="0",le="{le}",model_name="{self.model}"}} {count}.0')
        return "\n".join(lines).encode() + b"\n"
