"""One server of the endpoint, as a run sees it: its requests in flight, its probes, and who answers there.

Owns carrying out what the server's dispatcher decides. Does not decide what is sent when (`core.dispatch`), nor how
rows are spread over servers (`core.spread`), and does not keep what comes back (`runner`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_llm_provider.batch.flights import Flights, cancel
from airflow_llm_provider.batch.slicer import BegunAnew, SliceEnded
from airflow_llm_provider.core.commands import Probe, Send, Stop, Wait
from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.retry import Failure
from airflow_llm_provider.endpoint.identity import resolve_model
from airflow_llm_provider.exceptions import LLMBatchError, StaleRunError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_llm_provider.batch.flights import Ending, Yielded
    from airflow_llm_provider.batch.slicer import Plain
    from airflow_llm_provider.core.own_requests import OwnRequests
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.core.spread import Spread
    from airflow_llm_provider.endpoint.client import EndpointClient
    from airflow_llm_provider.endpoint.identity import ServedModel

IDENTITY_INTERVAL_S = 15.0
"""How often the server is asked whether it is there and still serves the same model under the name."""

SECOND_LOOK_S = 5.0
"""How soon it is asked again after it refused a connection."""


class Server:
    """Carries out one dispatcher's commands.

    Args:
        number: the dispatcher's, in `spread`.
        client: asks who answers; already entered.
        spread: decides.
        served: the model that must stay behind its name.
        request_prefix: begins every ``X-Request-Id``, so that a server's log tells runs and tries apart.
        own: takes notes of each request; see `Flights`.
        sender: sends rows.
        landed: called for each ticket with what became of its request.
        pump: called when something may be sent that could not be before.
        end: called with the error that ends the try.
    """

    def __init__(
        self,
        number: int,
        *,
        client: EndpointClient,
        spread: Spread,
        served: ServedModel,
        request_prefix: str,
        own: OwnRequests | None,
        sender: Plain,
        landed: Callable[[Server, Ticket, Ending], None],
        pump: Callable[[], None],
        end: Callable[[BaseException], None],
    ) -> None:
        self.number = number
        self.dispatcher = spread.dispatchers[number]
        self._spread = spread
        self._client = client
        self._served = served
        self._pump = pump
        self._end = end
        self._landed = landed
        self._loop = asyncio.get_running_loop()
        self._flights = Flights(sender, request_prefix, landed=self._count, broken=end, own=own)
        self._probes: set[asyncio.Task[None]] = set()
        self._answers = 0

    def carry_out(self) -> Wait | Stop:
        """Do what the dispatcher decides, until it says to wait or to stop."""
        while True:
            match self._spread.next(self.number, self._loop.time()):
                case Send(tickets):
                    self._flights.start(tickets)
                case Probe():
                    task = self._loop.create_task(self._probe())
                    self._probes.add(task)
                    task.add_done_callback(self._probe_ended)
                case Wait() | Stop() as command:
                    return command

    def give_up(self, ending: Failure | Yielded) -> None:
        """Give up what is in flight; see `Flights.give_up`."""
        self._flights.give_up(ending)

    def give_up_some(self, sequences: int) -> None:
        """Give up a part of it; see `Flights.give_up_some`."""
        self._flights.give_up_some(sequences)

    async def watch_identity(self) -> None:
        """Look at the server from time to time: for a swapped model, and for a stop that it never completes.

        A vLLM told to stop may close its port, answer nothing more, and wait for its connections to close, while we
        wait for its answers. Refused twice with no answer in between, the requests in flight are given up. A name that
        does not resolve, or a gateway's 502, says nothing about the requests that have reached the server.
        """
        refused_at: int | None = None  # answers counted when a connection was first refused
        while True:
            await asyncio.sleep(IDENTITY_INTERVAL_S if refused_at is None else SECOND_LOOK_S)
            failure = await self._identify()  # other failures show in the requests soon enough
            if failure is None or not failure.refused:
                refused_at = None
            elif refused_at == self._answers:
                self._flights.give_up(failure)
                refused_at = None
            else:
                refused_at = self._answers

    async def close(self) -> None:
        """End everything, and wait until the connections are closed."""
        await cancel(self._probes)
        await self._flights.close()

    def _count(self, ticket: Ticket, ending: Ending) -> None:
        answer = ending.ended if isinstance(ending, BegunAnew) else ending
        self._answers += isinstance(answer, Completion | SliceEnded)
        self._landed(self, ticket, ending)

    async def _probe(self) -> None:
        self.dispatcher.probed(await self._identify(), self._loop.time())

    async def _identify(self) -> Failure | None:
        """Ask the server who it is; ends the run where it serves another model now."""
        identity = await self._client.identify()
        if isinstance(identity, Failure):
            return identity
        try:
            check_swap(resolve_model(identity, self._served.id), self._served)
        except LLMBatchError as error:
            self._spread.stop(error)
            self._pump()
        return None

    def _probe_ended(self, task: asyncio.Task[None]) -> None:
        self._probes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)
        self._pump()


def check_swap(now: ServedModel, then: ServedModel) -> None:
    """Stop where another model answers under the same name.

    Raises:
        StaleRunError: when the roots differ; a server that names none is believed.
    """
    if now.root is not None and then.root is not None and now.root != then.root:
        raise StaleRunError(
            f"The model was swapped under the name {now.id!r}: this run began with {then.root}, and {now.root} is "
            "served now. Serve the first one again, or set on_stale='restart' to begin this run anew"
        )
