from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.testing import Fault, FaultKind, Rule, StubVLLM
from airflow_llm_provider.testing.fault import first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHAT = "/v1/chat/completions"


def chat(text: str = "hello", **fields: Any) -> bytes:
    return json.dumps({"model": "stub", "messages": [{"role": "user", "content": text}], **fields}).encode()


async def send(url: str, body: bytes | None = None, path: str = CHAT, **settings: Any) -> Completion | Failure:
    async with EndpointClient(EndpointSettings(base_urls=(url,), **settings), base_url=url) as client:
        return await client.send(path, body or chat(), request_id="r1")


def http(method: str, url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)  # noqa: S310 - our own URL
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the other side is a thread
            await asyncio.sleep(0.005)


async def test_the_echo_is_deterministic(stub: StubVLLM) -> None:
    first, second = await send(stub.url), await send(stub.url)
    assert isinstance(first, Completion)
    assert first == second
    assert (first.output, first.finish_reason) == ("echo: hello", "stop")
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (2, 2)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"max_tokens": 2}])
async def test_a_stream_says_the_same_as_a_whole_answer(stub: StubVLLM, path: str, fields: dict[str, Any]) -> None:
    body = chat("a b c", prompt="a b c", **fields)
    streamed = chat("a b c", prompt="a b c", stream=True, stream_options={"include_usage": True}, **fields)
    whole, joined = await send(stub.url, body, path), await send(stub.url, streamed, path)
    assert isinstance(whole, Completion)
    assert isinstance(joined, Completion)
    assert (whole.output, whole.finish_reason, whole.usage) == (joined.output, joined.finish_reason, joined.usage)
    assert whole.finish_reason == ("length" if "max_tokens" in fields else "stop")


async def test_logprobs_are_kept(stub: StubVLLM) -> None:
    completion = await send(stub.url, chat(logprobs=True))
    assert isinstance(completion, Completion)
    assert completion.choices is not None


FAULTS = [
    (Fault.busy(), FailureKind.BUSY),
    (Fault.rate_limited(7), FailureKind.BUSY),
    (Fault.engine_dead(), FailureKind.ENGINE_DEAD),
    (Fault.bad_request(), FailureKind.BAD_REQUEST),
    (Fault.gateway(502), FailureKind.GATEWAY_LOST),
    (Fault.answer(500, "boom", content_type="text/plain"), FailureKind.SERVER_ERROR),
    (Fault(kind=FaultKind.ABORT), FailureKind.DRAINING),
    (Fault(kind=FaultKind.STREAM_ERROR), FailureKind.ENGINE_DEAD),
    (Fault(kind=FaultKind.STREAM_CUT), FailureKind.GARBLED),
    (Fault(kind=FaultKind.TRUNCATED), FailureKind.GARBLED),
    (Fault(kind=FaultKind.GARBAGE), FailureKind.GARBLED),
    (Fault(kind=FaultKind.EMPTY), FailureKind.GARBLED),
    (Fault(kind=FaultKind.RESET), FailureKind.CONNECTION_LOST),
    (Fault(kind=FaultKind.RESET_MID_ANSWER), FailureKind.CONNECTION_LOST),
    (Fault(kind=FaultKind.HANG), FailureKind.TIMEOUT),
    (Fault.slow(600.0), FailureKind.TIMEOUT),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=lambda value: str(getattr(value, "kind", value)))
@pytest.mark.parametrize("stream", [False, True])
async def test_faults(stub: StubVLLM, fault: Fault, kind: FailureKind, *, stream: bool) -> None:
    stub.behaviour.fault = lambda _body, _nth: fault
    failure = await send(stub.url, chat(stream=stream), request_timeout_s=0.2 if kind is FailureKind.TIMEOUT else 60.0)
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert stub.counts == {"r1": 1}


def test_every_fault_is_tried() -> None:
    assert {fault.kind for fault, _ in FAULTS} == set(FaultKind)


async def test_a_reset_on_a_reused_connection_looks_stale(stub: StubVLLM) -> None:
    stub.behaviour.fault = lambda _body, nth: Fault(kind=FaultKind.RESET) if nth == 2 else None
    async with EndpointClient(EndpointSettings(base_urls=(stub.url,)), base_url=stub.url) as client:
        answers = [await client.send(CHAT, chat(), request_id="r") for _ in range(3)]
    assert isinstance(answers[1], Failure)
    assert answers[1].kind is FailureKind.STALE_CONNECTION
    assert isinstance(answers[2], Completion)


async def test_retry_after_comes_with_429_and_not_with_503(stub: StubVLLM) -> None:
    waits = []
    for fault in (Fault.rate_limited(7), Fault.busy()):
        stub.behaviour.fault = lambda _body, _nth, fault=fault: fault
        failure = await send(stub.url)
        assert isinstance(failure, Failure)
        waits.append(failure.retry_after_s)
    assert waits == [7.0, None]


