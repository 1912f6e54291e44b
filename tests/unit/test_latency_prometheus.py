"""Source (a): what it asks a Prometheus, and what each of its answers means."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson
import pytest
from aiohttp import web
from latency_fakes import serving

from airflow_llm_provider.core.objective import Failed, Idle, Measured, Metric, parse_objectives
from airflow_llm_provider.endpoint import latency_prometheus
from airflow_llm_provider.endpoint.latency import latency_source
from airflow_llm_provider.endpoint.latency_prometheus import PrometheusSource, expression
from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings, Source
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUERY = 'histogram_quantile({quantile}, sum by (le) (rate(ttft_bucket{route="chat"}[{period}])))'
GPU1 = "http://gpu1:8000"
OBJECTIVES = parse_objectives("ttft p95 < 2 s")


def settings(url: str | None = "http://prometheus:9090", **fields: Any) -> LatencySettings:
    given = {"objectives": OBJECTIVES, "prometheus_query": MappingProxyType({Metric.TTFT: QUERY}), **fields}
    return LatencySettings(source=Source.PROMETHEUS, prometheus_url=url, **given)


def success(kind: str, result: Any, **more: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result}, **more}


def vector(*values: str) -> dict[str, Any]:
    return success("vector", [{"metric": {"n": str(n)}, "value": [1.7e9, value]} for n, value in enumerate(values)])


@asynccontextmanager
async def answering(answer: Any, status: int = 200) -> AsyncIterator[tuple[str, list[tuple[web.BaseRequest, str]]]]:
    """A Prometheus that always says the same; yields its URL and the requests with their queries."""
    asked: list[tuple[web.BaseRequest, str]] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        asked.append((request, parse_qs((await request.read()).decode())["query"][0]))
        body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        return web.Response(status=status, body=body)

    async with serving(handle) as url:
        yield url, asked


async def reading_of(answer: Any, status: int = 200, **fields: Any) -> Any:
    async with (
        answering(answer, status) as (url, _),
        PrometheusSource(settings(url, **fields), base_url=GPU1) as source,
    ):
        (reading,) = (await source.read()).values()
    return reading


def test_placeholders_are_filled_in_and_promqls_own_braces_left_alone():
    assert expression(settings(), OBJECTIVES[0], GPU1) == (
        'histogram_quantile(0.95, sum by (le) (rate(ttft_bucket{route="chat"}[30s])))'
    )
    assert "[2500ms]" in expression(settings(sampling_period_s=2.5), OBJECTIVES[0], GPU1)
    assert "[45s]" in expression(settings(sampling_period_s=45), OBJECTIVES[0], GPU1)


def filled(query: str, base_url: str = GPU1) -> str:
    return expression(settings(prometheus_query={Metric.TTFT: query}), OBJECTIVES[0], base_url)


@pytest.mark.parametrize(
    ("base_url", "server"),
    [
        ("http://gpu1:8000", "gpu1:8000"),
        ("https://GPU1.lan:8443/llm", "gpu1.lan:8443"),
        ("http://gpu1", "gpu1:80"),
        ("https://gateway/llm", "gateway:443"),
        ("http://[2001:db8::1]:8000", "[2001:db8::1]:8000"),
        ("https://[::1]", "[::1]:443"),
        ("http://[fe80::1%eth0]:8000", "[fe80::1%eth0]:8000"),
    ],
)
def test_a_server_is_called_by_host_and_port_as_prometheus_does(base_url: str, server: str) -> None:
    assert filled('ttft{instance="{server}", via!="a{server}"}', base_url) == (
        f'ttft{{instance="{server}", via!="a{server}"}}'
    )


@pytest.mark.parametrize("quote", ['"', "'", "`"])
@pytest.mark.parametrize("matcher", ["=~", "!~", " =~ "])
def test_where_a_regular_expression_stands_the_server_is_meant_literally(matcher: str, quote: str) -> None:
    text = filled(f"ttft{{instance{matcher}{quote}{{server}}(/.*)?{quote}}}", "http://[2001:db8::1]:8000")
    assert text == f"ttft{{instance{matcher}{quote}[[]2001:db8::1[]]:8000(/.*)?{quote}}}"
    text = filled(f"ttft{{instance{matcher}{quote}{{server}}{quote}}}", "http://gpu-1.lan:8000")
    pattern = text.split(quote)[1]
    assert re.fullmatch(pattern, "gpu-1.lan:8000")
    assert not re.fullmatch(pattern, "gpu-1xlan:8000")


def test_quotes_inside_quotes_and_comments_do_not_confuse_it() -> None:
    query = 'sum( # it\'s "one" {server}\n ttft{a=~"\\"{period}", b=\'"=~\', instance="{server}"})'
    assert filled(query) == query.replace("{period}", "30s").replace('"{server}"', '"gpu1:8000"')


@pytest.mark.parametrize("query", ["ttft{server}", "ttft{instance={server}}"])
def test_a_server_outside_quotes_is_refused(query: str) -> None:
    with pytest.raises(ConfigurationError, match="in quotes"):
        settings(prometheus_query={Metric.TTFT: query})


@pytest.mark.parametrize("host", ['gpu"1', "gpu'1", "gpu`1", "gpu\\1", "gpu{period}1", "gpu 1", "gpu1:port"])
def test_a_server_that_would_change_the_expression_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="has no host and port"):
        filled('ttft{instance="{server}"}', f"http://{host}")
    assert filled("ttft", f"http://{host}") == "ttft", "and it stands in none"


async def test_of_several_servers_each_is_asked_for_by_its_own_name():
    async with answering(vector("0.25")) as (url, asked):
        latency = settings(url, prometheus_query=MappingProxyType({Metric.TTFT: 'max(ttft{instance="{server}"})'}))
        endpoint = EndpointSettings(base_urls=(GPU1, "http://gpu2"), latency=latency)
        for base_url in (None, *endpoint.base_urls):
            async with latency_source(endpoint, base_url=base_url) as source:
                await source.read()
    assert [text for _, text in asked] == [
        f'max(ttft{{instance="{server}"}})' for server in ("gpu1:8000", "gpu1:8000", "gpu2:80")
    ]


@pytest.mark.parametrize(
    ("answer", "reading"),
    [
        (vector("0.25"), Measured(lower_s=0.25, upper_s=0.25)),
        (vector("0"), Measured(lower_s=0.0, upper_s=0.0)),
        (success("scalar", [1.7e9, "2.5e-1"]), Measured(lower_s=0.25, upper_s=0.25)),
        (vector("NaN"), Idle()),
        (success("scalar", [1.7e9, "NaN"]), Idle()),
        ({**vector("0.25"), "warnings": ["PromQL info: not a counter"]}, Measured(lower_s=0.25, upper_s=0.25)),
    ],
)
async def test_numbers(answer, reading):
    assert await reading_of(answer) == reading


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (success("vector", []), 200, "has nothing for the query for ttft p95: no series"),
        (vector("0.25", "0.3"), 200, "has 2 series for the query for ttft p95"),
        (vector("+Inf"), 200, "answers the query for ttft p95 with +Inf: a latency in seconds is wanted"),
        (vector("-1"), 200, "with -1"),
        (vector("soon"), 200, "with soon"),
        (success("matrix", [{"values": []}]), 200, "with a matrix: it must be one number"),
        (success("string", [1.7e9, "x"]), 200, "with a string"),
        ({**vector("0.25"), "warnings": ["store down"]}, 200, "may be incomplete: store down"),
        (
            {"status": "error", "errorType": "bad_data", "error": "parse error: x"},
            400,
            "refuses the query for ttft p95: parse error",
        ),
        (b"<html>Sign in</html>", 200, "does not answer as a Prometheus: HTTP 200"),
        (b"", 401, "refuses access: HTTP 401; see prometheus_conn_id"),
        (b"", 302, "does not answer as a Prometheus: HTTP 302"),
        ({"status": "success"}, 200, "does not answer as a Prometheus"),
        ({"status": "success", "data": None}, 503, "does not answer as a Prometheus: HTTP 503"),
    ],
)
async def test_everything_else_is_unknown_and_says_why(answer, status, words):
    reading = await reading_of(answer, status)
    assert isinstance(reading, Failed)
    assert words in reading.reason
    assert reading.reason.startswith("Prometheus at http://127.0.0.1:")


async def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    async with PrometheusSource(settings(url), base_url=GPU1) as source:
        (reading,) = (await source.read()).values()
    assert isinstance(reading, Failed)
    assert "can't be asked" in reading.reason


async def test_no_answer_in_time(monkeypatch):
    async def never(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(latency_prometheus, "WAIT_S", 0.1)
    async with serving(never) as url, PrometheusSource(settings(url), base_url=GPU1) as source:
        (reading,) = (await source.read()).values()
    assert reading == Failed(f"Prometheus at {url} gave no answer in 0.1 s")


async def test_each_objective_is_asked_for_by_its_metrics_expression():
    query = {Metric.TTFT: QUERY, Metric.E2E: "max(e2e:p99)"}
    objectives = parse_objectives("ttft p50 < 1 s; ttft p95 < 2 s; e2e p99 < 10 s")
    async with (
        answering(vector("0.25")) as (url, asked),
        PrometheusSource(settings(f"{url}/", objectives=objectives, prometheus_query=query), base_url=GPU1) as source,
    ):
        readings = await source.read()
    assert list(readings) == list(objectives)
    wanted = [QUERY.replace("{quantile}", share).replace("{period}", "30s") for share in ("0.5", "0.95")]
    assert sorted(text for _, text in asked) == sorted([*wanted, "max(e2e:p99)"])
    assert {request.path for request, _ in asked} == {"/api/v1/query"}


async def test_headers_go_there_and_the_endpoints_key_does_not():
    async with answering(vector("0.25")) as (url, asked):
        latency = settings(url, prometheus_headers=MappingProxyType({"X-Scope-OrgID": "team"}))
        endpoint = EndpointSettings(
            base_urls=("http://gpu1:8000",), api_key="sk-secret", extra_headers={"X-Team": "a"}, latency=latency
        )
        async with latency_source(endpoint) as source:
            await source.read()
    ((request, _),) = asked
    assert request.headers["X-Scope-OrgID"] == "team"
    assert "Authorization" not in request.headers
    assert "X-Team" not in request.headers


async def test_what_it_says_shows_no_header():
    error = {"status": "error", "errorType": "x", "error": "no tenant Bearer abcdef123"}
    headers = MappingProxyType({"Authorization": "Bearer abcdef123"})
    reading = await reading_of(error, 400, prometheus_headers=headers)
    assert "abcdef123" not in reading.reason


async def test_asked_again_at_once_it_gives_the_last_reading():
    async with answering(vector("0.25")) as (url, asked):
        async with PrometheusSource(settings(url), base_url=GPU1) as source:
            assert await source.read() == await source.read()
        assert len(asked) == 1
        async with PrometheusSource(settings(url), base_url=GPU1, ask_every_s=0.0) as source:
            await source.read()
            await source.read()
        assert len(asked) == 3


def test_a_url_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match="no URL"):
        PrometheusSource(settings("prometheus:9090"), base_url=GPU1)


def test_no_objective_is_no_source():
    with pytest.raises(ConfigurationError, match="no objective"):
        latency_source(EndpointSettings(base_urls=("http://gpu1:8000",)))
