"""A request's way through the engine, and its answer's way back.

Owns who waits for which tokens, and that nothing stays in the engine that nobody waits for. Does not know routes
(`simulator.server`), what a body means (`simulator.asked`) or what an answer looks like (`simulator.answer`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from aiohttp import web

from airflow_llm_provider.simulator import bodies, model
from airflow_llm_provider.simulator.acting import EVENT_STREAM, act_out, json, reply
from airflow_llm_provider.simulator.answer import Answer, Choice
from airflow_llm_provider.simulator.driver import Driver, Flight
from airflow_llm_provider.simulator.engine import Engine, Rejected, SimRequest, block_keys
from airflow_llm_provider.simulator.vllm_metrics import Metrics

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.asked import Asked
    from airflow_llm_provider.simulator.fault import Fault
    from airflow_llm_provider.simulator.prometheus import Family
    from airflow_llm_provider.simulator.server_spec import ServerSpec

_AT_ONCE = 8
"""Choices made without letting others run. An answer of 4,096 tokens takes a few milliseconds."""


class Inference:
    """One engine, from its start to its death. Made in the event loop that it runs in.

    Args:
        spec: what the server is like.
        started_s: when, in Unix time.
    """

    def __init__(self, spec: ServerSpec, *, started_s: float) -> None:
        self._spec = spec
        engine = Engine(spec.engine, seed=spec.seed, tell_steps=True)
        self._metrics = Metrics(engine, model=spec.served_model_name[0], started_s=started_s)
        self._driver = Driver(engine, self._metrics, speed=spec.speed)
        self._ids = count(1)

    def families(self) -> list[Family]:
        """The metrics, now."""
        self._driver.catch_up()
        return self._metrics.families()

    def die(self) -> None:
        """The engine is gone; those who wait are told so."""
        self._driver.die()

    async def answer(
        self, asked: Asked, fault: Fault | None, http: web.BaseRequest, *, request_id: str
    ) -> web.StreamResponse:
        """What a request gets, when it is there. Cancelled, it leaves nothing behind.

        Args:
            asked: the request.
            fault: what goes wrong with its answer.
            http: where it came from.
            request_id: from ``X-Request-Id``.
        """
        answer = await self._said(asked, request_id or f"{next(self._ids):032x}")
        news = asyncio.Event()
        flights: list[Flight] = []
        try:
            for choice in answer.choices:
                await _let_others(choice.index)
                flight = self._driver.submit(self._sequence(asked, choice), news)
                if isinstance(flight, Rejected):
                    return json(bodies.BUSY, 503)
                flights.append(flight)
            if asked.streamed and fault is None:
                return await self._stream(answer, flights, news, http)
            while not _ended(flights):
                await _next(news)
            if any(flight.lost for flight in flights):
                return json(bodies.ENGINE_DEAD, 500)
            self._finish(answer, flights)
            return (
                reply(answer.whole()) if fault is None else await act_out(fault, http, answer, streamed=asked.streamed)
            )
        finally:
            for flight in flights:
                self._driver.abort(flight)

    async def _said(self, asked: Asked, request_id: str) -> Answer:
        choices: list[Choice] = []
        for prompt in asked.prompts:
            for variant in range(asked.count):
                await _let_others(len(choices))
                said = model.say(
                    prompt,
                    max_tokens=asked.max_tokens,
                    ends=asked.ends,
                    mean_tokens=self._spec.mean_output_tokens,
                    variant=variant,
                    seed=asked.seed,
                )
                choices.append(Choice(len(choices), prompt, said, "stop" if said.stopped else "length"))
        return Answer(
            asked,
            choices,
            request_id=request_id,
            model=self._spec.served_model_name[0],
            details=self._spec.enable_prompt_tokens_details,
            timed=self._spec.enable_per_request_metrics,
        )

    def _sequence(self, asked: Asked, choice: Choice) -> SimRequest:
        said = choice.said
        engine = self._spec.engine
        keys = block_keys([*choice.prompt, *said.ids], engine.block_size) if engine.prefix_caching else ()
        return SimRequest(
            request_id=str(next(self._ids)),
            prompt_tokens=len(choice.prompt),
            max_tokens=asked.max_tokens,
            stop_after=len(said.ids) if said.stopped else None,
            priority=asked.priority,
            block_keys=keys,
            every_token=asked.streamed,
        )

    def _finish(self, answer: Answer, flights: list[Flight]) -> None:
        asked = answer.asked
        ends = [flight.end for flight in flights if flight.end is not None]
        for at in range(0, len(ends), asked.count):
            self._metrics.answered(ends[at : at + asked.count], count=asked.count, max_tokens=asked.max_tokens)
        answer.finish(ends)

    async def _stream(
        self, answer: Answer, flights: list[Flight], news: asyncio.Event, http: web.BaseRequest
    ) -> web.StreamResponse:
        """A stream of them. That its client has left is no error: what is still in the engine is aborted."""
        response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM})
        with suppress(ConnectionResetError):
            await response.prepare(http)
            await self._send(answer, flights, news, response)
        return response

    async def _send(
        self, answer: Answer, flights: list[Flight], news: asyncio.Event, response: web.StreamResponse
    ) -> None:
        """Sends tokens as they come. Those that come while the connection is busy share a chunk, as with vLLM."""
        told = [0] * len(flights)
        events: list[bytes] = []
        ended = False
        while not ended:
            await _next(news)
            ended = _ended(flights)
            if any(flight.lost for flight in flights):
                events = [bodies.event(bodies.ENGINE_DEAD)]
                break
            if not any(told):
                events += answer.opening()
            for place, (choice, flight) in enumerate(zip(answer.choices, flights, strict=True)):
                if flight.tokens > told[place]:
                    events.append(answer.chunk(choice, told[place], flight.tokens))
                    told[place] = flight.tokens
            if not ended:
                await response.write(b"".join(events))
                events = []
        else:
            self._finish(answer, flights)
            events += answer.closing()
        await response.write(b"".join([*events, bodies.DONE]))


async def _let_others(number: int) -> None:
    """Gives way, now and then, to whatever else the loop has to do: a request may have thousands of choices."""
    if number % _AT_ONCE == _AT_ONCE - 1:
        await asyncio.sleep(0)


async def _next(news: asyncio.Event) -> None:
    await news.wait()
    news.clear()


def _ended(flights: list[Flight]) -> bool:
    return all(flight.end is not None or flight.lost for flight in flights)