@pytest.mark.parametrize(
    ("behaviour", "body", "kind"),
    [
        ({"api_key": "sk-1"}, chat(), FailureKind.UNAUTHORISED),
        ({}, chat(model="other"), FailureKind.MODEL_NOT_FOUND),
        ({"max_prompt_chars": 10}, chat("x" * 11), FailureKind.BAD_REQUEST),
        ({"draining": True}, chat(), FailureKind.DRAINING),
        ({}, b"{", FailureKind.BAD_REQUEST),
        ({}, b"[]", FailureKind.BAD_REQUEST),
        ({}, b'{"messages":"x"}', FailureKind.BAD_REQUEST),
    ],
)
async def test_refusals(behaviour: dict[str, Any], body: bytes, kind: FailureKind) -> None:
    with StubVLLM(**behaviour) as stub:
        failure = await send(stub.url, body)
        assert isinstance(failure, Failure)
        assert failure.kind is kind
        if "draining" in behaviour:
            async with aiohttp.ClientSession() as session, session.get(f"{stub.url}/health") as health:
                assert health.status == 200


async def test_unknown_routes_and_methods(stub: StubVLLM) -> None:
    failure = await send(stub.url, path="/v1/nothing")
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.ROUTE_NOT_FOUND
    async with aiohttp.ClientSession() as session, session.get(stub.url + CHAT) as answer:
        assert answer.status == 405


async def test_a_client_that_gives_up_is_in_flight_no_longer() -> None:
    with StubVLLM(delay_s=600.0) as stub:
        async with EndpointClient(EndpointSettings(base_urls=(stub.url,)), base_url=stub.url) as client:
            tasks = [asyncio.create_task(client.send(CHAT, chat(), request_id="r")) for _ in range(3)]
            await until(lambda: stub.in_flight == 3)
            for left, task in zip((2, 1, 0), (tasks[1], tasks[0], tasks[2]), strict=True):
                task.cancel()
                await until(lambda left=left: stub.in_flight == left)
            stub.behaviour.delay_s = 0.0
            assert isinstance(await client.send(CHAT, chat(), request_id="r"), Completion)
    assert stub.peak_in_flight == 3


async def test_a_restart_keeps_port_and_counts() -> None:
    stub = StubVLLM()
    with stub:
        url = stub.url
        assert isinstance(await send(url), Completion)
    down = await send(url)
    assert isinstance(down, Failure)
    assert down.kind is FailureKind.UNREACHABLE
    with stub:
        assert stub.url == url
        assert isinstance(await send(url), Completion)
    assert stub.received == 2


async def test_stopping_cuts_what_is_in_flight() -> None:
    with StubVLLM(delay_s=600.0) as stub:
        task = asyncio.create_task(send(stub.url))
        await until(lambda: stub.in_flight == 1)
    failure = await task
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CONNECTION_LOST


def test_rules() -> None:
    fault = Fault.busy()
    a, b = {"x": "a"}, {"x": "b"}
    assert [Rule(fault=fault, every=2)(a, nth) for nth in (1, 2, 3, 4)] == [None, fault, None, fault]
    assert [Rule(fault=fault, first=2)(a, nth) for nth in (1, 2, 3)] == [fault, fault, None]
    assert [Rule(fault=fault, contains='"b"')(body, 1) for body in (a, b)] == [None, fault]
    each = Rule(fault=fault, first_of_each=1)
    assert [each(body, 1) for body in (a, b, a, b)] == [fault, fault, None, None]
    either = first_of([Rule(fault=fault, first=1), Rule(fault=Fault.bad_request(), contains="b")])
    assert [either(a, 1), either(b, 2), either(a, 2)] == [fault, Fault.bad_request(), None]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[str, Path, subprocess.Popen[str]]]:
    log = tmp_path / "requests.log"
    command = [
        sys.executable,
        "-m",
        "airflow_llm_provider.testing",
        "--port",
        "0",
        "--model",
        "stub",
        "--log",
        str(log),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), log, process
        finally:
            process.kill()


def test_the_process_form(process: tuple[str, Path, subprocess.Popen[str]]) -> None:
    url, log, running = process
    assert http("GET", f"{url}/v1/models")[1]["data"][0]["id"] == "stub"
    rule = {"fault": Fault.busy().as_json(), "first": 1}
    assert http("PUT", f"{url}/_faults", [rule]) == (200, {"rules": 1})
    assert http("POST", url + CHAT, json.loads(chat()))[0] == 503
    assert http("POST", url + CHAT, json.loads(chat()))[0] == 200
    assert http("DELETE", f"{url}/_faults") == (200, {"rules": 0})
    assert http("PATCH", f"{url}/_state", {"draining": True, "root": "swapped"})[0] == 200
    assert http("POST", url + CHAT, json.loads(chat()))[0] == 500
    assert http("GET", f"{url}/v1/models")[1]["data"][0]["root"] == "swapped"
    assert http("GET", f"{url}/_state")[1]["received"] == 3
    assert log.read_text() == "\n\n\n"
    running.terminate()
    assert running.wait(20) == 0


def test_the_process_forms_mistakes(process: tuple[str, Path, subprocess.Popen[str]]) -> None:
    url, _, _ = process
    assert http("PUT", f"{url}/_faults", [{"fault": {"kind": "nonsense"}}])[0] == 400
    assert http("PUT", f"{url}/_faults", [{"fault": {"kind": "hang"}, "evry": 2}])[0] == 400
    assert http("PATCH", f"{url}/_state", {"slot": 2})[0] == 400


async def test_the_log_has_a_request_before_it_is_answered(tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    with StubVLLM(log=log, delay_s=600.0) as stub:
        task = asyncio.create_task(send(stub.url))
        await until(lambda: stub.in_flight == 1)
        descriptor = os.open(log, os.O_RDONLY)
        os.set_blocking(descriptor, False)
        assert os.read(descriptor, 100) == b"r1\n"
        os.close(descriptor)
        task.cancel()
