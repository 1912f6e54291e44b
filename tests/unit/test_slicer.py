"""Rows in slices over real sockets: what is asked of a server first, what goes wrong, and whole runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from batch_fakes import job_of, part_lines, run, texts, write_rows

from airflow_llm_provider.batch import slicer as slicer_module
from airflow_llm_provider.batch.slicer import BegunAnew, SliceEnded, Slicer
from airflow_llm_provider.core.control_law import ControlLaw
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.request import Completion, Position, RowRequest, Usage
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.core.row_queue import Ticket
from airflow_llm_provider.core.slice_rules import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    LEAST_SLICE_TOKENS,
    MOST_SLICE_TOKENS,
    SLICE_TOKENS,
    SliceTerms,
)
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.failure import Answer
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.endpoint.slice_terms import read_terms
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM
from airflow_llm_provider.testing import SimulatedVLLM as Simulated

if TYPE_CHECKING:
    from pathlib import Path

LOST = Failure(FailureKind.UNREACHABLE, "refused")
SPEED = 50.0


def client_of(server: Simulated | StubVLLM) -> EndpointClient:
    return EndpointClient(EndpointSettings(base_urls=(server.url,), request_timeout_s=20), base_url=server.url)


def ticket_of(path: str = CHAT_PATH, model: str = "simulated", **fields: Any) -> Ticket:
    said = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT_PATH else {"prompt": "hi"}
    body = {"model": model, **said, "max_tokens": 100, "temperature": 0, "ignore_eos": True, **fields}
    return Ticket(RowRequest(0, "row-0", path, orjson.dumps(body), Position(file="", line=0)))


def slicer_of(client: EndpointClient, **changes: Any) -> Slicer:
    slicer = Slicer(client, **{"model": "simulated", "name": "it", "ending": set(), "slice_tokens": 16, **changes})
    slicer.heard(Completion("said as it is", "stop", Usage()))
    return slicer


async def to_the_end(slicer: Slicer, ticket: Ticket) -> tuple[Completion | Failure, int]:
    """What becomes of a row, and in how many requests."""
    for number in range(1, 40):
        answer = await slicer.send(ticket, f"run-0-{number}")
        if not isinstance(answer, SliceEnded | BegunAnew):
            return answer, number
    raise AssertionError("it goes on for ever")


@pytest.mark.parametrize(
    ("path", "fields", "in_slices"),
    [
        (CHAT_PATH, {}, True),
        (COMPLETIONS_PATH, {}, True),
        (CHAT_PATH, {"logprobs": False, "n": 1, "stream": False, "presence_penalty": 0.0}, True),
        (COMPLETIONS_PATH, {"logprobs": None, "n": 1, "echo": False}, True),
        (CHAT_PATH, {"logprobs": True}, False),
        (COMPLETIONS_PATH, {"logprobs": 0}, False),
    ],
)
async def test_a_row_in_slices_is_the_whole_row(path: str, fields: dict[str, Any], *, in_slices: bool) -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as client:
            ticket = ticket_of(path, **fields)
            whole = await client.send(path, ticket.request.body, request_id="whole")
            landed, requests = await to_the_end(slicer_of(client), ticket)
    assert isinstance(whole, Completion)
    assert isinstance(landed, Completion)
    assert (landed.output, landed.usage, landed.finish_reason) == (whole.output, whole.usage, whole.finish_reason)
    assert landed.choices == whole.choices, "what lands beside the text"
    assert (requests, ticket.sliced is not None) == ((6, True) if in_slices else (1, False))


@pytest.mark.parametrize("path", [CHAT_PATH, COMPLETIONS_PATH])
async def test_terms_of_a_vllm(path: str) -> None:
    with Simulated(speed=SPEED, max_model_len=777) as server:
        async with client_of(server) as client:
            terms = await read_terms(client, model="simulated", path=path, slice_tokens=9)
    assert terms == SliceTerms(max_model_len=777, slice_tokens=9)


class Answers:
    """A client that answers each route as told; a bare path stands for all of its queries."""

    def __init__(self, **by_route: Any) -> None:
        cache = 'vllm:cache_config_info{engine="0",enable_prefix_caching="True"} 1.0\n'
        self.by_route = {
            "/metrics/": (200, cache),
            "/metrics": (200, cache),
            "/tokenize": (200, {"count": 10, "max_model_len": 100, "tokens": [1, 2]}),
            "/detokenize": (200, {"prompt": "."}),
            CHAT_PATH: (400, {"error": {"message": refusal(90)}}),
            **by_route,
        }

    async def ask(self, path: str, _body: bytes | None) -> Answer | Failure:
        said = self.by_route[path.partition("?")[0]]
        if isinstance(said, Failure):
            return said
        status, body = said
        data = body.encode() if isinstance(body, str) else orjson.dumps(body)
        return Answer(path=path, status=status, content_type="", body=data)


def refusal(most: int) -> str:
    return f"min_tokens must be less than or equal to max_tokens={most}, got 2147483647."


def cache(*said: str) -> tuple[int, str]:
    told = enumerate(said)
    return 200, "".join(
        f'vllm:cache_config_info{{engine="{n}",enable_prefix_caching="{each}"}} 1\n' for n, each in told
    )


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ({}, SliceTerms(max_model_len=100)),
        ({CHAT_PATH: (400, {"error": {"message": refusal(64)}})}, SliceTerms(max_model_len=100, most_tokens=64)),
        ({CHAT_PATH: (200, {"choices": []})}, "it does not say whether it bounds answers by itself"),
        ({CHAT_PATH: (400, {"error": {"message": "no"}})}, "it does not say whether it bounds answers by itself"),
        ({"/metrics/": (404, "")}, SliceTerms(max_model_len=100)),
        ({"/metrics/": (404, ""), "/metrics": (404, "")}, "it does not say whether it caches prefixes"),
        ({"/metrics/": (200, ""), "/metrics": (200, "")}, "it does not say whether it caches prefixes"),
        ({"/metrics/": cache("True", "False")}, "it caches no prefixes"),
        ({"/metrics/": cache("False")}, "it caches no prefixes"),
        ({"/tokenize": (404, {})}, "its /tokenize answers with HTTP 404 and no length of the context"),
        ({"/tokenize": (200, {"count": 10})}, "its /tokenize answers with HTTP 200 and no length of the context"),
        ({"/detokenize": (404, {})}, "its /detokenize answers with HTTP 404 and no text"),
        ({"/detokenize": (401, {})}, "its /detokenize answers with HTTP 401 and no text"),
        ({"/detokenize": (200, {"prompt": [1]})}, "its /detokenize answers with HTTP 200 and no text"),
        ({"/metrics/": LOST}, LOST),
        ({"/metrics/": (404, ""), "/metrics": LOST}, LOST),
        ({"/tokenize": LOST}, LOST),
        ({"/detokenize": LOST}, LOST),
        ({CHAT_PATH: LOST}, LOST),
    ],
)
async def test_what_a_server_says_becomes_terms_or_a_reason(routes: dict[str, Any], expected: object) -> None:
    client: Any = Answers(**routes)
    assert await read_terms(client, model="m", path=CHAT_PATH, slice_tokens=SLICE_TOKENS) == expected


@pytest.mark.parametrize("route", ["/metrics/", "/tokenize", "/detokenize", CHAT_PATH])
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_is_busy_has_said_nothing_of_itself(route: str, status: int) -> None:
    client: Any = Answers(**{route: (status, "")})
    failure = await read_terms(client, model="m", path=CHAT_PATH, slice_tokens=SLICE_TOKENS)
    assert isinstance(failure, Failure)
    assert failure.http_status == status


async def test_a_server_that_is_no_vllm_gets_rows_whole_and_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with StubVLLM("simulated") as server:
        async with client_of(server) as client:
            slicer = slicer_of(client)
            for _ in range(3):
                ticket = ticket_of()
                answer, requests = await to_the_end(slicer, ticket)
                assert isinstance(answer, Completion)
                assert (requests, ticket.sliced, ticket.whole) == (1, None, True)
    assert [record.message for record in caplog.records if "whole" in record.message] == [
        "Rows run whole on it: it does not say whether it caches prefixes"
    ]


async def test_terms_that_cannot_be_read_are_asked_for_again_later() -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as client:
            slicer = slicer_of(client)
            slicer._ask_from_s = asyncio.get_running_loop().time() + 60
            ticket = ticket_of()
            assert isinstance((await to_the_end(slicer, ticket))[0], Completion)
            assert (ticket.sliced, ticket.whole) == (None, False)
            slicer._ask_from_s = 0.0
            ticket = ticket_of()
            await to_the_end(slicer, ticket)
            assert ticket.sliced is not None


class Hanging(EndpointClient):
    """Has no answer for `route`; all else is answered."""

    route = "/tokenize"
    hangs = True

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.asked: list[str] = []

    async def ask(self, path: str, body: bytes | None, **wait: float) -> Answer | Failure:
        self.asked.append(path.partition("?")[0])
        if self.hangs and self.asked[-1] == self.route:
            await asyncio.sleep(3600)
        return await super().ask(path, body, **wait)


def hanging_client(server: Simulated) -> Hanging:
    return Hanging(EndpointSettings(base_urls=(server.url,), request_timeout_s=20), base_url=server.url)


@pytest.mark.parametrize("route", ["/metrics/", "/tokenize"])
async def test_a_server_that_does_not_say_its_terms_holds_no_rows_up(
    route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slicer_module, "ASK_WAIT_S", 0.2)
    with Simulated(speed=SPEED) as server:
        async with hanging_client(server) as client:
            client.route = route
            slicer, tickets = slicer_of(client), [ticket_of() for _ in range(6)]
            async with asyncio.timeout(3):
                ends = await asyncio.gather(*(to_the_end(slicer, ticket) for ticket in tickets))
                assert [requests for _, requests in ends] == [1] * 6
                await to_the_end(slicer, ticket_of())
            assert not any(ticket.whole for ticket in tickets), "where they go again they may run in slices"
            assert client.asked.count(route) == 1

            slicer._ask_from_s = 1.0  # its time has come
            monkeypatch.setattr(slicer_module, "ASK_WAIT_S", 60)
            asking = asyncio.create_task(to_the_end(slicer, ticket_of()))
            async with asyncio.timeout(3):
                while client.asked.count(route) < 2:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
                await to_the_end(slicer, ticket_of())
                assert client.asked.count(route) == 2, "one asks, and the others go"
            asking.cancel()
            await asyncio.wait([asking])
            client.hangs = False
            assert (await to_the_end(slicer, ticket_of()))[1] >= 6


async def test_the_rows_of_the_beginning_wait_for_the_first_question() -> None:
    with Simulated(speed=SPEED) as server:
        async with hanging_client(server) as client:
            client.hangs = False
            slicer = slicer_of(client)
            ends = await asyncio.gather(*(to_the_end(slicer, ticket_of()) for _ in range(6)))
            assert all(requests >= 6 for _, requests in ends)
            assert client.asked.count("/tokenize") == 1


@pytest.mark.parametrize(("fields", "always"), [({"max_tokens": 24}, False), ({"seed": 3}, True)])
async def test_a_row_that_runs_whole_anywhere_asks_the_server_nothing(fields: dict[str, Any], *, always: bool) -> None:
    with Simulated(speed=SPEED) as server:
        async with hanging_client(server) as client:
            ticket = ticket_of(**fields)
            await to_the_end(slicer_of(client), ticket)
            assert client.asked == []
            assert ticket.whole is always


async def test_a_row_that_is_short_or_asks_for_what_slices_change_runs_whole() -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as client:
            slicer = slicer_of(client)
            for fields in ({"max_tokens": 20}, {"seed": 3}, {"n": 2, "temperature": 1}):
                ticket = ticket_of(**fields)
                answer, requests = await to_the_end(slicer, ticket)
                assert isinstance(answer, Completion)
                assert (requests, ticket.sliced) == (1, None)
                assert ticket.whole == ("max_tokens" not in fields)  # what is short may be long where slices are


async def test_a_row_that_the_server_refuses_lands_as_its_refusal() -> None:
    with Simulated(speed=SPEED, max_model_len=300) as server:
        async with client_of(server) as client:
            ticket = ticket_of(max_tokens=400)
            whole = await client.send(CHAT_PATH, ticket.request.body, request_id="whole")
            answer, _ = await to_the_end(slicer_of(client), ticket)
    assert isinstance(answer, Failure)
    assert answer.kind is FailureKind.BAD_REQUEST
    assert answer == whole


async def test_a_slice_that_is_refused_has_its_row_run_whole() -> None:
    with Simulated(speed=SPEED) as server:
        server.fault = lambda body, _: (
            Fault.answer(404, {"detail": "Not Found"}) if isinstance(body.get("prompt"), list) else None
        )
        async with client_of(server) as client:
            slicer, ticket = slicer_of(client), ticket_of()
            answer, requests = await to_the_end(slicer, ticket)
            assert isinstance(answer, Completion)
            assert (requests, ticket.whole) == (3, True)
            other = ticket_of()
            assert (await to_the_end(slicer, other))[1] == 1, "and the others from the beginning"


async def test_a_row_that_runs_whole_after_all_tells_that_it_begins_anew() -> None:
    with Simulated(speed=SPEED) as server:
        refuses = Fault.answer(404, {"detail": "Not Found"})
        async with deaf_client(server) as client:
            slicer, refused, unsaid = slicer_of(client), ticket_of(), ticket_of()
            assert isinstance(await slicer.send(refused, "run-0-1"), SliceEnded)
            await slicer._begin(unsaid)
            server.fault = lambda body, _: refuses if isinstance(body.get("prompt"), list) else None
            assert await slicer.send(refused, "run-0-2") == BegunAnew(), "no slice was answered"
            client.fails = LOST
            slicer._ending.clear()
            assert await slicer.send(unsaid, "run-1-1") == BegunAnew(SliceEnded()), "one was"
            assert (refused.sliced, unsaid.sliced) == (None, None)


async def test_a_slice_that_fails_is_sent_again_from_where_it_began_as_long_as_the_pace_says_by_then() -> None:
    sent: list[dict[str, Any]] = []

    def fails(body: dict[str, Any], _number: int) -> Fault:
        sent.append(body)
        return Fault.answer(500, {"error": {"message": "no"}})

    with Simulated(speed=SPEED) as server:
        async with client_of(server) as client:
            slicer, ticket = slicer_of(client, slice_tokens=None), ticket_of(max_tokens=2000)
            whole = await client.send(CHAT_PATH, ticket.request.body, request_id="whole")
            await slicer._ask(CHAT_PATH)
            for slices in range(2):
                for pace in (1e6, 1.0):
                    slicer._pace = pace
                    server.fault = fails
                    failure = await slicer.send(ticket, "run-0-1")
                    assert isinstance(failure, Failure)
                    assert failure.kind is FailureKind.SERVER_ERROR
                server.fault = None
                if not slices:
                    await slicer.send(ticket, "run-0-1")
            landed, _ = await to_the_end(slicer, ticket)
    assert isinstance(landed, Completion)
    assert isinstance(whole, Completion)
    assert (landed.output, landed.usage) == (whole.output, whole.usage)
    first, again, later, later_again = sent
    assert first == again, "the first one is as the row was judged by"
    assert (later["max_tokens"], later_again["max_tokens"]) == (MOST_SLICE_TOKENS, LEAST_SLICE_TOKENS)
    assert later["prompt"] == later_again["prompt"]


class Deaf(EndpointClient):
    """Has no answer to ``/detokenize`` for a while."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.asked: list[list[int]] = []
        self.fails: Failure | None = None
        self.times = 10**9
        """How many questions fail."""
        self.hangs = False

    async def ask(self, path: str, body: bytes | None, **wait: float) -> Answer | Failure:
        if path == "/detokenize":
            self.asked.append(orjson.loads(body or b"")["tokens"])
            if self.hangs:
                await asyncio.sleep(3600)
            if self.fails is not None and self.times > 0:
                self.times -= 1
                return self.fails
        return await super().ask(path, body, **wait)


