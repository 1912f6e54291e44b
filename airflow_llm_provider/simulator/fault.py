"""What goes wrong with a request, and which requests it goes wrong with.

Owns the faults as values, in Python and in JSON. Does not know how one is acted out (`simulator.acting`)
or on what.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from airflow_llm_provider.simulator import bodies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

FaultFunction: TypeAlias = "Callable[[dict[str, Any], int], Fault | None]"
"""From a request's body and its number, counted over all POSTs from 1, to what goes wrong with it."""


class FaultKind(StrEnum):
    """The ways in which a request goes wrong."""

    ANSWER = "answer"  # another status and body than the right ones
    ABORT = "abort"  # 200 and half a text with finish_reason "abort": a real vLLM told to stop
    STREAM_ERROR = "stream_error"  # 200, a chunk, an error event, [DONE]; an unstreamed request gets the 500
    STREAM_CUT = "stream_cut"  # 200, some chunks, then the end, as if that were all
    TRUNCATED = "truncated"  # 200 and half the JSON, with a Content-Length that says it is whole
    GARBAGE = "garbage"  # 200 and no JSON
    EMPTY = "empty"  # 200 and no body
    RESET = "reset"  # the connection dies before a byte of the answer
    RESET_MID_ANSWER = "reset_mid_answer"  # the connection dies after half of it
    HANG = "hang"  # nothing, until the client gives up
    SLOW = "slow"  # the right answer, `delay_s` late


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to go wrong. The class methods name the usual ones.

    Attributes:
        kind: what happens.
        status: of an ``answer``.
        body: of an ``answer``, or the error event of a ``stream_error``.
        headers: of an ``answer``, such as ``Retry-After``.
        content_type: of an ``answer``.
        delay_s: of ``slow``: real seconds before anything is done about the request.
    """

    kind: FaultKind
    status: int = 500
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    delay_s: float = 0.0

    @classmethod
    def answer(
        cls,
        status: int,
        error: Mapping[str, Any] | str = "",
        *,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Fault:
        """Any status, with any body: JSON or text."""
        text = error if isinstance(error, str) else orjson.dumps(error).decode()
        return cls(kind=FaultKind.ANSWER, status=status, body=text, headers=headers or {}, content_type=content_type)

    @classmethod
    def busy(cls) -> Fault:
        """A vLLM over ``--max-num-queued-reqs``: 503 without Retry-After."""
        return cls.answer(503, bodies.BUSY)

    @classmethod
    def rate_limited(cls, retry_after_s: int) -> Fault:
        """A gateway's 429 with Retry-After."""
        return cls.answer(429, bodies.RATE_LIMITED, headers={"Retry-After": str(retry_after_s)})

    @classmethod
    def engine_dead(cls) -> Fault:
        """A vLLM whose engine died: a 500, or an error inside a stream."""
        return cls(kind=FaultKind.STREAM_ERROR, body=orjson.dumps(bodies.ENGINE_DEAD).decode())

    @classmethod
    def bad_request(cls, message: str = "top_p must be in (0, 1], got 7.0. (parameter=top_p, value=7.0)") -> Fault:
        """A vLLM that refuses this row: a 400."""
        return cls.answer(400, bodies.bad_request(message))

    @classmethod
    def gateway(cls, status: int) -> Fault:
        """A gateway's HTML error page."""
        page = f"<html><head><title>{status} Bad Gateway</title></head><body><hr>nginx</body></html>"
        return cls.answer(status, page, content_type="text/html")

    @classmethod
    def slow(cls, delay_s: float) -> Fault:
        """The right answer, late."""
        return cls(kind=FaultKind.SLOW, delay_s=delay_s)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fault:
        """The fault that a control request names.

        Raises:
            TypeError: it has fields a fault has not.
            ValueError: its kind is none.
        """
        return cls(**{**value, "kind": FaultKind(value["kind"])})

    def as_json(self) -> dict[str, Any]:
        """The form a control request carries."""
        return asdict(self)


@dataclass(slots=True, kw_only=True)
class Rule:
    """A fault and the requests it strikes: those that meet every condition that is set. Call it like a function.

    Attributes:
        fault: what goes wrong.
        contains: only requests whose body, as JSON text, contains this.
        every: only every n-th request.
        first: only requests numbered 1 to n.
        first_of_each: only the first n sendings of the same body: what a retry then gets through.
    """

    fault: Fault
    contains: str | None = None
    every: int | None = None
    first: int | None = None
    first_of_each: int | None = None
    _seen: dict[int, int] = field(default_factory=dict, repr=False)

    def __call__(self, request: dict[str, Any], nth: int) -> Fault | None:
        """The fault, where the request is struck.

        Args:
            request: the request's body.
            nth: the request's number, counted over all POSTs from 1.
        """
        if self.every is not None and nth % self.every:
            return None
        if self.first is not None and nth > self.first:
            return None
        if self.contains is None and self.first_of_each is None:
            return self.fault
        text = orjson.dumps(request)
        if self.contains is not None and self.contains.encode() not in text:
            return None
        if self.first_of_each is not None:
            seen = self._seen[hash(text)] = self._seen.get(hash(text), 0) + 1
            return self.fault if seen <= self.first_of_each else None
        return self.fault

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Rule:
        """The rule that a control request names; raises as `Fault.from_json` does."""
        return cls(**{**value, "fault": Fault.from_json(value["fault"])})


def first_of(rules: Iterable[FaultFunction]) -> FaultFunction:
    """One function of several: the first fault that any of them names."""
    every = tuple(rules)

    def fault(request: dict[str, Any], nth: int) -> Fault | None:
        for rule in every:
            if (struck := rule(request, nth)) is not None:
                return struck
        return None

    return fault


def of_json(raw: bytes) -> FaultFunction | None:
    """What a control request (``PUT /_faults``) sets: a list of rules as JSON. None, and an empty body, for no faults.

    Raises:
        ValueError: it is no JSON, or names a kind of fault that there is not.
        TypeError: a rule or a fault has a field that there is not.
        KeyError: a rule has no fault.
    """
    rules = [Rule.from_json(rule) for rule in (orjson.loads(raw) if raw else [])]
    return first_of(rules) if rules else None
