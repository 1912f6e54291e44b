"""Source (c): a canary, a tiny request at real-time's priority, sent now and then.

Owns when canaries are sent, what they measure, and the quantile of the few that fit in a sampling period: with fewer
than 1 / (1 - quantile) of them, that is the slowest. Does not know HTTP (`endpoint.client`).

What a canary says is what real-time would have got at that moment. It is a sample of a few, with a one-word prompt:
time to first token is without the prefill of a long prompt, and the whole request is `TOKENS` tokens long. Where that
differs much from what was promised, read a gateway's metrics instead.

    answered                               its latencies
    not answered yet, or not in time           at least as long as it has waited
    refused for lack of capacity (429, 503)    infinite: a person would have got nothing
    anything else                              failed: nothing was learned about latency
"""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Final, Self

import orjson

from airflow_llm_provider.core.objective import Failed, Measured, Metric
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.failure import read_json
from airflow_llm_provider.endpoint.wire import CHAT_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from airflow_llm_provider.core.objective import Objective, Reading
    from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings

PER_PERIOD: Final = 6
"""Canaries sent in a sampling period, where readings are asked for often enough."""

SHORTEST_INTERVAL_S: Final = 1.0

TOKENS: Final = 8
"""Asked for where inter-token latency or whole requests matter; otherwise two."""

PATIENCE: Final = 3
"""A canary is given up after so many times the longest threshold, and not before `SHORTEST_PATIENCE_S`."""

SHORTEST_PATIENCE_S: Final = 10.0

MARGIN: Final = 1.05
"""A reading waits for its canary so many times the longest threshold: then it is known to be too late."""

_FEWEST_TOKENS = 2


class _Canary:
    """One canary, under way or landed.

    Args:
        sent_s: when it was sent, monotonic seconds.
        too_late_s: no answer after so long says enough.
    """

    def __init__(self, sent_s: float, too_late_s: float) -> None:
        self.sent_s = sent_s
        self._too_late_s = too_late_s
        self.refused = False
        self.failure: str | None = None
        self._ended_s: float | None = None
        self._gave_up_s: float | None = None
        self._tokens_s: list[float] = []
        self._rest = b""

    def arrived(self, piece: bytes, now_s: float) -> None:
        """Take in a piece of its answer. A token is an event with text in it; the first event may only name a role."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._tokens_s += [now_s for line in lines if _has_text(line)]

    def landed(self, failure: Failure | None, now_s: float) -> None:
        """Its answer is complete, or there is none."""
        waited_s = now_s - self.sent_s
        match failure:
            case None:
                self._ended_s = now_s
                self._tokens_s = self._tokens_s or [now_s]  # text or not, something was there by now
            case Failure(kind=FailureKind.BUSY):
                self.refused = True
            case Failure(kind=FailureKind.TIMEOUT) if waited_s > self._too_late_s:
                self._gave_up_s = now_s
            case _:
                self.failure = failure.message

    def span(self, metric: Metric, now_s: float) -> tuple[float, float] | None:
        """The latency's bounds, as far as they are known now; None where it tells nothing."""
        if self.refused:
            return inf, inf
        until_s = now_s if self._gave_up_s is None else self._gave_up_s
        waiting = (until_s - self.sent_s, inf)
        match metric:
            case Metric.TTFT:
                return _exactly(self._tokens_s[0] - self.sent_s) if self._tokens_s else waiting
            case Metric.E2E:
                return waiting if self._ended_s is None else _exactly(self._ended_s - self.sent_s)
            case Metric.ITL:
                gaps = len(self._tokens_s) - 1
                return _exactly((self._tokens_s[-1] - self._tokens_s[0]) / gaps) if gaps > 0 else None


