"""What a real vLLM answers, read by our client: the ground that classification and `StubVLLM` stand on."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import psutil
import pytest

from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.identity import ServerIdentity, resolve_model
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.testing import StubVLLM
from airflow_llm_provider.testing import body as stub_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import RealVLLM

    Start = Callable[..., AbstractContextManager[RealVLLM]]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

log = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
API_KEY = "sk-contract"
SLOTS = 2
QUEUE = 2  # --max-num-queued-reqs counts those that run too


@pytest.fixture(scope="module")
def vllm(start: Start) -> Iterator[RealVLLM]:
    flags = [
        "--served-model-name",
        "tiny",
        "tiny-alias",
        "--max-num-seqs",
        str(SLOTS),
        "--scheduling-policy",
        "priority",
    ]
    with start(*flags, "--max-num-queued-reqs", str(SLOTS + QUEUE), "--enable-prompt-tokens-details") as server:
        yield server


def client_of(server: RealVLLM, **settings: Any) -> EndpointClient:
    settings = {"api_key": API_KEY, "request_timeout_s": 300.0, **settings}
    return EndpointClient(EndpointSettings(base_urls=(server.url,), **settings), base_url=server.url)


def chat(text: str = "hello", **fields: Any) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
    return orjson.dumps({**body, **fields})


def text(prompt: str = "hello", **fields: Any) -> bytes:
    return orjson.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0, **fields})


LONG = chat(max_tokens=8000, ignore_eos=True)  # seconds or a minute, as fast as the machine is
LENGTHS = (8000, 6700, 5300, 4100)  # those that are sent again and again do not end together


async def send(server: RealVLLM, body: bytes, path: str = CHAT, **settings: Any) -> Completion | Failure:
    async with client_of(server, **settings) as client:
        return await client.send(path, body, request_id="contract")


async def raw(server: RealVLLM | StubVLLM, body: bytes, path: str = CHAT) -> Any:
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json", "X-Request-Id": "same"}
    async with aiohttp.ClientSession(headers=headers) as session, session.post(server.url + path, data=body) as answer:
        return orjson.loads(await answer.read())


async def gauge(server: RealVLLM, *names: str) -> float:
    """The sum of these, of one page."""
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/metrics") as answer:
        page = await answer.text()
    any_of = "|".join(re.escape(name) for name in names)
    return sum(float(value) for value in re.findall(rf"^(?:{any_of})\S* (\S+)$", page, re.MULTILINE))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await condition():  # noqa: ASYNC110 - the other side is a process
            await asyncio.sleep(0.05)


async def running(server: RealVLLM) -> float:
    return await gauge(server, "vllm:num_requests_running{")


async def present(server: RealVLLM) -> float:
    """Running and waiting, of one page: between two, a request may have moved on."""
    return await gauge(server, "vllm:num_requests_running{", "vllm:num_requests_waiting{")


AGAIN = {FailureKind.BUSY, FailureKind.STALE_CONNECTION}  # another one took its place; we were kept from running


class Held:
    """Requests that hold places in a server however fast it is: each is sent again when it has ended."""

    def __init__(self, client: EndpointClient) -> None:
        self._client = client
        self._again = True
        self.completions: list[Completion] = []
        self.tasks: list[asyncio.Task[Completion | Failure]] = []

    async def hold(self, server: RealVLLM, *bodies: bytes) -> None:
        """Send them, and wait until so many are in a slot or in the queue at once."""
        self.tasks = [asyncio.create_task(self._keep(number, body)) for number, body in enumerate(bodies, start=1)]

        async def taken() -> bool:
            for task in self.tasks:
                assert not task.done(), f"{task.get_name()} ended before it was seen: {task.result()}"
            return await present(server) >= len(bodies)

        await until(taken)

    def last(self) -> list[asyncio.Task[Completion | Failure]]:
        """From now on none is sent again: these tasks end with what is sent already."""
        self._again = False
        return self.tasks

    async def _keep(self, number: int, body: bytes) -> Completion | Failure:
        while True:
            answer = await self._client.send(CHAT, body, request_id=f"long-{number}")
            if isinstance(answer, Completion):
                self.completions.append(answer)
            if not self._again:
                return answer
            if isinstance(answer, Failure) and answer.kind in AGAIN:
                await asyncio.sleep(0.05)
            elif isinstance(answer, Failure):
                return answer


async def cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_identify(vllm: RealVLLM, model: Path) -> None:
    async with client_of(vllm) as client:
        identity = await client.identify()
    assert isinstance(identity, ServerIdentity)
    assert [served.id for served in identity.models] == ["tiny", "tiny-alias"]
    assert identity.is_vllm
    assert re.match(r"\d+\.\d+", identity.version or "")
    assert resolve_model(identity, "tiny-alias").root == str(model)


async def test_chat(vllm: RealVLLM) -> None:
    completion = await send(vllm, chat())
    assert isinstance(completion, Completion)
    assert completion.output
    assert completion.finish_reason == "length"
    assert completion.usage.completion_tokens == 4
    assert completion.usage.prompt_tokens > 0
    assert (completion.reasoning, completion.tool_calls, completion.choices) == (None, None, None)


async def test_completions(vllm: RealVLLM) -> None:
    completion = await send(vllm, text(), COMPLETIONS)
    assert isinstance(completion, Completion)
    assert completion.output
    assert completion.usage.completion_tokens == 4


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (COMPLETIONS, text)])
@pytest.mark.parametrize("fields", [{}, {"n": 2, "temperature": 0.7, "seed": 1}, {"logprobs": 1}])
async def test_a_stream_says_the_same_as_a_whole_answer(
    vllm: RealVLLM, path: str, body: Callable[..., bytes], fields: dict[str, Any]
) -> None:
    if path == CHAT and "logprobs" in fields:
        fields = {"logprobs": True, "top_logprobs": 1}
    whole = await send(vllm, body(**fields), path)
    joined = await send(vllm, body(stream=True, stream_options={"include_usage": True}, **fields), path)
    assert isinstance(whole, Completion)
    assert isinstance(joined, Completion)
    assert (joined.output, joined.finish_reason) == (whole.output, whole.finish_reason)
    assert joined.usage.completion_tokens == whole.usage.completion_tokens
    assert (joined.choices is None) == (whole.choices is None) == (not fields)
    for one, other in zip(joined.choices or (), whole.choices or (), strict=True):
        assert (one["index"], one["finish_reason"]) == (other["index"], other["finish_reason"])
        if "logprobs" in fields:
            key = "content" if path == CHAT else "tokens"
            assert one["logprobs"][key] == other["logprobs"][key]


async def test_cached_tokens_are_told(vllm: RealVLLM) -> None:
    long = "one two three four " * 100
    first, second = await send(vllm, chat(long)), await send(vllm, chat(long))
    assert isinstance(first, Completion)
    assert isinstance(second, Completion)
    assert second.usage.cached_tokens > first.usage.cached_tokens


NO_JSON = b'{"model":"tiny","messages":[{"role":"user"'
TOO_LONG = "word " * 9000


@pytest.mark.parametrize(
    ("path", "body", "kind", "words"),
    [
        (CHAT, chat(model="nope"), FailureKind.MODEL_NOT_FOUND, "`nope` does not exist"),
        (CHAT, chat(TOO_LONG), FailureKind.BAD_REQUEST, "maximum context length"),
        (COMPLETIONS, text(TOO_LONG), FailureKind.BAD_REQUEST, "maximum context length"),
        (CHAT, chat(max_tokens=9000), FailureKind.BAD_REQUEST, "max_tokens"),
        (CHAT, chat(top_p=7), FailureKind.BAD_REQUEST, "top_p"),
        (CHAT, chat(temperature=-1), FailureKind.BAD_REQUEST, "temperature"),
        (CHAT, chat(stream=True, top_p=7), FailureKind.BAD_REQUEST, "top_p"),
        (CHAT, NO_JSON, FailureKind.BAD_REQUEST, "JSON decode error"),
        (CHAT, chat(messages="x"), FailureKind.BAD_REQUEST, "valid list"),
        (CHAT, chat(max_tokens="y"), FailureKind.BAD_REQUEST, "valid integer"),
        ("/v1/nothing", chat(), FailureKind.ROUTE_NOT_FOUND, "Not Found"),
    ],
)
async def test_refusals(vllm: RealVLLM, path: str, body: bytes, kind: FailureKind, words: str) -> None:
    failure = await send(vllm, body, path)
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert words in failure.message


@pytest.mark.parametrize("key", [None, "sk-wrong"])
async def test_wrong_key(vllm: RealVLLM, key: str | None) -> None:
    failure = await send(vllm, chat(), api_key=key)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.UNAUTHORISED
    async with client_of(vllm, api_key=key) as client:
        refused = await client.identify()
    assert isinstance(refused, Failure)
    assert refused.kind is FailureKind.UNAUTHORISED


async def test_a_full_queue_is_busy_without_retry_after(vllm: RealVLLM) -> None:
    seen: list[Failure] = []
    async with client_of(vllm) as client:
        held = Held(client)
        await held.hold(vllm, *[LONG] * (SLOTS + QUEUE))

        async def refused() -> bool:  # it may slip in while a request that has ended is sent again
            answer = await client.send(CHAT, chat(), request_id="one-too-many")
            seen.extend([answer] if isinstance(answer, Failure) else [])
            return bool(seen)

        await until(refused)
        await cancel(held.tasks)
    assert (seen[0].kind, seen[0].http_status, seen[0].retry_after_s) == (FailureKind.BUSY, 503, None)
    assert seen[0].message == stub_body.BUSY["error"]["message"]


async def test_cancelling_frees_the_slot(vllm: RealVLLM) -> None:
    async def idle() -> bool:
        return await running(vllm) == 0

    await until(idle)
    ended = 'vllm:request_success_total{engine="0",finished_reason="length"'
    before = await gauge(vllm, ended)
    async with client_of(vllm) as client:
        held = Held(client)
        await held.hold(vllm, *[chat(max_tokens=length, ignore_eos=True) for length in LENGTHS[:SLOTS]])
        await cancel(held.tasks)
        await until(idle)
    ran_to_their_end = await gauge(vllm, ended) - before - len(held.completions)
    assert ran_to_their_end < SLOTS  # one may have, whose answer was on its way when it was cancelled


def shape(value: Any) -> Any:
    """Keys all the way down, with no values."""
    match value:
        case dict():
            return {name: shape(inner) for name, inner in value.items()}
        case [first, *_]:
            return [shape(first)]
        case _:
            return None


def missing(stub: Any, real: Any, path: str = "") -> set[str]:
    """What the stub sends and the real server does not."""
    if isinstance(stub, dict) and isinstance(real, dict):
        own = {f"{path}.{name}" for name in stub.keys() - real.keys()}
        return own.union(*(missing(stub[name], real[name], f"{path}.{name}") for name in stub.keys() & real.keys()))
    if isinstance(stub, list) and isinstance(real, list) and stub and real:
        return missing(stub[0], real[0], f"{path}[]")
    return set()


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (COMPLETIONS, text()), (CHAT, chat(logprobs=True))])
async def test_the_stubs_answers_have_the_real_ones_shape(vllm: RealVLLM, path: str, body: bytes) -> None:
    with StubVLLM("tiny", api_key=API_KEY) as stub:
        ours, theirs = shape(await raw(stub, body, path)), shape(await raw(vllm, body, path))
    assert missing(ours, theirs) == set()
    assert ours["choices"][0].keys() >= {"index", "finish_reason", "logprobs"}
    assert missing(theirs["usage"], ours["usage"]) == set()


@pytest.mark.parametrize("body", [chat(model="nope"), chat(TOO_LONG)])
async def test_the_stubs_errors_are_the_real_ones(vllm: RealVLLM, body: bytes) -> None:
    with StubVLLM(("tiny", "tiny-alias"), api_key=API_KEY, max_prompt_chars=8192 * 4) as stub:
        ours, theirs = await raw(stub, body), await raw(vllm, body)
    for answer in (ours, theirs):
        answer["error"]["message"] = re.sub(r"\d+", "N", answer["error"]["message"])
    assert ours == theirs


async def test_the_stubs_model_list_has_the_real_ones_shape(vllm: RealVLLM) -> None:
    async def models(server: RealVLLM | StubVLLM) -> Any:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with aiohttp.ClientSession(headers=headers) as session, session.get(server.url + "/v1/models") as answer:
            return shape(await answer.json())

    with StubVLLM("tiny", api_key=API_KEY) as stub:
        assert missing(await models(stub), await models(vllm)) == set()


STOPPED = {FailureKind.DRAINING, FailureKind.ENGINE_DEAD, FailureKind.CONNECTION_LOST}


@pytest.fixture
def doomed(start: Start) -> Iterator[RealVLLM]:
    with start("--served-model-name", "tiny", "--max-num-seqs", "4") as server:
        yield server


async def test_told_to_stop_it_answers_with_nothing_we_would_keep(doomed: RealVLLM) -> None:
    """SIGTERM without a shutdown time-out. What comes may differ by the moment; half a completion it never is.

    Now and then the stop hangs half-way: the port is closed, requests in flight get no answer, and the server waits for
    its connections to close, as we would wait for its answers. A refused connection tells; giving up lets it end.
    """
    async with client_of(doomed) as client:
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        fields = ({}, streamed, {}, streamed)
        bodies = [chat(max_tokens=n, ignore_eos=True, **more) for n, more in zip(LENGTHS, fields, strict=True)]
        held = Held(client)
        await held.hold(doomed, *bodies)
        tasks = held.last()
        doomed.terminate()
        answered, unanswered = await asyncio.wait(tasks, timeout=30)
        failures = [answer for task in answered if isinstance(answer := task.result(), Failure)]
        log.info("told to stop, it answered %s, and %d requests not at all", failures, len(unanswered))
        assert unanswered or {failure.kind for failure in failures} & STOPPED, "none was in flight when it was told"
        for length, task in zip(LENGTHS, tasks, strict=True):
            if task in unanswered:
                continue
            answer = task.result()
            if isinstance(answer, Completion):  # it had ended before the server took notice
                assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", length)
            else:
                assert answer.kind in {*STOPPED, FailureKind.STALE_CONNECTION, FailureKind.UNREACHABLE}

        async def refused() -> bool:
            failure = await client.send(CHAT, chat(), request_id="late")
            if isinstance(failure, Completion):  # it has not taken notice yet
                return False
            assert failure.kind in {*STOPPED, FailureKind.STALE_CONNECTION, FailureKind.UNREACHABLE}
            return failure.refused

        await until(refused)
        await cancel(list(unanswered))

    def ended() -> bool:
        return not psutil.pid_exists(doomed.pid) or psutil.Process(doomed.pid).status() == psutil.STATUS_ZOMBIE

    async def gone() -> bool:
        return await asyncio.to_thread(ended)

    await until(gone)


@pytest.fixture
def draining(start: Start) -> Iterator[RealVLLM]:
    with start("--served-model-name", "tiny", "--max-num-seqs", "4", "--shutdown-timeout", "300") as server:
        yield server


async def test_a_draining_server_ends_its_work_and_takes_no_more(draining: RealVLLM) -> None:
    async with client_of(draining) as client, client_of(draining) as second:
        # a connection that is open before: a server that drains may well accept no new one
        assert isinstance(await second.send(CHAT, chat(), request_id="before"), Completion)
        held = Held(client)
        await held.hold(draining, *[chat(max_tokens=length, ignore_eos=True) for length in LENGTHS[:3]])
        assert isinstance(await second.send(CHAT, chat(), request_id="before"), Completion)
        tasks = held.last()
        draining.terminate()
        late: list[Completion | Failure] = []
        while not all(task.done() for task in tasks):
            late.append(await second.send(CHAT, chat(), request_id="late"))
            await asyncio.sleep(0.1)
        answers = await asyncio.gather(*tasks)
    for completion, length in zip(answers, LENGTHS[:3], strict=True):
        assert isinstance(completion, Completion)
        assert (completion.finish_reason, completion.usage.completion_tokens) == ("length", length)
    kinds = [failure.kind for failure in late if isinstance(failure, Failure)]
    assert FailureKind.DRAINING in kinds
    assert set(kinds) <= {FailureKind.DRAINING, FailureKind.STALE_CONNECTION, FailureKind.UNREACHABLE}
