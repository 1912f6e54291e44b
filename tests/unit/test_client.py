from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import struct
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint import client as client_module
from airflow_llm_provider.endpoint import transport
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.identity import ServedModel, ServerIdentity, resolve_model
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import ConfigurationError, EndpointRefusedError
from airflow_llm_provider.testing import Fault, FaultKind, StubVLLM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

CHAT = "/v1/chat/completions"
BODY = orjson.dumps({"model": "stub", "messages": [{"role": "user", "content": "hello"}]})
OK = b'{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(OK), OK)


def client_of(url: str, **settings: Any) -> EndpointClient:
    return EndpointClient(EndpointSettings(base_urls=(url,), **settings), base_url=url)


async def send_one(url: str, **settings: Any) -> Completion | Failure:
    async with client_of(url, **settings) as client:
        return await client.send(CHAT, BODY, request_id="r1")


def kind_of(result: Completion | Failure) -> FailureKind:
    assert isinstance(result, Failure)
    return result.kind


@asynccontextmanager
async def raw_server(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A TCP server that does to each connection what `handle` does, then closes it."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(connection, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len(BODY) if head.startswith(b"POST") else 0)
    return head


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST, as a kernel does for data that arrives at a closed socket."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the other side is a thread
            await asyncio.sleep(0.005)


async def test_answers_come_back_and_the_request_id_goes_out(stub: StubVLLM) -> None:
    async with client_of(stub.url) as client:
        chat = await client.send(CHAT, BODY, request_id="row-1")
        text = await client.send("/v1/completions", b'{"prompt":"abc"}', request_id="row-2")
    assert isinstance(chat, Completion)
    assert isinstance(text, Completion)
    assert (chat.output, text.output) == ("echo: hello", "echo: abc")
    assert stub.counts == {"row-1": 1, "row-2": 1}


async def test_headers() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await read_request(reader))
            writer.write(ANSWER.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n"))

    settings = {"api_key": "sk-1", "extra_headers": {"X-Team": "docs"}}
    async with (
        raw_server(answer) as url,
        client_of(url.replace("127.0.0.1", "localhost"), **settings) as client,  # cookies are kept for names only
    ):
        assert isinstance(await client.send(CHAT, BODY, request_id="r1"), Completion)
        assert isinstance(await client.send(CHAT, BODY, request_id="r2"), Completion)
    assert len(heads) == 2
    for head, request_id in zip(heads, (b"r1", b"r2"), strict=True):
        for line in (b"Authorization: Bearer sk-1", b"X-Team: docs", b"X-Request-Id: " + request_id):
            assert line + b"\r\n" in head
        assert head.count(b"Content-Type: application/json") == 1
        assert b"Cookie" not in head


async def test_proxies_of_the_environment_are_not_used(stub: StubVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert isinstance(await send_one(stub.url), Completion)


@pytest.mark.parametrize("with_reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("requests_before", [0, 1, 2])
async def test_keep_alive_race(requests_before: int, *, with_reset: bool) -> None:
    async def answer_then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(requests_before):
            await read_request(reader)
            writer.write(ANSWER)
        await read_request(reader)
        if with_reset:
            reset(writer)

    async with raw_server(answer_then_close) as url, client_of(url) as client:
        for _ in range(requests_before):
            assert isinstance(await client.send(CHAT, BODY, request_id="r"), Completion)
        failure = await client.send(CHAT, BODY, request_id="r")
    fresh = requests_before == 0
    assert kind_of(failure) is (FailureKind.CONNECTION_LOST if fresh else FailureKind.STALE_CONNECTION)


async def test_keep_alive_race_between_tasks_that_share_connections() -> None:
    """One connection is reused and dies, another is made at the same time and dies: each task is told its own."""
    served = 0

    async def answer_one_in_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await read_request(reader)
        served += 1
        if served == 1:
            writer.write(ANSWER)
            await read_request(reader)

    async with raw_server(answer_one_in_all) as url, client_of(url) as client:
        assert isinstance(await client.send(CHAT, BODY, request_id="r"), Completion)
        failures = await asyncio.gather(*(client.send(CHAT, BODY, request_id="r") for _ in range(8)))
    assert [kind_of(failure) for failure in failures].count(FailureKind.STALE_CONNECTION) == 1


async def test_a_reused_connection_that_dies_later_had_its_request_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer_then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ANSWER)
        await read_request(reader)

    monkeypatch.setattr(client_module, "RACE_S", 0.0)
    async with raw_server(answer_then_close) as url, client_of(url) as client:
        assert isinstance(await client.send(CHAT, BODY, request_id="r"), Completion)
        assert kind_of(await client.send(CHAT, BODY, request_id="r")) is FailureKind.CONNECTION_LOST


@pytest.mark.parametrize("part", [ANSWER[:20], ANSWER[:-5]], ids=["mid-head", "mid-body"])
@pytest.mark.parametrize("requests_before", [0, 1])
async def test_a_connection_that_dies_mid_answer_is_lost(part: bytes, requests_before: int) -> None:
    async def answer_half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(requests_before):
            await read_request(reader)
            writer.write(ANSWER)
        await read_request(reader)
        writer.write(part)

    async with raw_server(answer_half) as url, client_of(url) as client:
        for _ in range(requests_before):
            assert isinstance(await client.send(CHAT, BODY, request_id="r"), Completion)
        assert kind_of(await client.send(CHAT, BODY, request_id="r")) is FailureKind.CONNECTION_LOST


async def test_an_idle_connection_the_server_closed_is_not_used_again() -> None:
    connections = 0

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(ANSWER)

    async with raw_server(answer_once) as url, client_of(url) as client:
        for _ in range(3):
            assert isinstance(await client.send(CHAT, BODY, request_id="r"), Completion)
            await asyncio.sleep(0.05)  # until the server's FIN has come
    assert connections == 3


def test_idle_connections_are_dropped_before_vllm_drops_them() -> None:
    assert client_module.KEEPALIVE_S < 5


async def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    failure = await send_one(url)
    assert kind_of(failure) is FailureKind.UNREACHABLE
    assert isinstance(failure, Failure)
    assert failure.refused
    assert url in failure.message


async def test_no_such_host() -> None:
    failure = await send_one("http://no-such-host.invalid:8000")
    assert kind_of(failure) is FailureKind.UNREACHABLE
    assert isinstance(failure, Failure)
    assert not failure.refused


async def test_connect_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(address)
        try:
            failure = await send_one(f"http://127.0.0.1:{address[1]}", connect_timeout_s=0.2)
        finally:
            for connection in waiting:
                connection.close()
    assert kind_of(failure) is FailureKind.UNREACHABLE
    assert isinstance(failure, Failure)
    assert not failure.refused


async def test_hang(stub: StubVLLM) -> None:
    stub.behaviour.fault = lambda _body, _nth: Fault(kind=FaultKind.HANG)
    failure = await send_one(stub.url, request_timeout_s=0.2)
    assert kind_of(failure) is FailureKind.TIMEOUT
    assert isinstance(failure, Failure)
    assert "0.2 s" in failure.message


async def test_hang_mid_answer() -> None:
    async def answer_half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ANSWER[:-5])
        await reader.read()

    async with raw_server(answer_half) as url:
        assert kind_of(await send_one(url, request_timeout_s=0.2)) is FailureKind.TIMEOUT


async def test_an_answer_that_is_not_http() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"220 mail ready\r\n\r\n")
        await reader.read()

    async with raw_server(babble) as url:
        assert kind_of(await send_one(url)) is FailureKind.GARBLED