def deaf_client(server: Simulated) -> Deaf:
    return Deaf(EndpointSettings(base_urls=(server.url,), request_timeout_s=20), base_url=server.url)


async def test_what_could_not_be_asked_at_a_boundary_is_asked_before_the_row_goes_on() -> None:
    with Simulated(speed=SPEED) as server:
        async with deaf_client(server) as client:
            slicer, ticket = slicer_of(client), ticket_of()
            whole = await client.send(CHAT_PATH, ticket.request.body, request_id="whole")
            await slicer._ask(CHAT_PATH)
            client.hangs = True
            client.asked.clear()
            given_up = asyncio.create_task(slicer.send(ticket, "run-0-1"))
            async with asyncio.timeout(20):
                while not client.asked:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
            given_up.cancel()
            await asyncio.wait([given_up])
            assert ticket.sliced is not None
            pending = ticket.sliced.pending
            assert pending is not None
            client.hangs = False
            client.asked.clear()
            received = server.received
            landed, requests = await to_the_end(slicer, ticket)
    assert isinstance(landed, Completion)
    assert isinstance(whole, Completion)
    assert (landed.output, landed.usage) == (whole.output, whole.usage)
    assert client.asked[0] == pending.tokens
    assert server.received - received == requests, "the slice that was answered is not sent again"


