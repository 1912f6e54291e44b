"""How real-time does, looked at again and again.

Owns when it is looked, and the log line where the answer changes. Does not know where latency is read
(`endpoint.latency`), when it is good enough (`core.objective`) or what follows from it (`core.release`).
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.core.objective import Failed, Health, HealthTrack, Verdict, judge
from airflow_llm_provider.endpoint.latency import latency_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.core.objective import Objective, Reading, Standing
    from airflow_llm_provider.core.own_requests import OwnRequests
    from airflow_llm_provider.endpoint.latency import LatencySource
    from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings

log = logging.getLogger(__name__)

LOOKS_PER_PERIOD = 6
SHORTEST_INTERVAL_S = 1.0


class LatencyWatch:
    """Keeps `standing` up to date.

    Args:
        settings: the objectives, where latency is read, and how long healthy is long enough.
        endpoint: whose latency it is.
        base_url: of several servers, the one.
        own: notes of our own requests, which some sources leave out; None where there are none.
        recovering: real-time was not well a moment ago, so being well must last before it counts.
    """

    def __init__(
        self,
        settings: LatencySettings,
        endpoint: EndpointSettings,
        *,
        base_url: str | None = None,
        own: OwnRequests | None = None,
        recovering: bool = False,
    ) -> None:
        self.settings = settings
        self.endpoint = endpoint
        self._base_url = base_url or endpoint.base_urls[0]
        self._own = own
        self._track = HealthTrack(settings.healthy_for_s)
        if recovering:
            before = Verdict(health=Health.VIOLATED, reason="it was not well when this task began to wait")
            self._track.observe(before, now=utc_now())
        self._interval_s = max(SHORTEST_INTERVAL_S, settings.sampling_period_s / LOOKS_PER_PERIOD)
        self.standing: Standing | None = None

    async def run(self) -> None:
        """Look until cancelled. What keeps it from looking, such as a CA bundle that is not there, is unknown, too."""
        while True:
            try:
                async with await self._source() as source:
                    while True:
                        self._observe(await source.read())
                        await asyncio.sleep(self._interval_s)
            except Exception as error:  # noqa: BLE001 - unwatched it would be a hold that nobody is told of
                self._observe(dict.fromkeys(self.settings.objectives, Failed(f"{type(error).__name__}: {error}")))
                await asyncio.sleep(self._interval_s)

    async def look(self) -> Standing:
        """Look once, for as long as one reading takes."""
        async with await self._source() as source:
            return self._observe(await source.read())

    async def _source(self) -> LatencySource:
        make = partial(latency_source, self.endpoint, self._own, base_url=self._base_url)
        return await asyncio.to_thread(make)  # it may read a CA bundle

    def _observe(self, readings: Mapping[Objective, Reading]) -> Standing:
        before = self.standing
        self.standing = self._track.observe(judge(self.settings.objectives, readings), now=utc_now())
        if before is None or before.health is not self.standing.health:
            level = logging.INFO if self.standing.health is Health.HEALTHY else logging.WARNING
            log.log(level, "Real-time on %s is %s: %s", self._base_url, self.standing.health, self.standing.reason)
        return self.standing
