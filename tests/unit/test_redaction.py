from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import dead_letter, job_of, part_lines, run, write_rows

from airflow_llm_provider.core.answers import AnswerRules
from airflow_llm_provider.core.output_schema import OutputSchema
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.redaction import KEEP, UNREDACTED, Redaction
from airflow_llm_provider.core.retry import Failure
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.failure import classify, garbled
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError, TooManyErrorsError
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.storage.lines import decode_part
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHO = "alice@example.com"


def without_her(text: str) -> str:
    return text.replace(WHO, "<who>")


def rows() -> list[Any]:
    return [
        {"custom_id": "refused", "text": f"refused {WHO}"},
        {"custom_id": "odd", "text": f"odd {WHO}"},
        {"custom_id": "fine", "text": f"fine {WHO}"},
        f'{{"custom_id": "torn", "text": "{WHO}'.encode(),
        {"custom_id": "none", "words": WHO},
    ]


def answers(body: dict[str, Any], _nth: int) -> Fault | None:
    """A server that quotes, and a model that does."""
    said = body["messages"][0]["content"]
    if "refused" in said:
        return Fault.bad_request(f"this is no prompt: {said}")
    text = f'"{WHO} {"x" * 20}"' if "odd" in said else f'"{WHO}"'
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return Fault.answer(200, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": {}})


def land(tmp_path: Path, hook: Callable[[str], str] | None, **changes: Any) -> list[dict[str, Any]]:
    source = write_rows(tmp_path / "rows.jsonl", rows())
    rules = AnswerRules(schema=OutputSchema({"type": "string", "maxLength": 20}), repair_attempts=1)
    with StubVLLM(fault=answers) as stub:
        job = job_of(stub, source, answers=rules, redaction=Redaction(hook), **changes)
        run(job, RunStore(str(tmp_path / "run")))
    return part_lines(tmp_path / "run")


def letters(tmp_path: Path) -> dict[str, dict[str, Any]]:
    lines = dead_letter(tmp_path / "run").read_bytes().splitlines()
    return {each["custom_id"]: each for each in map(json.loads, lines)}


def test_what_is_kept_besides_results_has_been_through_the_hook(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    lines = land(tmp_path, without_her)
    found = letters(tmp_path)
    assert found.keys() == {"refused", "odd", "row-3", "none"}
    assert WHO not in json.dumps(found)
    body = found["refused"]["request"]["body"]
    assert body["messages"] == [{"role": "user", "content": "Say: refused <who>"}]
    assert body["model"] == "stub"
    assert found["refused"]["error"]["message"].endswith("this is no prompt: Say: refused <who>")
    assert "<who>" in found["odd"]["error"]["message"], "a validator quotes the answer"
    assert "<who>" in found["row-3"]["raw"]
    assert [line["error"] for line in lines if line["error"]] == [each["error"] for each in found.values()]
    assert lines[2]["output"] == f'"{WHO}"', "results are what the run is for"
    assert WHO not in caplog.text


def test_without_one_everything_is_kept(tmp_path: Path) -> None:
    land(tmp_path, None)
    assert all(WHO in json.dumps(each) for name, each in letters(tmp_path).items() if name != "none")


def test_errors_that_end_a_run_do_not_quote_either(tmp_path: Path) -> None:
    with pytest.raises(TooManyErrorsError) as caught:
        land(tmp_path, without_her, tolerance=Tolerance(0.0))
    assert WHO not in str(caught.value)

    source = write_rows(tmp_path / "bad.jsonl", [{"custom_id": [WHO], "text": "a"}, f'{{"a": "{WHO}'.encode()])
    hook = Redaction(lambda _: "<all>")
    with StubVLLM() as stub, pytest.raises(LLMBatchError, match="None of the first 2 rows") as refused:
        run(job_of(stub, source, redaction=hook), RunStore(str(tmp_path / "other")))
    assert str(refused.value).endswith("The first: <all>")


@pytest.mark.parametrize(
    "wrong", [lambda text: 1 / len(text[:0]), lambda _: None, lambda _: "\ud800", lambda: "", lambda _: sys.exit(1)]
)
def test_a_hook_that_fails_keeps_nothing_and_ends_nothing(tmp_path: Path, wrong: Any) -> None:
    lines = land(tmp_path, wrong)
    assert [line["status"] for line in lines] == ["errored", "invalid_output", "succeeded", "errored", "errored"]
    found = letters(tmp_path)
    assert WHO not in json.dumps(found)
    assert {each["error"]["message"] for each in found.values()} == {UNREDACTED}
    assert found["odd"]["request"]["body"]["messages"] == [{"role": UNREDACTED, "content": UNREDACTED}]
    assert found["row-3"]["raw"] == UNREDACTED


def test_names_numbers_and_truths_stay() -> None:
    value = {"a@b": [1, 2.5, True, None, "a@b", {"x": "a@b"}]}
    hidden = Redaction(lambda text: text.replace("a@b", "-"))
    assert hidden.value(value) == {"a@b": [1, 2.5, True, None, "-", {"x": "-"}]}
    assert KEEP.value(value) == value


def test_a_request_that_a_dead_letter_cannot_nest_is_kept_as_redacted_text(tmp_path: Path) -> None:
    """JSON may be written 254 levels deep, and a letter's request lies two levels deeper than it did."""
    body = f'{{"model":"stub","messages":[{{"role":"user","content":"{WHO}"}}],"metadata":{"[" * 252}0{"]" * 252}}}'
    line = f'{{"custom_id":"deep","url":"/v1/chat/completions","body":{body}}}'
    source = write_rows(tmp_path / "rows.jsonl", [line.encode()])
    with StubVLLM(fault=lambda *_: Fault.bad_request("no")) as stub:
        job = job_of(stub, source, requests=RequestSpec(), redaction=Redaction(without_her))
        run(job, RunStore(str(tmp_path / "run")))
    letter = letters(tmp_path)["deep"]
    assert letter["request"] is None
    assert "<who>" in letter["raw"]
    assert WHO not in letter["raw"]


def test_what_a_busy_server_says_is_logged_as_the_hook_leaves_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"custom_id": "a", "text": WHO}])
    once = [Fault.answer(503, {"error": {"message": f"too busy for {WHO}", "code": 503}})]
    with StubVLLM(fault=lambda *_: once.pop() if once else None) as stub:
        run(job_of(stub, source, redaction=Redaction(without_her)), RunStore(str(tmp_path / "run")))
    assert "too busy for <who>" in caplog.text
    assert WHO not in caplog.text


