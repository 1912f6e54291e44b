"""Reads a vLLM server's load.

Owns which page is asked for and what of it is a load. Does not know who asks, how often, or what follows from it.

vLLM 0.32 answers ``/metrics`` with its whole page, 51 kB for 3-4 ms of the API server's CPU. The Prometheus application
that is mounted behind it, ``/metrics/`` with a slash, answers ``name[]=…`` with these families alone: 400 bytes for
0.3-0.45 ms (measured). A server that does not know that page is asked for the whole one from there on; one that could
not answer just now, this once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_llm_provider.core.load import CHOSEN_COST_S, Load
from airflow_llm_provider.core.retry import Failure
from airflow_llm_provider.endpoint.exposition import Page
from airflow_llm_provider.endpoint.failure import classify

if TYPE_CHECKING:
    from airflow_llm_provider.endpoint.client import EndpointClient

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
PREEMPTIONS = "vllm:num_preemptions_total"
KV_USAGE = "vllm:kv_cache_usage_perc"
GENERATED = "vllm:generation_tokens_total"
FAMILIES = (RUNNING, WAITING, PREEMPTIONS, KV_USAGE, GENERATED)

WHOLE = "/metrics"
CHOSEN = "/metrics/?" + "&".join(f"name[]={name}" for name in FAMILIES)

WHOLE_COST_S = 0.004

MOST = 1_000_000
"""No server holds so many sequences: a page that says so tells no load."""

WAIT_S = 1.0
"""A load that takes longer to read is none: the next one will be newer."""


class LoadReader:
    """Reads one server's load.

    Args:
        client: asks; already entered.
    """

    def __init__(self, client: EndpointClient) -> None:
        self._client = client
        self._path = CHOSEN
        self._polled = client.polled(CHOSEN)

    async def read(self) -> Load | Failure | None:
        """The load; a `Failure` where nothing could be read, None where what was read tells no load.

        A server with data-parallel engines has one series of each for every engine: sequences and tokens are added up,
        and of the engines' memory the fullest counts.
        """
        known = True
        if self._path == CHOSEN:
            polled = await self._polled.get(WAIT_S)
            if polled is None:  # asked once more, in the usual way, it is told why
                answer = await self._client.get(CHOSEN, wait_s=WAIT_S)
                if isinstance(answer, Failure):
                    return answer
                polled = answer.status, answer.body
            if (load := _load(*polled, CHOSEN_COST_S)) is not None:
                return load
            known = polled[0] >= 500 or polled[0] == 429  # noqa: PLR2004
        answer = await self._client.get(WHOLE, wait_s=WAIT_S)
        if isinstance(answer, Failure):
            return answer
        if answer.status != 200:  # noqa: PLR2004
            return classify(answer)
        load = _load(answer.status, answer.body, WHOLE_COST_S)
        if load is not None and not known:
            self._path = WHOLE
            self._polled.close()
        return load


def _load(status: int, body: bytes, cost_s: float) -> Load | None:
    if status != 200:  # noqa: PLR2004
        return None
    page = Page(body, FAMILIES)
    running, waiting = page.total(RUNNING), page.total(WAITING)
    if running is None or waiting is None or not (0 <= running < MOST and 0 <= waiting < MOST):
        return None
    return Load(
        running=round(running),
        waiting=round(waiting),
        preemptions=page.total(PREEMPTIONS),
        kv_usage=max((series.value for series in page.series(KV_USAGE)), default=None),
        generated=page.total(GENERATED),
        cost_s=cost_s,
    )
