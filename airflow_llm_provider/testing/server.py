"""The stub's routes over `aiohttp.web`'s low-level server, and the acting out of faults.

Owns what each request gets. Does not own the loop or the socket it runs on (`testing.stub`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from airflow_llm_provider.testing import body
from airflow_llm_provider.testing.fault import Fault, FaultKind, Rule, first_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_llm_provider.testing.fault import FaultFunction

_INFERENCE = frozenset({"/v1/chat/completions", "/v1/completions"})
_GET = frozenset({"/v1/models", "/version", "/health", "/_state"})
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST and not FIN


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

    def log_to(self, fd: int | None) -> None:
        """Sets the file that gets a line with the request id per POST, before it is answered."""
        self._log_fd = fd

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request's answer."""
        path, method = request.path, request.method
        if path in _INFERENCE:
            return await self._infer(path, request) if method == "POST" else _json(body.WRONG_METHOD, 405)
        if path == "/_faults" and method in ("PUT", "DELETE"):
            return self._set_faults(await request.read())
        if path == "/_state" and method == "PATCH":
            return self._set_state(await request.read())
        if path not in _GET:
            return _json(body.NO_ROUTE, 404)
        if method != "GET":
            return _json(body.WRONG_METHOD, 405)
        return self._get(path, request)

    def _get(self, path: str, request: web.BaseRequest) -> web.Response:
        now = self.behaviour
        match path:
            case "/health":
                return web.Response()
            case "/version":
                return _json({"version": now.version})
            case "/_state":
                tally = self.tally
                return _json({name: getattr(tally, name) for name in Tally.__slots__})
            case _ if self._unauthorised(request):
                return _json(body.UNAUTHORISED, 401)
            case _:
                return _json(body.models(now.models, now.root, (now.max_prompt_chars or 4096 * 4) // 4))

    def _set_faults(self, raw: bytes) -> web.Response:
        try:
            rules = [Rule.from_json(rule) for rule in (orjson.loads(raw) if raw else [])]
        except (ValueError, TypeError, KeyError) as error:
            return _json(body.error(repr(error), kind="BadRequestError", code=400), 400)
        self.behaviour.fault = first_of(rules) if rules else None
        return _json({"rules": len(rules)})

    def _set_state(self, raw: bytes) -> web.Response:
        changes: dict[str, Any] = orjson.loads(raw)
        unknown = changes.keys() - set(Behaviour.__slots__) - {"fault"}
        if unknown:
            return _json(body.error(f"no such field: {sorted(unknown)}", kind="BadRequestError", code=400), 400)
        for name, value in changes.items():
            setattr(self.behaviour, name, tuple(value) if name == "models" else value)
        return _json(changes)

    async def _infer(self, path: str, http: web.BaseRequest) -> web.StreamResponse:
        raw = await http.content.read()  # `http.read()` has a limit of 1 MiB
        request_id = http.headers.get("X-Request-Id", "")
        nth = self._note(request_id)
        try:
            request = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return _json(body.invalid("body", "json_invalid", "JSON decode error"), 400)
        now = self.behaviour
        if now.fault is not None and (fault := now.fault(request, nth)) is not None:
            return await self._act_out(fault, path, request, request_id, http)
        refusal = self._refusal(http, request)
        if refusal is not None:
            return refusal
        async with self._slot() as admitted:
            if not admitted:
                return _json(body.BUSY, 503)
            if now.delay_s:
                await asyncio.sleep(now.delay_s)
        echo = body.Echo(path=path, request=request, request_id=request_id, model=now.models[0])
        self.tally.answered += 1
        return _answer(echo, streamed=bool(request.get("stream")))

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
            return _json(body.UNAUTHORISED, 401)
        name, kind = ("prompt", (str, list)) if http.path == "/v1/completions" else ("messages", (list,))
        if not isinstance(request, dict) or not isinstance(request.get(name), kind):
            return _json(body.invalid(f"body.{name}", "missing", "Field required"), 400)
        if request.get("model", now.models[0]) not in now.models:
            return _json(body.unknown_model(request["model"], ", ".join(now.models)), 404)
        text = body.prompt_text(request)
        if now.max_prompt_chars is not None and len(text) > now.max_prompt_chars:
            return _json(body.too_long(now.max_prompt_chars // 4, body.prompt_tokens(text)), 400)
        return _json(body.DRAINING, 500) if now.draining else None

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

    async def _act_out(
        self, fault: Fault, path: str, request: dict[str, Any], request_id: str, http: web.BaseRequest
    ) -> web.StreamResponse:
        echo = body.Echo(path=path, request=request, request_id=request_id, model=self.behaviour.models[0])
        match fault.kind:
            case FaultKind.ANSWER:
                return _text(fault.body.encode(), fault.status, fault.content_type, fault.headers)
            case FaultKind.ABORT:
                echo.abort()
                return _answer(echo, streamed=bool(request.get("stream")))
            case FaultKind.STREAM_ERROR if request.get("stream"):
                error = fault.body.encode() or orjson.dumps(body.ENGINE_DEAD)
                return _stream([*echo.chunks()[:1], b"data: " + error + b"\n\n", b"data: [DONE]\n\n"])
            case FaultKind.STREAM_ERROR:
                return _text(fault.body.encode() or orjson.dumps(body.ENGINE_DEAD), 500)
            case FaultKind.STREAM_CUT:
                return _stream(echo.chunks()[:1])
            case FaultKind.TRUNCATED:
                whole = echo.whole()
                return _text(whole[: len(whole) // 2])
            case FaultKind.GARBAGE:
                return _text(b"\x00\xff not what you asked for")
            case FaultKind.EMPTY:
                return _text(b"")
            case FaultKind.HANG:
                await asyncio.Event().wait()
        return await _break_off(http, b"" if fault.kind is FaultKind.RESET else echo.whole())


async def _break_off(http: web.BaseRequest, whole: bytes) -> web.StreamResponse:
    """Kills the connection: with a reset before anything of the answer, or after half of it."""
    transport = http.transport
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(whole))})
    if transport is None:
        return response
    if not whole:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        transport.abort()
        return response
    await response.prepare(http)
    await response.write(whole[: len(whole) // 2])
    transport.close()  # flushes first: a reset could overtake the half that was sent
    return response


def _answer(echo: body.Echo, *, streamed: bool) -> web.Response:
    return _stream([*echo.chunks(), b"data: [DONE]\n\n"]) if streamed else _text(echo.whole())


def _stream(events: list[bytes]) -> web.Response:
    return _text(b"".join(events), content_type="text/event-stream; charset=utf-8")


def _json(value: Any, status: int = HTTPStatus.OK) -> web.Response:
    return _text(orjson.dumps(value), status)


def _text(
    payload: bytes,
    status: int = HTTPStatus.OK,
    content_type: str = "application/json",
    headers: Any = None,
) -> web.Response:
    return web.Response(body=payload, status=status, headers={"Content-Type": content_type, **(headers or {})})
