"""Source (c): what is sent, what each ending means, and the quantile of a few."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web
from latency_fakes import serving

from airflow_llm_provider.core.objective import Failed, Health, Measured, judge, parse_objectives
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint import latency_canary
from airflow_llm_provider.endpoint.latency import latency_source
from airflow_llm_provider.endpoint.latency_canary import CanarySource, _Canary
from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings, Source
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TTFT = parse_objectives("ttft p95 < 500 ms")
ALL = parse_objectives("ttft p95 < 20 s; itl p95 < 20 s; e2e p95 < 20 s")  # a busy machine is no news


def settings(**fields: Any) -> LatencySettings:
    return LatencySettings(source=Source.CANARY, **{"objectives": TTFT, **fields})


@asynccontextmanager
async def source_of(url: str, *, endpoint: dict[str, Any] | None = None, **fields: Any) -> AsyncIterator[CanarySource]:
    async with CanarySource(
        EndpointSettings(base_urls=(url,), **(endpoint or {})), settings(**fields), base_url=url
    ) as source:
        yield source


async def one(source: CanarySource) -> Any:
    (reading,) = (await source.read()).values()
    return reading


def event(content: str | None, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


class Server:
    """Streams an answer in pieces, each as late as it says."""

    def __init__(self, *pieces: tuple[float, bytes]) -> None:
        self.pieces = pieces
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.in_flight = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.bodies.append(orjson.loads(await request.read()))
        self.headers.append(request.headers)
        self.in_flight += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for late_s, piece in self.pieces:
                await asyncio.sleep(late_s)
                await response.write(piece)
            return response
        finally:
            self.in_flight -= 1


DONE = b"data: [DONE]\n\n"
QUICK = ((0.0, event("")), (0.0, event("a")), (0.0, event("b", "length")), (0.0, DONE))


async def test_a_first_event_that_only_names_a_role_is_no_token():
    server = Server((0.0, event("")), (0.1, event("a")), (0.1, event("b")), (0.1, event("c", "length") + DONE))
    async with serving(server) as url, source_of(url, objectives=ALL) as source:
        ttft, itl, e2e = (await source.read()).values()
    assert 0.1 <= ttft.lower_s == ttft.upper_s <= e2e.lower_s - 0.2
    assert 0.05 <= itl.lower_s == itl.upper_s < e2e.lower_s
    assert 0.3 <= e2e.lower_s == e2e.upper_s
    assert ttft.samples == 1


async def test_events_cut_anywhere_by_the_network():
    whole = b"".join(piece for _, piece in QUICK)
    server = Server(*[(0.0, whole[number : number + 1]) for number in range(len(whole))])
    async with serving(server) as url, source_of(url, objectives=ALL) as source:
        assert judge(ALL, await source.read()).health is Health.HEALTHY


@pytest.mark.parametrize(
    ("objectives", "endpoint", "fields", "body"),
    [
        (TTFT, {}, {}, {"max_tokens": 2}),
        (TTFT, {"model": "m"}, {"canary_priority": -5}, {"max_tokens": 2, "model": "m", "priority": -5}),
        (ALL, {}, {}, {"max_tokens": 8, "ignore_eos": True}),
    ],
)
async def test_what_is_sent(objectives, endpoint, fields, body):
    server = Server(*QUICK)
    async with serving(server) as url:
        endpoint = {"api_key": "sk-1", "extra_headers": {"X-Team": "a"}, **endpoint}
        async with source_of(url, endpoint=endpoint, objectives=objectives, **fields) as source:
            await source.read()
    message = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "stream": True}
    assert server.bodies == [message | body]
    (headers,) = server.headers
    assert (headers["Authorization"], headers["X-Team"]) == ("Bearer sk-1", "a")
    assert headers["X-Request-Id"].startswith("canary-")


async def test_against_the_stub():
    with StubVLLM(api_key="sk-1") as stub:
        endpoint = EndpointSettings(base_urls=(stub.url,), api_key="sk-1", latency=settings(objectives=ALL))
        async with latency_source(endpoint) as source:
            assert judge(ALL, await source.read()).health is Health.HEALTHY


# ── what an ending means ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [429, 503])
async def test_refused_for_lack_of_capacity_is_infinitely_slow(stub, status):
    stub.behaviour.fault = lambda _body, _nth: Fault.answer(status)
    async with source_of(stub.url, objectives=ALL) as source:
        readings = await source.read()
    assert set(readings.values()) == {Measured(lower_s=inf, upper_s=inf, samples=1)}
    assert judge(ALL, readings).health is Health.VIOLATED


@pytest.mark.parametrize("status", [400, 401, 404, 500, 502])
async def test_any_other_failure_is_unknown(stub, status):
    stub.behaviour.fault = lambda _body, _nth: Fault.answer(status)
    async with source_of(stub.url) as source:
        reading = await one(source)
    assert isinstance(reading, Failed)
    assert f"A canary to {stub.url} told nothing about latency" in reading.reason


async def test_nobody_there_is_unknown():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    async with source_of(url) as source:
        assert isinstance(await one(source), Failed)


async def test_one_that_is_under_way_is_at_least_as_slow_as_it_has_waited(monkeypatch):
    monkeypatch.setattr(latency_canary, "SHORTEST_INTERVAL_S", 0.0)
    server = Server((60.0, b""))
    async with asyncio.timeout(8), serving(server) as url, source_of(url, sampling_period_s=0.01) as source:
        began_s = asyncio.get_running_loop().time()
        first = await one(source)
        assert 0.5 < asyncio.get_running_loop().time() - began_s < 20, "no longer than until it is too late anyway"
        again = await one(source)
        assert len(server.bodies) == 1, "no second one while the first waits"
        assert 0.5 < first.lower_s <= again.lower_s
        assert first.upper_s == inf
        assert judge(TTFT, {TTFT[0]: first}).health is Health.VIOLATED
        assert server.in_flight == 1
    assert server.in_flight == 0


async def test_one_given_up_was_at_least_that_slow(monkeypatch):
    monkeypatch.setattr(latency_canary, "SHORTEST_PATIENCE_S", 0.0)
    monkeypatch.setattr(latency_canary, "PATIENCE", 1.02)
    async with serving(Server((60.0, b""))) as url, source_of(url) as source:
        first = await one(source)
        await asyncio.wait([source._flight])
        later = await one(source)
    assert 0.5 < first.lower_s <= later.lower_s < 20
    assert later.upper_s == inf


@pytest.mark.parametrize(("after_s", "failed"), [(0.4, True), (0.6, False)])
def test_a_gateways_time_out_counts_only_where_it_came_too_late_anyway(after_s, failed):
    canary = _Canary(100.0, too_late_s=0.5)
    canary.landed(Failure(FailureKind.TIMEOUT, "504"), 100.0 + after_s)
    assert (canary.failure is not None) is failed


async def test_after_a_failure_the_next_one_tells_again(stub, monkeypatch):
    monkeypatch.setattr(latency_canary, "SHORTEST_INTERVAL_S", 0.0)
    faults: list[Callable[..., Fault | None] | None] = [None, lambda _body, _nth: Fault.answer(500), None]
    kinds = []
    async with source_of(stub.url, sampling_period_s=0.01) as source:
        for fault in faults:
            stub.behaviour.fault = fault
            kinds.append(type(await one(source)))
            await asyncio.sleep(0.01)
    assert kinds == [Measured, Failed, Measured]


async def test_answers_of_one_token_say_nothing_about_inter_token_latency():
    server = Server((0.0, event("a", "stop") + DONE))
    async with serving(server) as url, source_of(url, objectives=parse_objectives("itl p95 < 500 ms")) as source:
        reading = await one(source)
    assert isinstance(reading, Failed)
    assert "got two tokens" in reading.reason


# ── a few of them ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_asked_again_at_once_it_sends_no_other():
    server = Server(*QUICK)
    async with serving(server) as url, source_of(url) as source:
        for _ in range(5):
            await one(source)
    assert len(server.bodies) == 1


async def test_a_sampling_period_of_them_is_kept():
    server = Server(*QUICK)
    async with serving(server) as url, source_of(url, sampling_period_s=6.0) as source:
        await one(source)
        now_s = asyncio.get_running_loop().time()
        source._kept.clear()
        for age_s, latency_s in ((7.0, 9.0), (5.0, 0.1), (4.0, 0.2), (3.0, 0.3), (2.0, 0.2)):
            canary = _Canary(now_s - age_s, too_late_s=0.5)
            canary.arrived(event("a"), now_s - age_s + latency_s)
            canary.landed(None, now_s)
            source._kept.append(canary)
        reading = await one(source)
    assert reading.samples == 5, "four of the last six seconds, and the one just sent"
    assert reading.upper_s == pytest.approx(0.3), "p95 of five is the slowest"
    assert len(server.bodies) == 2
