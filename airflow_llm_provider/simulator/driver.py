"""The engine in the event loop's time: real, or faster.

Owns the one timer that moves the engine on, and who waits for which of its events. Does not know HTTP
(`simulator.server`) or what a step leads to (`simulator.engine`).

The engine's time runs `speed` times as fast as the loop's. A timer that is late moves the engine on by as much as is
due, so that lateness never adds up: durations on ``/metrics`` are the engine's own, and exact.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.engine import Finished, Rejected, Tokens

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.engine import Engine, SimRequest
    from airflow_llm_provider.simulator.vllm_metrics import Metrics


class Flight:
    """A sequence on its way.

    Args:
        news: set whenever something about it is new; several sequences of a request share one.

    Attributes:
        request_id: the engine's name for it.
        tokens: as many as it has; of a request that is not streamed only at its end.
        end: how it ended.
        lost: whether the engine died under it.
    """

    __slots__ = ("end", "lost", "news", "request_id", "tokens")

    def __init__(self, request_id: str, news: asyncio.Event) -> None:
        self.request_id = request_id
        self.news = news
        self.tokens = 0
        self.end: Finished | None = None
        self.lost = False

    def lose(self) -> None:
        """The engine died under it."""
        self.lost = True
        self.news.set()


class Driver:
    """Moves one engine. Used from its event loop only, in which it must be made.

    Args:
        engine: idle.
        metrics: take note of everything.
        speed: engine seconds per second.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, speed: float) -> None:
        self._engine = engine
        self._metrics = metrics
        self._speed = speed
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._flights: dict[str, Flight] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._dead = False

    def submit(self, request: SimRequest, news: asyncio.Event) -> Flight | Rejected:
        """A sequence comes in, or is refused.

        Args:
            request: what it asks for.
            news: see `Flight`.
        """
        flight = Flight(request.request_id, news)
        if self._dead:
            flight.lose()
            return flight
        now = self._now()
        rejected = self._engine.submit(now, request)
        if rejected is not None:
            return rejected
        self._metrics.arrived(request.request_id, now)
        self._flights[request.request_id] = flight
        self._set_timer()
        return flight

    def abort(self, flight: Flight) -> None:
        """Nobody waits for a sequence any longer. One that has ended is left alone."""
        if self._dead or flight.request_id not in self._flights:
            return
        now = self._now()
        self._catch_up(now)  # what it has got by now is told, or else its events would find nobody
        if self._flights.pop(flight.request_id, None) is not None:
            self._engine.abort(now, flight.request_id)
            self._metrics.aborted(flight.request_id)

    def die(self) -> None:
        """The engine is gone, and with it all that is in flight."""
        self._dead = True
        if self._timer is not None:
            self._timer.cancel()
        flights, self._flights = self._flights, {}
        for flight in flights.values():
            flight.lose()

    def catch_up(self) -> None:
        """Moves the engine on to now."""
        if not self._dead:
            self._catch_up(self._now())

    def _catch_up(self, now: float) -> None:
        for event in self._engine.advance(now):
            self._metrics.happened(event)
            match event:
                case Tokens():
                    flight = self._flights[event.request_id]
                    flight.tokens += event.count
                    flight.news.set()
                case Finished():
                    flight = self._flights.pop(event.request_id)
                    flight.tokens, flight.end = event.generated_tokens, event
                    flight.news.set()

    def _now(self) -> float:
        return (self._loop.time() - self._began_s) * self._speed

    def _tick(self) -> None:
        self.catch_up()
        self._set_timer()

    def _set_timer(self) -> None:
        next_s = self._engine.next_s
        at = None if next_s is None else self._began_s + next_s / self._speed
        if self._timer is not None and self._timer.when() == at and not self._timer.cancelled():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at is None else self._loop.call_at(at, self._tick)
