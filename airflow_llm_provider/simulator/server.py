"""A simulated vLLM's routes over `aiohttp.web`'s low-level server.

Owns which route does what, and in which order a request is looked at. Does not own what becomes of a valid request
(`simulator.inference`), how a fault is acted out (`simulator.acting`), nor loop and socket (`simulator.thread`).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from airflow_llm_provider.simulator import bodies, fields, prometheus, tokenizer
from airflow_llm_provider.simulator.acting import NEEDS_ANSWER, act_out, json, reply
from airflow_llm_provider.simulator.asked import chat_ids, read
from airflow_llm_provider.simulator.control import FLAG, TEXT, set_faults, set_state
from airflow_llm_provider.simulator.fault import FaultKind
from airflow_llm_provider.simulator.fields import RefusedError
from airflow_llm_provider.simulator.given import conversation, parse
from airflow_llm_provider.simulator.inference import Inference
from airflow_llm_provider.simulator.server_spec import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_llm_provider.simulator.server_spec import ServerSpec

_INFERENCE = frozenset({bodies.CHAT_PATH, bodies.COMPLETIONS_PATH})
_TOKENS = frozenset({"/tokenize", "/detokenize"})
_GET = frozenset({"/v1/models", "/version", "/health", "/ping", "/load", "/_state"})
_STATE = {"root": TEXT, "draining": FLAG}
_EPOCH_S = 1_795_000_000.0
_FAREWELLS = 10


class Handler:
    """Answers requests, while its `lifetime` lasts. Used from the server's loop only, but for reading, and `state`.

    Args:
        spec: what the server is like.
    """

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self.state = State(root=spec.root)
        self._busy = 0
        self._inference: Inference

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return self._busy

    @asynccontextmanager
    async def lifetime(self) -> AsyncIterator[None]:
        """An engine, from its start to its death. What is in flight at the end is told that it died."""
        started_s = _EPOCH_S + asyncio.get_running_loop().time()
        self._inference = Inference(self.spec, started_s=started_s)
        try:
            yield
        finally:
            self._inference.die()
            for _ in range(_FAREWELLS):  # a turn of the loop each, for those in flight to say so
                await asyncio.sleep(0)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request's answer."""
        path, method = request.path, request.method
        if path in ("/metrics", "/metrics/"):  # mounted: any method will do
            return self._page(request)
        if path == "/_faults" and method in ("PUT", "DELETE"):
            return set_faults(self.state, await request.read())
        if path == "/_state" and method == "PATCH":
            return set_state(self.state, await request.read(), _STATE)
        if path in _INFERENCE or path in _TOKENS:
            if method != "POST":
                return json(bodies.WRONG_METHOD, 405)
            return await self._post(path, request)
        if path not in _GET:
            return json(bodies.NO_ROUTE, 404)
        return self._get(path, request) if method == "GET" else json(bodies.WRONG_METHOD, 405)

    def _get(self, path: str, request: web.BaseRequest) -> web.Response:
        match path:
            case "/health" | "/ping":
                return web.Response()
            case "/version":
                return json({"version": "0.32.0"})
            case "/load":
                return json({"server_load": self._busy})
            case "/_state":
                state = self.state
                told = {"root": state.root, "draining": state.draining, "received": state.received}
                return json({**told, "counts": state.counts, "in_flight": self._busy})
            case _ if self._unauthorised(request):
                return json(bodies.UNAUTHORISED, 401)
            case _:
                max_model_len = self.spec.engine.max_model_len
                return json(bodies.models(self.spec.served_model_name, self.state.root, max_model_len))

    def _page(self, request: web.BaseRequest) -> web.Response:
        """The metrics. Only the mounted route, the one with a slash at its end, chooses: as with a real vLLM 0.32."""
        names = request.query.getall("name[]", []) if request.path.endswith("/") else []
        page = prometheus.page(self._inference.families(), names)
        return reply(page, content_type=prometheus.CHOSEN_CONTENT_TYPE if names else prometheus.CONTENT_TYPE)

    def _unauthorised(self, http: web.BaseRequest) -> bool:
        key = self.spec.api_key
        return key is not None and http.headers.get("Authorization") != f"Bearer {key}"

    async def _post(self, path: str, http: web.BaseRequest) -> web.StreamResponse:
        self._busy += 1
        try:
            raw = await http.content.read()  # `http.read()` has a limit of 1 MiB
            if http.content_type != "application/json":
                return json(bodies.WRONG_MEDIA, 400)
            return self._tokens(path, raw) if path in _TOKENS else await self._infer(path, raw, http)
        except RefusedError as refused:
            return json(refused.body, refused.status)
        finally:
            self._busy -= 1

    def _tokens(self, path: str, raw: bytes) -> web.Response:
        request = parse(raw)
        if path == "/detokenize":
            if "tokens" not in request:
                raise fields.refused("tokens", "missing", "Field required", request)
            return json({"prompt": tokenizer.text(fields.ids(request["tokens"], "tokens", least=0))})
        if "messages" in request:
            conversation(request["messages"])
            tokens = chat_ids(request)
        elif "prompt" in request:
            tokens = tokenizer.tokens(fields.text(request["prompt"], "prompt"))
        else:
            raise fields.refused("prompt", "missing", "Field required", request)
        strings = fields.flag(request, "return_token_strs")
        names = [tokenizer.name(token) for token in tokens] if strings else None
        max_model_len = self.spec.engine.max_model_len
        return json({"count": len(tokens), "max_model_len": max_model_len, "tokens": tokens, "token_strs": names})

    async def _infer(self, path: str, raw: bytes, http: web.BaseRequest) -> web.StreamResponse:
        state = self.state
        request_id = http.headers.get("X-Request-Id", "")
        state.received += 1
        state.counts[request_id] = state.counts.get(request_id, 0) + 1
        if self._unauthorised(http):
            return json(bodies.UNAUTHORISED, 401)
        request = parse(raw)
        fault = None if state.fault is None else state.fault(request, state.received)
        if fault is not None and fault.kind is FaultKind.SLOW:
            await asyncio.sleep(fault.delay_s)
            fault = None
        if fault is not None and fault.kind not in NEEDS_ANSWER:
            return await act_out(fault, http, None, streamed=False)
        max_model_len = self.spec.engine.max_model_len
        is_chat = path == bodies.CHAT_PATH
        asked = read(request, is_chat=is_chat, models=self.spec.served_model_name, max_model_len=max_model_len)
        if state.draining:
            return json(bodies.DRAINING, 500)
        return await self._inference.answer(asked, fault, http, request_id=request_id)
