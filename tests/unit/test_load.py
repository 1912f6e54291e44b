"""A server's load: the small page, the whole one where that is not known, and everything that is no load."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from latency_fakes import serving

from airflow_llm_provider.core.load import CHOSEN_COST_S, Load
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint import load as module
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.load import FAMILIES, WHOLE_COST_S, LoadReader
from airflow_llm_provider.endpoint.settings import EndpointSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGE = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 4.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 2.0
vllm:num_preemptions_total{engine="0",model_name="tiny"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.25
vllm:generation_tokens_total{engine="0",model_name="tiny"} 100.0
vllm:generation_tokens_total{engine="1",model_name="tiny"} 20.0
"""
READ = {"running": 7, "waiting": 2, "preemptions": 5.0, "kv_usage": 0.5, "generated": 120.0}


class Server:
    """Answers `/metrics/` with `small`, `/metrics` with `whole`: a text, a status, or a callable."""

    def __init__(self, *, small: Any = PAGE, whole: Any = PAGE) -> None:
        self.small, self.whole = small, whole
        self.asked: list[str] = []
        self.names: list[str] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        self.names = request.query.getall("name[]", [])
        says = self.small if request.path == "/metrics/" else self.whole
        if callable(says):
            says = await says()
        return web.Response(text=says) if isinstance(says, str) else web.Response(status=says)


@asynccontextmanager
async def reading(server: Server) -> AsyncIterator[LoadReader]:
    async with serving(server) as url, EndpointClient(EndpointSettings(base_urls=(url,)), base_url=url) as client:
        yield LoadReader(client)


async def test_the_small_page_is_asked_for_and_engines_are_added_up() -> None:
    server = Server()
    async with reading(server) as reader:
        assert await reader.read() == Load(**READ, cost_s=CHOSEN_COST_S)
        await reader.read()
    assert server.asked == ["/metrics/", "/metrics/"]
    assert tuple(server.names) == FAMILIES


@pytest.mark.parametrize("small", [404, 308, 405, "", "<html>a gateway's page</html>"])
async def test_a_server_that_does_not_know_it_is_asked_for_the_whole_page_from_there_on(small: Any) -> None:
    server = Server(small=small)
    async with reading(server) as reader:
        for _ in range(3):
            assert await reader.read() == Load(**READ, cost_s=WHOLE_COST_S)
    assert server.asked == ["/metrics/", "/metrics", "/metrics", "/metrics"]


@pytest.mark.parametrize("small", [429, 500, 502, 503])
async def test_one_that_cannot_answer_just_now_is_asked_for_the_whole_page_this_once(small: int) -> None:
    server = Server(small=small)
    async with reading(server) as reader:
        assert await reader.read() == Load(**READ, cost_s=WHOLE_COST_S)
        server.small = PAGE
        assert await reader.read() == Load(**READ, cost_s=CHOSEN_COST_S)
    assert server.asked == ["/metrics/", "/metrics", "/metrics/"]


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<html>welcome</html>",
        "\x00\x01 garbage {{{ vllm:num_requests_running",
        "llamacpp:requests_processing 1\n",
        "vllm:num_requests_running 3\n",  # half of it
        "vllm:num_requests_running NaN\nvllm:num_requests_waiting 0\n",
        "vllm:num_requests_running +Inf\nvllm:num_requests_waiting 0\n",
        "vllm:num_requests_running -3\nvllm:num_requests_waiting 0\n",
        "vllm:num_requests_running -3\nvllm:num_requests_waiting 5\n",
        "vllm:num_requests_running 5\nvllm:num_requests_waiting -3\n",
        "vllm:num_requests_running 1.7e308\nvllm:num_requests_waiting 0\n",
        "vllm:num_requests_running 0\nvllm:num_requests_waiting 1e9\n",
    ],
)
async def test_a_page_that_tells_no_load_is_none(page: str) -> None:
    async with reading(Server(small=page, whole=page)) as reader:
        assert await reader.read() is None
        assert await reader.read() is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, FailureKind.ROUTE_NOT_FOUND),
        (401, FailureKind.UNAUTHORISED),
        (503, FailureKind.BUSY),
        (502, FailureKind.GATEWAY_LOST),
    ],
)
async def test_a_refusal_is_a_failure_that_says_why(status: int, kind: FailureKind) -> None:
    async with reading(Server(small=status, whole=status)) as reader:
        failure = await reader.read()
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert failure.message


async def test_a_refusal_that_passes_leaves_the_small_page_in_use() -> None:
    server = Server(small=503, whole=503)
    async with reading(server) as reader:
        assert isinstance(await reader.read(), Failure)
        server.small = PAGE
        assert isinstance(await reader.read(), Load)
    assert server.asked[-1] == "/metrics/"


async def test_one_that_takes_too_long_is_none_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.05)

    async def hang() -> str:
        await asyncio.sleep(3600)
        return ""

    async with reading(Server(small=hang, whole=hang)) as reader:
        failure = await asyncio.wait_for(reader.read(), timeout=5)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.TIMEOUT


async def test_a_server_that_is_not_there() -> None:
    url = "http://127.0.0.1:9"
    async with EndpointClient(EndpointSettings(base_urls=(url,)), base_url=url) as client:
        failure = await LoadReader(client).read()
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.UNREACHABLE
