"""The gate on a real vLLM: releases, holds under an overload, releases again, holds what it cannot see.

Batch reaches the server through a small proxy, which can lose the metrics and counts what batch has in flight.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from conftest import API_KEY, RealVLLM
from pace import token_s, tokens_for

from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.gate import RunHeld
from airflow_llm_provider.batch.job import BatchJob
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.batch.switch import HoldSwitch
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.objective import parse_objectives
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.release import Cause, Terms
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings, Source
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

log = logging.getLogger(__name__)

SLOTS = 8
FLAGS = (
    *("--served-model-name", "tiny", "--max-num-seqs", str(SLOTS)),
    *("--scheduling-policy", "priority", "--enable-per-request-metrics"),
)
SAMPLING_S = 5.0
HEALTHY_FOR_S = 5.0
IDLE_S = 3.0
ROWS = 10_000
ROW_S = 0.25  # and so six minutes for all of them, were they never held
PEOPLE = 60
ANSWER_S = 0.75  # with 60 people in 8 slots each waits five seconds for a slot, ten times what they are promised
SLACK_S = 40.0  # a busy machine of two cores, which the server shares with the test
LATENCY = LatencySettings(
    objectives=parse_objectives("ttft p90 < 500 ms"),
    source=Source.VLLM,
    only_batch_client=True,
    sampling_period_s=SAMPLING_S,
    healthy_for_s=HEALTHY_FOR_S,
)


class Proxy:
    """Passes everything on, except the metrics while they are `lost`."""

    def __init__(self, server: str) -> None:
        self._server = server
        self.lost = False
        self.in_flight = 0
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Proxy]:
        runner = web.ServerRunner(web.Server(self._pass_on, handler_cancellation=True))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self._session:
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.lost and request.path == "/metrics":
            return web.Response(status=404)
        inference = request.method == "POST"
        self.in_flight += inference
        try:
            body = await request.content.read()
            wanted = ("Authorization", "Content-Type")
            headers = {name: request.headers[name] for name in wanted if name in request.headers}
            async with self._session.request(
                request.method, self._server + request.path, data=body, headers=headers
            ) as answer:
                kind = answer.headers.get("Content-Type", "")
                return web.Response(status=answer.status, body=await answer.read(), headers={"Content-Type": kind})
        finally:
            self.in_flight -= inference


class RealTime:
    """People who chat: so many at once, each waiting for an answer before the next question."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self._people: list[asyncio.Task[None]] = []

    def come(self, people: int, *, tokens: int, pause_s: float) -> None:
        self._people += [asyncio.create_task(self._chat(tokens, pause_s)) for _ in range(people)]

    async def go(self) -> None:
        for person in self._people:
            person.cancel()
        await asyncio.gather(*self._people, return_exceptions=True)
        self._people.clear()

    async def _chat(self, tokens: int, pause_s: float) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens}
        body |= {"ignore_eos": True, "priority": 0}
        headers = {"Authorization": f"Bearer {API_KEY}"}
        while True:
            async with self._session.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
                await answer.read()
            await asyncio.sleep(pause_s)


