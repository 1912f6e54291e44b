"""The acting out of faults over HTTP, and the few kinds of answers there are.

Owns how a fault looks on the wire. Does not know what the right answer would have been, which whoever calls hands over,
nor which requests are struck (`simulator.fault`).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from aiohttp import web

from airflow_llm_provider.simulator import bodies
from airflow_llm_provider.simulator.fault import Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST and not FIN
_JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

NEEDS_ANSWER = frozenset(
    {FaultKind.ABORT, FaultKind.STREAM_ERROR, FaultKind.STREAM_CUT, FaultKind.TRUNCATED, FaultKind.RESET_MID_ANSWER}
)
"""What can only be acted out on a right answer; the rest needs none."""


class RightAnswer(Protocol):
    """What would have been answered."""

    def abort(self) -> None:
        """Turns it into what a vLLM that is told to stop answers: half the text, status 200."""

    def whole(self) -> bytes:
        """The unstreamed body."""

    def chunks(self) -> Sequence[bytes]:
        """The events of a stream, without the final ``[DONE]``."""


async def act_out(
    fault: Fault, http: web.BaseRequest, answer: RightAnswer | None, *, streamed: bool
) -> web.StreamResponse:
    """What a struck request gets. Not for ``slow``, which is the right answer.

    Args:
        fault: what goes wrong.
        http: the request; its connection may be broken off.
        answer: the right one; None will do for those that are not in `NEEDS_ANSWER`.
        streamed: whether the request asked for a stream.
    """
    match fault.kind:
        case FaultKind.ANSWER:
            return reply(fault.body.encode(), fault.status, fault.content_type, fault.headers)
        case FaultKind.GARBAGE:
            return reply(b"\x00\xff not what you asked for")
        case FaultKind.EMPTY:
            return reply(b"")
        case FaultKind.HANG:
            await asyncio.Event().wait()
        case FaultKind.RESET:
            return await _break_off(http, b"")
    if answer is None:
        raise TypeError(f"The fault {fault.kind} is acted out on an answer, and none was given.")
    if fault.kind is FaultKind.RESET_MID_ANSWER:
        return await _break_off(http, answer.whole())
    return _spoilt(fault, answer, streamed=streamed)


def _spoilt(fault: Fault, answer: RightAnswer, *, streamed: bool) -> web.Response:
    """The right answer, with something wrong about it."""
    match fault.kind:
        case FaultKind.ABORT:
            answer.abort()
            return right(answer, streamed=streamed)
        case FaultKind.STREAM_ERROR:
            error = fault.body.encode() or orjson.dumps(bodies.ENGINE_DEAD)
            if not streamed:
                return reply(error, 500)
            return stream([*answer.chunks()[:1], b"data: " + error + b"\n\n", bodies.DONE])
        case FaultKind.STREAM_CUT:
            return stream(answer.chunks()[:1])
    whole = answer.whole()
    return reply(whole[: len(whole) // 2])


async def _break_off(http: web.BaseRequest, whole: bytes) -> web.StreamResponse:
    """Kills the connection: with a reset before anything of the answer, or after half of it."""
    transport = http.transport
    response = web.StreamResponse(headers={"Content-Type": _JSON, "Content-Length": str(len(whole))})
    if transport is None:
        return response
    if not whole:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        transport.abort()
        return response
    with suppress(ConnectionResetError):  # the client may have broken off itself
        await response.prepare(http)
        await response.write(whole[: len(whole) // 2])
    transport.close()  # flushes first: a reset could overtake the half that was sent
    return response


def right(answer: RightAnswer, *, streamed: bool) -> web.Response:
    """An answer as it is, a stream of it at once."""
    return stream([*answer.chunks(), bodies.DONE]) if streamed else reply(answer.whole())


def stream(events: Sequence[bytes]) -> web.Response:
    """A stream whose events are all there already."""
    return reply(b"".join(events), content_type=EVENT_STREAM)


def json(value: Any, status: int = HTTPStatus.OK) -> web.Response:
    """A JSON body."""
    return reply(orjson.dumps(value), status)


def reply(
    payload: bytes, status: int = HTTPStatus.OK, content_type: str = _JSON, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Any body."""
    return web.Response(body=payload, status=status, headers={"Content-Type": content_type, **(headers or {})})