@asynccontextmanager
async def endless_server() -> AsyncIterator[tuple[str, list[int]]]:
    """Answers without end; and what it got rid of, bytes."""
    sent = [0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while sent[0] < 2**30:
            writer.write(b"x" * 2**16)
            sent[0] += 2**16
            await writer.drain()

    async with raw_server(answer) as url:
        yield url, sent


ASKING: dict[str, tuple[int, Callable[[EndpointClient], Awaitable[Any]]]] = {
    "get": (client_module.MOST_BYTES, lambda client: client.get("/metrics")),
    "ask": (client_module.MOST_BYTES, lambda client: client.ask("/detokenize", BODY)),
    "send": (100_000, lambda client: client.send(CHAT, BODY, request_id="r1")),
    "stream": (100_000, lambda client: client.stream(CHAT, BODY, request_id="r1", wait_s=9, arrived=lambda _: None)),
}


@pytest.mark.parametrize("how", ASKING)
async def test_an_answer_without_end_is_not_read_to_its_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MOST_ANSWER_BYTES", 100_000)
    most_bytes, asks = ASKING[how]
    async with endless_server() as (url, sent), client_of(url) as client:
        failure = await asks(client)
        assert failure == Failure(FailureKind.GARBLED, f"{url}: the answer has more than {most_bytes:,} bytes")
    assert sent[0] < most_bytes + 2**24, "what sockets hold"


async def test_an_answer_of_as_much_as_may_be_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ANSWER)

    async with raw_server(answer) as url:
        monkeypatch.setattr(client_module, "MOST_ANSWER_BYTES", len(OK))
        assert isinstance(await send_one(url), Completion)
        monkeypatch.setattr(client_module, "MOST_ANSWER_BYTES", len(OK) - 1)
        assert kind_of(await send_one(url)) is FailureKind.GARBLED


