"""One endpoint over HTTP: a request's bytes in, a `Completion` or a `Failure` out.

Owns the connections, and the recognition of failures that come without an answer. Does not know how answers are read
(`endpoint.wire`), how many requests may be in flight, or what a failure leads to: it never retries.
"""

from __future__ import annotations

import asyncio
import errno
import io
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from airflow_llm_provider.core.redaction import KEEP, Redaction
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.credentials import blotted
from airflow_llm_provider.endpoint.failure import Answer, classify, garbled, read_json, shorten
from airflow_llm_provider.endpoint.identity import ServedModel, ServerIdentity
from airflow_llm_provider.endpoint.polled_page import MOST_BYTES, PolledPage
from airflow_llm_provider.endpoint.transport import TooLargeError, read_body, ssl_context, watchful_socket
from airflow_llm_provider.endpoint.wire import decode
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection

    from airflow_llm_provider.core.request import Completion
    from airflow_llm_provider.endpoint.settings import EndpointSettings

KEEPALIVE_S = 3.0
"""Idle connections are dropped after this long: vLLM drops them after 5 s, and whoever is second loses a request."""

RACE_S = 1.0
"""A reused connection that dies this soon after a request was written lost the keep-alive race: the server closed it
before it saw the request. One that dies later had its request inside the server."""

IDENTIFY_TIMEOUT_S = 30.0

MOST_ANSWER_BYTES = 256 * 2**20
"""A longer answer to a row is none. 100,000 tokens with 20 likelier ones beside each, 80 bytes apiece, are 160 MB."""

_LARGE_BODY_BYTES = 2**20  # aiohttp writes `bytes` in one go and warns from here on; a file object goes in pieces

_connection_is_new: ContextVar[bool] = ContextVar("connection_is_new", default=False)
_used: ContextVar[ResponseHandler | None] = ContextVar("used", default=None)


