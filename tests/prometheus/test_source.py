"""Source (a) from a quiet night over an overload to a Prometheus that is gone; and our arithmetic against its own."""

from __future__ import annotations

import asyncio
import random
from math import inf, isnan
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from airflow_llm_provider.core.histogram import Histogram, quantile, quantile_bounds
from airflow_llm_provider.core.objective import Failed, Health, Idle, Measured, Metric, judge, parse_objectives
from airflow_llm_provider.endpoint.latency_prometheus import PrometheusSource
from airflow_llm_provider.endpoint.settings import LatencySettings, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Gateway, Prometheus

OBJECTIVES = parse_objectives("ttft p95 < 2 s")
QUERY = 'histogram_quantile({quantile}, sum by (le) (rate(gateway_ttft_seconds_bucket{route="chat"}[{period}])))'
PERIOD_S = 3.0


def source_of(url: str, query: str = QUERY, base_url: str = "http://gpu1:8000") -> PrometheusSource:
    settings = LatencySettings(
        objectives=OBJECTIVES,
        source=Source.PROMETHEUS,
        sampling_period_s=PERIOD_S,
        prometheus_url=url,
        prometheus_query=MappingProxyType({Metric.TTFT: query}),
    )
    return PrometheusSource(settings, base_url=base_url, ask_every_s=0.0)


async def one(source: PrometheusSource) -> Any:
    (reading,) = (await source.read()).values()
    return reading


async def until(source: PrometheusSource, condition: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(60):
        while True:
            if condition(reading := await one(source)):
                return reading
            await asyncio.sleep(0.05)


def health(reading: Any) -> Health:
    return judge(OBJECTIVES, {OBJECTIVES[0]: reading}).health


async def test_a_night(own: tuple[Gateway, Prometheus]) -> None:
    gateway, prometheus = own
    async with source_of(prometheus.url) as source:
        never = await until(source, lambda reading: "has nothing" in getattr(reading, "reason", ""))
        assert health(never) is Health.UNKNOWN, "no series is not idle"

        chat, batch = gateway.ttft.labels("chat"), gateway.ttft.labels("batch")
        assert health(await until(source, lambda reading: reading == Idle())) is Health.HEALTHY

        for _ in range(100):
            chat.observe(0.04)
            batch.observe(9.0)
        well = await until(source, lambda reading: isinstance(reading, Measured))
        assert 0.025 <= well.lower_s <= 0.05
        assert health(well) is Health.HEALTHY

        for _ in range(100):
            chat.observe(4.0)
        overload = await until(source, lambda reading: isinstance(reading, Measured) and reading.lower_s > 2.0)
        assert health(overload) is Health.VIOLATED

        assert health(await until(source, lambda reading: reading == Idle())) is Health.HEALTHY, "it has passed"

        await asyncio.to_thread(gateway.stop)
        gone = await until(source, lambda reading: isinstance(reading, Failed))
        assert "is it still scraped?" in gone.reason
        assert health(gone) is Health.UNKNOWN

        await asyncio.to_thread(prometheus.program.stop)
        dead = await one(source)
        assert "can't be asked" in dead.reason


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("histogram_quantile({quantile}, rate(gateway_ttft_seconds_bucket[{period}])", "refuses the query"),
        ('sum by (route) (gateway_ttft_seconds_count{route=~"a|b"})', "has 2 series"),
        ("gateway_ttft_seconds_count[{period}]", "answers the query for ttft p95 with a matrix"),
        ('"2 s"', "with a string"),
        ("1 / (0 * sum(gateway_ttft_seconds_count))", "with +Inf"),
    ],
)
async def test_expressions_that_are_no_latency(shared: tuple[Gateway, Prometheus], query: str, words: str) -> None:
    gateway, prometheus = shared
    for route in ("a", "b"):
        gateway.ttft.labels(route)
    async with source_of(prometheus.url, 'sum(gateway_ttft_seconds_count{route=~"a|b"})') as source:
        assert await until(source, lambda reading: isinstance(reading, Measured)) == Measured(lower_s=0.0, upper_s=0.0)
    async with source_of(prometheus.url, query) as source:
        reading = await one(source)
    assert isinstance(reading, Failed)
    assert words in reading.reason


@pytest.mark.parametrize("matcher", ['="{server}"', "='{server}'", '=~"{server}"', "=~`(x|{server})`"])
async def test_the_server_names_what_is_scraped_there(shared: tuple[Gateway, Prometheus], matcher: str) -> None:
    gateway, prometheus = shared
    query = f"sum(0 * up{{instance{matcher}}})"
    async with source_of(prometheus.url, query, f"http://127.0.0.1:{gateway.port}/llm") as source:
        await until(source, lambda reading: reading == Measured(lower_s=0.0, upper_s=0.0))
    for other in ("http://127.0.0.1", "http://[::1]:8000", f"http://127a0.0.1:{gateway.port}"):
        async with source_of(prometheus.url, query, other) as source:
            assert "has nothing" in (await one(source)).reason


def test_our_quantiles_are_its_own(shared: tuple[Gateway, Prometheus], wait_for: Callable[..., None]) -> None:
    """The same histogram and the same share: `core.histogram.quantile` and ``histogram_quantile`` agree."""
    gateway, prometheus = shared
    seeded = random.Random(7)
    for route in range(20):
        child = gateway.ttft.labels(f"r{route}")
        for _ in range(seeded.choice([0, 1, 3, 10, 100])):
            child.observe(seeded.choice([seeded.uniform(0, 12), seeded.lognormvariate(-2, 1), 0.05, 1.0]))
    wait_for(lambda: len(prometheus.query('gateway_ttft_seconds_count{route=~"r.+"}')) == 20)
    for share in (0.01, 0.5, 0.9, 0.95, 0.99):
        theirs = prometheus.query(f'histogram_quantile({share}, gateway_ttft_seconds_bucket{{route=~"r.+"}})')
        for series in theirs:
            route = series["metric"]["route"]
            buckets = prometheus.query(f'gateway_ttft_seconds_bucket{{route="{route}"}}')
            ours = Histogram.of_cumulative((float(b["metric"]["le"]), float(b["value"][1])) for b in buckets)
            expected = float(series["value"][1])
            assert quantile(ours, share) == pytest.approx(expected, nan_ok=True)
            bounds = quantile_bounds(ours, share)
            assert (bounds is None) == isnan(expected)
            if bounds is not None and bounds.upper < inf:
                assert bounds.lower - 1e-9 <= expected <= bounds.upper + 1e-9
