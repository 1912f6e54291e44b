"""Source (b): the server's own histograms, less our own requests, so that batch does not blind it.

Owns when ``/metrics`` is scraped, which two scrapes are compared, and what their difference means. Does not know which
samples are our own (`core.own_requests`), nor the arithmetic (`core.histogram`).

vLLM's histograms mix batch and real-time: no label tells priorities apart. What remains after taking our own requests
out is real-time's, if this task is the endpoint's only batch client; unless the connection says that it is
(``only_batch_client``), every reading is unknown.

How exact a reading is:

- A quantile is given as its bucket's bounds. vLLM's around 2 s are 1 and 2.5 s: what lies between them is neither well
  below 2 s nor above it. Thresholds on a bucket's bound are decided sharply.
- Time to first token, whole requests: a request of ours that has ended and told its times (vLLM's
  ``--enable-per-request-metrics``) is taken out exactly. One in flight, given up, or ended without telling may be any
  sample that it can be, and only widens the bounds. Of those in flight, no more can have been counted than sequences
  run now, or were preempted since the oldest of them was sent.
- Inter-token latency: nothing is taken out. All sequences of an engine's step share its time, so our tokens are counted
  with the very latency that real-time's next to them had; but steps that only batch took part in count too. What it
  says with no real-time around is what real-time would have.
- Time to first token begins when the server has read the request: network and gateway are not in it.
- Who has had no first token yet (or, for whole requests, has not ended) is in no histogram. Where nobody else is
  counted and somebody else is there all the same, the reading is how long that has been so.
- A scrape costs the API server about 4 ms of CPU, so it is not made more often than every `SCRAPE_EVERY_S`. A period is
  up to that much longer than the sampling period.
"""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf, isfinite, nextafter
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from airflow_llm_provider.core.histogram import NOTHING_OWN, Histogram, change, is_reset, quantile_bounds
from airflow_llm_provider.core.objective import Failed, Idle, Measured, Metric
from airflow_llm_provider.core.own_requests import Moment, Period
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.exposition import Page
from airflow_llm_provider.endpoint.failure import Answer, classify, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from airflow_llm_provider.core.objective import Objective, Reading
    from airflow_llm_provider.core.own_requests import OwnRequests
    from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings

SCRAPE_EVERY_S: Final = 2.0

SETTLE_S: Final = 0.1
"""After a scrape, so long is waited for answers of ours that were on their way while it was made."""

WAIT_S: Final = 10.0

FAMILIES: Final = {
    Metric.TTFT: "vllm:time_to_first_token_seconds",
    Metric.ITL: "vllm:inter_token_latency_seconds",
    Metric.E2E: "vllm:e2e_request_latency_seconds",
}
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_PREEMPTIONS = "vllm:num_preemptions_total"
_STARTED = "process_start_time_seconds"
_NAMES = (*(f"{family}_bucket" for family in FAMILIES.values()), _RUNNING, _WAITING, _PREEMPTIONS, _STARTED)


class Scrape(NamedTuple):
    """What one page said.

    Attributes:
        moment: when.
        histograms: those of `FAMILIES` that are there.
        running: sequences that run.
        others: sequences that run or wait and are surely not ours.
        others_waiting: those of them that wait.
        preemptions: since the server's start.
        started: the server's start, by its own clock; None where it says nothing.
    """

    moment: Moment
    histograms: Mapping[Metric, Histogram]
    running: int
    others: int
    others_waiting: int
    preemptions: int
    started: float | None


