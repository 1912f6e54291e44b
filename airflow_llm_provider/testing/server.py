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
from airflow_llm_provider.simulator.control import FLAG, NAMES, SECONDS, TEXT, Form, check, set_faults, set_state
from airflow_llm_provider.simulator.fault import FaultKind
from airflow_llm_provider.testing import body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from airflow_llm_provider.simulator.fault import FaultFunction

_POOLED = frozenset({bodies.EMBEDDINGS_PATH, bodies.CLASSIFY_PATH, bodies.SCORE_PATH})
_INFERENCE = frozenset({bodies.CHAT_PATH, bodies.COMPLETIONS_PATH}) | _POOLED
_TEXTS = {
    bodies.COMPLETIONS_PATH: ("prompt", (str, list)),
    bodies.EMBEDDINGS_PATH: ("input", (str, list)),
    bodies.CLASSIFY_PATH: ("input", (str, list)),
    bodies.SCORE_PATH: ("text_1", (str, list)),
}
_GET = frozenset({"/v1/models", "/version", "/health", "/_state"})
_STATE = {
    "models": NAMES,
    "root": TEXT,
    "version": TEXT,
    "api_key": Form("text, or null", lambda value: value is None or isinstance(value, str)),
    "max_prompt_chars": Form(
        "a whole number of 1 or more, or null", lambda value: value is None or (type(value) is int and value > 0)
    ),
    "delay_s": SECONDS,
    "draining": FLAG,
}


@dataclass(slots=True, kw_only=True)
class Behaviour:
    """What the server does now; every field may be changed while it runs.

    Attributes:
        models: the served names; the first is the one answers carry.
        root: what the names stand for. Another root under the same name is a swapped model.
        version: the answer of ``/version``.
        api_key: required as a bearer token; None takes everything.
        max_prompt_chars: a longer prompt gets the context length's 400; None takes everything.
        delay_s: from a request to its answer.
        draining: ``/health`` says 200 and every POST 500, as vLLM does with ``--shutdown-timeout``.
        fault: which requests go wrong, and how.

    Raises:
        ValueError: a field begins with a value that it may not have.
    """

    models: tuple[str, ...] = ("stub",)
    root: str = "stub-weights"
    version: str = "0.32.0"
    api_key: str | None = None
    max_prompt_chars: int | None = None
    delay_s: float = 0.0
    draining: bool = False
    fault: FaultFunction | None = None

    def __post_init__(self) -> None:
        check({name: getattr(self, name) for name in _STATE}, _STATE)


@dataclass(slots=True)
class Tally:
    """What the server has seen.

    Attributes:
        received: POSTs to the model's routes.
        counts: the same by ``X-Request-Id``.
        answered: those whose right answer was handed to the connection.
        in_flight: those that wait for their answer right now.
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
            return set_faults(self.behaviour, await request.read())
        if path == "/_state" and method == "PATCH":
            return set_state(self.behaviour, await request.read(), _STATE)
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
        tally = self.tally
        tally.in_flight += 1
        tally.peak_in_flight = max(tally.peak_in_flight, tally.in_flight)
        try:
            if now.delay_s:
                await asyncio.sleep(now.delay_s)
        finally:
            tally.in_flight -= 1
        tally.answered += 1
        if path in _POOLED:
            return json(body.pooled(path, request, model=now.models[0]))
        echo = body.Echo(path=path, request=request, request_id=request_id, model=now.models[0])
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
        name, kind = _TEXTS.get(http.path, ("messages", (list,)))
        if not isinstance(request, dict) or not isinstance(request.get(name), kind):
            return json(bodies.invalid(f"body.{name}", "missing", "Field required"), 400)
        if request.get("model", now.models[0]) not in now.models:
            return json(bodies.unknown_model(request["model"], ", ".join(now.models)), 404)
        text = body.prompt_text(request)
        if now.max_prompt_chars is not None and len(text) > now.max_prompt_chars:
            return json(bodies.too_long(now.max_prompt_chars // 4, body.prompt_tokens(text)), 400)
        return json(bodies.DRAINING, 500) if now.draining else None