async def test_redirects_are_not_followed(stub: StubVLLM) -> None:
    with StubVLLM() as elsewhere:
        target = {"Location": elsewhere.url + CHAT}
        stub.behaviour.fault = lambda _body, _nth: Fault.answer(307, headers=target)
        failure = await send_one(stub.url, api_key="sk-1")
        assert elsewhere.received == 0
    assert kind_of(failure) is FailureKind.ROUTE_NOT_FOUND


async def test_cancelling_passes_through_and_frees_the_slot() -> None:
    with StubVLLM(delay_s=600.0) as stub:
        async with client_of(stub.url) as client:
            task = asyncio.create_task(client.send(CHAT, BODY, request_id="r"))
            await until(lambda: stub.in_flight == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: stub.in_flight == 0)


async def test_the_client_sets_no_limit_of_its_own() -> None:
    with StubVLLM(delay_s=600.0) as stub:
        async with client_of(stub.url) as client:
            tasks = [asyncio.create_task(client.send(CHAT, BODY, request_id=str(n))) for n in range(150)]
            await until(lambda: stub.in_flight == 150)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_large_bodies_go_out_whole(stub: StubVLLM) -> None:
    text = "x" * 3_000_000
    body = orjson.dumps({"messages": [{"role": "user", "content": text}]})
    async with client_of(stub.url) as client:
        completion = await client.send(CHAT, body, request_id="r")
    assert isinstance(completion, Completion)
    assert completion.usage.prompt_tokens == len(text) // 4 + 1


@pytest.mark.parametrize("settings", [{"api_key": "sk-secret"}, {"extra_headers": {"api-key": "sk-secret"}}])
async def test_the_key_is_blotted_out_of_what_the_server_says(stub: StubVLLM, settings: dict[str, Any]) -> None:
    stub.behaviour.fault = lambda _body, _nth: Fault.answer(401, {"error": "Incorrect key: sk-secret"})
    failure = await send_one(stub.url, **settings)
    assert isinstance(failure, Failure)
    assert failure.message == "Incorrect key: ***"


async def test_outside_of_async_with_is_an_error(stub: StubVLLM) -> None:
    with pytest.raises(RuntimeError, match="outside"):
        await client_of(stub.url).send(CHAT, BODY, request_id="r")


def test_a_base_url_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match="is no URL"):
        client_of("http://gpu1:port")


def test_credentials_in_a_base_url_are_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="credentials") as raised:
        client_of("http://user:s3cret@gpu1:8000")
    assert "s3cret" not in str(raised.value)


async def test_extra_headers_replace_ours_whatever_their_case() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_request(reader))
        writer.write(ANSWER)

    async with raw_server(answer) as url:
        await send_one(url, extra_headers={"user-agent": "mine", "content-type": "application/json; v=1"})
    assert heads[0].lower().count(b"user-agent:") == heads[0].lower().count(b"content-type:") == 1
    assert b"mine" in heads[0]


