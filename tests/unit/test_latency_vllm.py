"""Source (b): which scrapes are compared, what is taken out, and everything that makes it unknown."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from math import inf, nextafter
from typing import TYPE_CHECKING, Any

import pytest
from latency_fakes import FakeMetrics, serving

from airflow_llm_provider.core.objective import Failed, Health, Idle, Measured, Metric, judge, parse_objectives
from airflow_llm_provider.core.own_requests import OwnRequests
from airflow_llm_provider.endpoint import latency_vllm
from airflow_llm_provider.endpoint.latency import latency_source
from airflow_llm_provider.endpoint.latency_vllm import MetricsSource
from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PERIOD_S = 0.1
NO_HISTOGRAM = b'process_start_time_seconds 1000.0\nvllm:num_requests_running{model_name="tiny"} 1\n'
TTFT = parse_objectives("ttft p95 < 2.5 s")


def latency(**fields: Any) -> LatencySettings:
    given = {"objectives": TTFT, "only_batch_client": True, "sampling_period_s": PERIOD_S, **fields}
    return LatencySettings(source=Source.VLLM, **given)


@asynccontextmanager
async def source_of(
    fake: FakeMetrics, *, own: OwnRequests | None = None, every_s: float = 0.0, model: str | None = None, **fields: Any
) -> AsyncIterator[MetricsSource]:
    async with serving(fake) as url:
        endpoint = EndpointSettings(base_urls=(url,), model=model)
        settings = latency(**fields)
        async with MetricsSource(
            endpoint, settings, base_url=url, own=own or OwnRequests(), scrape_every_s=every_s
        ) as source:
            yield source


async def one(source: MetricsSource) -> Any:
    (reading,) = (await source.read()).values()
    return reading


def counted(fake: FakeMetrics, *values: float, metric: Metric = Metric.TTFT, at: int = 2) -> None:
    """Has the fake count samples before it answers its n-th scrape."""
    fake.on_scrape = lambda number: fake.samples[metric].extend(values) if number == at else None


def between(lower_s: float, upper_s: float, samples: int) -> Measured:
    """A quantile in a bucket, whose lower bound is not in it."""
    return Measured(lower_s=nextafter(lower_s, inf), upper_s=upper_s, samples=samples)


async def until(source: MetricsSource, *, idle: bool) -> Any:
    """Reads until it is idle, or until it is anything but failed."""
    async with asyncio.timeout(5):
        while True:
            reading = await one(source)
            if reading == Idle() if idle else not isinstance(reading, Failed):
                return reading
            await asyncio.sleep(0.01)


# ── what came in a period ────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_reading_waits_for_a_period_and_tells_what_came_in_it():
    fake = FakeMetrics()
    fake.samples[Metric.TTFT] = [9.0] * 100
    counted(fake, *[0.2] * 19, 4.0)
    async with source_of(fake) as source:
        began_s = asyncio.get_running_loop().time()
        assert await one(source) == between(0.1, 0.25, 20)
        assert asyncio.get_running_loop().time() - began_s >= PERIOD_S
    assert fake.scrapes == 2


async def test_nobody_is_idle():
    async with source_of(FakeMetrics()) as source:
        assert await one(source) == Idle()


async def test_each_metric_has_its_histogram():
    fake = FakeMetrics()

    def count(number: int) -> None:
        if number == 2:
            fake.samples = {Metric.TTFT: [0.2], Metric.ITL: [0.03], Metric.E2E: [4.0]}

    fake.on_scrape = count
    objectives = parse_objectives("ttft p95 < 2.5 s; itl p99 < 100 ms; e2e p50 < 10 s")
    async with source_of(fake, objectives=objectives) as source:
        assert list((await source.read()).values()) == [
            between(0.1, 0.25, 1),
            between(0.025, 0.05, 1),
            between(2.5, 5.0, 1),
        ]


async def test_readings_may_be_more_frequent_than_the_period():
    """Each is compared with the scrape about a period before it, and not with the one just before."""
    fake = FakeMetrics()
    counted(fake, 0.2, at=2)
    async with source_of(fake, sampling_period_s=0.3) as source:
        await one(source)
        for _ in range(3):
            assert await one(source) == between(0.1, 0.25, 1)
        await until(source, idle=True)
        assert fake.scrapes > 5
        oldest, newest = source._scrapes[0], source._scrapes[-1]
        assert newest.moment.asked_s - oldest.moment.answered_s >= 0.3
        assert newest.moment.asked_s - source._scrapes[1].moment.answered_s < 0.3


async def test_asked_sooner_it_gives_the_last_reading_and_does_not_scrape():
    fake = FakeMetrics()
    async with source_of(fake, every_s=60.0) as source:
        assert await source.read() is await source.read()
    assert fake.scrapes == 2
    assert latency_vllm.SCRAPE_EVERY_S == 2.0


async def test_a_long_pause_is_no_long_period():
    fake = FakeMetrics()
    async with source_of(fake) as source:
        await one(source)
        fake.samples[Metric.TTFT] += [9.0] * 50
        await asyncio.sleep(PERIOD_S * 1.5)
        counted(fake, 0.2, at=fake.scrapes + 2)
        assert await one(source) == between(0.1, 0.25, 1)


# ── our own requests ─────────────────────────────────────────────────────────────────────────────────────────────────


LONGER_S = 0.3
FIRST_TOKEN_AGO_S = 0.15  # half-way between the two scrapes


def our_rows(fake: FakeMetrics, own: OwnRequests, *, tell: bool, answered: bool = True) -> None:
    """At the second scrape there are 60 slow rows of ours with a first token since the first, and 20 fast ones."""
    rows, ttft_s = 60, 4.0

    def count(number: int) -> None:
        if number != 2:
            return
        now_s = asyncio.get_running_loop().time()
        for row in range(rows):
            own.started(row, now_s - FIRST_TOKEN_AGO_S - ttft_s)
            if answered:
                told = {"ttft_s": ttft_s - 0.001, "generation_s": 0.01} if tell else {}
                own.ended(row, now_s - FIRST_TOKEN_AGO_S + 0.012, **told)
        fake.samples[Metric.TTFT] += [ttft_s] * rows + [0.02] * 20

    fake.on_scrape = count


async def test_our_rows_that_tell_their_times_are_taken_out_exactly():
    fake, own = FakeMetrics(), OwnRequests()
    our_rows(fake, own, tell=True)
    async with source_of(fake, own=own, sampling_period_s=LONGER_S) as source:
        assert await one(source) == between(0.01, 0.1, 20)


async def test_ours_alone_is_idle():
    fake, own = FakeMetrics(), OwnRequests()
    our_rows(fake, own, tell=True)
    async with source_of(fake, own=own, sampling_period_s=LONGER_S) as source:
        fake.samples[Metric.TTFT] = []
        counts = fake.on_scrape

        def without_others(number: int) -> None:
            counts(number)
            fake.samples[Metric.TTFT] = [4.0] * 60 if number == 2 else []

        fake.on_scrape = without_others
        assert await one(source) == Idle()


@pytest.mark.parametrize("answered", [True, False], ids=["ended without telling", "in flight"])
async def test_our_rows_that_do_not_tell_only_widen_the_bounds(answered):
    fake, own = FakeMetrics(running=60), OwnRequests()
    our_rows(fake, own, tell=False, answered=answered)
    async with source_of(fake, own=own, sampling_period_s=LONGER_S) as source:
        reading = await one(source)
    assert reading == between(0.01, 5.0, 20)
    assert judge(TTFT, {TTFT[0]: reading}).health is Health.AT_RISK, "the plain histogram says violated"


async def test_without_a_record_of_ours_the_plain_histogram_is_read():
    fake = FakeMetrics()
    our_rows(fake, OwnRequests(), tell=True)
    async with source_of(fake, sampling_period_s=LONGER_S) as source:
        reading = await one(source)
    assert judge(TTFT, {TTFT[0]: reading}).health is Health.VIOLATED


async def test_of_a_long_queue_no_more_than_run_can_have_been_counted():
    """500 of ours wait behind an overload of others: that does not excuse the others' slow samples."""
    fake, own = FakeMetrics(running=8, waiting=500, preemptions=3), OwnRequests()

    def count(number: int) -> None:
        if number == 1:
            now_s = asyncio.get_running_loop().time()
            for row in range(500):
                own.started(row, now_s - 3.0)
        if number == 2:
            fake.samples[Metric.TTFT] += [4.0] * 60 + [0.02] * 2

    fake.on_scrape = count
    async with source_of(fake, own=own, sampling_period_s=LONGER_S) as source:
        own.started("before everything", 0.0)
        own.abandoned("before everything", 0.0)
        assert await one(source) == between(2.5, 5.0, 51)


