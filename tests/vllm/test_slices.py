"""Rows in slices on a real vLLM: identical to the whole row, field by field, and across characters of several tokens.

The model is restless: it says something else all the time, bytes that are no characters among it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from airflow_llm_provider.batch.slicer import BegunAnew, SliceEnded, Slicer
from airflow_llm_provider.core.request import Completion, Position, RowRequest, Usage
from airflow_llm_provider.core.retry import Failure
from airflow_llm_provider.core.row_queue import Ticket
from airflow_llm_provider.core.slice_rules import (
    CARRIED,
    CHAT_PATH,
    COMPLETIONS_PATH,
    COUNTED,
    FIRST,
    SLICE_TOKENS,
    SliceTerms,
)
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.endpoint.slice_terms import read_terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import RealVLLM

    Start = Callable[..., AbstractContextManager[RealVLLM]]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

log = logging.getLogger(__name__)

API_KEY = "sk-contract"
CONTEXT = 2048
FLAGS = ("--served-model-name", "tiny", "--max-model-len", str(CONTEXT))
ROWS = 8
FEWER = 4  # where a case is not about how rows end
SLICE = 16
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "def",
    "class",
    "return",
    "import",
    "self",
    "value",
    "error",
    "file",
    "name",
    "list",
    "dict",
    "for",
    "while",
    "if",
    "else",
    "try",
]
EOS = 4
PLAIN = {"allowed_token_ids": list(range(300, 380))}
"""Tokens that are words and their beginnings: text can be followed over every boundary, whatever the CPU says."""
SINGLE = ("--dtype", "float32")
"""In bfloat16, near ties fall one way or the other on some CPUs, whole rows against slices."""
STOPS = list(range(100, 4096, 90))


@pytest.fixture(scope="module")
def vllm(start: Start, restless: Path) -> Iterator[RealVLLM]:
    with start(
        *FLAGS, *SINGLE, "--max-num-seqs", "8", "--scheduling-policy", "priority", model_folder=restless
    ) as server:
        yield server


@pytest.fixture
def byte_ids(restless: Path) -> Callable[[bytes], list[int]]:
    """The tokens that stand for single bytes, by byte: GPT-2's alphabet."""
    vocabulary = orjson.loads((restless / "tokenizer.json").read_bytes())["model"]["vocab"]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    names = {byte: chr(byte) for byte in plain} | {byte: chr(256 + number) for number, byte in enumerate(others)}
    return lambda data: sorted({vocabulary[names[byte]] for byte in data})


def client_of(server: RealVLLM) -> EndpointClient:
    settings = EndpointSettings(base_urls=(server.url,), api_key=API_KEY, request_timeout_s=300.0)
    return EndpointClient(settings, base_url=server.url)


def bodies(path: str, number: int, **fields: Any) -> list[bytes]:
    rng = random.Random(number)
    made = []
    for _ in range(ROWS):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 60)))
        said = {"messages": [{"role": "user", "content": text}]} if path == CHAT_PATH else {"prompt": text}
        made.append(orjson.dumps({"model": "tiny", **said, "max_tokens": 100, "temperature": 0, **fields}))
    return made


async def sliced(slicer: Slicer, path: str, body: bytes) -> tuple[Completion | Failure, Ticket]:
    ticket = Ticket(RowRequest(0, "row-0", path, body, Position(file="", line=0)))
    while True:
        ticket.sends += 1
        answer = await slicer.send(ticket, f"sliced-{ticket.sends}")
        if not isinstance(answer, SliceEnded | BegunAnew):
            return answer, ticket


async def compare(server: RealVLLM, path: str, rows: list[bytes], slice_tokens: int | None = SLICE) -> Counter[str]:
    """Run each row whole and in slices; how they ended, and how many of them were whole all the same."""
    seen: Counter[str] = Counter()
    async with client_of(server) as client:
        slicer = Slicer(client, model="tiny", name="it", ending=set(), slice_tokens=slice_tokens)
        for body in rows:
            whole = await client.send(path, body, request_id="whole")
            assert isinstance(whole, Completion), whole
            slicer.heard(whole)
            landed, ticket = await sliced(slicer, path, body)
            assert isinstance(landed, Completion), landed
            assert landed.output == whole.output, body
            assert landed.finish_reason == whole.finish_reason
            assert landed.usage.prompt_tokens == whole.usage.prompt_tokens
            assert landed.usage.completion_tokens == whole.usage.completion_tokens
            seen.update([str(whole.finish_reason), "whole" if ticket.whole else "sliced"])
            seen["requests"] += ticket.sends
    log.info("%s %s", path, dict(seen))
    return seen


PROVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "ignore_eos": {"ignore_eos": True, "logit_bias": {str(EOS): 7.0}},
    "logit_bias": {"logit_bias": {str(EOS): 7.0}},
    "min_tokens": {"min_tokens": 40, "logit_bias": {str(EOS): 8.0}},
    "min_tokens and stop_token_ids": {"min_tokens": 50, "stop_token_ids": STOPS},
    "stop_token_ids": {"stop_token_ids": STOPS},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "allowed_token_ids": {"allowed_token_ids": list(range(200, 3000, 7))},
    "top_k, top_p, min_p": {"top_k": 5, "top_p": 0.9, "min_p": 0.05},
    "priority, user, cache_salt": {"priority": 7, "user": "me", "cache_salt": "salt"},
    "skip_special_tokens": {"skip_special_tokens": True},
    "add_special_tokens": {"add_special_tokens": True},
    "neutral": {"n": 1, "stream": False, "stop": [], "presence_penalty": 0, "frequency_penalty": 0.0, "seed": None},
}
OF_CHAT: dict[str, dict[str, Any]] = {
    "max_completion_tokens": {"max_completion_tokens": 90, "max_tokens": 30},
    "add_generation_prompt": {"add_generation_prompt": False},
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "documents": {"documents": [{"title": "a", "text": "b"}]},
    "continue_final_message": {
        "messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "on"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "content parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello there"}]}]},
}
CASES = [
    *((CHAT_PATH, name, fields) for name, fields in PROVEN.items()),
    *((COMPLETIONS_PATH, name, fields) for name, fields in PROVEN.items()),
    *((CHAT_PATH, name, fields) for name, fields in OF_CHAT.items()),
]


@pytest.mark.parametrize(("path", "name", "fields"), CASES, ids=[f"{path[4:8]} {name}" for path, name, _ in CASES])
async def test_a_field_of_the_allow_list_leaves_the_answer_as_it_is(
    vllm: RealVLLM, path: str, name: str, fields: dict[str, Any]
) -> None:
    stops = "stop_token_ids" in fields or name in ("logit_bias", "min_tokens")
    rows = bodies(path, len(name), **fields)[: ROWS if stops else FEWER]
    seen = await compare(vllm, path, rows)
    assert seen["sliced"] >= len(rows) // 2
    assert seen["requests"] >= 2 * seen["sliced"]
    if stops:
        assert seen["stop"], "the case is about rows that stop"


def test_every_field_of_the_allow_list_is_proven() -> None:
    proven = {field for fields in [*PROVEN.values(), *OF_CHAT.values()] for field in fields}
    always = {"model", "messages", "prompt", "temperature", "max_tokens"}
    assert proven | always >= CARRIED | FIRST | COUNTED


async def test_characters_of_several_tokens_come_out_right_wherever_they_are_cut(
    vllm: RealVLLM, byte_ids: Callable[[bytes], list[int]]
) -> None:
    wide = {"allowed_token_ids": [*byte_ids("é中😀ñжß".encode()), *range(300, 380)], "repetition_penalty": 1.1}
    seen: Counter[str] = Counter()
    for path in (CHAT_PATH, COMPLETIONS_PATH):
        seen += await compare(vllm, path, bodies(path, 5, **wide), slice_tokens=8)
    assert seen["sliced"] >= ROWS
    bytes_only = {"allowed_token_ids": byte_ids(bytes(range(256)))}
    for path in (CHAT_PATH, COMPLETIONS_PATH):
        await compare(vllm, path, bodies(path, 6, **bytes_only)[:FEWER])


@pytest.mark.parametrize("path", [CHAT_PATH, COMPLETIONS_PATH])
async def test_slices_of_the_default_size(vllm: RealVLLM, path: str) -> None:
    seen = await compare(vllm, path, bodies(path, 8, max_tokens=900, **PLAIN)[:2], slice_tokens=None)
    assert seen["requests"] >= 2 * seen["sliced"] >= 2


async def test_the_first_long_chat_row_runs_whole(vllm: RealVLLM) -> None:
    async with client_of(vllm) as client:
        slicer = Slicer(client, model="tiny", name="it", ending=set(), slice_tokens=SLICE)
        for body, in_slices in zip(bodies(CHAT_PATH, 1), (False, True), strict=False):
            _, ticket = await sliced(slicer, CHAT_PATH, body)
            assert (ticket.sends > 1) is in_slices


async def test_a_row_that_names_no_length_ends_where_the_context_does(vllm: RealVLLM) -> None:
    """Most of the context is prompt, so that it does not take minutes."""
    long = [{"role": "user", "content": " the" * (CONTEXT - 350)}]
    body = orjson.dumps({"model": "tiny", "messages": long, "temperature": 0, "ignore_eos": True, **PLAIN})
    seen = await compare(vllm, CHAT_PATH, [body], slice_tokens=64)
    assert (seen["length"], seen["sliced"]) == (1, 1)


@pytest.mark.parametrize("asked", [CONTEXT - 2, 10 * CONTEXT])
async def test_a_row_that_leaves_its_prompt_no_room_lands_as_the_whole_row(vllm: RealVLLM, asked: int) -> None:
    [body] = bodies(CHAT_PATH, 3, max_tokens=asked, stop_token_ids=STOPS)[:1]
    async with client_of(vllm) as client:
        slicer = Slicer(client, model="tiny", name="it", ending=set())
        slicer.heard(Completion("", "stop", Usage()))
        whole = await client.send(CHAT_PATH, body, request_id="whole")
        landed, ticket = await sliced(slicer, CHAT_PATH, body)
    assert ticket.whole
    if isinstance(whole, Failure):
        assert landed == whole
    else:
        assert isinstance(landed, Completion)
        assert (landed.output, landed.usage) == (whole.output, whole.usage)


@pytest.mark.parametrize(
    ("field", "value"), [("presence_penalty", 1.5), ("frequency_penalty", 1.5), ("seed", 7), ("stop", ["e"])]
)
async def test_fields_that_would_change_answers_have_rows_run_whole(vllm: RealVLLM, field: str, value: Any) -> None:
    temperature = {"temperature": 1.0} if field == "seed" else {}
    seen = await compare(vllm, CHAT_PATH, bodies(CHAT_PATH, 4, **{field: value}, **temperature)[:3])
    assert seen["whole"] == seen["requests"] == 3


async def test_terms_of_a_real_server(vllm: RealVLLM) -> None:
    for path in (CHAT_PATH, COMPLETIONS_PATH):
        assert await terms_of(vllm, path) == SliceTerms(max_model_len=CONTEXT)


def test_a_server_that_caches_no_prefixes_gets_rows_whole(start: Start, restless: Path) -> None:
    with start(*FLAGS, "--no-enable-prefix-caching", model_folder=restless) as server:
        assert asyncio.run(terms_of(server, CHAT_PATH)) == "it caches no prefixes"
        seen = asyncio.run(compare(server, CHAT_PATH, bodies(CHAT_PATH, 2)[:2]))
    assert seen["whole"] == seen["requests"] == 2


def test_a_server_that_bounds_answers_says_so(start: Start, restless: Path) -> None:
    bound = ("--override-generation-config", '{"max_new_tokens": 300}')
    with start(*FLAGS, *SINGLE, *bound, model_folder=restless) as server:
        for path in (CHAT_PATH, COMPLETIONS_PATH):
            bounded = SliceTerms(max_model_len=CONTEXT, most_tokens=300)
            assert asyncio.run(terms_of(server, path)) == bounded
        for asked in (None, 250, 1000):
            seen = asyncio.run(compare(server, CHAT_PATH, bodies(CHAT_PATH, 2, max_tokens=asked, **PLAIN)[:2]))
            assert seen["whole" if asked == 1000 else "sliced"] == 2


async def terms_of(server: RealVLLM, path: str) -> object:
    async with client_of(server) as client:
        return await read_terms(client, model="tiny", path=path, slice_tokens=SLICE_TOKENS)
