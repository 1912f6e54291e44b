"""One page of a server, asked for many times a second on one connection of its own.

Owns the connection and what is sent over it. Does not know what the page says (`endpoint.load`), and explains no
failure: whoever asks finds out what is wrong by asking once as one asks for anything (`endpoint.client`).

Looks at a server's load are most of what giving way costs the client. aiohttp takes 1.1 ms of CPU for one, where this
takes a third (measured: `docs/colocation.md`): the request is always the same bytes, and there is one at a time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import httptools

from airflow_llm_provider.endpoint.transport import asyncio_tls, ssl_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from airflow_llm_provider.endpoint.settings import EndpointSettings

MOST_BYTES = 8 * 2**20
"""A larger page is none: the whole ``/metrics`` of a server with many models has some 100 kB."""


class _Exchange(asyncio.Protocol):
    """A connection; parses what comes on it."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.WriteTransport | None = None

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send it; the answer's status and body are to come."""
        if self._transport is None:
            raise ConnectionResetError
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """No more of it."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(exc or ConnectionResetError())

    # -- the parser's side

    def on_message_begin(self) -> None:
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MOST_BYTES:
            self._fail(OSError("a page too large"))
            self.close()

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), bytes(self._body)))
        if not self._parser.should_keep_alive():
            self.close()

    def _fail(self, why: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(why)


class PolledPage:
    """See the module.

    Args:
        settings: the endpoint's: its certificates and its time-out to connect.
        url: the page's.
        headers: sent along, with ``Host`` among them.
    """

    def __init__(self, settings: EndpointSettings, url: URL, headers: Mapping[str, str]) -> None:
        self._url = url
        self._ssl = asyncio_tls(ssl_context(settings.verify)) if url.scheme == "https" else None
        self._connect_timeout_s = settings.connect_timeout_s
        lines = [f"GET {url.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._request = "\r\n".join(lines).encode()
        self._exchange: _Exchange | None = None

    async def get(self, wait_s: float) -> tuple[int, bytes] | None:
        """Status and body; None where none came within `wait_s` seconds, for whatever reason."""
        try:
            async with asyncio.timeout(wait_s):
                if self._exchange is None or not self._exchange.usable:
                    self._exchange = await self._connect()
                return await self._exchange.ask(self._request)
        except (OSError, httptools.HttpParserError):  # TimeoutError is an OSError
            self.close()
            return None
        except asyncio.CancelledError:
            self.close()  # or its answer would be taken for the next one's
            raise

    def close(self) -> None:
        """End the connection; `get` opens another."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    async def _connect(self) -> _Exchange:
        async with asyncio.timeout(self._connect_timeout_s):
            _, exchange = await asyncio.get_running_loop().create_connection(
                _Exchange, self._url.raw_host or "", self._url.port or 80, ssl=self._ssl
            )
        return exchange
