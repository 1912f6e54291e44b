"""What goes wrong with a request, and which requests it goes wrong with.

Owns the faults as values, in Python and in JSON, and what makes them valid: one that could not be acted out is refused
when it is made, and not at each request that it would strike. Does not know how one is acted out (`simulator.acting`)
or on what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from airflow_llm_provider.simulator import bodies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FaultFunction: TypeAlias = "Callable[[dict[str, Any], int], Fault | None]"
"""From a request's body and its number, counted over all POSTs from 1, to what goes wrong with it."""

_STATUSES: Final = range(200, 600)
"""Those below are no answers: a client waits on for one."""

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


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
        status: of an ``answer``, 200 to 599.
        body: of an ``answer``, or the error event of a ``stream_error``.
        headers: of an ``answer``, such as ``Retry-After``.
        content_type: of an ``answer``.
        delay_s: of ``slow``: real seconds before anything is done about the request.

    Raises:
        ValueError: a field's value is none that could be sent.
    """

    kind: FaultKind
    status: int = 500
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        kinds = f"one of {', '.join(FaultKind)}"
        status = f"a whole number of {_STATUSES[0]} to {_STATUSES[-1]}"
        _must_be("fault", "kind", kinds, self.kind, valid=isinstance(self.kind, FaultKind))
        _must_be("fault", "status", status, self.status, valid=_is_whole(self.status) and self.status in _STATUSES)
        _must_be("fault", "body", "text", self.body, valid=isinstance(self.body, str))
        _must_be("fault", "content_type", "text of one line", self.content_type, valid=_is_line(self.content_type))
        headers = "an object of names and texts, of one line each"
        _must_be("fault", "headers", headers, self.headers, valid=_are_headers(self.headers))
        delay_s = "a finite number of 0 or more"
        _must_be("fault", "delay_s", delay_s, self.delay_s, valid=_is_delay(self.delay_s))

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
        """The fault that a control request names. A body that is no text is told as JSON.

        Raises:
            ValueError: it has fields a fault has not, or no kind, or values that are refused.
        """
        fields = _fields("fault", value, cls.__slots__, "kind")
        if fields["kind"] in list(FaultKind):
            fields["kind"] = FaultKind(fields["kind"])
        if isinstance(fields.get("body"), dict | list):
            fields["body"] = orjson.dumps(fields["body"]).decode()
        return cls(**fields)

    def as_json(self) -> dict[str, Any]:
        """The form a control request carries."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A fault and the requests it strikes: those that meet every condition that is set. Call it like a function.

    Attributes:
        fault: what goes wrong.
        contains: only requests whose body, as JSON text, contains this.
        every: only every n-th request.
        first: only requests numbered 1 to n.
        first_of_each: only the first n sendings of the same body: what a retry then gets through.

    Raises:
        ValueError: a field's value could not be asked of any request.
    """

    fault: Fault
    contains: str | None = None
    every: int | None = None
    first: int | None = None
    first_of_each: int | None = None
    _seen: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _must_be("rule", "fault", "a Fault", self.fault, valid=isinstance(self.fault, Fault))
        contains = self.contains is None or isinstance(self.contains, str)
        _must_be("rule", "contains", "text", self.contains, valid=contains)
        for name in ("every", "first", "first_of_each"):
            value = getattr(self, name)
            valid = value is None or (_is_whole(value) and value >= 1)
            _must_be("rule", name, "a whole number of 1 or more", value, valid=valid)

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
        named = [name for name in cls.__slots__ if not name.startswith("_")]
        fields = _fields("rule", value, named, "fault")
        return cls(**{**fields, "fault": Fault.from_json(fields["fault"])})


def first_of(rules: Iterable[FaultFunction]) -> FaultFunction:
    """One function of several: the first fault that any of them names."""
    every = tuple(rules)

    def fault(request: dict[str, Any], nth: int) -> Fault | None:
        for rule in every:
            if (struck := rule(request, nth)) is not None:
                return struck
        return None

    return fault


def rules_of_json(raw: bytes) -> list[Rule]:
    """The rules that a control request (``PUT /_faults``) sets: a list of them as JSON; none in an empty body.

    Raises:
        ValueError: it is no such list; the message says what is wrong with it.
    """
    rules = orjson.loads(raw) if raw else []
    if not isinstance(rules, list):
        raise ValueError(f'Faults are a list of rules, not {rules!r}: [{{"fault": {{"kind": "hang"}}}}]')  # noqa: TRY004 - the values are JSON's
    return [Rule.from_json(rule) for rule in rules]


def _fields(what: str, value: Any, known: Iterable[str], needed: str) -> dict[str, Any]:
    """The fields of a fault or a rule in JSON, as far as their names go."""
    _must_be(what, "JSON", "an object", value, valid=isinstance(value, Mapping))
    if unknown := sorted(value.keys() - set(known)):
        raise ValueError(f"A {what} has no field {', '.join(unknown)}. It has {', '.join(known)}.")
    if needed not in value:
        raise ValueError(f"A {what} needs its {needed}: {value!r}")
    return dict(value)


def _must_be(what: str, name: str, told: str, value: object, *, valid: bool) -> None:
    if not valid:
        raise ValueError(f"A {what}'s {name} is {told}, not {value!r}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_delay(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0


def _is_line(value: object) -> bool:
    return isinstance(value, str) and _HEADER_VALUE.fullmatch(value) is not None


def _are_headers(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _HEADER_NAME.fullmatch(name) and _is_line(told) for name, told in value.items()
    )
