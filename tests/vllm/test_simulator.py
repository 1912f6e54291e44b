"""The simulated server beside a real vLLM with the same flags: metrics, answers, streams, errors, what counts where."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest
from conftest import API_KEY

from airflow_llm_provider.core.load import Load
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.load import LoadReader
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.testing import SimulatedVLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from conftest import RealVLLM

    Server = RealVLLM | SimulatedVLLM

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SLOTS = 2
QUEUE = 4  # running ones included
BLOCK = 128  # what a real vLLM takes on a CPU
MAX_MODEL_LEN = 8192  # as in conftest
IDS = [100 + number for number in range(300)]


@pytest.fixture(scope="module")
def real(start: Callable[..., AbstractContextManager[RealVLLM]]) -> Iterator[RealVLLM]:
    flags = ["--served-model-name", "tiny", "tiny-alias", "--max-num-seqs", str(SLOTS)]
    flags += ["--scheduling-policy", "priority", "--max-num-queued-reqs", str(QUEUE)]
    with start(*flags, "--enable-prompt-tokens-details", "--enable-per-request-metrics") as server:
        yield server


def simulated(**flags: Any) -> SimulatedVLLM:
    """The real one's twin."""
    return SimulatedVLLM(
        ("tiny", "tiny-alias"),
        api_key=API_KEY,
        max_num_seqs=SLOTS,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK,
        num_blocks=32768,
        policy="priority",
        max_num_queued_reqs=QUEUE,
        enable_prompt_tokens_details=True,
        enable_per_request_metrics=True,
        **flags,
    )


@pytest.fixture(scope="module")
def ours() -> Iterator[SimulatedVLLM]:
    with simulated() as server:
        yield server


@pytest.fixture(scope="module")
def slow() -> Iterator[SimulatedVLLM]:
    """Slow enough for a chunk for each token, however busy the machine is."""
    with simulated(speed=0.05) as server:
        yield server


async def post(server: Server, path: str, body: Any, **headers: str) -> tuple[int, bytes, str]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    sent = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json", "X-Request-Id": "same", **headers}
    async with (
        aiohttp.ClientSession(headers=sent) as session,
        session.post(server.url + path, data=data) as answer,
    ):
        return answer.status, await answer.read(), answer.headers.get("Content-Type", "")


async def told(server: Server, path: str, body: Any) -> Any:
    status, answer, _ = await post(server, path, body)
    assert status == 200, answer
    return orjson.loads(answer)


async def get(server: Server, path: str) -> tuple[str, str]:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(server.url + path) as answer:
        return await answer.text(), answer.headers.get("Content-Type", "")


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 3, "temperature": 0, "ignore_eos": True, **fields}