class CanarySource:
    """Sends canaries while it is read.

    Args:
        endpoint: how to talk to it.
        settings: with source `canary`.
        base_url: its root.
    """

    def __init__(self, endpoint: EndpointSettings, settings: LatencySettings, *, base_url: str) -> None:
        self._client = EndpointClient(endpoint, base_url=base_url)
        self._base_url = base_url
        self._settings = settings
        self._too_late_s = max(objective.threshold_s for objective in settings.objectives)
        self._patience_s = max(SHORTEST_PATIENCE_S, PATIENCE * self._too_late_s)
        self._interval_s = max(SHORTEST_INTERVAL_S, settings.sampling_period_s / PER_PERIOD)
        self._body = _body(endpoint, settings)
        self._kept: deque[_Canary] = deque()
        self._flight: asyncio.Task[None] | None = None
        self._number = 0

    @property
    def name(self) -> str:
        """What is read, for the log."""
        return f"canaries to {self._base_url}"

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)
        await self._client.__aexit__(kind, error, trace)

    async def read(self) -> Mapping[Objective, Reading]:
        """Send a canary if it is time for one, and wait for it, but no longer than until it is too late anyway."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        under_way = self._flight is not None and not self._flight.done()
        if not under_way and (not self._kept or now_s - self._kept[-1].sent_s >= self._interval_s):
            canary = _Canary(now_s, self._too_late_s)
            self._kept.append(canary)
            self._flight = loop.create_task(self._send(canary))
        if self._flight is not None and not self._flight.done():
            left_s = self._kept[-1].sent_s + self._too_late_s * MARGIN - loop.time()
            await asyncio.wait([self._flight], timeout=max(0.0, left_s))
        now_s = loop.time()
        while len(self._kept) > 1 and self._kept[0].sent_s < now_s - self._settings.sampling_period_s:
            self._kept.popleft()
        return {objective: self._reading(objective, now_s) for objective in self._settings.objectives}

    async def _send(self, canary: _Canary) -> None:
        loop = asyncio.get_running_loop()
        self._number += 1
        for _ in range(2):  # a connection that went stale is no news
            ending = await self._client.stream(
                CHAT_PATH,
                self._body,
                request_id=f"canary-{self._number}",
                wait_s=self._patience_s,
                arrived=lambda piece: canary.arrived(piece, loop.time()),
            )
            if not (isinstance(ending, Failure) and ending.kind is FailureKind.STALE_CONNECTION):
                break
        canary.landed(ending if isinstance(ending, Failure) else None, loop.time())

    def _reading(self, objective: Objective, now_s: float) -> Reading:
        if (failure := self._kept[-1].failure) is not None:
            return Failed(f"A canary to {self._base_url} told nothing about latency: {failure}")
        spans = [span for canary in self._kept if (span := canary.span(objective.metric, now_s)) is not None]
        if not spans:
            return Failed(f"No canary to {self._base_url} got two tokens, which inter-token latency takes")
        rank = ceil(Fraction(objective.quantile).limit_denominator(10**9) * len(spans)) - 1
        lower, upper = sorted(low for low, _ in spans), sorted(high for _, high in spans)
        return Measured(lower_s=lower[rank], upper_s=upper[rank], samples=len(spans))


def _exactly(value_s: float) -> tuple[float, float]:
    return value_s, value_s


def _body(endpoint: EndpointSettings, settings: LatencySettings) -> bytes:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": _FEWEST_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    if any(objective.metric is not Metric.TTFT for objective in settings.objectives):
        body |= {"max_tokens": TOKENS, "ignore_eos": True}
    if endpoint.model is not None:
        body["model"] = endpoint.model
    if settings.canary_priority:  # 0 is what a request without one has
        body["priority"] = settings.canary_priority
    return orjson.dumps(body)


def _has_text(line: bytes) -> bool:
    """Whether a line of a stream is an event with a piece of an answer in it."""
    if not line.startswith(b"data:"):
        return False
    match read_json(line[5:]):
        case {"choices": [{"delta": dict(delta)}, *_]}:
            return any(delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls"))
        case _:
            return False
