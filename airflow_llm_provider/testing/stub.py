"""`StubVLLM`: the server in a thread of its own, on a free port of the loopback interface.

Owns socket, thread and loop. Does not know what requests get (`testing.server`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from airflow_llm_provider.testing.server import Behaviour, Handler

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

_BACKLOG = 4096  # a run may open all its connections at once
_STOP_WITHIN_S = 10.0


class StubVLLM:
    """An instant server shaped like vLLM. A context manager, which may be entered again: a restart.

    Args:
        model: the served name; several names are one model's aliases.
        port: 0 takes a free one and keeps it over restarts.
        log: file that gets a line with the request id per POST, before it is answered.
        ssl_context: serves HTTPS.
        **behaviour: the first values of `Behaviour`'s other fields, such as ``delay_s`` or ``fault``.
    """

    def __init__(
        self,
        model: str | tuple[str, ...] = "stub",
        *,
        port: int = 0,
        log: Path | str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        **behaviour: Any,
    ) -> None:
        models = (model,) if isinstance(model, str) else model
        self.behaviour = Behaviour(models=models, **behaviour)
        self._port = port
        self._log = log
        self._ssl = ssl_context
        self._handler = Handler(self.behaviour)
        self._thread: threading.Thread | None = None
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", self._port), backlog=_BACKLOG)
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        # a daemon: a test that dies with the stub running must not hang the interpreter's exit
        self._thread = threading.Thread(target=self._run, args=(listener, ready), name="stub-vllm", daemon=True)
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

    @property
    def received(self) -> int:
        """POSTs received on the model's routes, over all restarts."""
        return self._handler.tally.received

    @property
    def counts(self) -> Mapping[str, int]:
        """The same by ``X-Request-Id``: a copy."""
        return dict(self._handler.tally.counts)

    @property
    def in_flight(self) -> int:
        """Requests that wait or are worked on right now."""
        return self._handler.tally.in_flight

    @property
    def peak_in_flight(self) -> int:
        """The most that ever were."""
        return self._handler.tally.peak_in_flight

    def drain(self) -> None:
        """From now on ``/health`` says 200 and every POST 500, as a vLLM that shuts down with a time-out does."""
        self.behaviour.draining = True

    def swap_model(self, root: str) -> None:
        """Serves other weights under the same name."""
        self.behaviour.root = root

    def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        asyncio.run(self._serve(listener, ready))

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        stop = asyncio.Event()
        self._stop = (asyncio.get_running_loop(), stop)
        await serve(self._handler, listener, stop=stop, ready=ready.set, log=self._log, ssl_context=self._ssl)


async def serve(
    handler: Handler,
    listener: socket.socket,
    *,
    stop: asyncio.Event,
    ready: Any,
    log: Path | str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Serves on a bound socket until `stop` is set; then cuts what is in flight, as a killed server does.

    Args:
        handler: answers the requests.
        listener: bound; closed at the end.
        stop: ends it.
        ready: called once connections are accepted.
        log: see `StubVLLM`.
        ssl_context: serves HTTPS.
    """
    server = web.Server(handler, handler_cancellation=True, access_log=None, keepalive_timeout=5.0)
    runner = web.ServerRunner(server, shutdown_timeout=0.05)
    await runner.setup()
    fd = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    handler.log_to(fd)
    try:
        await web.SockSite(runner, listener, backlog=_BACKLOG, ssl_context=ssl_context).start()
        ready()
        await stop.wait()
    finally:
        await runner.cleanup()
        handler.log_to(None)
        if fd is not None:
            os.close(fd)
