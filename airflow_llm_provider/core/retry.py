"""What a failed request means for its row and its endpoint: one table.

Owns the kinds of failure and the reaction to each. Does not know how a failure is recognised on the wire
(`endpoint.wire`, `endpoint.client`) or how a reaction is carried out (`core.dispatch`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class FailureKind(StrEnum):
    """Every way a request fails, named for what went wrong."""

    BAD_REQUEST = "bad_request"  # 400, 413, 422 …: this row will never succeed as it is
    UNAUTHORISED = "unauthorised"  # 401, 403: no row will
    MODEL_NOT_FOUND = "model_not_found"  # 404 that names the model
    ROUTE_NOT_FOUND = "route_not_found"  # 404 or 405 otherwise: the base URL is not an OpenAI-compatible root
    UNTRUSTED = "untrusted"  # the server's certificate does not verify
    BUSY = "busy"  # 429, 503: a capacity signal, with or without Retry-After
    DRAINING = "draining"  # 500 "cannot schedule new futures": health still says 200, nothing new is taken
    ENGINE_DEAD = "engine_dead"  # 500 or an in-stream error "EngineCore encountered an issue"
    UNREACHABLE = "unreachable"  # refused, no route, no such name, connect timeout; a gateway without a server
    GATEWAY_LOST = "gateway_lost"  # 502 and its like: the server was lost, or gone already, behind a gateway
    CONNECTION_LOST = "connection_lost"  # a fresh connection, or one mid-answer, died
    STALE_CONNECTION = "stale_connection"  # a reused keep-alive connection was closed under us before an answer
    SERVER_ERROR = "server_error"  # any other 5xx, and errors inside a stream that name nothing else
    TIMEOUT = "timeout"  # no complete answer in time: ours, 408 or 504
    GARBLED = "garbled"  # 2xx, but the body is no usable answer (truncated, not JSON, no choices)


class Reaction(StrEnum):
    """What the dispatcher does about a failure."""

    DEAD_LETTER = "dead_letter"  # the row ends here, as errored
    RETRY = "retry"  # the row spends an attempt and waits its back-off
    RETRY_NOW = "retry_now"  # the row goes again at once, no attempt spent, a few times at most
    BACK_OFF = "back_off"  # the endpoint gets nothing new for a while; no attempt spent
    HOLD = "hold"  # the endpoint is down: nothing is sent until a trial succeeds; no attempt spent
    STOP = "stop"  # the run stops: every other row would end the same way


REACTIONS: Mapping[FailureKind, Reaction] = MappingProxyType(
    {
        FailureKind.BAD_REQUEST: Reaction.DEAD_LETTER,
        FailureKind.UNAUTHORISED: Reaction.STOP,
        FailureKind.MODEL_NOT_FOUND: Reaction.STOP,
        FailureKind.ROUTE_NOT_FOUND: Reaction.STOP,
        FailureKind.UNTRUSTED: Reaction.STOP,
        FailureKind.BUSY: Reaction.BACK_OFF,
        FailureKind.DRAINING: Reaction.HOLD,
        FailureKind.ENGINE_DEAD: Reaction.HOLD,
        FailureKind.UNREACHABLE: Reaction.HOLD,
        FailureKind.GATEWAY_LOST: Reaction.HOLD,
        FailureKind.CONNECTION_LOST: Reaction.HOLD,
        FailureKind.STALE_CONNECTION: Reaction.RETRY_NOW,
        FailureKind.SERVER_ERROR: Reaction.RETRY,
        FailureKind.TIMEOUT: Reaction.RETRY,
        FailureKind.GARBLED: Reaction.RETRY,
    }
)

SUSPECT: frozenset[FailureKind] = frozenset(
    {FailureKind.ENGINE_DEAD, FailureKind.CONNECTION_LOST, FailureKind.GATEWAY_LOST}
)
"""Failures that a row may have caused: the request may have been inside the engine when it died. Such a row spends no
attempt, but the death is counted, so that a row that kills the engine each time cannot hold the run for ever."""

NO_CAPACITY: frozenset[FailureKind] = frozenset({FailureKind.BUSY, FailureKind.TIMEOUT})
"""Failures that tell a limit it is too high."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed request.

    Attributes:
        kind: what went wrong.
        message: the server's words where it said any, else the client's; at most a few hundred characters.
        http_status: the HTTP status, where there was an answer.
        retry_after_s: the server's Retry-After in seconds, where it sent one.
        refused: nobody listens at the port, and nothing in between has answered in the server's stead.
    """

    kind: FailureKind
    message: str
    http_status: int | None = None
    retry_after_s: float | None = None
    refused: bool = False

    @property
    def reaction(self) -> Reaction:
        """The table's answer."""
        return REACTIONS[self.kind]
