"""What a hostile or broken server, or a hostile row, can say: it costs one answer or one row, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import dead_letter, job_of, part_lines, run, write_rows
from yarl import URL

from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.retry import Failure
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.credentials import blotted, secrets_in
from airflow_llm_provider.endpoint.exposition import Page
from airflow_llm_provider.endpoint.failure import MOST_RETRY_AFTER_S, retry_after_s, shorten
from airflow_llm_provider.endpoint.polled_page import PolledPage
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.endpoint.wire import decode
from airflow_llm_provider.exceptions import ConfigurationError, ForeignRunError
from airflow_llm_provider.operators.paths import result_uri
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.document import RunDocument
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from pathlib import Path

CHAT = "/v1/chat/completions"


def deep(levels: int, inside: str = "1") -> str:
    return "[" * levels + inside + "]" * levels


def nested(levels: int) -> str:
    return '{"detail":[' * levels + '"x"' + "]}" * levels


ODD = {
    "a deep error": (400, f'{{"error":{deep(900)}}}'),
    "a deep error in a 200": (200, f'{{"error":{deep(900)}}}'),
    "details in details": (422, nested(350)),
    "a code of many digits": (200, '{"error":{"message":"x","code":"' + "9" * 5000 + '"}}'),
    "a deep finish reason": (200, f'{{"choices":[{{"message":{{"content":"x"}},"finish_reason":{deep(300)}}}]}}'),
    "deep reasoning": (200, f'{{"choices":[{{"message":{{"content":"x","reasoning":{deep(300)}}}}}]}}'),
    "deep tool calls": (200, f'{{"choices":[{{"message":{{"content":null,"tool_calls":{deep(300)}}}}}]}}'),
    "deep choices": (200, f'{{"choices":[{{"message":{{"content":"x"}}}},{deep(300)}]}}'),
    "a deep part": (200, f'{{"choices":[{{"message":{{"content":[{{"text":{deep(900)}}}]}}}}]}}'),
    "ids that are none": (200, '{"choices":[{"message":{"content":"x"},"token_ids":[[]]}]}'),
}


@pytest.mark.parametrize(("status", "body"), ODD.values(), ids=ODD)
def test_an_odd_answer_is_a_completion_or_a_failure(status: int, body: str) -> None:
    said = decode(path=CHAT, status=status, content_type="application/json", retry_after=None, body=body.encode())
    assert isinstance(said, Completion | Failure)
    if isinstance(said, Completion):
        json.dumps([said.output, said.finish_reason, said.reasoning, said.tool_calls, said.choices, said.token_ids])


@pytest.mark.parametrize(("status", "body"), ODD.values(), ids=ODD)
def test_an_odd_answer_costs_its_row_alone(status: int, body: str, tmp_path: Path) -> None:
    def odd(request: dict[str, Any], _nth: int) -> Fault | None:
        return Fault.answer(status, body) if "row 1" in json.dumps(request) else None

    with StubVLLM(fault=odd) as stub:
        source = write_rows(tmp_path / "rows.jsonl", [{"text": f"row {number}"} for number in range(4)])
        manifest = run(job_of(stub, source, max_attempts=1), RunStore(str(tmp_path / "run")))
    assert manifest["counts"]["total"] == 4
    assert [line["status"] for line in part_lines(tmp_path / "run") if line["index"] != 1] == ["succeeded"] * 3


HOSTILE_ROWS = {
    "a deep custom_id": b'{"custom_id":' + deep(950).encode() + b',"text":"x"}',
    "a deep text": b'{"text":' + deep(950).encode() + b"}",
    "a bracketed line": deep(1000).encode(),
}


@pytest.mark.parametrize("row", HOSTILE_ROWS.values(), ids=HOSTILE_ROWS)
def test_a_hostile_row_is_one_bad_row(row: bytes, stub: StubVLLM, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "a"}, row, {"text": "b"}])
    manifest = run(job_of(stub, source), RunStore(str(tmp_path / "run")))
    assert manifest["counts"]["total"] == 3
    assert [line["status"] for line in part_lines(tmp_path / "run") if line["index"] != 1] == ["succeeded"] * 2


@pytest.mark.parametrize("levels", [100, 200, 245, 250, 251, 252, 253, 254, 255, 260])
@pytest.mark.parametrize("where", ["method", "priority", "messages"])
def test_a_hostile_batch_line_is_one_bad_row(where: str, levels: int, tmp_path: Path) -> None:
    body = '{"messages":[{"role":"user","content":"x"}]}'
    lines = {
        "method": f'{{"method":{deep(levels)},"url":"{CHAT}","body":{body}}}',
        "priority": f'{{"url":"{CHAT}","body":{{"messages":[],"priority":{deep(levels)}}}}}',
        "messages": f'{{"url":"{CHAT}","body":{{"messages":{deep(levels)}}}}}',
    }
    good = f'{{"url":"{CHAT}","body":{body}}}'.encode()
    source = write_rows(tmp_path / "rows.jsonl", [good, lines[where].encode(), good])

    def refuse(request: dict[str, Any], _nth: int) -> Fault | None:
        return None if isinstance(request["messages"][0], dict) else Fault.bad_request()

    with StubVLLM(fault=refuse if where == "messages" else None) as stub:
        job = job_of(stub, source, requests=RequestSpec(), priority=5)
        manifest = run(job, RunStore(str(tmp_path / "run")))
    assert manifest["counts"] == {"total": 3, "succeeded": 2, "truncated": 0, "invalid_output": 0, "errored": 1}
    letter = json.loads(dead_letter(tmp_path / "run").read_bytes())
    assert letter["index"] == 1


@pytest.mark.parametrize(
    "labels",
    [
        b"a" * 200_000,
        b"a " * 100_000,
        b"a=" * 100_000,
        b'a="' + b"\\\\" * 100_000,
        b'"' + b"x" * 200_000,
        b" " * 200_000,
    ],
)
@pytest.mark.timeout(60)  # it was minutes, or for ever
def test_a_metrics_page_is_read_in_one_go(labels: bytes) -> None:
    page = Page(b"vllm:num_requests_running{" + labels + b"} 1\n", ["vllm:num_requests_running"])
    assert page.total("vllm:num_requests_running") in (None, 1.0)


@pytest.mark.parametrize(
    ("retry_after", "date"),
    [
        ("999999999", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 30 Nov 2026 12:00:00 GMT"),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 30 Nov 2026 12:00:00 GMT"),
        ("Mon, 30 Nov 2026 12:00:00 +99999999999999999999", "Mon, 30 Nov 2026 12:00:00 GMT"),
    ],
)
def test_no_server_makes_a_row_wait_for_years(retry_after: str, date: str | None) -> None:
    assert retry_after_s(retry_after, date) in (None, MOST_RETRY_AFTER_S)


def test_what_steers_a_terminal_is_not_passed_on() -> None:
    shown = shorten("\x1b[2Jred\x07 \u202eesrever\u2066 \x85 \udc80 fine ü 漢")
    assert shown.isprintable()
    assert "fine ü 漢" in shown


async def test_a_page_over_tls_is_asked_for_over_tls_without_verification() -> None:
    """With False, which to asyncio means no TLS at all, the key would go over the wire as it is."""
    came = asyncio.Event()
    heard = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await reader.read(1000)
        came.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        settings = EndpointSettings(base_urls=(url,), api_key="sk-very-secret", verify=False)
        page = PolledPage(settings, URL(f"{url}/metrics"), {"Authorization": "Bearer sk-very-secret"})
        assert await page.get(2.0) is None
        await asyncio.wait_for(came.wait(), 5)
        page.close()
    assert heard[:1] == b"\x16", "no TLS handshake"
    assert b"secret" not in heard


@pytest.mark.parametrize("header", ["Bearer sk-secret-token", "Basic dXNlcjpzay1zZWNyZXQtdG9rZW4="])
async def test_a_token_of_a_header_is_blotted_out_where_a_server_says_it_alone(header: str) -> None:
    def echo(_request: dict[str, Any], _nth: int) -> Fault:
        return Fault.answer(400, {"error": {"message": "what is sk-secret-token?"}})

    with StubVLLM(fault=echo) as stub:
        settings = EndpointSettings(base_urls=(stub.url,), extra_headers={"Authorization": header})
        async with EndpointClient(settings, base_url=stub.url) as client:
            failure = await client.send(CHAT, b'{"messages":[]}', request_id="r")
    assert isinstance(failure, Failure)
    assert failure.message == "what is ***?"


def test_which_strings_are_secrets() -> None:
    assert secrets_in("key", ["Bearer abc", "1"]) == ("key", "Bearer abc", "abc", "1")
    assert blotted("key", ["Bearer abcdefgh", "1"]) == ("Bearer abcdefgh", "abcdefgh", "key")
    assert secrets_in(None, ["", "Basic !"]) == ("", "Basic !", "!")


@pytest.mark.parametrize(
    "path",
    ["tenant/.\t./.\t./elsewhere", "a/.\n./b", "a/.\r./b", "a\0b", "a/\u2028b", "//results/x", "file://results/x"],
)
def test_a_result_path_that_would_be_another_than_it_looks(path: str) -> None:
    with pytest.raises(ConfigurationError, match="result_path"):
        result_uri(path, base="/data", identity=RunIdentity(dag_id="d", task_id="t", run_id="r"))


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "x/../../../../tmp/evil"},
        {"fingerprint": "0123456789AB"},
        {"fingerprint": 5},
        {"state": "done"},
        {"created_at": "yesterday"},
        {"created_at": "2026-01-01T00:00:00"},
        {"served": []},
        {"snapshot": "x"},
        {"shaping": None},
    ],
)
def test_a_run_document_that_this_package_does_not_write_is_refused(
    change: dict[str, Any], stub: StubVLLM, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])
    run(job_of(stub, source), RunStore(str(tmp_path / "run")))
    document = json.loads((tmp_path / "run" / layout.RUN).read_bytes())
    RunDocument.decode(json.dumps(document).encode(), uri="here")
    with pytest.raises(ForeignRunError, match="here is damaged"):
        RunDocument.decode(json.dumps(document | change).encode(), uri="here")


def test_scratch_that_leads_elsewhere_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "dags"
    elsewhere.mkdir()
    precious = elsewhere / "dag.py"
    precious.write_text("x")
    os.utime(precious, (0, 0))
    (tmp_path / "run" / "_run").mkdir(parents=True)
    (tmp_path / "run" / "_run" / "tmp").symlink_to(elsewhere)
    RunStore(str(tmp_path / "run")).clear_scratch()
    assert precious.exists()
