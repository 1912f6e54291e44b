"""Real S3 servers on loopback, started here and ended here, and a proxy before one that does what networks do.

rclone's keeps objects as files, checks signatures, and ignores conditional headers; moto's keeps them in memory, checks
no signature, and honours conditions. What holds on both holds on what lies between.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiohttp import ClientError, ClientSession, DummyCookieJar, web
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

KEY, SECRET = "a-key", "a-secret-that-must-not-be-logged"
READY_S = 60.0
_NUMBERS = itertools.count()
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"})


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class S3Server:
    """A server process; a context manager.

    Args:
        kind: ``rclone`` or ``moto``.
        folder: where it keeps its log and, rclone's, its objects.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.url = ""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start(free_port())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def port(self) -> int:
        """Where it listens."""
        return URL(self.url).port or 0

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None

    def start(self, port: int) -> None:
        """Start it, and wait until it answers."""
        bin_folder = Path(sys.executable).parent
        objects = self._folder / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        commands = {
            "rclone": [
                str(bin_folder / "rclone"),
                *("serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"),
                *("--config", os.devnull, "--vfs-cache-mode", "off", str(objects)),
            ],
            "moto": [str(bin_folder / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        }
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(commands[self.kind], stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + READY_S  # noqa: TID251 - it waits for a process
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:  # noqa: TID251 - see above
                raise RuntimeError(f"{self.kind} did not start: {(self._folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)  # noqa: TID251 - see above

    def kill(self) -> None:
        """End it at once, as a machine does that is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=2):  # noqa: S310 - on loopback
                return True
        except urllib.error.HTTPError:
            return True  # it wants a signature
        except OSError:
            return False


@dataclass
class Said:
    """What the proxy does with a request instead of handing it on.

    Attributes:
        status: answered at once; 0: the connection is reset.
        code: S3's word for it.
        after: whether the server was given the request first, so that only the answer is lost.
        half: whether it was given half of it.
        kept_back: whether it gets the request when `S3Proxy.deliver` is called.
        delivers: the server first gets what was kept back, and then this request.
        first: called before anything else.
    """

    status: int = 0
    code: str = ""
    after: bool = False
    half: bool = False
    kept_back: bool = False
    delivers: bool = False
    first: Callable[[], object] = lambda: None


@dataclass
class Asked:
    """A request that came to the proxy."""

    method: str
    path: str
    conditional: bool


@dataclass
class S3Proxy:
    """Stands before a server, hands on what comes, and does what `fault` says. A context manager.

    Attributes:
        server: before which.
        fault: asked about each request; None: it is handed on.
        asked: all of them, in their order.
        kept_back: whether a request waits for `deliver`.
    """

    server: S3Server
    fault: Callable[[Asked], Said | None] = lambda _: None
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    kept_back: bool = False
    _waiting: list[tuple[web.Request, bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        if not self._ready.wait(READY_S):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set_result, None)
        self._thread.join(READY_S)

    def deliver(self) -> None:
        """Have the server get what was kept back."""
        asyncio.run_coroutine_threadsafe(self._deliver(), self._loop).result(READY_S)

    async def _deliver(self) -> None:
        waiting, self._waiting, self.kept_back = self._waiting, [], False
        for request, body in waiting:
            await self._hand_on(request, body)

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._over: asyncio.Future[None] = self._loop.create_future()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        port = free_port()
        async with ClientSession(cookie_jar=DummyCookieJar(), auto_decompress=False) as self._session:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.url = f"http://127.0.0.1:{port}"
            self._ready.set()
            await self._over
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.method, request.raw_path, "If-None-Match" in request.headers)
        self.asked.append(asked)
        body = await request.read()
        said = self.fault(asked)
        if said is None:
            return await self._hand_on(request, body)
        said.first()
        if said.delivers:
            await self._deliver()
            return await self._hand_on(request, body)
        if said.after:
            await self._hand_on(request, body)
        if said.half:
            await self._hand_on_half(request, body)
        if said.kept_back:
            self._waiting.append((request, body))
            self.kept_back = True
        if not said.status:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        text = f"<?xml version='1.0'?><Error><Code>{said.code}</Code><Message>as the test says</Message></Error>"
        return web.Response(status=said.status, text=text, content_type="application/xml")

    async def _hand_on_half(self, request: web.Request, body: bytes) -> None:
        """As far as the middle of the body; then the connection is gone."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        headers = [f"{name}: {value}" for name, value in _end_to_end(request)]
        head = [f"{request.method} {request.raw_path} HTTP/1.1", *headers, f"Content-Length: {len(body)}", "", ""]
        writer.write("\r\n".join(head).encode() + body[: len(body) // 2])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _hand_on(self, request: web.Request, body: bytes) -> web.Response:
        try:
            return await self._answer(request, body)
        except ClientError:  # the server is gone
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    async def _answer(self, request: web.Request, body: bytes) -> web.Response:
        headers = _end_to_end(request)
        url = URL(f"{self.server.url}{request.raw_path}", encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body, skip_auto_headers=("User-Agent", "Accept")
        ) as answer:
            content = await answer.read()
            kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
            if request.method == "HEAD":
                kept += [("Content-Length", answer.headers.get("Content-Length", "0"))]
            return web.Response(status=answer.status, body=content or None, headers=kept)


def _end_to_end(message: web.Request) -> list[tuple[str, str]]:
    """The headers that are not of one connection alone."""
    return [(name, value) for name, value in message.headers.items() if name.lower() not in HOP_BY_HOP]


def connect(url: str, **changes: Any) -> str:
    """Make a connection to the server at `url`; returns its id, a new one: Airflow keeps file systems by it."""
    conn_id = f"s3_{next(_NUMBERS)}"
    os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = connection(url, **changes)
    return conn_id


def connection(url: str, *, secret: str = SECRET, **config: Any) -> str:
    """An Airflow connection to the server at `url`, as its environment variable holds it."""
    extra = {
        "service_config": {"s3": {"endpoint_url": url}},
        "region_name": "us-east-1",
        "config_kwargs": {
            "connect_timeout": 2,
            "read_timeout": 5,
            "retries": {"max_attempts": 2},
            "response_checksum_validation": "when_required",  # rclone answers a range with the whole object's checksum
            **config,
        },
    }
    return json.dumps({"conn_type": "aws", "login": KEY, "password": secret, "extra": extra})
