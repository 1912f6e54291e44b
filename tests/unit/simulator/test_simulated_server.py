from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import aiohttp
import aiohttp.web
import pytest

from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.exposition import Page
from airflow_llm_provider.endpoint.identity import ServerIdentity
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.simulator.engine import StepModel
from airflow_llm_provider.testing import Fault, FaultKind, Rule, SimulatedVLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
QUICK = StepModel(base_s=1e-4, per_seq_s=0.0, per_prefill_token_s=0.0)
SECONDS = StepModel(base_s=1.0, per_seq_s=0.0, per_prefill_token_s=0.0)
ENDLESS = {"max_tokens": 4000, "ignore_eos": True}


@pytest.fixture
def server() -> Iterator[SimulatedVLLM]:
    with SimulatedVLLM("sim", max_num_seqs=2, step=QUICK, enable_prompt_tokens_details=True) as running:
        yield running


@pytest.fixture
def slow() -> Iterator[SimulatedVLLM]:
    """A second for a token: what is sent to it is there until a test has seen enough."""
    with SimulatedVLLM(
        "sim", max_num_seqs=2, max_num_queued_reqs=3, step=StepModel(base_s=1.0, per_seq_s=0.0, per_prefill_token_s=0.0)
    ) as running:
        yield running


def chat(text: str = "hello", **fields: Any) -> bytes:
    body = {"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields}
    return json.dumps(body).encode()


def text(prompt: Any = "hello", **fields: Any) -> bytes:
    return json.dumps({"prompt": prompt, "max_tokens": 20, **fields}).encode()


def client_of(url: str, **settings: Any) -> EndpointClient:
    return EndpointClient(EndpointSettings(base_urls=(url,), **settings), base_url=url)


async def send(url: str, body: bytes, path: str = CHAT, **settings: Any) -> Completion | Failure:
    async with client_of(url, **settings) as client:
        return await client.send(path, body, request_id="r1")


async def ask(url: str, path: str, body: Any) -> Any:
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body) as answer:
        return await answer.json()


async def page_of(url: str, query: str = "", *names: str) -> Page:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics{query}") as answer:
        return Page(await answer.read(), names or ("vllm:num_requests_running", "vllm:num_requests_waiting"))


async def load(url: str) -> tuple[float | None, float | None]:
    page = await page_of(url, "/?name[]=vllm:num_requests_running&name[]=vllm:num_requests_waiting")
    return page.total("vllm:num_requests_running"), page.total("vllm:num_requests_waiting")


async def until(condition: Callable[[], Any], wanted: Any) -> None:
    async with asyncio.timeout(20):
        while await condition() != wanted:  # noqa: ASYNC110 - the other side is a thread
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2},
        {"max_tokens": 3},
        {"ignore_eos": True, "max_tokens": 300},
        {"return_token_ids": True},
        {"stop": ["sea"], "max_tokens": 300},
        {"temperature": 1, "seed": 7},
        {"logprobs": 1},
    ],
    ids=str,
)
async def test_a_stream_says_the_same_as_a_whole_answer(
    server: SimulatedVLLM, path: str, fields: dict[str, Any]
) -> None:
    make = chat if path == CHAT else text
    if path == CHAT and "logprobs" in fields:
        fields = {"logprobs": True, "top_logprobs": 1}
    whole = await send(server.url, make(**fields), path)
    joined = await send(server.url, make(stream=True, stream_options={"include_usage": True}, **fields), path)
    assert isinstance(whole, Completion)
    assert isinstance(joined, Completion)
    assert whole.output
    assert (whole.output, whole.finish_reason) == (joined.output, joined.finish_reason)
    assert whole.usage.completion_tokens == joined.usage.completion_tokens
    assert (whole.choices is None) == (joined.choices is None)


