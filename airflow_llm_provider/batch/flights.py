"""Requests in flight: one asyncio task for each, and how each of them ends.

Owns the tasks, and giving requests up: because the server will never answer, or because real-time needs their slots or
the window closes. Does not decide any of that, and does not know what an end means for its row (`runner`).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.batch.slicer import BegunAnew, Sent, SliceEnded
from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.yielding import cheapest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_llm_provider.batch.slicer import Plain
    from airflow_llm_provider.core.own_requests import OwnRequests
    from airflow_llm_provider.core.retry import Failure
    from airflow_llm_provider.core.row_queue import Ticket


@dataclass(frozen=True, slots=True)
class Yielded:
    """The request was given up by ourselves, and its row has spent nothing."""


Ending = Sent | Yielded


class Flights:
    """Sends tickets and reports how they end.

    Args:
        sender: sends.
        request_prefix: begins every ``X-Request-Id``, so that a server's log tells runs and tries apart.
        landed: called in the loop for each ticket, once, with what became of its request.
        broken: called instead where sending raised, which is a bug.
        own: takes notes of each request, for whoever reads the server's latency; None where nobody does.
    """

    def __init__(
        self,
        sender: Plain,
        request_prefix: str,
        *,
        landed: Callable[[Ticket, Ending], None],
        broken: Callable[[BaseException], None],
        own: OwnRequests | None = None,
    ) -> None:
        self._sender = sender
        self._request_prefix = request_prefix
        self._landed = landed
        self._broken = broken
        self._own = own
        self._tickets: dict[asyncio.Task[Sent], Ticket] = {}
        self._given_up: dict[asyncio.Task[Sent], Failure | Yielded] = {}

    def start(self, tickets: Iterable[Ticket]) -> None:
        """Send these."""
        loop = asyncio.get_running_loop()
        for ticket in tickets:
            request = ticket.request
            request_id = f"{self._request_prefix}-{request.index}-{ticket.sends}"
            task = loop.create_task(self._sender.send(ticket, request_id))
            self._tickets[task] = ticket
            if self._own is not None:
                self._own.started(task, loop.time(), sequences=request.sequences)
            task.add_done_callback(self._ended)

    def give_up(self, ending: Failure | Yielded) -> None:
        """Cancel every request in flight, which frees its slot in the server, and report `ending` for each."""
        for task in self._tickets:
            if self._given_up.setdefault(task, ending) is ending:
                task.cancel()

    def give_up_some(self, sequences: int) -> None:
        """Give up so many sequences, by the order of `core.yielding`. `Yielded` is reported for each request."""
        in_flight = {task: ticket for task, ticket in self._tickets.items() if task not in self._given_up}
        for task in cheapest(in_flight, sequences):
            self._given_up[task] = Yielded()
            task.cancel()

    async def close(self) -> None:
        """Cancel what is in flight without a report, and wait until the connections are closed."""
        tasks = list(self._tickets)
        self._tickets.clear()
        await cancel(tasks)

    def _note(self, task: asyncio.Task[Sent], own: OwnRequests) -> None:
        answer, now = _answer(task), task.get_loop().time()
        if isinstance(answer, BegunAnew):
            answer = answer.ended
        if isinstance(answer, Completion | SliceEnded):
            own.ended(task, now, ttft_s=answer.ttft_s, generation_s=answer.generation_s)
        else:
            own.abandoned(task, now)

    def _ended(self, task: asyncio.Task[Sent]) -> None:
        ticket = self._tickets.pop(task, None)
        ending: Ending | None = self._given_up.pop(task, None)
        if ticket is None:
            return
        if self._own is not None:
            self._note(task, self._own)
        if not task.cancelled():
            if (error := task.exception()) is not None:
                self._broken(error)
                return
            ending = task.result()  # it came all the same
        if ending is None:
            return
        try:
            self._landed(ticket, ending)
        except Exception as bug:  # noqa: BLE001 - a callback's exception would only be logged, and the run never end
            self._broken(bug)


def _answer(task: asyncio.Task[Sent]) -> Sent | None:
    return None if task.cancelled() or task.exception() is not None else task.result()


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel and wait, so that connections are closed and slots are free before the try ends."""
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*waiting, return_exceptions=True)
