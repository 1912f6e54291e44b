"""What a real vLLM 0.32 answered to the same bodies, asked once; `tests/vllm/test_simulator.py` asks it again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from airflow_llm_provider.simulator.asked import Asked, read
from airflow_llm_provider.simulator.fields import RefusedError
from airflow_llm_provider.testing import SimulatedVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
INT64 = 2**63


def asked(path: str, **fields: Any) -> Asked:
    is_chat = path == CHAT
    body = {"messages": [{"role": "user", "content": "a"}]} if is_chat else {"prompt": "a"}
    return read({**body, **fields}, is_chat=is_chat, models=("sim",), max_model_len=4096)


BOTH = [
    ({"stop": 5}, "body.stop", "valid string"),
    ({"stop": [1]}, "body.stop.0", "valid string"),
    ({"stop": ["a", None]}, "body.stop.1", "valid string"),
    ({"stop": ""}, None, "stop cannot contain an empty string"),
    ({"stop": [""]}, None, "stop cannot contain an empty string"),
    ({"stop_token_ids": 5}, "body.stop_token_ids", "valid list"),
    ({"stop_token_ids": "abc"}, "body.stop_token_ids", "valid list"),
    ({"stop_token_ids": [[1]]}, "body.stop_token_ids.0", "valid integer"),
    ({"stop_token_ids": ["a"]}, "body.stop_token_ids.0", "valid integer, unable to parse string"),
    ({"stop_token_ids": [3, -1]}, "stop_token_ids", "token_id(s) [-1] in stop_token_ids contain out-of-vocab"),
    ({"stream": True, "stream_options": "x"}, "body.stream_options", "valid dictionary"),
    ({"stream": True, "stream_options": [1]}, "body.stream_options", "valid dictionary"),
    ({"stream": True, "stream_options": {"include_usage": "x"}}, "body.stream_options.include_usage", "valid boolean"),
    ({"stream_options": 5}, "stream_options", "only be defined when `stream=True`"),
    ({"stream": "x"}, "body.stream", "valid boolean, unable to interpret input"),
    ({"stream": 2}, "body.stream", "valid boolean, unable to interpret input"),
    ({"stream": [1]}, "body.stream", "'bool_type'"),
    ({"stream": 0.5}, "body.stream", "'bool_type'"),
    ({"ignore_eos": None}, "body.ignore_eos", "'bool_type'"),
    ({"return_token_ids": "x"}, "body.return_token_ids", "valid boolean"),
    ({"max_tokens": 1.5}, "body.max_tokens", "got a number with a fractional part"),
    ({"max_tokens": 1e300}, "body.max_tokens", "exceeded maximum size"),
    ({"max_tokens": [1]}, "body.max_tokens", "'int_type'"),
    ({"seed": 1e300}, "body.seed", "exceeded maximum size"),
    ({"seed": INT64}, "body.seed", "less than or equal to 9223372036854775807"),
    ({"seed": -INT64 - 1}, "body.seed", "greater than or equal to -9223372036854775808"),
    ({"priority": -1e300}, "body.priority", "exceeded maximum size"),
    ({"priority": None}, "body.priority", "'int_type'"),
    ({"min_tokens": -3}, None, "min_tokens must be greater than or equal to 0, got -3."),
    ({"min_tokens": None}, "body.min_tokens", "'int_type'"),
    ({"temperature": "inf"}, "temperature", "temperature must be a finite number, got inf. (parameter=temperature,"),
    ({"temperature": "nan"}, "temperature", "temperature must be a finite number, got nan."),
    ({"temperature": 3}, "temperature", "temperature must be in [0, 2], got 3.0."),
    ({"temperature": [1]}, "body.temperature", "valid number"),
    ({"repetition_penalty": "inf"}, None, "repetition_penalty must be a finite number, got inf."),
    ({"top_p": "nan"}, "top_p", "top_p must be in (0, 1], got nan."),
    ({"n": 0}, None, "n must be at least 1, got 0."),
    ({"n": 16385}, None, "n must be at most 16384, got 16385. To increase this limit, set the VLLM_MAX_N_SEQUENCES"),
    ({"n": 100_000_000}, None, "n must be at most 16384, got 100000000."),
    ({"n": 2, "temperature": 0}, None, "n must be 1 when using greedy sampling, got 2."),
    ({"n": 16384, "max_tokens": 4000}, None, "The simulated server makes 1048576 tokens"),
    ({"model": 5}, "body.model", "valid string"),
    ({"model": ["x"]}, "body.model", "valid string"),
]
CHATS = [
    (
        {"logprobs": True, "top_logprobs": 1_000_000_000},
        "logprobs",
        "Requested sample logprobs of 1000000000, which is",
    ),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs", "greater than max allowed: 20 (parameter=logprobs, value=21)"),
    ({"logprobs": True, "top_logprobs": -1}, "logprobs", "greater than max allowed: 20"),
    ({"logprobs": True, "top_logprobs": -5}, "top_logprobs", "`top_logprobs` must be a positive value or -1."),
    ({"logprobs": True, "top_logprobs": "x"}, "top_logprobs", "`top_logprobs` must be an integer."),
    ({"logprobs": True, "top_logprobs": 1.5}, "body.top_logprobs", "fractional part"),
    ({"top_logprobs": 3}, "top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true."),
    ({"logprobs": "x"}, "body.logprobs", "valid boolean"),
    ({"messages": None}, "body.messages", "valid list"),
    ({"messages": ["a"]}, "body.messages.0", "valid dictionary"),
    ({"messages": [{"role": None, "content": "a"}]}, "body.messages.0.role", "valid string"),
    ({"messages": [{"role": "user", "content": 5}]}, "body.messages.0.content", "valid string"),
    ({"messages": [{"role": "user", "content": None}]}, "body.messages.0.content", "valid string"),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, "body.messages.0.content", "valid string"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "body.messages.0.content.0", "valid dictionary"),
    ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "body.messages.0.content.0.type", "Field required"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "body.messages.0.content.0.text",
        "valid string",
    ),
    ({"continue_final_message": True}, None, "continue_final_message and add_generation_prompt are not compatible."),
    ({"add_generation_prompt": "x"}, "body.add_generation_prompt", "valid boolean"),
]
TEXTS = [
    ({"logprobs": "x"}, "logprobs", "`logprobs` must be an integer. (parameter=logprobs, value=x)"),
    ({"logprobs": "1"}, "logprobs", "`logprobs` must be an integer."),
    ({"logprobs": -5}, "logprobs", "`logprobs` must be a positive value or -1."),
    ({"logprobs": 21}, "logprobs", "greater than max allowed: 20"),
    ({"n": None}, "body.n", "'int_type'"),
    ({"prompt": [""]}, None, "The decoder prompt cannot be empty"),
    ({"prompt": ["a", ""]}, None, "The decoder prompt cannot be empty"),
    ({"prompt": [[]]}, None, "The decoder prompt cannot be empty"),
    ({"prompt": ["a", [1]]}, "body.prompt.1", "valid string"),
    ({"prompt": [1, "a"]}, "body.prompt.1", "valid integer"),
    ({"prompt": [[1], [-1]]}, "body.prompt.1.0", "greater than or equal to 0', 'input': '-1', 'ctx': {'ge': 0}"),
    ({"prompt": [1.5]}, "body.prompt.0", "fractional part"),
    ({"prompt": {"a": 1}}, "body.prompt", "valid list"),
    ({"prompt": [[99999999]]}, None, "Token id 99999999 is out of vocabulary"),
    ({"prompt": ["a"] * 40_000}, None, "these 40000 may come to"),
]
REFUSALS = [(path, *case) for case in BOTH for path in (CHAT, TEXT)]
REFUSALS += [(CHAT, *case) for case in CHATS] + [(TEXT, *case) for case in TEXTS]


@pytest.mark.parametrize(("path", "fields", "param", "words"), REFUSALS, ids=lambda value: str(value)[:50])
def test_refused_as_by_a_real_one(path: str, fields: dict[str, Any], param: str | None, words: str) -> None:
    with pytest.raises(RefusedError) as refused:
        asked(path, **fields)
    error = refused.value.body["error"]
    assert refused.value.status == error["code"] == 400
    assert error["type"] == ("Bad Request" if str(param).startswith("body.") else "BadRequestError")
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"stream": "false"}, "streamed", False),
        ({"stream": "Yes"}, "streamed", True),
        ({"stream": 1}, "streamed", True),
        ({"stream": 0.0}, "streamed", False),
        ({"stream": None}, "streamed", False),
        ({"stream": "false", "stream_options": {"include_usage": "on"}}, "usage", True),
        ({"stream_options": {}}, "streamed", False),
        ({"max_tokens": True}, "max_tokens", 1),
        ({"max_tokens": " 5 "}, "max_tokens", 5),
        ({"max_tokens": 5.0}, "max_tokens", 5),
        ({"priority": True}, "priority", 1),
        ({"seed": -INT64, "temperature": "0.5"}, "seed", -INT64),
        ({"seed": 5, "temperature": 1e-6}, "seed", None),
        ({"model": ""}, "count", 1),
        ({"stop": None, "stop_token_ids": None, "top_k": None}, "count", 1),
    ],
    ids=str,
)
def test_read_as_by_a_real_one(path: str, fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(asked(path, **fields), name) == value


def test_read_as_by_a_real_one_on_one_route() -> None:
    assert asked(CHAT, logprobs="1", top_logprobs=20).logprobs == 20
    assert asked(CHAT, logprobs=True, top_logprobs=None).logprobs == 0
    assert asked(CHAT, n=None).count == 1
    assert asked(CHAT, messages=[{"role": "assistant", "content": None}]).prompt_tokens
    assert asked(CHAT, messages=[{"role": "user"}]).prompt_tokens
    assert asked(TEXT, logprobs=True).logprobs == 1
    assert asked(TEXT, top_logprobs="of no meaning here").logprobs is None
    assert asked(TEXT, prompt=[[1.0, True], ["5"]]).prompts == [[1, 1], [5]]
    assert asked(TEXT, n=16384, max_tokens=3).count == 16384
    ends = asked(TEXT, stop=["a", "b"], stop_token_ids=["5", True]).ends
    assert (ends.strings, ends.tokens) == (("a", "b"), {1, 5})


@pytest.fixture
def server() -> Iterator[SimulatedVLLM]:
    with SimulatedVLLM("sim", speed=1000) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/detokenize", {"tokens": [-1]}, "body.tokens.0", "greater than or equal to 0"),
        ("/detokenize", {"tokens": ["a"]}, "body.tokens.0", "valid integer, unable to parse string"),
        ("/detokenize", {"tokens": [[1]]}, "body.tokens.0", "valid integer"),
        ("/detokenize", {"tokens": [1.5]}, "body.tokens.0", "fractional part"),
        ("/detokenize", {}, "body.tokens", "Field required"),
        ("/tokenize", {"messages": ["a"]}, "body.messages.0", "valid dictionary"),
        ("/tokenize", {"messages": []}, None, "empty conversation"),
        ("/tokenize", {"messages": [{"role": None}]}, "body.messages.0.role", "valid string"),
        ("/tokenize", {"prompt": 5}, "body.prompt", "valid string"),
        ("/tokenize", {"prompt": "a", "return_token_strs": "x"}, "body.return_token_strs", "valid boolean"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "body.messages.0.content", "valid string"),
        (TEXT, {"prompt": [""]}, None, "The decoder prompt cannot be empty"),
    ],
    ids=str,
)
async def test_refusals_travel(server: SimulatedVLLM, path: str, body: Any, param: str | None, words: str) -> None:
    async with aiohttp.ClientSession() as session, session.post(server.url + path, json=body) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (400, 400, param)
    assert words in error["message"]


async def test_tokens_that_do_not_exist_have_no_text(server: SimulatedVLLM) -> None:
    """A real one's tokenizer leaves them out."""
    body = {"tokens": [99999999, 40]}
    async with aiohttp.ClientSession() as session, session.post(f"{server.url}/detokenize", json=body) as answer:
        assert (answer.status, await answer.json()) == (200, {"prompt": "%"})


async def test_a_request_of_many_choices_leaves_others_their_turn() -> None:
    """No look takes nearly as long as the request: it would, were its choices begun or answered at a stretch."""
    body = {"prompt": "a", "n": 2000, "max_tokens": 40, "ignore_eos": True}
    loop = asyncio.get_running_loop()
    with SimulatedVLLM("sim", speed=10) as slower:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            many = asyncio.create_task(session.post(slower.url + TEXT, json=body))
            while slower.in_flight == 0:  # noqa: ASYNC110 - the other side is a thread
                await asyncio.sleep(0.001)
            began_s, longest_s = loop.time(), 0.0
            while not many.done():
                asked_s = loop.time()
                async with session.get(f"{slower.url}/health") as answer:
                    assert answer.status == 200
                longest_s = max(longest_s, loop.time() - asked_s)
            assert longest_s < 0.5 * (loop.time() - began_s)
            async with await many as answer:
                assert len((await answer.json())["choices"]) == 2000