class _Connector(aiohttp.TCPConnector):
    """Notes, in the context of the task that asked for it, which connection it got, and whether it was made for it.

    This hook runs once per connection; aiohttp's tracing, the documented way, runs code on every request.

    A connection on which something came while nothing was asked is not used again: aiohttp would take that for the
    answer to the next request.
    """

    async def _get(self, key: Any, traces: list[Any]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                _used.set(protocol)
                break
            connection.close()
        return connection

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> ResponseHandler:
        _connection_is_new.set(True)
        made = await super()._create_connection(req, traces, timeout)
        _used.set(made)
        return made


class EndpointClient:
    """Sends requests to one base URL of an endpoint. An async context manager.

    Nothing about the network raises: every such end is a `Failure`. `asyncio.CancelledError` passes through, closes
    the connection, and thereby frees the request's slot in vLLM.

    Args:
        settings: the endpoint's, of which the URL list is not looked at.
        base_url: the server's root this client talks to, without ``/v1``.
        redaction: of what failures say: a server may quote a row.

    Raises:
        ConfigurationError: the base URL is none, or the CA bundle can't be read.
    """

    def __init__(self, settings: EndpointSettings, *, base_url: str, redaction: Redaction = KEEP) -> None:
        self._settings = settings
        self._redaction = redaction
        self._base_url = base_url
        self._ssl = ssl_context(settings.verify) if base_url.startswith("https://") else True
        self._urls: dict[str, URL] = {}  # by path: parsing one costs as much as decoding an answer
        self._session: aiohttp.ClientSession | None = None
        self._polled: list[PolledPage] = []
        self._secrets = blotted(settings.api_key, settings.extra_headers.values())
        try:
            url = self._url("/")
        except ValueError as error:
            raise ConfigurationError(f"The vLLM connection's base URL {base_url!r} is no URL: {error}") from error
        if url.user is not None or url.password is not None:
            raise ConfigurationError(
                f"The vLLM connection's base URL for {url.host} carries credentials, which logs would show. "
                "Set the connection's password, which is sent as API key, or a header in its extras."
            )

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=self._ssl, socket_factory=watchful_socket),
            headers=self._headers({"Content-Type": "application/json"}),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.request_timeout_s, connect=settings.connect_timeout_s),
            trust_env=False,  # prompts go to the server the connection names, not to a proxy of the environment
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for page in self._polled:
            page.close()
        if self._session is not None:
            await self._session.close()

    async def send(self, path: str, body: bytes, *, request_id: str) -> Completion | Failure:
        """Posts one request and reads its whole answer.

        Args:
            path: route below the root, such as ``/v1/chat/completions``.
            body: the JSON body, encoded.
            request_id: sent as ``X-Request-Id``; vLLM makes it part of the answer's id and of its log.
        """
        session = self._open_session()
        url = self._urls.get(path) or self._url(path)
        data = body if len(body) < _LARGE_BODY_BYTES else io.BytesIO(body)
        loop = asyncio.get_running_loop()
        response: aiohttp.ClientResponse | None = None
        _connection_is_new.set(False)
        started_s = loop.time()
        try:
            async with session.post(
                url, data=data, headers={"X-Request-Id": request_id}, allow_redirects=False
            ) as response:
                answer = await read_body(response, most_bytes=MOST_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            return self._failure(error, answered=response is not None, at_once=loop.time() - started_s < RACE_S)
        return await self._understood(path, response, answer, request_id, asked=body)

    async def stream(
        self, path: str, body: bytes, *, request_id: str, wait_s: float, arrived: Callable[[bytes], None]
    ) -> Completion | Failure:
        """Posts one request and hands on each piece of its answer as it arrives. For the few whose moments matter.

        Args:
            path: as for `send`.
            body: as for `send`; asks for a stream.
            request_id: as for `send`.
            wait_s: for the whole answer; used instead of the request time-out where that is longer.
            arrived: called in the loop with each piece of the body.
        """
        timeout = aiohttp.ClientTimeout(
            total=min(wait_s, self._settings.request_timeout_s), connect=self._settings.connect_timeout_s
        )
        response: aiohttp.ClientResponse | None = None
        _connection_is_new.set(False)
        try:
            async with self._open_session().post(
                self._url(path), data=body, headers={"X-Request-Id": request_id}, allow_redirects=False, timeout=timeout
            ) as response:
                answer = await read_body(response, most_bytes=MOST_ANSWER_BYTES, arrived=arrived)
        except (aiohttp.ClientError, OSError) as error:
            return self._failure(error, answered=response is not None, at_once=True, waited_s=timeout.total)
        return await self._understood(path, response, answer, request_id, asked=body)

    async def identify(self) -> ServerIdentity | Failure:
        """Asks who answers: ``/v1/models``, then ``/version``, which other servers need not have."""
        answer = await self.get("/v1/models")
        if isinstance(answer, Failure):
            return answer
        if answer.status != 200:  # noqa: PLR2004
            return classify(answer)
        models = _served_models(read_json(answer.body))
        if models is None:
            return garbled(answer, "the answer is no list of models")
        version = await self.get("/version")
        if isinstance(version, Failure):
            return version
        return ServerIdentity(
            models=models,
            version=_version(version),
            is_vllm=any(model.owned_by == "vllm" for model in models),
        )

    async def get(self, path: str, *, wait_s: float = IDENTIFY_TIMEOUT_S) -> Answer | Failure:
        """Asks for something that is no completion; what comes back, of any status, is an `Answer`, up to `MOST_BYTES`.

        Args:
            path: route below the root, such as ``/metrics``.
            wait_s: for the whole answer; used instead of the request time-out where that is longer.
        """
        return await self.ask(path, None, wait_s=wait_s)

    async def ask(self, path: str, body: bytes | None, *, wait_s: float = IDENTIFY_TIMEOUT_S) -> Answer | Failure:
        """The same as `get`; `body` is posted where there is one."""
        timeout = aiohttp.ClientTimeout(
            total=min(wait_s, self._settings.request_timeout_s), connect=self._settings.connect_timeout_s
        )
        response: aiohttp.ClientResponse | None = None
        session, url = self._open_session(), self._urls.get(path) or self._url(path)
        method = "GET" if body is None else "POST"
        try:
            async with session.request(method, url, data=body, allow_redirects=False, timeout=timeout) as response:
                read = await read_body(response, most_bytes=MOST_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            return self._failure(error, answered=response is not None, at_once=False, waited_s=timeout.total)
        headers = response.headers
        return Answer(
            path=path,
            status=response.status,
            content_type=headers.get("Content-Type", ""),
            body=read,
            retry_after=headers.get("Retry-After"),
            date=headers.get("Date"),
            location=headers.get("Location"),
            secrets=self._secrets,
            redaction=self._redaction,
        )

    def polled(self, path: str) -> PolledPage:
        """A page that is asked for many times a second, on a connection of its own, until this client is closed."""
        url = self._url(path)
        page = PolledPage(self._settings, url, self._headers({"Host": url.raw_authority}))
        self._polled.append(page)
        return page

    def _headers(self, first: Mapping[str, str]) -> CIMultiDict[str]:
        headers = CIMultiDict(first)
        headers["Accept-Encoding"] = "identity"  # unpacking costs more CPU than a local network saves
        headers["User-Agent"] = "airflow-llm-provider"
        headers.update(self._settings.extra_headers)
        if self._settings.api_key:
            headers["Authorization"] = f"Bearer {self._settings.api_key}"
        return headers

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("EndpointClient is used outside `async with`")
        return self._session

    def _url(self, path: str) -> URL:
        url = self._urls[path] = URL(self._base_url + path)
        return url

    async def _understood(
        self, path: str, response: aiohttp.ClientResponse, body: bytes, request_id: str, *, asked: bytes
    ) -> Completion | Failure:
        """What an answer means. A connection with one that is none is not used again: what follows may be askew."""
        used = _used.get()
        if len(body) > _LARGE_BODY_BYTES and "event-stream" in response.headers.get("Content-Type", ""):
            # A million events take seconds, and the loop has other rows. (One JSON body keeps all threads waiting.)
            result = await asyncio.to_thread(self._decode, path, response, body, request_id, asked=asked)
        else:
            result = self._decode(path, response, body, request_id, asked=asked)
        if isinstance(result, Failure) and result.kind is FailureKind.GARBLED and used is not None:
            used.close()
        return result

    def _decode(
        self, path: str, response: aiohttp.ClientResponse, body: bytes, request_id: str, *, asked: bytes
    ) -> Completion | Failure:
        headers = response.headers
        return decode(
            path=path,
            status=response.status,
            content_type=headers.get("Content-Type", ""),
            retry_after=headers.get("Retry-After"),
            body=body,
            date=headers.get("Date"),
            location=headers.get("Location"),
            secrets=self._secrets,
            redaction=self._redaction,
            request_id=request_id,
            asked=asked,
        )

    def _failure(self, error: Exception, *, answered: bool, at_once: bool, waited_s: float | None = None) -> Failure:
        """Names an exception of aiohttp's. Order matters: its classes inherit from each other."""
        words = f"{self._base_url}: {_words(error)}"
        refused = isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED
        match error:
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ServerFingerprintMismatch():
                kind = FailureKind.UNTRUSTED
            case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
                kind = FailureKind.UNREACHABLE
            case TimeoutError():
                kind = FailureKind.TIMEOUT
                words = f"{self._base_url}: no complete answer in {waited_s or self._settings.request_timeout_s:g} s"
            case TooLargeError():
                kind = FailureKind.GARBLED
                words = f"{self._base_url}: {error}"
            case aiohttp.ClientResponseError():
                kind = FailureKind.GARBLED
                words = f"{self._base_url}: the answer is not HTTP: {_words(error)}"
            case _:
                half = isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)
                stale = at_once and not answered and not half and not _connection_is_new.get()
                kind = FailureKind.STALE_CONNECTION if stale else FailureKind.CONNECTION_LOST
        return Failure(kind, self._redaction.text(shorten(words, self._secrets)), refused=refused)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _served_models(parsed: Any) -> tuple[ServedModel, ...] | None:
    match parsed:
        case {"data": list(models)}:
            return tuple(
                ServedModel(model["id"], _text(model.get("root")), _text(model.get("owned_by")))
                for model in models
                if isinstance(model, dict) and isinstance(model.get("id"), str)
            )
        case _:
            return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _version(answer: Answer) -> str | None:
    if answer.status != 200:  # noqa: PLR2004
        return None
    match read_json(answer.body):
        case {"version": str(version)}:
            return version
        case _:
            return None
