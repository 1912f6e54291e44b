"""Real-time, over HTTP: sends requests at their moments, streams the answers, and notes when the first token came.

Owns the load generator. It must cost next to nothing, or it measures itself: beside a server on the same two cores, an
HTTP client that wakes for each streamed token takes more of them than the server's own batch does. So this is a bare
asyncio protocol: it looks for the first chunk, and at nothing after it but the end.

Does not know phases or quantiles (`measures`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import orjson
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.colocation.traffic import Arrival, Traffic

VOCABULARY = (200, 4000)
"""Token ids that every tokenizer has, and none of them is special in the models that are served here."""

PATIENCE_S = 120.0
"""For what is still under way when the traffic has ended."""


@dataclass(slots=True, kw_only=True)
class Sample:
    """What became of one request. All moments are on the machine's monotonic clock.

    Attributes:
        arrival: what was asked.
        due_s: when it should have been sent.
        sent_s: when it was: later, where the generator had no CPU.
        first_s: when the first token came; None where none did.
        ended_s: when the last one had come.
        error: what went wrong; None where all of it came.
    """

    arrival: Arrival
    due_s: float
    sent_s: float
    first_s: float | None = None
    ended_s: float = 0.0
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """From sending to the first token."""
        return None if self.first_s is None else self.first_s - self.sent_s


class _Stream(asyncio.Protocol):
    """One request on a connection of its own."""

    def __init__(self, request: bytes, sample: Sample, ended: asyncio.Future[None]) -> None:
        self._request = request
        self._sample = sample
        self._ended = ended
        self._clock = ended.get_loop().time
        self._head = b""
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]  # a socket's transport writes

    def data_received(self, data: bytes) -> None:
        if self._sample.first_s is None:
            self._head += data
            if b"\ndata: {" not in self._head:
                return
            if not self._head.startswith(b"HTTP/1.1 200") or b'data: {"error"' in self._head:
                return
            self._sample.first_s = self._clock()
        self._tail = data if len(data) > 40 else self._tail[-40:] + data

    def connection_lost(self, exc: Exception | None) -> None:
        self._sample.ended_s = self._clock()
        if exc is not None:
            self._sample.error = repr(exc)
        elif self._sample.first_s is None:
            self._sample.error = self._head[:300].decode("utf-8", "replace") or "the connection was closed"
        elif b"[DONE]" not in self._tail:
            self._sample.error = "the stream ended before its end"
        if not self._ended.done():
            self._ended.set_result(None)


async def play(
    traffic: Traffic, url: str, *, model: str, headers: Mapping[str, str], begin_s: float, seed: int = 0
) -> list[Sample]:
    """Send all of it.

    Args:
        traffic: what to ask for.
        url: the server's root.
        model: to ask.
        headers: sent along.
        begin_s: the traffic's zero, on the loop's clock.
        seed: of the prompts' tokens: random ones, so that no prefix cache knows them.

    Returns:
        A sample for each arrival, in their order.
    """
    loop = asyncio.get_running_loop()
    root, rng = URL(url), Random(seed)
    host, port = root.host or "127.0.0.1", root.port or 80
    requests = [_request(arrival, root, model, headers, rng) for arrival in traffic.arrivals]
    samples: list[Sample] = []
    ends: list[asyncio.Future[None]] = []
    opening: set[asyncio.Task[None]] = set()

    async def ask(request: bytes, sample: Sample, ended: asyncio.Future[None]) -> None:
        try:
            await loop.create_connection(lambda: _Stream(request, sample, ended), host, port)
        except OSError as error:
            sample.ended_s, sample.error = loop.time(), repr(error)
            ended.set_result(None)

    for arrival, request in zip(traffic.arrivals, requests, strict=True):
        due_s = begin_s + arrival.at_s
        if (left_s := due_s - loop.time()) > 0:
            await asyncio.sleep(left_s)
        sample = Sample(arrival=arrival, due_s=due_s, sent_s=loop.time())
        ended = loop.create_future()
        samples.append(sample)
        ends.append(ended)
        task = loop.create_task(ask(request, sample, ended))
        opening.add(task)
        task.add_done_callback(opening.discard)
    if (left_s := begin_s + traffic.duration_s - loop.time()) > 0:
        await asyncio.sleep(left_s)
    if ends:
        await asyncio.wait(ends, timeout=PATIENCE_S)
    for sample, ended in zip(samples, ends, strict=True):
        if not ended.done():
            sample.error, sample.ended_s = f"no end within {PATIENCE_S:g} s", loop.time()
    return samples


def _request(arrival: Arrival, root: URL, model: str, headers: Mapping[str, str], rng: Random) -> bytes:
    body = orjson.dumps(
        {
            "model": model,
            "prompt": [rng.randrange(*VOCABULARY) for _ in range(arrival.prompt_tokens)],
            "max_tokens": arrival.max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    )
    lines = [
        "POST /v1/completions HTTP/1.1",
        f"Host: {root.host}:{root.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