@pytest.mark.parametrize("ignore_eos", [False, True])
async def test_rows_continued_by_ids_say_what_a_whole_row_says(server: SimulatedVLLM, *, ignore_eos: bool) -> None:
    fields = {"return_token_ids": True, "ignore_eos": ignore_eos}
    whole = await ask(server.url, CHAT, {**json.loads(chat()), **fields, "max_tokens": 200})
    part = await ask(server.url, CHAT, {**json.loads(chat()), **fields, "max_tokens": 16})
    prompt, told = part["prompt_token_ids"], part["choices"][0]
    assert prompt == (await ask(server.url, "/tokenize", json.loads(chat())))["tokens"]
    ids, cached = list(told["token_ids"]), 0
    while told["finish_reason"] == "length" and len(ids) < 200:
        body = {"prompt": [*prompt, *ids], "max_tokens": min(16, 200 - len(ids)), **fields}
        part = await ask(server.url, TEXT, body)
        told, cached = part["choices"][0], part["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert told["prompt_token_ids"] == body["prompt"]
        ids += told["token_ids"]
    text = (await ask(server.url, "/detokenize", {"tokens": ids}))["prompt"]  # a slice may begin within a character
    choice = whole["choices"][0]
    assert ids == choice["token_ids"]
    assert (text.rstrip("\ufffd"), told["finish_reason"]) == (choice["message"]["content"], choice["finish_reason"])
    if ignore_eos:
        assert len(ids) == 200
        assert cached >= 176  # the prefix cache makes a continuation's prefill cheap


async def test_tokens_and_text(server: SimulatedVLLM) -> None:
    told = await ask(server.url, "/tokenize", {"prompt": "the wörld", "return_token_strs": True})
    assert (told["count"], told["max_model_len"], "".join(told["token_strs"][:1])) == (
        len(told["tokens"]),
        4096,
        "the ",
    )
    assert await ask(server.url, "/detokenize", {"tokens": told["tokens"]}) == {"prompt": "the wörld"}
    for path, body in (("/tokenize", {}), ("/detokenize", {"tokens": "x"})):
        assert (await ask(server.url, path, body))["error"]["code"] == 400


async def test_identity_and_other_routes() -> None:
    with SimulatedVLLM(("sim", "alias"), api_key="k", root="weights", max_model_len=512) as server:
        async with client_of(server.url, api_key="k") as client:
            identity = await client.identify()
        assert isinstance(identity, ServerIdentity)
        assert [(model.id, model.root) for model in identity.models] == [("sim", "weights"), ("alias", "weights")]
        refused = await send(server.url, chat())
        assert isinstance(refused, Failure)
        assert refused.kind is FailureKind.UNAUTHORISED
        server.swap_model("others")
        async with aiohttp.ClientSession() as session:
            for path, status in {
                "/health": 200,
                "/ping": 200,
                "/version": 200,
                "/load": 200,
                "/v1/models": 401,
            }.items():
                async with session.get(server.url + path) as answer:
                    assert answer.status == status
            headers = {"Authorization": "Bearer k"}
            async with session.get(server.url + "/v1/models", headers=headers) as answer:
                served = (await answer.json())["data"]
            assert {(model["root"], model["max_model_len"]) for model in served} == {("others", 512)}
            async with session.post(server.url + "/v1/nothing") as answer:
                assert (answer.status, await answer.json()) == (404, {"detail": "Not Found"})
            async with session.get(server.url + CHAT) as answer:
                assert answer.status == 405


async def test_slots_queue_and_the_cheap_look(slow: SimulatedVLLM) -> None:
    async with client_of(slow.url) as client:
        tasks = [asyncio.create_task(client.send(CHAT, chat(**ENDLESS), request_id="r")) for _ in range(3)]
        await until(lambda: load(slow.url), (2, 1))
        busy = await client.send(CHAT, chat(), request_id="one too many")
        assert isinstance(busy, Failure)
        assert (busy.kind, busy.retry_after_s) == (FailureKind.BUSY, None)
        counter = "vllm:admission_rejections_total"
        assert (await page_of(slow.url, "", counter)).total(counter) == 1
        assert (await page_of(slow.url, f"/?name[]={counter}", counter)).models() == ["sim"]
        assert (await page_of(slow.url, f"/?name[]={counter}")).models() == []
        assert (await page_of(slow.url, f"?name[]={counter}")).models() == ["sim"]  # this route does not choose
        assert slow.in_flight == 3
        for task in tasks:
            task.cancel()
    await until(lambda: load(slow.url), (0, 0))


async def test_a_stream_that_nobody_reads_is_aborted(slow: SimulatedVLLM) -> None:
    task = asyncio.create_task(send(slow.url, chat(stream=True, **ENDLESS)))
    await until(lambda: load(slow.url), (1, 0))
    task.cancel()
    await until(lambda: load(slow.url), (0, 0))
    total = "vllm:request_success_total"
    assert (await page_of(slow.url, "", total)).total(total) == 0


@pytest.mark.parametrize("fault", [None, Fault(kind=FaultKind.RESET_MID_ANSWER)])
async def test_a_client_that_left_before_the_first_byte_is_no_error(
    server: SimulatedVLLM, fault: Fault | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def gone(*_: object) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(aiohttp.web.StreamResponse, "prepare", gone)
    server.fault = None if fault is None else Rule(fault=fault)
    failure = await send(server.url, chat(stream=True))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CONNECTION_LOST
    monkeypatch.undo()
    server.fault = None
    await until(lambda: load(server.url), (0, 0))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiohttp")] == []


async def test_offsets_are_where_the_tokens_begin(server: SimulatedVLLM) -> None:
    told = (await ask(server.url, TEXT, {"prompt": "a", "max_tokens": 9, "logprobs": 1}))["choices"][0]["logprobs"]
    assert told["text_offset"] == [len("".join(told["tokens"][:at])) for at in range(9)]


async def test_priority_goes_first() -> None:
    step = StepModel(base_s=0.1, per_seq_s=0.0, per_prefill_token_s=0.0)
    ended: list[str] = []
    with SimulatedVLLM("sim", max_num_seqs=1, policy="priority", step=step) as server:

        async def one(name: str, priority: int) -> None:
            await send(server.url, chat(max_tokens=1, priority=priority))
            ended.append(name)

        first = asyncio.create_task(send(server.url, chat(**ENDLESS)))
        await until(lambda: load(server.url), (1, 0))
        late = asyncio.create_task(one("late", 100))
        await until(lambda: load(server.url), (1, 1))
        urgent = asyncio.create_task(one("urgent", -1))
        await until(lambda: load(server.url), (1, 2))
        first.cancel()
        await asyncio.gather(late, urgent)
    assert ended == ["urgent", "late"]


async def test_per_request_metrics_and_a_faster_clock() -> None:
    """A minute of the engine's passes in a fraction of one, and is told as a minute."""
    with SimulatedVLLM("sim", step=SECONDS, speed=1000, enable_per_request_metrics=True) as server:
        body = chat(max_tokens=60, ignore_eos=True)
        whole = await asyncio.wait_for(send(server.url, body), 10)
        assert isinstance(whole, Completion)
        assert whole.generation_s == pytest.approx(59)
        assert whole.ttft_s == pytest.approx(1)
        page = await page_of(server.url, "", "vllm:e2e_request_latency_seconds_sum")
        assert page.total("vllm:e2e_request_latency_seconds_sum") == pytest.approx(60)


REFUSALS = [
    (CHAT, chat(model="other"), FailureKind.MODEL_NOT_FOUND, "`other` does not exist"),
    (CHAT, chat("word " * 9000), FailureKind.BAD_REQUEST, "maximum context length is 4096"),
    (TEXT, text([40] * 4097), FailureKind.BAD_REQUEST, "maximum context length is 4096"),
    (TEXT, text([40] * 4096), FailureKind.BAD_REQUEST, "max_tokens must be at least 1, got 0"),
    (CHAT, chat(max_tokens=9000), FailureKind.BAD_REQUEST, "max_tokens=9000 cannot be greater"),
    (CHAT, chat(max_completion_tokens=0), FailureKind.BAD_REQUEST, "max_tokens must be at least 1, got 0"),
    (CHAT, chat(top_p=7), FailureKind.BAD_REQUEST, "top_p must be in (0, 1], got 7.0"),
    (CHAT, chat(temperature=-1), FailureKind.BAD_REQUEST, "temperature must be non-negative"),
    (CHAT, chat(top_k=-3), FailureKind.BAD_REQUEST, "top_k"),
    (CHAT, chat(n=0), FailureKind.BAD_REQUEST, "n must be at least 1"),
    (CHAT, chat(min_tokens=30), FailureKind.BAD_REQUEST, "less than or equal to max_tokens=20"),
    (CHAT, chat(stream_options={"include_usage": True}), FailureKind.BAD_REQUEST, "only be defined when `stream=True`"),
    (CHAT, b'{"messages"', FailureKind.BAD_REQUEST, "JSON decode error"),
    (CHAT, b"[]", FailureKind.BAD_REQUEST, "valid dictionary"),
    (CHAT, b"", FailureKind.BAD_REQUEST, "Field required"),
    (CHAT, b"{}", FailureKind.BAD_REQUEST, "body.messages"),
    (CHAT, chat(messages="x"), FailureKind.BAD_REQUEST, "valid list"),
    (CHAT, chat(messages=[]), FailureKind.BAD_REQUEST, "empty conversation"),
    (CHAT, chat(messages=[{"content": "x"}]), FailureKind.BAD_REQUEST, "role"),
    (CHAT, chat(max_tokens="y"), FailureKind.BAD_REQUEST, "valid integer"),
    (CHAT, chat(temperature="y"), FailureKind.BAD_REQUEST, "valid number"),
    (TEXT, b"{}", FailureKind.BAD_REQUEST, "prompt"),
    (TEXT, text([]), FailureKind.BAD_REQUEST, "at least one prompt"),
    (TEXT, text(5), FailureKind.BAD_REQUEST, "valid list"),
    (TEXT, text([[1], "x", [None]]), FailureKind.BAD_REQUEST, "valid list"),
    (TEXT, text([99999999]), FailureKind.BAD_REQUEST, "out of vocabulary"),
]


@pytest.mark.parametrize(("path", "body", "kind", "words"), REFUSALS, ids=lambda value: str(value)[:40])
async def test_refusals(server: SimulatedVLLM, path: str, body: bytes, kind: FailureKind, words: str) -> None:
    failure = await send(server.url, body, path)
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert words in failure.message


async def test_what_the_context_leaves_no_room_for_is_cut(server: SimulatedVLLM) -> None:
    cut = await send(server.url, text([40] * 4090, max_tokens=4000, ignore_eos=True), TEXT)
    assert isinstance(cut, Completion)
    assert (cut.usage.completion_tokens, cut.finish_reason) == (6, "length")


async def test_several_prompts(server: SimulatedVLLM) -> None:
    told = await ask(server.url, TEXT, {"prompt": ["a", "bc", "b"], "n": 2, "max_tokens": 2, "echo": True})
    assert [choice["index"] for choice in told["choices"]] == list(range(6))
    assert told["choices"][0]["text"].startswith("a")
    assert told["usage"]["prompt_tokens"] == 3
    counter = "vllm:request_params_n_count"
    assert (await page_of(server.url, "", counter)).total(counter) == 3


FAULTS = [
    (Fault.busy(), FailureKind.BUSY),
    (Fault.engine_dead(), FailureKind.ENGINE_DEAD),
    (Fault.bad_request(), FailureKind.BAD_REQUEST),
    (Fault(kind=FaultKind.ABORT), FailureKind.DRAINING),
    (Fault(kind=FaultKind.STREAM_CUT), FailureKind.GARBLED),
    (Fault(kind=FaultKind.TRUNCATED), FailureKind.GARBLED),
    (Fault(kind=FaultKind.GARBAGE), FailureKind.GARBLED),
    (Fault(kind=FaultKind.EMPTY), FailureKind.GARBLED),
    (Fault(kind=FaultKind.RESET), FailureKind.CONNECTION_LOST),
    (Fault(kind=FaultKind.RESET_MID_ANSWER), FailureKind.CONNECTION_LOST),
    (Fault(kind=FaultKind.HANG), FailureKind.TIMEOUT),
    (Fault.slow(600.0), FailureKind.TIMEOUT),
]


def test_every_fault_is_tried() -> None:
    assert {fault.kind for fault, _ in FAULTS} == set(FaultKind)


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=lambda value: str(getattr(value, "kind", value)))
@pytest.mark.parametrize("stream", [False, True])
async def test_faults(server: SimulatedVLLM, fault: Fault, kind: FailureKind, *, stream: bool) -> None:
    server.fault = Rule(fault=fault, first=1)
    patience_s = 1.0 if kind is FailureKind.TIMEOUT else 60.0
    failure = await send(server.url, chat(stream=stream), request_timeout_s=patience_s)
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert isinstance(await send(server.url, chat(stream=stream)), Completion)
    assert server.counts == {"r1": 2}
    await until(lambda: load(server.url), (0, 0))


async def test_draining_takes_no_more(server: SimulatedVLLM) -> None:
    server.drain()
    failure = await send(server.url, chat())
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.DRAINING


@pytest.mark.parametrize("stream", [False, True])
async def test_stopped_it_says_that_its_engine_died(*, stream: bool) -> None:
    simulated = SimulatedVLLM("sim", step=SECONDS)
    with simulated as server:
        task = asyncio.create_task(send(server.url, chat(stream=stream, **ENDLESS)))
        await until(lambda: load(server.url), (1, 0))
    failure = await task
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.ENGINE_DEAD
    with simulated as server:  # a restart: same port, an empty engine, counts kept
        assert await load(server.url) == (0, 0)
        assert server.received == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"speed": 0}, "speed"),
        ({"mean_output_tokens": 0}, "mean_output_tokens"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"model": ()}, "served_model_name"),
    ],
)
def test_impossible_servers(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SimulatedVLLM(**flags)
    with pytest.raises(TypeError, match="no_such"):
        SimulatedVLLM(no_such=1)


def http(method: str, url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)  # noqa: S310 - our own URL
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_process_form(tmp_path: Any) -> None:
    step = tmp_path / "step.json"
    step.write_text(json.dumps({"base_s": 0.001, "per_seq_s": 0, "per_prefill_token_s": 0}))
    flags = ["--served-model-name", "sim", "--step", str(step), "--max-num-seqs", "4", "--shutdown-timeout", "20"]
    command = [sys.executable, "-m", "airflow_llm_provider.simulator", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            rule = {"fault": Fault.busy().as_json(), "first": 1}
            assert http("PUT", f"{url}/_faults", [rule]) == (200, {"rules": 1})
            assert http("POST", url + CHAT, json.loads(chat()))[0] == 503
            status, answer = http("POST", url + CHAT, json.loads(chat()))
            assert (status, answer["model"]) == (200, "sim")
            assert http("DELETE", f"{url}/_faults") == (200, {"rules": 0})
            assert http("PUT", f"{url}/_faults", [{"fault": {"kind": "nonsense"}}])[0] == 400
            assert http("PATCH", f"{url}/_state", {"slots": 2})[0] == 400
            assert http("PATCH", f"{url}/_state", {"root": "swapped"})[0] == 200
            assert http("GET", f"{url}/_state")[1]["received"] == 2
            assert http("GET", f"{url}/v1/models")[1]["data"][0]["root"] == "swapped"
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_the_process_forms_mistakes() -> None:
    command = [sys.executable, "-m", "airflow_llm_provider.simulator", "--max-num-seqs", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 2
    assert "max_num_seqs is a whole number of 1 or more" in refused.stderr