def test_escapes_of_json_hide_nothing_from_the_hook(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "rows.jsonl", [b'{"custom_id": "a", "words": "dear M\\u00fcller"}', {"text": "fine"}]
    )
    with StubVLLM() as stub:
        job = job_of(stub, source, redaction=Redaction(lambda text: text.replace("Müller", "-")))
        run(job, RunStore(str(tmp_path / "run")))
    assert json.loads(letters(tmp_path)["a"]["raw"]) == {"custom_id": "a", "words": "dear -"}


async def test_what_is_asked_besides_rows_goes_through_it_too() -> None:
    """As the text that slices have so far, which a server may quote."""
    quotes = Fault.answer(200, {"text": WHO}, content_type="application/json")
    with StubVLLM(fault=lambda *_: quotes) as stub:
        settings = EndpointSettings(base_urls=(stub.url,))
        async with EndpointClient(settings, base_url=stub.url, redaction=Redaction(without_her)) as client:
            answer = await client.ask("/v1/chat/completions", b'{"messages": []}')
            assert not isinstance(answer, Failure)
            assert garbled(answer, "odd").message.endswith("""the body begins '{"text":"<who>"}'""")
            assert "<who>" in classify(dataclasses.replace(answer, status=500)).message


def test_a_damaged_part_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="line 1 is no row's: KeyError, 'usage'") as caught:
        decode_part(f'{{"index":0,"output":"{WHO}"}}\n'.encode())
    assert WHO not in str(caught.value)


@pytest.mark.parametrize(
    ("hook", "name"),
    [(None, None), (without_her, "without_her"), (functools.partial(without_her, key="salt"), "partial")],
)
def test_what_the_log_calls_it(hook: Any, name: str | None) -> None:
    assert Redaction(hook).name == name


async def test_what_the_network_says_goes_through_it_too() -> None:
    """Aiohttp quotes what is no HTTP, and that may be part of an answer."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"{WHO} is no HTTP\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    messages = []
    async with server:
        for redaction in (KEEP, Redaction(without_her)):
            async with EndpointClient(EndpointSettings(base_urls=(url,)), base_url=url, redaction=redaction) as client:
                answer = await client.send("/v1/chat/completions", b"{}", request_id="r")
                assert isinstance(answer, Failure)
                messages.append(answer.message)
    plain, hidden = messages
    assert WHO in plain
    assert hidden == plain.replace(WHO, "<who>")


def test_the_operator_refuses_what_is_no_function() -> None:
    with pytest.raises(ConfigurationError, match="redact must be a function from text to text, not 'email'"):
        LLMBatchOperator(task_id="t", source="x.jsonl", prompt="p", redact="email")  # type: ignore[arg-type]
