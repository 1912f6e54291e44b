from __future__ import annotations

import asyncio
import socket

import pytest

from airflow_llm_provider.batch import preflight
from airflow_llm_provider.batch.preflight import identify
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import EndpointDownError, EndpointRefusedError, RunStoppedError
from airflow_llm_provider.testing import StubVLLM


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def settings_of(*urls: str) -> EndpointSettings:
    return EndpointSettings(base_urls=urls, connect_timeout_s=2, request_timeout_s=5)


async def test_says_who_answers(stub: StubVLLM) -> None:
    (identity,) = (await identify(settings_of(stub.url), StopSwitch())).values()
    assert [model.id for model in identity.models] == ["stub"]
    assert identity.is_vllm


async def test_an_endpoint_that_refuses_is_not_waited_for(stub: StubVLLM) -> None:
    stub.behaviour.api_key = "sk-secret"
    with pytest.raises(EndpointRefusedError, match="Check the connection's URL and key"):
        await identify(settings_of(stub.url), StopSwitch(), patience_s=3600)


async def test_an_endpoint_that_nobody_serves(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EndpointDownError, match=r"gave no answer for 0 s; last: unreachable .*Nothing was sent"):
        await identify(settings_of(f"http://127.0.0.1:{free_port()}"), StopSwitch(), patience_s=0.2)


async def test_an_endpoint_that_comes_up_meanwhile_is_used(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    asking = asyncio.create_task(identify(settings_of(f"http://127.0.0.1:{port}"), StopSwitch(), patience_s=60))
    async with asyncio.timeout(30):
        while "Trying again for up to" not in caplog.text:  # noqa: ASYNC110 - a log line is no event
            await asyncio.sleep(0.005)
    with StubVLLM(port=port):
        assert (await asyncio.wait_for(asking, 60)).keys() == {f"http://127.0.0.1:{port}"}


@pytest.mark.parametrize("when", ["before", "while it waits"])
async def test_a_stop_ends_the_wait(caplog: pytest.LogCaptureFixture, when: str) -> None:
    stop = StopSwitch()
    if when == "before":
        stop.set("Stopped from outside")
    url = f"http://127.0.0.1:{free_port()}"
    asking = asyncio.create_task(identify(settings_of(url), stop, patience_s=3600))
    if when != "before":
        async with asyncio.timeout(30):
            while "Trying again for up to" not in caplog.text:  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.005)
        stop.set("Stopped from outside")
    with pytest.raises(RunStoppedError, match="Stopped from outside: nothing was sent yet"):
        await asyncio.wait_for(asking, 30)


async def test_one_server_that_answers_is_enough(
    stub: StubVLLM, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "OTHERS_S", 0.05)
    gone = f"http://127.0.0.1:{free_port()}"
    with StubVLLM() as other:
        found = await identify(settings_of(gone, stub.url, other.url), StopSwitch(), patience_s=3600)
    assert found.keys() == {stub.url, other.url}
    assert f"{gone} does not answer, and is left out until it does" in caplog.text


async def test_one_that_refuses_is_one_too_many(stub: StubVLLM) -> None:
    with StubVLLM(api_key="sk-secret") as strict, pytest.raises(EndpointRefusedError, match=strict.url):
        await identify(settings_of(stub.url, strict.url), StopSwitch())


async def test_several_that_do_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with pytest.raises(EndpointDownError, match=urls[0]):
        await identify(settings_of(*urls), StopSwitch(), patience_s=0.2)