async def test_connections_notice_a_peer_that_is_gone() -> None:
    options: dict[str, int] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ANSWER)
        await reader.read()

    async with raw_server(answer) as url, client_of(url) as client:
        assert isinstance(await client.send(CHAT, BODY, request_id="r"), Completion)
        assert client._session is not None
        ((idle,),) = client._session.connector._conns.values()  # type: ignore[union-attr]
        used = idle[0].transport.get_extra_info("socket")
        options["keepalive"] = used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options["idle"] = used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    assert options == {"keepalive": 1, "idle": transport.DEAD_PEER_S}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stub")])
    now = dt.datetime.now(dt.UTC)  # noqa: TID251 - certificates are checked against the real clock
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "stub.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls_stub(certificate: Path) -> Any:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with StubVLLM(ssl_context=context) as stub:
        yield stub


async def test_a_certificate_nobody_vouches_for(tls_stub: StubVLLM) -> None:
    failure = await send_one(tls_stub.url)
    assert kind_of(failure) is FailureKind.UNTRUSTED


async def test_a_certificate_for_another_host(tls_stub: StubVLLM, certificate: Path) -> None:
    url = tls_stub.url.replace("127.0.0.1", "localhost")
    assert kind_of(await send_one(url, verify=str(certificate))) is FailureKind.UNTRUSTED


async def test_a_certificate_of_the_ca_bundle(tls_stub: StubVLLM, certificate: Path) -> None:
    assert isinstance(await send_one(tls_stub.url, verify=str(certificate)), Completion)


async def test_verification_switched_off(tls_stub: StubVLLM) -> None:
    assert isinstance(await send_one(tls_stub.url, verify=False), Completion)


async def test_https_spoken_to_a_plain_server(stub: StubVLLM) -> None:
    assert kind_of(await send_one(stub.url.replace("http:", "https:"))) is FailureKind.UNREACHABLE


def test_a_missing_ca_bundle() -> None:
    with pytest.raises(ConfigurationError, match="/no/such"):
        client_of("https://127.0.0.1:1", verify="/no/such.pem")


async def test_identify(stub: StubVLLM) -> None:
    stub.swap_model("weights-2")
    async with client_of(stub.url) as client:
        identity = await client.identify()
    assert identity == ServerIdentity((ServedModel("stub", "weights-2", "vllm"),), "0.32.0", is_vllm=True)


async def identify(url: str, **settings: Any) -> ServerIdentity | Failure:
    async with client_of(url, **settings) as client:
        return await client.identify()


async def test_identify_is_refused_without_the_key() -> None:
    with StubVLLM(api_key="sk-1") as stub:
        assert kind_of(await identify(stub.url)) is FailureKind.UNAUTHORISED  # type: ignore[arg-type]
        assert isinstance(await identify(stub.url, api_key="sk-1"), ServerIdentity)


@asynccontextmanager
async def routes(answers: dict[str, tuple[int, bytes]]) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_request(reader)
            status, body = answers.get(head.split(b" ")[1].decode(), (404, b"no"))
            if not status:
                return
            writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    async with raw_server(answer) as url:
        yield url


MODELS = b'{"data":[{"id":"a","owned_by":"llamacpp"},{"id":"b"},"c"]}'


@pytest.mark.parametrize("version", [(404, b"no"), (200, b"not JSON"), (200, b'{"version":7}')])
async def test_identify_another_server(version: tuple[int, bytes]) -> None:
    async with routes({"/v1/models": (200, MODELS), "/version": version}) as url:
        models = (ServedModel("a", None, "llamacpp"), ServedModel("b", None, None))
        assert await identify(url) == ServerIdentity(models, None, is_vllm=False)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({"/v1/models": (404, b"no")}, FailureKind.ROUTE_NOT_FOUND),
        ({"/v1/models": (200, b"<html>")}, FailureKind.GARBLED),
        ({"/v1/models": (503, b"")}, FailureKind.BUSY),
        ({"/v1/models": (0, b"")}, FailureKind.CONNECTION_LOST),
        # no answer about the version is not the same as no version
        ({"/v1/models": (200, MODELS), "/version": (0, b"")}, FailureKind.CONNECTION_LOST),
    ],
)
async def test_identify_fails(answers: dict[str, tuple[int, bytes]], kind: FailureKind) -> None:
    async with routes(answers) as url:
        assert kind_of(await identify(url)) is kind  # type: ignore[arg-type]


