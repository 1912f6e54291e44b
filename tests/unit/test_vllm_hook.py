"""The hook against real servers on the loopback: what it fetches, sends, says and keeps to itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import logging
import socket
import ssl
import threading
import traceback
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from airflow.sdk.log import redact
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.exceptions import (
    ConfigurationError,
    ConnectionMissingError,
    EndpointDownError,
    EndpointRefusedError,
)
from airflow_llm_provider.hooks import probe
from airflow_llm_provider.hooks.vllm import VLLMHook
from airflow_llm_provider.testing import StubVLLM

SECRET = "s3cr3t-t0ken"
HEADER_SECRET = "h34der-s3cr3t"


@pytest.fixture
def connect(monkeypatch):
    """Define the connection `llm` and return its hook."""

    def define(host: str, *, password: str = "", **extra) -> VLLMHook:
        value = {"conn_type": "vllm", "host": host, "password": password, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_LLM", json.dumps(value))
        return VLLMHook("llm")

    return define


class Canned:
    """A server that gives one answer to every GET, and remembers what it was sent."""

    def __init__(self, body: str, *, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        received = self.received = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                received.append((self.path, self.headers))
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_args): ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_exc):
        self._server.shutdown()
        self._server.server_close()


def models(*names: str, owned_by: str = "vllm") -> str:
    return json.dumps({"object": "list", "data": [{"id": name, "owned_by": owned_by} for name in names]})


@pytest.fixture
def refused_url():
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        port = sock.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1: (server's context, path of the bundle that trusts it)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stub")])
    now = dt.datetime.now(tz=dt.UTC)  # noqa: TID251 - real certificates live in real time
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    bundle = folder / "ca.pem"
    bundle.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file = folder / "key.pem"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle, key_file)
    return context, str(bundle)


# ── test_connection: success ─────────────────────────────────────────────────────────────────────────────────────────


def test_success_names_model_version_and_vllm(connect):
    with StubVLLM(model="m") as stub:
        good, message = connect(stub.url, model="m").test_connection()
    assert good
    assert message == f"{stub.url} serves 'm' and answers as vLLM (version 0.32.0)"


def test_success_with_key_and_without_a_model(connect):
    with StubVLLM(model="m", api_key=SECRET) as stub:
        good, message = connect(f"{stub.url}/v1", password=SECRET).test_connection()
    assert good
    assert "serves 'm'" in message


def test_success_without_a_model_where_several_are_served_says_what_follows(connect):
    with StubVLLM(model=("a", "b")) as stub:
        good, message = connect(stub.url).test_connection()
    assert good
    assert "serves 'a', 'b'" in message
    assert "each DAG must" in message


def test_another_compatible_server_is_fine_and_said_not_to_be_vllm(connect):
    with Canned(models("m", owned_by="llamacpp")) as server:
        good, message = connect(server.url, model="m").test_connection()
    assert good
    assert "not as vLLM" in message


def test_works_inside_a_running_event_loop(connect):
    async def call():
        return connect(stub.url, model="m").test_connection()

    with StubVLLM(model="m") as stub:
        good, _ = asyncio.run(call())
    assert good


# ── test_connection: what went wrong ─────────────────────────────────────────────────────────────────────────────────


def test_unreachable_says_why(connect, refused_url):
    good, message = connect(refused_url, model="m").test_connection()
    assert not good
    assert message.startswith(f"Cannot reach {refused_url}: ")
    assert "Connect call failed" in message


def test_unknown_host(connect):
    good, message = connect("http://no-such-host.invalid:8000").test_connection()
    assert not good
    assert message.startswith("Cannot reach http://no-such-host.invalid:8000: ")


def test_silent_server_is_given_up_on(connect):
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        good, message = connect(url, request_timeout_s=0.2).test_connection()
    assert not good
    assert message.startswith(f"Cannot reach {url}: no complete answer in 0.2 s")


def test_long_timeouts_are_cut_for_the_person_waiting(connect, monkeypatch):
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        _, message = connect(url).test_connection()
    assert "no complete answer in 0.2 s" in message


def test_wrong_key(connect):
    with StubVLLM(model="m", api_key=SECRET) as stub:
        good, message = connect(stub.url, model="m", password="wr0ng-k3y").test_connection()
    assert not good
    assert message == f"{stub.url} refuses access (401): the API key in the connection's password is not accepted"


def test_missing_key(connect):
    with StubVLLM(model="m", api_key=SECRET) as stub:
        good, message = connect(stub.url, model="m").test_connection()
    assert not good
    assert "(401): it wants an API key" in message


def test_model_not_served_names_those_that_are(connect):
    with StubVLLM(model=("a", "b")) as stub:
        good, message = connect(stub.url, model="c").test_connection()
    assert not good
    assert message == f"{stub.url} does not serve the model 'c'; it serves 'a', 'b'"


def test_many_models_are_not_all_listed(connect):
    with Canned(models(*(f"m{i}" for i in range(30)))) as server:
        _, message = connect(server.url, model="c").test_connection()
    assert message.endswith("'m19' and 10 more")


def test_no_model_served(connect):
    with Canned(models()) as server:
        assert connect(server.url).test_connection() == (False, f"{server.url} answers, but serves no model")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"body": "<html><title>Welcome to nginx!</title></html>", "kind": "text/html"}, "Welcome to nginx!"),
        ({"body": '{"models": []}'}, "no list of models"),
        ({"body": "Not Found", "status": 404}, "Not Found"),
        ({"body": "", "status": 302, "Location": "https://login.example.com/?next=x"}, "https://login.example.com/"),
    ],
)
def test_not_an_openai_compatible_server(connect, answer, why):
    with Canned(**answer) as server:
        good, message = connect(server.url, model="m").test_connection()
    assert not good
    assert message.startswith(f"{server.url} does not answer as an OpenAI-compatible server: ")
    assert why in message


def test_up_but_not_ready(connect):
    with Canned("warming up", status=503) as server:
        good, message = connect(server.url, model="m").test_connection()
    assert not good
    assert message == f"{server.url} is up but not ready: warming up. Try again in a while"


def test_untrusted_certificate(connect, certificate):
    context, _ = certificate
    with StubVLLM(model="m", ssl_context=context) as stub:
        good, message = connect(stub.url, model="m").test_connection()
    assert not good
    assert message.startswith(f"The certificate of {stub.url} is not trusted: ")
    assert "self-signed certificate" in message
    assert "Set `verify`" in message


@pytest.mark.parametrize("trust", ["bundle", "false"])
def test_certificate_trusted_by_bundle_or_not_checked(connect, certificate, trust):
    context, bundle = certificate
    with StubVLLM(model="m", ssl_context=context) as stub:
        hook = connect(stub.url, model="m", verify=bundle if trust == "bundle" else trust)
        assert hook.test_connection()[0]
        with hook.get_conn() as client:
            assert [model.id for model in client.models.list()] == ["m"]


def test_openai_client_refuses_an_untrusted_certificate(connect, certificate):
    context, _ = certificate
    with (
        StubVLLM(model="m", ssl_context=context) as stub,
        connect(stub.url).get_conn() as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.with_options(max_retries=0).models.list()


def test_missing_ca_bundle(connect, tmp_path):
    hook = connect("https://127.0.0.1:1", verify=str(tmp_path / "none.pem"))
    good, message = hook.test_connection()
    assert not good
    assert "none.pem" in message
    with pytest.raises(ConfigurationError, match=r"none\.pem"):
        hook.get_conn()


def test_bad_connection_is_an_answer_and_no_exception(connect):
    good, message = connect("ftp://gpu1").test_connection()
    assert not good
    assert message.startswith("Connection 'llm': host is ")


def test_every_base_url_is_asked(connect, refused_url):
    with StubVLLM(model="m") as stub:
        good, message = connect(f"{stub.url},{refused_url}", model="m").test_connection()
    assert not good
    assert f"{stub.url} serves 'm'" in message
    assert f"Cannot reach {refused_url}" in message


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_of_failure_has_a_sentence_and_an_error(kind):
    finding = probe.Finding(base_url="http://gpu1", answer=Failure(kind, "because"), has_key=True)
    good, sentence = finding.verdict("m")
    assert not good
    assert "http://gpu1" in sentence
    with pytest.raises((EndpointDownError, EndpointRefusedError)) as caught:
        finding.identity()
    assert str(caught.value) == sentence


# ── served models, and what serves them ──────────────────────────────────────────────────────────────────────────────


def test_served_models_are_those_of_every_base_url(connect):
    with Canned(models("a", "b", "c")) as one, Canned(models("c", "a")) as two:
        assert connect(f"{one.url},{two.url}").served_models() == ("a", "c")


def test_answers_as_vllm_only_if_all_do(connect):
    with Canned(models("m")) as one, Canned(models("m", owned_by="someone")) as two:
        assert connect(one.url).answers_as_vllm()
        assert not connect(f"{one.url},{two.url}").answers_as_vllm()


def test_served_models_tell_down_from_refused(connect, refused_url):
    with pytest.raises(EndpointDownError, match="Cannot reach"):
        connect(refused_url).served_models()
    with StubVLLM(api_key=SECRET) as stub, pytest.raises(EndpointRefusedError, match="401"):
        connect(stub.url).served_models()


# ── the connection ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_missing_connection_says_how_to_make_it():
    hook = VLLMHook("llm_missing")
    with pytest.raises(ConnectionMissingError, match="airflow connections add llm_missing --conn-type vllm"):
        hook.get_settings()
    good, message = hook.test_connection()
    assert not good
    assert "llm_missing" in message


async def test_missing_connection_says_so_to_async_code():
    with pytest.raises(ConnectionMissingError, match="airflow connections add llm_missing --conn-type vllm"):
        await VLLMHook("llm_missing").aget_settings()


async def test_async_settings_are_the_same(connect):
    hook = connect("http://gpu1:8000/v1", password=SECRET, model="m", extra_headers={"X-Key": HEADER_SECRET})
    assert await hook.aget_settings() == VLLMHook("llm").get_settings()


def test_default_connection_id(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", "vllm://gpu1:8000")
    assert VLLMHook().get_settings().base_urls == ("http://gpu1:8000",)


# ── openai clients ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_openai_client_talks_to_the_endpoint(connect):
    with StubVLLM(model="m", api_key=SECRET) as stub, connect(stub.url, password=SECRET).get_conn() as client:
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content


async def test_async_openai_client_talks_to_the_endpoint(connect):
    with StubVLLM(model="m", api_key=SECRET) as stub:
        async with await connect(stub.url, password=SECRET).get_async_conn() as client:
            answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content


def test_openai_client_has_the_connections_timeouts(connect):
    with connect("http://gpu1:8000", connect_timeout_s=3, request_timeout_s=77).get_conn() as client:
        assert client.timeout == openai.Timeout(77, connect=3)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"password": SECRET}, f"Bearer {SECRET}"),
        ({"extra_headers": {"authorization": f"Basic {SECRET}"}}, f"Basic {SECRET}"),
        ({}, None),
    ],
)
def test_openai_client_sends_the_connections_key_and_no_other(connect, monkeypatch, given, sent):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "the-environments")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Canned(models("m")) as server, connect(server.url, **given).get_conn() as client:
        client.models.list()
    ((path, headers),) = server.received
    assert path == "/v1/models"
    assert headers.get_all("Authorization") == (None if sent is None else [sent])
    assert "the-environments" not in str(headers)


def test_openai_client_sends_extra_headers_and_follows_no_redirect(connect):
    with Canned("", status=307, Location="http://127.0.0.1:1/") as server:
        hook = connect(server.url, extra_headers={"X-Key": HEADER_SECRET})
        with hook.get_conn() as client, pytest.raises(openai.APIStatusError) as caught:
            client.models.list()
    assert caught.value.status_code == 307
    assert [headers["X-Key"] for _, headers in server.received] == [HEADER_SECRET]


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_secrets_are_masked_once_the_connection_is_read(connect):
    headers = {"X-Key": "first-header", "X-Auth": "Basic second-header"}
    connect("http://gpu1", password="a-password", extra_headers=headers).get_settings()
    assert redact("a log line: a-password, first-header, second-header") == "a log line: ***, ***, ***"


async def test_secrets_are_masked_for_async_code(connect):
    headers = {"X-Key": "third-header"}
    await connect("http://gpu1", password="b-password", extra_headers=headers).aget_settings()
    assert redact("a log line: b-password, third-header") == "a log line: ***, ***"


def test_nothing_shows_the_secrets(connect, caplog, refused_url):
    """Neither logs down to DEBUG, openai's and aiohttp's included, nor messages, errors or reprs."""
    seen = []
    extra = {"model": "m", "extra_headers": {"X-Key": HEADER_SECRET}}
    quoting = json.dumps({"error": {"message": f"Incorrect API key {SECRET}, {HEADER_SECRET}"}})
    with (
        caplog.at_level(logging.DEBUG),
        StubVLLM(model="m", api_key=SECRET) as stub,
        Canned(quoting, status=401) as strict,
        Canned(quoting, status=500) as broken,
        Canned(f"{SECRET} {HEADER_SECRET}", status=200) as odd,
    ):
        for url in (stub.url, refused_url, strict.url, broken.url, odd.url):
            hook = connect(url, password=SECRET, **extra)
            seen += [hook.test_connection()[1], repr(hook), repr(hook.get_settings())]
            try:
                hook.served_models()
            except (EndpointDownError, EndpointRefusedError) as error:
                seen += traceback.format_exception(error)
        with connect(stub.url, password=SECRET, **extra).get_conn() as client:
            client.models.list()
            seen.append(repr(client))
    shown = "\n".join([*seen, caplog.text])
    assert stub.url in shown
    assert SECRET not in shown
    assert HEADER_SECRET not in shown