async def test_a_row_that_was_answered_is_sent_whole_where_it_is_sent_again() -> None:
    """To see whether the endpoint answers anything."""
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as client:
            slicer, ticket = slicer_of(client), ticket_of()
            first, _ = await to_the_end(slicer, ticket)
            ticket.answered = True
            second, requests = await to_the_end(slicer, ticket)
    assert isinstance(first, Completion)
    assert isinstance(second, Completion)
    assert (second.output, requests) == (first.output, 1)


@pytest.mark.parametrize("kind", sorted(FailureKind))
async def test_a_server_whose_detokenize_fails_gets_rows_whole_and_they_pay_nothing(kind: FailureKind) -> None:
    with Simulated(speed=SPEED) as server:
        async with deaf_client(server) as client:
            slicer, tickets = slicer_of(client), [ticket_of(), ticket_of()]
            await slicer._ask(CHAT_PATH)
            client.fails = Failure(kind, "no")
            for ticket, requests in zip(tickets, (2, 1), strict=True):
                answer, made = await to_the_end(slicer, ticket)
                assert isinstance(answer, Completion)
                assert (made, ticket.sliced) == (requests, None)
            assert [ticket.whole for ticket in tickets] == [True, False], "the other one had no slice to lose"
            slicer._ask_from_s = 1.0  # its time has come
            assert (await to_the_end(slicer, ticket_of()))[1] == 1, "it is asked for text before the next row begins"
            slicer._ask_from_s, client.fails = 1.0, None
            assert (await to_the_end(slicer, ticket_of()))[1] >= 6, "it is well again"