class MetricsSource:
    """Scrapes one server.

    Args:
        endpoint: how to talk to it.
        settings: with source `vllm`.
        base_url: its root.
        own: the record of the requests that we send there.
        scrape_every_s: see `SCRAPE_EVERY_S`.
    """

    def __init__(
        self,
        endpoint: EndpointSettings,
        settings: LatencySettings,
        *,
        base_url: str,
        own: OwnRequests,
        scrape_every_s: float = SCRAPE_EVERY_S,
    ) -> None:
        self._client = EndpointClient(endpoint, base_url=base_url)
        self._model = endpoint.model
        self._settings = settings
        self._url = f"{base_url}/metrics"
        self._own = own
        self._scrape_every_s = scrape_every_s
        self._scrapes: deque[Scrape] = deque()  # from the newest one that is a period old on
        self._preemptions: deque[tuple[float, int]] = deque()  # at each scrape, as far back as the oldest request
        self._looked_s = -inf
        self._readings: Mapping[Objective, Reading] = {}

    @property
    def name(self) -> str:
        """What is read, for the log."""
        return f"{self._url}, less our own requests"

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.keep_from(inf)
        await self._client.__aexit__(kind, error, trace)

    async def read(self) -> Mapping[Objective, Reading]:
        """Compare a scrape with the one about a period before; the first call waits for a period to go by."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked_s >= self._scrape_every_s:
            self._readings = await self._look(loop)
            self._looked_s = loop.time()
        return self._readings

    async def _look(self, loop: asyncio.AbstractEventLoop) -> Mapping[Objective, Reading]:
        if not self._settings.only_batch_client:
            return self._all_failed(
                "The server's histograms mix all clients' requests, and the connection does not say that this task is "
                "the endpoint's only batch client: set only_batch_client, or another latency_source"
            )
        period_s = self._settings.sampling_period_s
        scrape = await self._scrape(loop)
        stale = bool(self._scrapes) and loop.time() - self._scrapes[-1].moment.answered_s > period_s
        if isinstance(scrape, Scrape) and (stale or not self._scrapes):
            self._begin(scrape)
            await asyncio.sleep(period_s)
            scrape = await self._scrape(loop)
        if isinstance(scrape, Failed):
            return self._all_failed(scrape.reason)
        if self._scrapes and _restarted(self._scrapes[-1], scrape):
            self._begin(scrape)
        else:
            self._keep(scrape)
        before = self._scrapes[0]
        if scrape.moment.asked_s - before.moment.answered_s < period_s:
            return self._all_failed(f"The server has been restarted, and is looked at again in {period_s:g} s")
        if self._own.oldest_s is not None:
            await asyncio.sleep(SETTLE_S)
        return {objective: self._reading(objective, before, scrape) for objective in self._settings.objectives}

    async def _scrape(self, loop: asyncio.AbstractEventLoop) -> Scrape | Failed:
        asked_s = loop.time()
        if not self._scrapes:
            self._own.keep_from(asked_s)
        answer = await self._client.get("/metrics", wait_s=WAIT_S)
        if isinstance(answer, Failure) and answer.kind in _LOST:  # an idle connection that the server closed, perhaps
            asked_s = loop.time()
            answer = await self._client.get("/metrics", wait_s=WAIT_S)
        if isinstance(answer, Answer) and answer.status != 200:  # noqa: PLR2004
            answer = classify(answer)
        if isinstance(answer, Failure):
            return Failed(f"{self._url} can't be read: {answer.message}")
        return self._parsed(answer.body, Moment(asked_s, loop.time()))

    def _parsed(self, body: bytes, moment: Moment) -> Scrape | Failed:
        page = Page(body, _NAMES)
        model = page.model(self._model)
        if model is None:
            models = page.models()
            what = (
                f"has metrics of {shorten(', '.join(models))}: set the connection's model" if models else "is no vLLM's"
            )
            return Failed(f"{self._url} {what}")
        try:
            found = {metric: page.histogram(family, model) for metric, family in FAMILIES.items()}
        except ValueError as error:
            return Failed(f"{self._url} can't be understood: {error}")
        counts = [page.total(name, model) or 0.0 for name in (_RUNNING, _WAITING, _PREEMPTIONS)]
        if not all(map(isfinite, counts)):
            return Failed(f"{self._url} can't be understood: it counts without end")
        running, waiting, preemptions = map(round, counts)
        ours = self._own.in_server(moment.answered_s)
        return Scrape(
            moment=moment,
            histograms={metric: histogram for metric, histogram in found.items() if histogram is not None},
            running=running,
            others=max(0, running + waiting - ours),
            others_waiting=max(0, waiting - ours),
            preemptions=preemptions,
            started=page.total(_STARTED),
        )

    def _begin(self, scrape: Scrape) -> None:
        """Look back no further than to this scrape."""
        self._scrapes.clear()
        self._preemptions.clear()
        self._keep(scrape)

    def _keep(self, scrape: Scrape) -> None:
        """Take in a scrape, and drop those that are older than is needed."""
        self._scrapes.append(scrape)
        wanted_s = scrape.moment.asked_s - self._settings.sampling_period_s
        while len(self._scrapes) > 1 and self._scrapes[1].moment.answered_s <= wanted_s:
            self._scrapes.popleft()
        begin_s = self._scrapes[0].moment.asked_s
        self._own.keep_from(begin_s)
        self._preemptions.append((scrape.moment.answered_s, scrape.preemptions))
        oldest_s = begin_s if self._own.oldest_s is None else min(begin_s, self._own.oldest_s)
        while len(self._preemptions) > 1 and self._preemptions[1][0] <= oldest_s:
            self._preemptions.popleft()

    def _reading(self, objective: Objective, before: Scrape, after: Scrape) -> Reading:
        metric = objective.metric
        if metric not in before.histograms or metric not in after.histograms:
            return Failed(f"{self._url} has no {FAMILIES[metric]}")
        came = change(before.histograms[metric], after.histograms[metric])
        period = Period(before.moment, after.moment)
        match metric:
            case Metric.TTFT:
                own = self._own.first_tokens(period, came.bounds, flying_at_most=self._may_have_begun(after))
            case Metric.E2E:
                own = self._own.whole_requests(period, came.bounds)
            case Metric.ITL:
                own = NOTHING_OWN
        if (excess := sum(own.certain.values()) - came.total) > 0:
            return Failed(
                f"{self._url} counted {excess} requests fewer than we alone had answered: does {self._url} lead to "
                "several servers, or the base URL to another one?"
            )
        bounds = quantile_bounds(came, objective.quantile, own)
        if bounds is not None:
            above_s = nextafter(bounds.lower, inf) if bounds.lower else 0.0  # a bucket's lower bound is not in it
            return Measured(lower_s=above_s, upper_s=bounds.upper, samples=bounds.samples)
        return Idle() if metric is Metric.ITL else self._idle_or_stuck(metric)

    def _may_have_begun(self, after: Scrape) -> int | None:
        """How many of our requests in flight can have had a first token: those that run, and those preempted since."""
        oldest_s = self._own.oldest_s
        if oldest_s is None:
            return None
        then_s, then = self._preemptions[0]
        return after.running + after.preemptions - (then if then_s <= oldest_s else 0)

    def _idle_or_stuck(self, metric: Metric) -> Reading:
        """Nobody else was counted in the period: because there is nobody, or because nobody gets on?

        Who was there at a scrape and was not counted since has been waiting since then, or gave up.
        """
        since_s, there = None, 0
        for scrape in reversed(self._scrapes):
            present = scrape.others_waiting if metric is Metric.TTFT else scrape.others
            if not present:
                break
            since_s, there = scrape.moment.answered_s, there or present
        if since_s is None:
            return Idle()
        waited_s = max(0.0, self._scrapes[-1].moment.asked_s - since_s)
        return Measured(lower_s=waited_s, upper_s=inf, samples=there)

    def _all_failed(self, reason: str) -> Mapping[Objective, Reading]:
        return dict.fromkeys(self._settings.objectives, Failed(reason))


_LOST = (FailureKind.STALE_CONNECTION, FailureKind.CONNECTION_LOST)


def _restarted(before: Scrape, after: Scrape) -> bool:
    if before.started != after.started:
        return True
    shared = before.histograms.keys() & after.histograms.keys()
    return any(is_reset(before.histograms[metric], after.histograms[metric]) for metric in shared)