def text(prompt: Any = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": 3, "temperature": 0, "ignore_eos": True, **fields}


def shape(value: Any) -> Any:
    """Keys all the way down, and whether a value is there."""
    match value:
        case {"top_logprobs": [dict(likely), *_]} if "token" not in likely:  # the tokens are the keys
            return shape({**value, "top_logprobs": len(likely)})
        case dict():
            return {name: shape(inner) for name, inner in value.items()}
        case [first, *_]:
            return [shape(first)]
        case None:
            return None
        case _:
            return "…"


SERIES = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def is_vllms(name: str) -> bool:
    return name.startswith("vllm:") and not name.endswith("_created")


def series_of(page: str) -> dict[str, set[tuple[tuple[str, str], ...]]]:
    """VLLM's series by name: each one's labels. Of the cache's, whose values are this machine's, only the names."""
    found: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    for name, labels, _ in SERIES.findall(page):
        if is_vllms(name):
            told = LABEL.findall(labels)
            if name == "vllm:cache_config_info":
                told = [(label, "") for label, _ in told]
            found.setdefault(name, set()).add(tuple(told))
    return found


def headings_of(page: str) -> set[str]:
    lines = re.findall(r"^# (?:HELP|TYPE) (\S+) (.*)$", page, re.MULTILINE)
    return {f"{name} {rest}" for name, rest in lines if is_vllms(name)}


async def test_metrics_have_the_real_names_labels_buckets_and_words(real: RealVLLM, ours: SimulatedVLLM) -> None:
    for server in (real, ours):
        await told(server, CHAT, chat())
    (theirs, their_type), (twins, our_type) = await get(real, "/metrics"), await get(ours, "/metrics")
    assert headings_of(twins) == headings_of(theirs)
    assert series_of(twins) == series_of(theirs)
    assert our_type == their_type
    assert "process_start_time_seconds " in theirs
    assert "process_start_time_seconds " in twins


async def test_only_the_route_with_a_slash_chooses(real: RealVLLM, ours: SimulatedVLLM) -> None:
    names = ("num_requests_running", "num_requests_waiting", "e2e_request_latency_seconds", "request_success_total")
    query = "&".join(f"name[]=vllm:{name}" for name in names)
    pages = [await get(server, f"/metrics/?{query}") for server in (real, ours)]
    lines = [sorted(re.sub(r" \S+$", "", line) for line in page.splitlines() if line[0] != "#") for page, _ in pages]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 7  # a histogram's own name is no series
    assert pages[0][1] == pages[1][1]
    for server in (real, ours):
        assert len((await get(server, f"/metrics?{query}"))[0]) > 20_000


ANSWERS = [
    (CHAT, chat()),
    (CHAT, chat(return_token_ids=True)),
    (CHAT, chat(logprobs=True, top_logprobs=1)),
    (CHAT, chat(n=2, temperature=1)),
    (CHAT, chat(max_tokens=1)),
    (TEXT, text()),
    (TEXT, text(IDS)),
    (TEXT, text(return_token_ids=True)),
    (TEXT, text(logprobs=1)),
    (TEXT, text(["a", "b"])),
    (TEXT, text(echo=True)),
    ("/tokenize", {"prompt": "hello"}),
    ("/tokenize", {"prompt": "hello", "return_token_strs": True}),
    ("/tokenize", {"messages": [{"role": "user", "content": "hello"}]}),
    ("/detokenize", {"tokens": [40, 41]}),
]


def of_request(value: Any) -> str:
    return str(value)[:60].replace("\n", " ")


@pytest.mark.parametrize(("path", "body"), ANSWERS, ids=of_request)
async def test_answers_have_the_real_ones_shape(
    real: RealVLLM, ours: SimulatedVLLM, path: str, body: dict[str, Any]
) -> None:
    theirs, twins = await told(real, path, body), await told(ours, path, body)
    assert shape(twins) == shape(theirs)
    for key in ("id", "object", "model"):
        assert twins.get(key) == theirs.get(key)
    if path in (CHAT, TEXT):
        usage = twins["usage"], theirs["usage"]
        assert usage[0]["completion_tokens"] == usage[1]["completion_tokens"]


STREAMS = [
    {},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"return_token_ids": True},
    {"n": 2, "temperature": 1, "stream_options": {"include_usage": True}},
]


