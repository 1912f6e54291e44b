"""A server on a loopback port, in a thread with a loop of its own, or in the loop there is.

Owns socket, thread and loop. Does not know what requests get.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Self

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    Lifetime = Callable[[], AbstractAsyncContextManager[None]]

BACKLOG = 4096  # a run may open all its connections at once
_STOP_WITHIN_S = 10.0


class ServerThread:
    """Serves from entering to leaving. May be entered again: a restart, on the same port.

    Args:
        handler: answers the requests, in the thread's loop.
        lifetime: makes a context that is entered in that loop before connections are accepted, and left when the server
            stops, while those in flight are still connected.
        port: 0 takes a free one and keeps it over restarts.
        name: of the thread.
        ssl_context: serves HTTPS.
    """

    def __init__(
        self,
        handler: Handler,
        lifetime: Lifetime,
        *,
        port: int = 0,
        name: str,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._answer = handler
        self._lifetime = lifetime
        self._port = port
        self._name = name
        self._ssl = ssl_context
        self._thread: threading.Thread | None = None
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __enter__(self) -> Self:
        listener = listen(self._port)
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        # a daemon: a test that dies with the server running must not hang the interpreter's exit
        self._thread = threading.Thread(target=self._run, args=(listener, ready), name=self._name, daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None and self._stop is not None:
            loop, stop = self._stop
            loop.call_soon_threadsafe(stop.set)
            self._thread.join(_STOP_WITHIN_S)
        self._thread = self._stop = None

    @property
    def url(self) -> str:
        """The base URL, without ``/v1``. Known once it has been entered."""
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{self._port}"

    def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        asyncio.run(self._serve(listener, ready))

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        stop = asyncio.Event()
        self._stop = (asyncio.get_running_loop(), stop)
        await serve(self._answer, self._lifetime, listener, stop=stop, ready=ready.set, ssl_context=self._ssl)


def listen(port: int) -> socket.socket:
    """A socket bound to a loopback port; 0 takes a free one."""
    return socket.create_server(("127.0.0.1", port), backlog=BACKLOG)


async def serve(
    handler: Handler,
    lifetime: Lifetime,
    listener: socket.socket,
    *,
    stop: asyncio.Event,
    ready: Callable[[], None],
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Serves on a bound socket until `stop` is set; then cuts what is in flight, as a killed server does.

    Args:
        handler: answers the requests.
        lifetime: see `ServerThread`.
        listener: bound; closed at the end.
        stop: ends it.
        ready: called once connections are accepted.
        ssl_context: serves HTTPS.
    """
    server = web.Server(handler, handler_cancellation=True, access_log=None, keepalive_timeout=5.0)
    runner = web.ServerRunner(server, shutdown_timeout=0.05)
    await runner.setup()
    try:
        async with lifetime():
            await web.SockSite(runner, listener, backlog=BACKLOG, ssl_context=ssl_context).start()
            ready()
            await stop.wait()
    finally:
        await runner.cleanup()