@pytest.mark.parametrize("kind", [FailureKind.STALE_CONNECTION, FailureKind.CONNECTION_LOST])
async def test_a_question_whose_connection_was_stale_is_asked_again(kind: FailureKind) -> None:
    with Simulated(speed=SPEED) as server:
        async with deaf_client(server) as client:
            slicer, ticket = slicer_of(client), ticket_of()
            await slicer._ask(CHAT_PATH)
            client.fails, client.times = Failure(kind, "no"), 1
            answer, requests = await to_the_end(slicer, ticket)
            assert isinstance(answer, Completion)
            assert (requests, ticket.whole) == (6, False)


HEADROOM = ControlLaw(kind="headroom", slots=8)


def lines_of(server: Simulated, folder: Path, source: str, law: ControlLaw) -> list[dict[str, Any]]:
    spec = RequestSpec(prompt="Say: {{ row.text }}", parameters={"max_tokens": 2400, "temperature": 0})
    run(job_of(server, source, requests=spec, max_in_flight=8, control=law), RunStore(str(folder)))
    return part_lines(folder)


def test_a_run_in_slices_lands_as_a_run_of_whole_rows(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", texts(24))
    with Simulated(speed=SPEED, mean_output_tokens=1200, max_num_seqs=8) as server:
        whole = lines_of(server, tmp_path / "whole", source, ControlLaw(kind="headroom", slots=8, sliced=False))
        received = server.received
        sliced = lines_of(server, tmp_path / "sliced", source, HEADROOM)
        assert server.received - received > len(sliced) + 5
    assert sliced == whole
    assert {line["attempts"] for line in sliced} == {1}


@pytest.mark.parametrize("kind", [FailureKind.CONNECTION_LOST, FailureKind.GATEWAY_LOST, FailureKind.ENGINE_DEAD])
@pytest.mark.parametrize("works", [0, 3])
def test_a_run_whose_boundaries_cannot_be_asked_about_ends_well(
    kind: FailureKind, works: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    ask = EndpointClient.ask

    async def deaf(self: EndpointClient, path: str, body: bytes | None, **wait: float) -> Answer | Failure:
        nonlocal asked
        asked += path == "/detokenize"
        return Failure(kind, "no") if path == "/detokenize" and asked > works else await ask(self, path, body, **wait)

    monkeypatch.setattr(EndpointClient, "ask", deaf)
    source = write_rows(tmp_path / "rows.jsonl", texts(12))
    with Simulated(speed=SPEED, mean_output_tokens=1200, max_num_seqs=8) as server:
        lines = lines_of(server, tmp_path / "run", source, HEADROOM)
    assert asked > works
    assert {(line["status"], line["finish_reason"]) for line in lines} <= {
        ("succeeded", "stop"),
        ("truncated", "length"),
    }
    assert len(lines) == 12


def test_a_dedicated_run_is_not_sliced(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", texts(6))
    with Simulated(speed=SPEED, mean_output_tokens=None) as server:
        lines_of(server, tmp_path / "run", source, ControlLaw())
        assert server.received == 6


class Chatty:
    """A client whose model thinks aloud where `thinks`, and a parser takes that from whole answers only."""

    def __init__(self, client: EndpointClient) -> None:
        self._client = client
        self.thinks = False
        self.ask = client.ask
        self.fails = False

    async def send(self, path: str, body: bytes, *, request_id: str) -> Completion | Failure:
        answer = await self._client.send(path, body, request_id=request_id)
        if self.fails:
            return Failure(FailureKind.SERVER_ERROR, "no")
        if isinstance(answer, Completion) and self.thinks and "return_token_ids" not in orjson.loads(body):
            return replace(answer, reasoning="hm")
        return answer


def unheard_slicer(client: Any) -> Slicer:
    return Slicer(client, model="simulated", name="it", ending=set(), slice_tokens=16)


async def test_the_first_long_chat_row_runs_whole_and_those_beside_it_too() -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as real:
            client = Chatty(real)
            slicer, tickets = unheard_slicer(client), [ticket_of() for _ in range(3)]
            assert (await to_the_end(slicer, ticket_of(max_tokens=20)))[1] == 1, "a short one says nothing"
            ends = await asyncio.gather(*(to_the_end(slicer, ticket) for ticket in tickets))
            assert [requests for _, requests in ends] == [1, 1, 1]
            assert not any(ticket.whole for ticket in tickets), "elsewhere they may run in slices"
            assert (await to_the_end(slicer, ticket_of()))[1] >= 6


async def test_a_failure_leaves_open_whether_chats_are_parsed() -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as real:
            client = Chatty(real)
            client.fails = True
            slicer = unheard_slicer(client)
            assert isinstance((await to_the_end(slicer, ticket_of()))[0], Failure)
            client.fails = False
            assert [(await to_the_end(slicer, ticket_of()))[1] > 1 for _ in range(2)] == [False, True]


async def test_a_parser_that_only_whole_answers_show_has_chat_rows_run_whole() -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as real:
            client = Chatty(real)
            client.thinks = True
            slicer = unheard_slicer(client)
            for _ in range(3):
                answer, requests = await to_the_end(slicer, ticket_of())
                assert isinstance(answer, Completion)
                assert (answer.reasoning, requests) == ("hm", 1)
            assert (await to_the_end(slicer, ticket_of(COMPLETIONS_PATH)))[1] >= 6


async def test_a_parser_seen_late_ends_slices_of_chat_rows() -> None:
    slicer = unheard_slicer(Answers())
    slicer.heard(Completion("x", "stop", Usage()))
    slicer.heard(Completion(None, "tool_calls", Usage(), tool_calls=[{}]))
    slicer.heard(Completion("x", "stop", Usage()))
    ticket = ticket_of()
    await slicer._begin(ticket)
    assert (ticket.sliced, ticket.whole) == (None, True)


async def test_completions_run_in_slices_from_the_first() -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as client:
            assert (await to_the_end(unheard_slicer(client), ticket_of(COMPLETIONS_PATH)))[1] >= 6


async def test_a_refusal_of_a_row_that_began_elsewhere_is_that_rows_alone() -> None:
    with Simulated(speed=SPEED) as home, Simulated(speed=SPEED) as other:
        other.fault = lambda body, _: Fault.answer(400, {"error": {"message": "no"}}) if "prompt" in body else None
        async with client_of(home) as here, client_of(other) as there:
            slicer, ticket = slicer_of(there), ticket_of()
            assert isinstance(await slicer_of(here).send(ticket, "run-0-1"), SliceEnded)
            answer, requests = await to_the_end(slicer, ticket)
            assert isinstance(answer, Completion)
            assert (requests, ticket.whole) == (2, True)
            other.fault = None
            assert (await to_the_end(slicer, ticket_of()))[1] >= 6, "the others run in slices"


async def test_a_row_whose_first_slice_failed_elsewhere_begins_by_this_servers_terms() -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as client:
            elsewhere, ticket = slicer_of(client), ticket_of()
            await elsewhere._begin(ticket)
            assert ticket.sliced is not None
            answer, requests = await to_the_end(unheard_slicer(client), ticket)
    assert isinstance(answer, Completion)
    assert requests == 1


async def test_slices_last_as_long_at_any_pace() -> None:
    with Simulated(speed=SPEED) as server:
        async with client_of(server) as client:
            slicer, ticket = slicer_of(client, slice_tokens=None), ticket_of(max_tokens=2000)
            await slicer.send(ticket, "run-0-1")
            assert ticket.sliced is not None
            assert ticket.sliced.usage.completion_tokens == SLICE_TOKENS
            assert slicer._pace is not None, "it was measured"
            slicer._pace = 1e6
            await slicer.send(ticket, "run-0-2")
            assert ticket.sliced.usage.completion_tokens == SLICE_TOKENS + MOST_SLICE_TOKENS