A, B = ServedModel("a", None, None), ServedModel("b", None, None)


def test_resolve_model() -> None:
    both = ServerIdentity((A, B), None, is_vllm=True)
    assert resolve_model(both, "b") == B
    assert resolve_model(ServerIdentity((A,), None, is_vllm=True), None) == A


@pytest.mark.parametrize(
    ("models", "wanted", "words"),
    [
        ((A, B), None, "'a', 'b'"),
        ((A, B), "c", "'c'; it serves 'a', 'b'"),
        ((), None, "no model"),
        ((), "c", "no model"),
    ],
)
def test_resolve_model_refuses(models: tuple[ServedModel, ...], wanted: str | None, words: str) -> None:
    with pytest.raises(EndpointRefusedError, match=words):
        resolve_model(ServerIdentity(models, None, is_vllm=True), wanted)


async def test_a_connection_on_which_something_came_unasked_is_not_used_again() -> None:
    """It would be taken for the answer to the next request, and each one after it for the next but one's."""
    connections = 0

    async def answer_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await read_request(reader)
            writer.write(ANSWER)
            await asyncio.sleep(0.02)
            writer.write(ANSWER)

    async with raw_server(answer_twice) as url, client_of(url) as client:
        for _ in range(3):
            assert isinstance(await client.send(CHAT, BODY, request_id="r"), Completion)
            await asyncio.sleep(0.1)
    assert connections == 3


async def test_an_answer_to_another_request_is_none() -> None:
    async def answer_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = OK.replace(b'{"choices"', b'{"id":"chatcmpl-0123456789ab-01234567-7-1","choices"')
        while True:
            await read_request(reader)
            writer.write(ANSWER.split(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async with raw_server(answer_the_first) as url, client_of(url) as client:
        first = await client.send(CHAT, BODY, request_id="0123456789ab-01234567-7-1")
        other = await client.send(CHAT, BODY, request_id="0123456789ab-01234567-8-1")
    assert isinstance(first, Completion)
    assert kind_of(other) is FailureKind.GARBLED


async def test_an_answer_sent_twice_costs_one_row_and_no_others() -> None:
    """It is there when the next request is sent; that one's own answer would be the next but one's."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        twice = True
        while True:
            asked = await read_request(reader)
            request_id = next(line.split(b": ")[1] for line in asked.split(b"\r\n") if line.startswith(b"X-Request-Id"))
            body = OK.replace(b'{"choices"', b'{"id":"chatcmpl-%s","choices"' % request_id)
            whole = ANSWER.split(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n" % len(body) + body
            await asyncio.sleep(0.02)
            writer.write(whole)
            if twice:
                asyncio.get_running_loop().call_later(0.005, writer.write, whole)
            twice = False

    async with raw_server(answer) as url, client_of(url) as client:
        results = [await client.send(CHAT, BODY, request_id=f"0123456789ab-01234567-{row}-1") for row in range(12)]
    garbled = [row for row, result in enumerate(results) if isinstance(result, Failure)]
    assert garbled == [1, 3, 5, 7, 9, 11], "each connection sends its first answer twice, and is closed for it"


async def test_a_large_stream_is_joined_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}' % (b"x" * (2 << 20))
    body = delta + b"\n\ndata: [DONE]\n\n"
    joining: list[bool] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()

    whole = client_module.decode

    def noted(**fields: Any) -> Completion | Failure:
        joining.append(threading.current_thread() is threading.main_thread())
        return whole(**fields)

    monkeypatch.setattr(client_module, "decode", noted)
    async with raw_server(answer) as url, client_of(url) as client:
        assert isinstance(await client.send(CHAT, BODY, request_id="r"), Completion)
        streamed = await client.stream(CHAT, BODY, request_id="r", wait_s=10, arrived=lambda _: None)
    assert isinstance(streamed, Completion)
    assert joining == [False, False]
