"""A page that is asked for again and again: one connection, and whatever a server may do to it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from airflow_llm_provider.endpoint import polled_page as module
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.polled_page import PolledPage
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\npa\r\n2\r\nge\r\n0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\npage"
WAIT_S = 5.0


class Server:
    """Answers each request with the next of `says`: bytes, None for nothing, or "" to close the connection instead."""

    def __init__(self, *says: bytes | str | None) -> None:
        self.says = list(says)
        self.asked: list[bytes] = []
        self.connections = 0
        self.url = ""
        self.came = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.says:
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                self.came.set()
                match self.says.pop(0):
                    case bytes(answer):
                        for piece in (answer[:20], answer[20:]):
                            writer.write(piece)
                            await writer.drain()
                    case None:
                        await asyncio.sleep(60)
                    case _:
                        break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*says: bytes | str | None) -> AsyncIterator[Server]:
    server = Server(*says)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


def page_of(server: Server) -> PolledPage:
    return PolledPage(EndpointSettings(base_urls=(server.url,)), URL(server.url + "/metrics/?a=b"), {"Host": "it"})


async def test_one_connection_serves_all_looks() -> None:
    async with serving(PLAIN, CHUNKED, PLAIN) as server:
        page = page_of(server)
        assert [await page.get(WAIT_S) for _ in range(3)] == [(200, b"page")] * 3
        assert server.connections == 1
        assert server.asked[0] == b"GET /metrics/?a=b HTTP/1.1\r\nHost: it\r\n\r\n"
        page.close()


@pytest.mark.parametrize(
    "says", ["", b"nonsense that is no HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
async def test_what_is_no_answer_is_none_and_the_next_look_has_a_new_connection(says: bytes | str) -> None:
    async with serving(says, PLAIN) as server:
        page = page_of(server)
        assert await page.get(WAIT_S) is None
        assert await page.get(WAIT_S) == (200, b"page")
        assert server.connections == 2
        page.close()


async def test_a_server_that_closes_after_each_answer_is_asked_on_a_new_connection() -> None:
    async with serving(LAST, LAST) as server:
        page = page_of(server)
        assert [await page.get(WAIT_S) for _ in range(2)] == [(200, b"page")] * 2
        assert server.connections == 2
        page.close()


async def test_an_answer_that_does_not_come_is_none_and_never_taken_for_the_next_one() -> None:
    async with serving(None, PLAIN) as server:
        page = page_of(server)
        assert await page.get(0.05) is None
        assert await page.get(WAIT_S) == (200, b"page")
        assert server.connections == 2
        page.close()


async def test_a_look_that_is_cancelled_leaves_no_answer_behind() -> None:
    async with serving(None, PLAIN) as server:
        page = page_of(server)
        look = asyncio.create_task(page.get(WAIT_S))
        await server.came.wait()
        look.cancel()
        with pytest.raises(asyncio.CancelledError):
            await look
        assert await page.get(WAIT_S) == (200, b"page")
        page.close()


async def test_a_page_without_end_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 3)
    async with serving(PLAIN) as server:
        assert await page_of(server).get(WAIT_S) is None


async def test_nobody_there_is_none() -> None:
    async with serving() as server:
        pass
    assert await page_of(server).get(WAIT_S) is None


async def test_the_client_sends_what_it_always_sends_and_closes_it() -> None:
    async with serving(PLAIN) as server:
        settings = EndpointSettings(base_urls=(server.url,), api_key="sk-1", extra_headers={"X-Team": "data"})
        async with EndpointClient(settings, base_url=server.url) as client:
            page = client.polled("/metrics")
            assert await page.get(WAIT_S) == (200, b"page")
        assert await page.get(WAIT_S) is None
    for line in (
        b"Host: " + server.url.removeprefix("http://").encode(),
        b"Authorization: Bearer sk-1",
        b"X-Team: data",
    ):
        assert line in server.asked[0].split(b"\r\n")


@pytest.mark.parametrize("headers", [{"X": "a\r\nHost: b"}, {"X\nY": "a"}, {"X": "a\0"}])
def test_a_header_with_a_line_break_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="has a line break"):
        EndpointSettings(base_urls=("http://it",), extra_headers=headers)


def test_a_transport_need_not_be_of_asyncios_own_class() -> None:
    class Foreign:  # as uvloop's is
        def is_closing(self) -> bool:
            return False

    exchange = module._Exchange()
    exchange.connection_made(Foreign())  # type: ignore[arg-type]
    assert exchange.usable
