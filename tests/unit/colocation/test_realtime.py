"""The load generator against a simulated server: what it notes of answers, good and bad."""

from __future__ import annotations

import asyncio

import pytest

from airflow_llm_provider.testing import Fault, SimulatedVLLM
from benchmarks.colocation.realtime import play
from benchmarks.colocation.traffic import Arrival, Phase, Traffic


def traffic_of(*moments_s: float) -> Traffic:
    return Traffic(
        name="test",
        duration_s=0.5,
        arrivals=tuple(Arrival(at_s=at_s, prompt_tokens=30, max_tokens=40) for at_s in moments_s),
        phases=(Phase(name="all", from_s=0.0, to_s=0.5),),
    )


@pytest.fixture(scope="module")
def server():
    with SimulatedVLLM("sim", max_num_seqs=4, speed=20) as running:
        yield running


async def played(server, traffic):
    begin_s = asyncio.get_running_loop().time() + 0.05
    return begin_s, await play(traffic, server.url, model="sim", headers={"X-Who": "people"}, begin_s=begin_s)


async def test_each_request_has_its_moments(server):
    before = server.received
    begin_s, samples = await played(server, traffic_of(0.0, 0.1, 0.1, 0.2))
    assert server.received - before == 4
    assert [sample.error for sample in samples] == [None] * 4
    assert [round(sample.due_s - begin_s, 6) for sample in samples] == [0.0, 0.1, 0.1, 0.2]
    assert all(sample.due_s <= sample.sent_s < sample.first_s < sample.ended_s for sample in samples)
    assert all(sample.ttft_s == sample.first_s - sample.sent_s for sample in samples)


async def test_a_refusal_is_an_error_and_no_first_token(server):
    server.fault = lambda *_: Fault.answer(503)
    try:
        _, samples = await played(server, traffic_of(0.0))
    finally:
        server.fault = None
    assert "503" in samples[0].error
    assert samples[0].ttft_s is None


async def test_an_unknown_model_is_an_error(server):
    begin_s = asyncio.get_running_loop().time()
    samples = await play(traffic_of(0.0), server.url, model="other", headers={}, begin_s=begin_s)
    assert "404" in samples[0].error


async def test_nobody_there_is_an_error():
    begin_s = asyncio.get_running_loop().time()
    samples = await play(traffic_of(0.0), "http://127.0.0.1:9", model="sim", headers={}, begin_s=begin_s)
    assert samples[0].error is not None
    assert samples[0].first_s is None
