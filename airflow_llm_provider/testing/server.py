"""The stub's routes over `aiohttp.web`'s low-level server.

Owns what each request gets. Does not own how a fault is acted out (`simulator.acting`), nor the loop and the socket it
runs on (`simulator.thread`).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from airflow_llm_provider.simulator import bodies
from airflow_llm_provider.simulator.acting import act_out, json, right
from airflow_llm_provider.simulator.fault import FaultKind, of_json
from airflow_llm_provider.testing import body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from airflow_llm_provider.simulator.fault import FaultFunction

_INFERENCE = frozenset({bodies.CHAT_PATH, bodies.COMPLETIONS_PATH})
_GET = frozenset({"/v1/models", "/version", "/health", "/_state"})


@dataclass(slots=True, kw_only=True)
class Behaviour:
    """What the server does now; every field may be changed while it runs.

    Attributes:
        models: the served names; the first is the one answers carry.
        root: what the names stand for. Another root under the same name is a swapped model.
        version: the answer of ``/version``.
        api_key: required as a bearer token; None takes everything.
        max_prompt_chars: a longer prompt gets the context length's 400; None takes everything.
        delay_s: from a request's admission to its answer.
        slots: requests worked on at once; the others wait. None has no limit.
        max_queued: with `slots`, a request that would be the next to wait gets 503.
        draining: ``/health`` says 200 and every POST 500, as vLLM does with ``--shutdown-timeout``.
        fault: which requests go wrong, and how.
    """

    models: tuple[str, ...] = ("stub",)
    root: str = "stub-weights"
    version: str = "0.32.0"
    api_key: str | None = None
    max_prompt_chars: int | None = None
    delay_s: float = 0.0
    slots: int | None = None
    max_queued: int | None = None
    draining: bool = False
    fault: FaultFunction | None = None


@dataclass(slots=True)
class Tally:
    """What the server has seen.

    Attributes:
        received: POSTs to the model's routes.
        counts: the same by ``X-Request-Id``.
        answered: those whose right answer was handed to the connection.
        in_flight: those admitted or waiting right now.
        peak_in_flight: the most at once.
    """

    received: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0


class Handler:
    """Answers requests. One per server; used from the server's loop only, but for reading and setting fields.

    Args:
        behaviour: read anew for every request.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.tally = Tally()
        self._log_fd: int | None = None
        self._running = 0
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def logging(self, log: Path | str | None) -> AsyncIterator[None]:
        """While it lasts, the file gets a line with the request id per POST, before it is answered."""
        if log is None:
            yield
            return
        self._log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            yield
        finally:
            fd, self._log_fd = self._log_fd, None
            os.close(fd)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request's answer."""
        path, method = request.path, request.method
        if path in _INFERENCE:
            return await self._infer(path, request) if method == "POST" else json(bodies.WRONG_METHOD, 405)
        if path == "/_faults" and method in ("PUT", "DELETE"):
            return self._set_faults(await request.read())
        if path == "/_state" and method == "PATCH":
            return self._set_state(await request.read())
        if path not in _GET:
            return json(bodies.NO_ROUTE, 404)
        if method != "GET":
            return json(bodies.WRONG_METHOD, 405)
        return self._get(path, request)

    def _get(self, path: str, request: web.BaseRequest) -> web.Response:
        now = self.behaviour
        match path:
            case "/health":
                return web.Response()
            case "/version":
                return json({"version": now.version})
            case "/_state":
                tally = self.tally
                return json({name: getattr(tally, name) for name in Tally.__slots__})
            case _ if self._unauthorised(request):
                return json(bodies.UNAUTHORISED, 401)
            case _:
                return json(bodies.models(now.models, now.root, (now.max_prompt_chars or 4096 * 4) // 4))

    def _set_faults(self, raw: bytes) -> web.Response:
        try:
            self.behaviour.fault = of_json(raw)
        except (ValueError, TypeError, KeyError) as error:
            return json(bodies.error(repr(error), kind="BadRequestError", code=400), 400)
        return json({"rules": len(orjson.loads(raw)) if raw else 0})

    def _set_state(self, raw: bytes) -> web.Response:
        changes: dict[str, Any] = orjson.loads(raw)
        unknown = changes.keys() - set(Behaviour.__slots__) - {"fault"}
        if unknown:
            return json(bodies.error(f"no such field: {sorted(unknown)}", kind="BadRequestError", code=400), 400)
        for name, value in changes.items():
            setattr(self.behaviour, name, tuple(value) if name == "models" else value)
        return json(changes)

    async def _infer(self, path: str, http: web.BaseRequest) -> web.StreamResponse:
        raw = await http.content.read()  # `http.read()` has a limit of 1 MiB
        request_id = http.headers.get("X-Request-Id", "")
        nth = self._note(request_id)
        try:
            request = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return json(bodies.invalid("body", "json_invalid", "JSON decode error"), 400)
        now = self.behaviour
        streamed = isinstance(request, dict) and bool(request.get("stream"))
        if now.fault is not None and (fault := now.fault(request, nth)) is not None:
            if fault.kind is not FaultKind.SLOW:
                echo = body.Echo(path=path, request=request, request_id=request_id, model=now.models[0])
                return await act_out(fault, http, echo, streamed=streamed)
            await asyncio.sleep(fault.delay_s)
        refusal = self._refusal(http, request)
        if refusal is not None:
            return refusal
        async with self._slot() as admitted:
            if not admitted:
                return json(bodies.BUSY, 503)
            if now.delay_s:
                await asyncio.sleep(now.delay_s)
        echo = body.Echo(path=path, request=request, request_id=request_id, model=now.models[0])
        self.tally.answered += 1
        return right(echo, streamed=streamed)

    def _note(self, request_id: str) -> int:
        tally = self.tally
        tally.received += 1
        tally.counts[request_id] = tally.counts.get(request_id, 0) + 1
        if self._log_fd is not None:
            os.write(self._log_fd, f"{request_id}\n".encode())  # one short append is one write: no torn lines
        return tally.received

    def _unauthorised(self, http: web.BaseRequest) -> bool:
        key = self.behaviour.api_key
        return key is not None and http.headers.get("Authorization") != f"Bearer {key}"

    def _refusal(self, http: web.BaseRequest, request: Any) -> web.Response | None:
        """The error this request deserves, in the order in which vLLM looks."""
        now = self.behaviour
        if self._unauthorised(http):
            return json(bodies.UNAUTHORISED, 401)
        name, kind = ("prompt", (str, list)) if http.path == bodies.COMPLETIONS_PATH else ("messages", (list,))
        if not isinstance(request, dict) or not isinstance(request.get(name), kind):
            return json(bodies.invalid(f"body.{name}", "missing", "Field required"), 400)
        if request.get("model", now.models[0]) not in now.models:
            return json(bodies.unknown_model(request["model"], ", ".join(now.models)), 404)
        text = body.prompt_text(request)
        if now.max_prompt_chars is not None and len(text) > now.max_prompt_chars:
            return json(bodies.too_long(now.max_prompt_chars // 4, body.prompt_tokens(text)), 400)
        return json(bodies.DRAINING, 500) if now.draining else None

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[bool]:
        """A slot, when one is free; False where even the queue is full. A cancelled wait takes none."""
        now, tally = self.behaviour, self.tally
        full = now.slots is not None and self._running >= now.slots
        if full and now.max_queued is not None and len(self._waiting) >= now.max_queued:
            yield False
            return
        tally.in_flight += 1
        tally.peak_in_flight = max(tally.peak_in_flight, tally.in_flight)
        try:
            if full:
                await self._turn()
            else:
                self._running += 1
            try:
                yield True
            finally:
                self._hand_on()
        finally:
            tally.in_flight -= 1

    async def _turn(self) -> None:
        """Waits in line until `_hand_on` passes its slot on."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():
                self._hand_on()  # cancelled in the moment it was given the slot
            raise

    def _hand_on(self) -> None:
        while self._waiting:
            turn = self._waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1