class Batch:
    """A run of many long rows, in a thread of its own."""

    def __init__(self, proxy: Proxy, folder: Path, tokens: int) -> None:
        self._progress = folder / "_run" / "progress.json"
        self.stop = StopSwitch()
        job = BatchJob(
            identity=RunIdentity(dag_id="d", task_id="t", run_id="r"),
            endpoint=EndpointSettings(base_urls=(proxy.url,), api_key=API_KEY, model="tiny", latency=LATENCY),
            requests=RequestSpec(prompt="{{ row.text }}", parameters={"max_tokens": tokens, "ignore_eos": True}),
            model="tiny",
            source=ListSource([{"text": f"row {number}"} for number in range(ROWS)]),
            chunk_rows=1000,
            terms=Terms(limit=SLOTS - 1, gated=True, unknown_grace_s=SAMPLING_S),
            priority=100,
            switch=HoldSwitch(lambda: None),
            tolerance=Tolerance(1.0),
            epoch=0,
            try_number=1,
            **DEFAULTS,
        )
        self.task = asyncio.create_task(asyncio.to_thread(run_job, job, RunStore(f"file://{folder}"), self.stop))

    async def held(self) -> str:
        """Why it is held; empty while it is not, or has not begun."""
        try:
            return json.loads(await asyncio.to_thread(self._progress.read_bytes))["hold_reason"] or ""
        except FileNotFoundError:
            return ""

    async def says(self, words: str, *, within_s: float) -> float:
        """Wait for the reason in `progress.json`, which is written every 2 s; returns how long it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(within_s):
            while words not in (reason := await self.held()):  # noqa: ASYNC110 - a file sets no event
                await asyncio.sleep(0.2)
        log.info("why: %s", reason)
        return loop.time() - began


DEFAULTS: dict[str, Any] = {
    "agreed": {},
    "max_attempts": 5,
    "on_stale": "fail",
    "rerun": False,
    "on_empty": "succeed",
    "must_exist": False,
    "flush_rows": 100,
    "flush_interval_s": 2.0,
    "outage_patience_s": 60.0,
}


async def until(what: str, condition: Callable[[], Any], *, within_s: float) -> float:
    """Wait for `condition`; returns how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        if loop.time() - began > within_s:
            pytest.fail(f"{what}: not within {within_s:.0f} s")
        await asyncio.sleep(0.1)
    return loop.time() - began


async def idle(what: str, proxy: Proxy, *, within_s: float) -> None:
    """Wait until batch has nothing in flight and keeps it so."""
    loop = asyncio.get_running_loop()
    began = since = loop.time()
    while loop.time() - since < IDLE_S:
        if proxy.in_flight:
            since = loop.time()
        if since - began > within_s:
            pytest.fail(f"{what}: not within {within_s:.0f} s")
        await asyncio.sleep(0.05)


@pytest.fixture
def server(start: Callable[..., AbstractContextManager[RealVLLM]]) -> Iterator[RealVLLM]:
    with start(*FLAGS) as started:
        yield started


@pytest.mark.timeout(900)
async def test_gives_way_to_an_overload_and_to_what_it_cannot_see(server: RealVLLM, tmp_path: Path) -> None:
    pace_s = await token_s(server, at_once=SLOTS)
    async with Proxy(server.url).serving() as proxy, aiohttp.ClientSession() as session:
        people = RealTime(server.url, session)
        people.come(1, tokens=8, pause_s=0.5)
        batch = Batch(proxy, tmp_path / "run", tokens_for(ROW_S, pace_s))
        try:
            released = await until(
                "released beside light traffic", lambda: proxy.in_flight >= 5, within_s=SAMPLING_S + 30
            )
            await asyncio.sleep(2 * SAMPLING_S)
            assert not await batch.held(), "its own load must not look like real-time's"

            people.come(PEOPLE, tokens=tokens_for(ANSWER_S, pace_s), pause_s=0.0)
            gave_way = await batch.says("ttft p90", within_s=SAMPLING_S + SLACK_S)
            await idle("nothing in flight", proxy, within_s=SLACK_S)
            await people.go()
            people.come(1, tokens=8, pause_s=0.5)
            came_back = await until(
                "released after it", lambda: proxy.in_flight >= 5, within_s=SAMPLING_S + HEALTHY_FOR_S + SLACK_S
            )

            proxy.lost = True
            blind = await batch.says("unknown", within_s=2 * SAMPLING_S + SLACK_S)
            await idle("nothing in flight", proxy, within_s=SAMPLING_S + SLACK_S)
            log.info(
                "released after %.1f s; held %.1f s into the overload; released %.1f s after it; "
                "held %.1f s after the metrics were lost",
                *(released, gave_way, came_back, blind),
            )
            with pytest.raises(RunHeld) as raised:
                await asyncio.wait_for(batch.task, 60)
            assert raised.value.hold.cause is Cause.UNKNOWN
        finally:
            batch.stop.set("the test is over")
            await people.go()
            await asyncio.gather(batch.task, return_exceptions=True)
