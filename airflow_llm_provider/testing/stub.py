"""`StubVLLM`: the stub in a thread of its own, on a free port of the loopback interface.

Owns what a test sees of it. Does not know what requests get (`testing.server`) nor how it runs (`simulator.thread`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_llm_provider.simulator.thread import ServerThread
from airflow_llm_provider.testing.server import Behaviour, Handler

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from pathlib import Path

    from aiohttp import web


class StubVLLM(ServerThread):
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
        self._handler = Handler(self.behaviour)
        super().__init__(
            self._handle,
            lambda: self._handler.logging(log),
            port=port,
            name="stub-vllm",
            ssl_context=ssl_context,
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._handler(request)  # looked up for each: a test may have put another in its place

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