async def test_preempted_rows_have_had_their_first_token_and_do_not_run():
    fake, own = FakeMetrics(running=8, preemptions=3), OwnRequests()
    async with source_of(fake, own=own, sampling_period_s=LONGER_S) as source:
        await one(source)
        own.started("ours", asyncio.get_running_loop().time())
        fake.preemptions = 5
        await one(source)
        assert source._may_have_begun(source._scrapes[-1]) == 10


async def test_the_record_forgets_what_no_period_needs():
    fake, own = FakeMetrics(), OwnRequests()
    async with source_of(fake, own=own) as source:
        await one(source)
        now_s = asyncio.get_running_loop().time()
        for row in range(10):
            own.started(row, now_s)
            own.ended(row, now_s)
        assert len(own._ended) == 10
    assert not own._ended, "nobody watches any more"


# ── idle, or stuck? ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_others_that_wait_and_get_nothing_are_not_idle():
    fake = FakeMetrics(running=8, waiting=3)
    async with source_of(fake, sampling_period_s=LONGER_S) as source:
        reading = await one(source)
    assert (reading.upper_s, reading.samples) == (inf, 3)
    assert 0.9 * LONGER_S < reading.lower_s < LONGER_S * 3


async def test_ours_that_wait_are_no_others():
    fake, own = FakeMetrics(running=1, waiting=2), OwnRequests()
    for row in range(3):
        own.started(row, asyncio.get_running_loop().time())
    async with source_of(fake, own=own) as source:
        assert await one(source) == Idle()


