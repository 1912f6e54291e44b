"""The API server in front of the engine: requests in and tokens out, one piece of work at a time.

Owns its queue. Does not know the engine's steps (`simulator.engine`).

All of vLLM's HTTP, tokenizing and detokenizing runs in one event loop, so that a burst of requests delays the tokens of
those that came before it, and many streams delay the requests. Tokens of a sequence that come while its last ones are
still in the queue are sent with them, as in vLLM's `RequestOutputCollector`; the work on each token is done all the
same.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.sequence import Sequence
    from airflow_llm_provider.simulator.spec import StepModel


@dataclass(slots=True)
class Delivery:
    """Tokens on their way to a client.

    Attributes:
        at_s: when they are there.
        sequence: whose.
        tokens: how many.
        first: whether its first is among them.
        last: whether its last is.
    """

    at_s: float
    sequence: Sequence
    tokens: int
    first: bool
    last: bool


class Front:
    """The queue of one API server.

    Args:
        model: how long things take.
    """

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._free_s = -inf
        self._deliveries: deque[Delivery] = deque()

    @property
    def next_s(self) -> float:
        """When the next tokens are there; infinite if none are on their way."""
        return self._deliveries[0].at_s if self._deliveries else inf

    def take(self, now: float) -> float:
        """A request comes in.

        Returns:
            when it reaches the engine.
        """
        self._free_s = max(now, self._free_s) + self._model.request_s
        return self._free_s + self._model.delay_s

    def hand_out(self, now: float, sequence: Sequence, *, first: bool, last: bool) -> None:
        """The engine made a token."""
        streamed = sequence.request.every_token
        underway = sequence.delivery
        if underway is not None and underway.at_s > now and (streamed or not last):
            self._free_s += self._model.token_s
            underway.tokens += 1
            underway.last = last
            return
        cost_s = self._model.token_s + (self._model.chunk_s if streamed or last else 0.0)
        self._free_s = max(now, self._free_s) + cost_s
        sequence.delivery = Delivery(self._free_s, sequence, 1, first, last)
        self._deliveries.append(sequence.delivery)

    def delivered(self, now: float) -> list[Delivery]:
        """What has reached the clients by `now`, in order, without what nobody wants any longer."""
        there = []
        while self._deliveries and self._deliveries[0].at_s <= now:
            delivery = self._deliveries.popleft()
            if not delivery.sequence.aborted:
                there.append(delivery)
        return there