def events_of(body: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    return [shape(orjson.loads(line)) for line in lines[:-1]]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("fields", STREAMS, ids=of_request)
async def test_streams_have_the_real_ones_events(
    real: RealVLLM, slow: SimulatedVLLM, path: str, fields: dict[str, Any]
) -> None:
    body = (chat if path == CHAT else text)(stream=True, max_tokens=20, **fields)
    theirs, twins = [await post(server, path, body) for server in (real, slow)]
    assert twins[2] == theirs[2]
    wanted, found = events_of(theirs[1]), events_of(twins[1])
    assert (found[0], found[-1]) == (wanted[0], wanted[-1])
    assert [event for event in found if event not in wanted] == []
    assert [event for event in wanted if event not in found] == []


TOO_LONG = "word " * 9000
ERRORS = [
    (CHAT, chat(model="nope")),
    (TEXT, text(model="nope")),
    (CHAT, chat(messages=[{"role": "user", "content": TOO_LONG}])),
    (TEXT, text(TOO_LONG)),
    (TEXT, text([40] * 8192)),
    (TEXT, text([40] * 8193)),
    (CHAT, chat(max_tokens=9000)),
    (TEXT, text(max_tokens=9000)),
    (CHAT, chat(max_tokens=0)),
    (TEXT, text(max_tokens=-1)),
    (CHAT, chat(top_p=7)),
    (CHAT, chat(top_p=7, stream=True)),
    (CHAT, chat(temperature=-1)),
    (CHAT, chat(top_k=-3)),
    (CHAT, chat(min_p=3)),
    (CHAT, chat(presence_penalty=3)),
    (CHAT, chat(frequency_penalty=3)),
    (CHAT, chat(repetition_penalty=0)),
    (CHAT, chat(n=0)),
    (CHAT, chat(min_tokens=5)),
    (CHAT, chat(stream_options={"include_usage": True})),
    (CHAT, chat(messages="x")),
    (CHAT, chat(messages=[])),
    (CHAT, {"max_tokens": 3}),
    (CHAT, chat(max_tokens="y")),
    (CHAT, chat(priority="x")),
    (CHAT, chat(temperature="x")),
    (CHAT, b"[]"),
    (CHAT, b""),
    (TEXT, {"max_tokens": 3}),
    (TEXT, text("")),
    (TEXT, text([])),
    (TEXT, text([99999999])),
    (CHAT, chat(n=2)),
    (TEXT, text(n=None)),
    (CHAT, chat(logprobs=True, top_logprobs=1_000_000_000)),
    (CHAT, chat(logprobs=True, top_logprobs=-5)),
    (CHAT, chat(logprobs=True, top_logprobs="x")),
    (CHAT, chat(top_logprobs=3)),
    (CHAT, chat(logprobs="x")),
    (TEXT, text(logprobs="x")),
    (TEXT, text(logprobs=21)),
    (CHAT, chat(stop="")),
    (CHAT, chat(stop_token_ids=5)),
    (CHAT, chat(stop_token_ids=[[1]])),
    (CHAT, chat(stop_token_ids=[1.5])),
    (CHAT, chat(stream="x")),
    (CHAT, chat(stream=[1])),
    (CHAT, chat(stream=True, stream_options="x")),
    (CHAT, chat(stream=True, stream_options={"include_usage": "x"})),
    (CHAT, chat(stream_options=5)),
    (CHAT, chat(ignore_eos=None)),
    (CHAT, chat(max_tokens=1.5)),
    (CHAT, chat(max_tokens=1e300)),
    (CHAT, chat(seed=2**63)),
    (CHAT, chat(priority=None)),
    (CHAT, chat(min_tokens=-3)),
    (CHAT, chat(temperature="inf")),
    (CHAT, chat(temperature=3)),
    (CHAT, chat(repetition_penalty="inf")),
    (CHAT, chat(model=5)),
    (CHAT, chat(continue_final_message=True)),
    (TEXT, text([""])),
    (TEXT, text([[]])),
    ("/detokenize", {}),
    ("/detokenize", {"tokens": [-1]}),
    ("/detokenize", {"tokens": ["a"]}),
    ("/detokenize", {"tokens": [[1]]}),
    ("/tokenize", {"messages": []}),
    ("/detokenize", {"tokens": "x"}),
    ("/v1/nothing", {}),
]


@pytest.mark.parametrize(("path", "body"), ERRORS, ids=of_request)
async def test_errors_are_the_real_ones(real: RealVLLM, ours: SimulatedVLLM, path: str, body: Any) -> None:
    theirs, twins = [await post(server, path, body) for server in (real, ours)]
    assert (twins[0], orjson.loads(twins[1])) == (theirs[0], orjson.loads(theirs[1]))


ODD = [
    (CHAT, chat(stream="false")),
    (CHAT, chat(stream="yes")),
    (CHAT, chat(max_tokens=True)),
    (CHAT, chat(max_tokens=" 5 ")),
    (CHAT, chat(priority=True)),
    (CHAT, chat(stop_token_ids=["5", True])),
    (CHAT, chat(model="")),
    (TEXT, text([1.0, True])),
    (TEXT, text(top_logprobs="of no meaning here")),
    ("/detokenize", {"tokens": [99999999]}),
]
"""What one might think is refused."""


@pytest.mark.parametrize(("path", "body"), ODD, ids=of_request)
async def test_odd_bodies_are_taken_as_by_the_real_one(
    real: RealVLLM, ours: SimulatedVLLM, path: str, body: Any
) -> None:
    theirs, twins = [await post(server, path, body) for server in (real, ours)]
    assert (twins[0], twins[2]) == (theirs[0], theirs[2])
    assert twins[0] == 200


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer wrong"}, {"Content-Type": "text/plain"}], ids=str)
async def test_wrong_headers(real: RealVLLM, ours: SimulatedVLLM, headers: dict[str, str]) -> None:
    theirs, twins = [await post(server, CHAT, chat(), **headers) for server in (real, ours)]
    assert twins[:2] == theirs[:2]


async def test_models_and_version(real: RealVLLM, ours: SimulatedVLLM) -> None:
    for path in ("/v1/models", "/version", "/load"):
        theirs, twins = [orjson.loads((await get(server, path))[0]) for server in (real, ours)]
        assert shape(twins) == shape(theirs)
    names = [model["id"] for model in orjson.loads((await get(ours, "/v1/models"))[0])["data"]]
    assert names == ["tiny", "tiny-alias"]


async def test_what_does_not_fit_is_cut(real: RealVLLM, ours: SimulatedVLLM) -> None:
    """Prompt and max_tokens together may be more than the context: vLLM 0.32 does not refuse it."""
    for server in (real, ours):
        answer = await told(server, TEXT, text([40] * (MAX_MODEL_LEN - 2), max_tokens=50))
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (2, "length")


async def test_what_ends_an_answer_is_in_its_ids_and_not_in_its_text(real: RealVLLM, ours: SimulatedVLLM) -> None:
    for server in (real, ours):
        free = (await told(server, TEXT, text(max_tokens=40, return_token_ids=True)))["choices"][0]
        ids = free["token_ids"]
        at = max(ids.index(token) for token in ids)
        ended = await told(server, TEXT, text(max_tokens=40, return_token_ids=True, stop_token_ids=[ids[at]]))
        choice = ended["choices"][0]
        assert (choice["token_ids"], choice["stop_reason"]) == (ids[: at + 1], ids[at])
        assert ended["usage"]["completion_tokens"] == at + 1
        assert choice["text"] == free["text"][: len(choice["text"])]
        string = free["text"][3:5]
        cut = (await told(server, TEXT, text(max_tokens=40, stop=[string])))["choices"][0]
        assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", string)
        assert cut["text"] == free["text"][: free["text"].index(string)]


async def test_an_answer_that_begins_within_a_character_brings_the_prompt_along(real: RealVLLM) -> None:
    """What `simulator.tokenizer.TextStream` does, and whoever continues by ids must know."""
    before, char = [(await told(real, "/tokenize", {"prompt": words}))["tokens"] for words in ("hello", "日")]
    assert len(char) > 1
    body = text([*before, *char[:-1]], max_tokens=1, logit_bias={str(char[-1]): 100})
    assert (await told(real, TEXT, body))["choices"][0]["text"] == "hello日"
    body = text(before, max_tokens=1, logit_bias={str(char[0]): 100})
    assert (await told(real, TEXT, body))["choices"][0]["text"] == ""


COUNTED = re.compile(r"_total$|_count$|tokens(_total)?_sum$|params_n_sum$|num_preemptions_sum$")


async def counts(server: Server) -> dict[str, float]:
    """What is counted, times left out, and the number of steps, which is a matter of time too."""
    page, _ = await get(server, "/metrics")
    return {
        f"{name}{{{labels}}}": float(value)
        for name, labels, value in SERIES.findall(page)
        if is_vllms(name) and COUNTED.search(name) and name != "vllm:iteration_tokens_total_count"
    }


async def gauges(server: Server) -> list[float]:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    page, _ = await get(server, "/metrics/?" + "&".join(f"name[]={name}" for name in names))
    found = {name: float(value) for name, _, value in SERIES.findall(page)}  # in any order
    return [found[name] for name in names]


async def test_a_load_tells_one_step_from_another(real: RealVLLM, ours: SimulatedVLLM) -> None:
    """What runs gets a token in a step; what rests stays the same."""
    for server in (real, ours):
        await settle(server, [0, 0])
        settings = EndpointSettings(base_urls=(server.url,), api_key=API_KEY)
        async with EndpointClient(settings, base_url=server.url) as client, asyncio.TaskGroup() as group:
            reader = LoadReader(client)
            begin = await reader.read()
            assert isinstance(begin, Load)
            assert begin.generated is not None
            assert await reader.read() == begin
            group.create_task(told(server, TEXT, text(max_tokens=600)))
            seen: list[float] = []
            async with asyncio.timeout(60):
                while not seen or seen[-1] < begin.generated + 600:
                    load = await reader.read()
                    assert isinstance(load, Load)
                    assert load.generated is not None
                    seen.append(load.generated)
                    await asyncio.sleep(0.01)
            assert seen == sorted(seen)
            assert len(set(seen)) > 5
            assert seen[-1] == begin.generated + 600


async def settle(server: Server, wanted: list[float]) -> None:
    async with asyncio.timeout(60):
        while await gauges(server) != wanted:  # noqa: ASYNC110 - the other side is a process
            await asyncio.sleep(0.02)


async def the_same_traffic(server: Server) -> dict[str, float]:
    """Whole, streamed and several answers, a cached prompt, a full queue; what that changed."""
    await settle(server, [0, 0])
    before = await counts(server)
    for _ in range(2):
        await told(server, TEXT, text([token + 500 for token in IDS], max_tokens=20))
    await post(server, TEXT, text(IDS[:50], stream=True, max_tokens=20))
    await told(server, TEXT, text(IDS[:60], n=2, temperature=1, max_tokens=5))
    tasks = []
    for number in range(QUEUE):
        await settle(server, [min(number, SLOTS), max(number - SLOTS, 0)])
        tasks.append(asyncio.create_task(told(server, TEXT, text(IDS[: 70 + number], max_tokens=3000))))
    await settle(server, [SLOTS, QUEUE - SLOTS])
    assert not any(task.done() for task in tasks)
    status, body, _ = await post(server, CHAT, chat())
    assert status == 503
    assert b"engine is currently busy" in body
    await asyncio.gather(*tasks)
    await settle(server, [0, 0])
    after = await counts(server)
    return {name: after[name] - before.get(name, 0) for name in after}


async def test_the_same_requests_count_the_same(real: RealVLLM, ours: SimulatedVLLM) -> None:
    theirs, twins = await the_same_traffic(real), await the_same_traffic(ours)
    assert twins == theirs
    assert sum(theirs.values()) > 12_000


async def test_a_request_given_up_counts_only_its_tokens(real: RealVLLM, ours: SimulatedVLLM) -> None:
    for server in (real, ours):
        await settle(server, [0, 0])
        before = await counts(server)
        task = asyncio.create_task(post(server, TEXT, text(IDS[:40], max_tokens=8000)))
        await settle(server, [1, 0])
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await settle(server, [0, 0])
        after = await counts(server)
        changed = {name.partition("{")[0] for name in after if after[name] != before.get(name, 0)}
        assert "vllm:generation_tokens_total" in changed
        assert not {name for name in changed if "request_" in name}