async def test_whole_requests_that_run_and_do_not_end_are_not_idle():
    fake = FakeMetrics(running=1)
    objectives = parse_objectives("ttft p95 < 2.5 s; e2e p95 < 100 ms")
    async with source_of(fake, objectives=objectives, sampling_period_s=LONGER_S) as source:
        ttft, e2e = (await source.read()).values()
    assert ttft == Idle()
    assert e2e.lower_s > 0.1


# ── unknown ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_only_batch_client_it_does_not_even_ask():
    fake = FakeMetrics()
    async with source_of(fake, only_batch_client=False) as source:
        reading = await one(source)
    assert isinstance(reading, Failed)
    assert "set only_batch_client" in reading.reason
    assert fake.scrapes == 0


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"status": 404}, "can't be read: "),
        ({"status": 503}, "can't be read: "),
        ({"body": b"<html>hello</html>"}, "is no vLLM's"),
        ({"body": b""}, "is no vLLM's"),
        ({"body": NO_HISTOGRAM}, "has no vllm:time_to_first_token_seconds"),
    ],
)
@pytest.mark.parametrize("from_the_start", [True, False])
async def test_a_page_that_cannot_be_read(broken, words, from_the_start):
    fake = FakeMetrics(**broken) if from_the_start else FakeMetrics()
    async with source_of(fake) as source:
        if not from_the_start:
            assert await one(source) == Idle()
            for name, value in broken.items():
                setattr(fake, name, value)
        reading = await one(source)
    assert isinstance(reading, Failed)
    assert words in reading.reason
    assert "/metrics" in reading.reason


async def test_a_server_that_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    endpoint = EndpointSettings(base_urls=(url,), latency=latency())
    async with latency_source(endpoint) as source:
        reading = await one(source)
    assert isinstance(reading, Failed)
    assert "can't be read" in reading.reason


async def test_the_model_must_be_clear_where_there_are_several():
    fake = FakeMetrics()
    fake.body = fake.page() + FakeMetrics(model="large").page()
    async with source_of(fake) as source:
        reading = await one(source)
    assert isinstance(reading, Failed)
    assert "has metrics of large, tiny: set the connection's model" in reading.reason
    async with source_of(fake, model="large") as source:
        assert await one(source) == Idle()


async def test_after_a_restart_nothing_is_compared_across_it():
    fake = FakeMetrics()
    fake.samples[Metric.TTFT] = [0.2] * 5
    async with source_of(fake) as source:
        await one(source)
        fake.started, fake.samples[Metric.TTFT] = 2000.0, [0.2] * 50  # more than before: counts alone do not tell
        reading = await one(source)
        assert isinstance(reading, Failed)
        assert "has been restarted" in reading.reason
        assert await until(source, idle=False) == Idle()


async def test_fewer_counted_than_were_answered_is_another_server():
    fake, own = FakeMetrics(), OwnRequests()
    our_rows(fake, own, tell=True)
    count = fake.on_scrape

    def elsewhere(number: int) -> None:
        count(number)
        fake.samples[Metric.TTFT] = []

    fake.on_scrape = elsewhere
    async with source_of(fake, own=own, sampling_period_s=LONGER_S) as source:
        reading = await one(source)
    assert isinstance(reading, Failed)
    assert "several servers" in reading.reason
