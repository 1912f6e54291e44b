"""The runner: one event loop that carries out the dispatcher's commands and settles what comes of them.

Owns the end of a try. Does not decide what is sent when (`core.dispatch`), whether anything may be (`gate`), what a
failure means (`core.retry`), or when anything is written (`recorder`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_llm_provider.batch.flights import Flights, Yielded, cancel
from airflow_llm_provider.core.commands import Probe, Send, Stop, Wait
from airflow_llm_provider.core.retry import Failure
from airflow_llm_provider.endpoint.identity import resolve_model
from airflow_llm_provider.exceptions import LLMBatchError, RunStoppedError, StaleRunError, TooManyErrorsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from airflow_llm_provider.batch.feeder import Feeder
    from airflow_llm_provider.batch.recorder import Recorder
    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.core.dispatch import Dispatcher
    from airflow_llm_provider.core.ledger import Ledger
    from airflow_llm_provider.core.own_requests import OwnRequests
    from airflow_llm_provider.core.request import Completion
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.core.tolerance import Tolerance
    from airflow_llm_provider.endpoint.client import EndpointClient
    from airflow_llm_provider.endpoint.identity import ServedModel

IDENTITY_INTERVAL_S = 15.0
"""How often the server is asked whether it is there and still serves the same model under the name."""

SECOND_LOOK_S = 5.0
"""How soon it is asked again after it refused a connection."""


class Runner:
    """Works off a run's pending rows.

    Args:
        client: sends; already entered.
        dispatcher: decides.
        recorder: keeps.
        ledger: counts.
        tolerance: when too many rows have errored.
        served: the model that must stay behind its name.
        request_prefix: begins every ``X-Request-Id``, so that a server's log tells runs and tries apart.
        own: takes notes of each request; see `Flights`.
    """

    def __init__(
        self,
        *,
        client: EndpointClient,
        dispatcher: Dispatcher,
        recorder: Recorder,
        ledger: Ledger,
        tolerance: Tolerance,
        served: ServedModel,
        request_prefix: str,
        own: OwnRequests | None = None,
    ) -> None:
        self._client = client
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._ledger = ledger
        self._tolerance = tolerance
        self._served = served
        self._loop = asyncio.get_running_loop()
        self._flights = Flights(client, request_prefix, landed=self._landed, broken=self.end, own=own)
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._probes: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._feeder: Feeder | None = None
        self._errored_seen = 0
        self._answers = 0

    async def run(self, feeder: Feeder, stop: StopSwitch, companions: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Run to the end, or until an error or `stop` ends the try; what has settled is flushed either way.

        Args:
            feeder: supplies rows; it calls `pump`.
            stop: the way to end the try from outside.
            companions: endless helpers that live as long as the run, such as the progress reporter.

        Raises:
            LLMBatchError: why the try ended before the run did.
        """
        self._feeder = feeder
        stop.attach(self._loop, self._stopped)
        recording = asyncio.create_task(self._recorder.run())
        helpers = [asyncio.ensure_future(each()) for each in (feeder.run, self._watch_identity, *companions)]
        for helper in (recording, *helpers):
            helper.add_done_callback(self._helper_ended)
        try:
            await self._ended
        finally:
            stop.detach()
            if self._timer is not None:
                self._timer.cancel()
            await cancel([*helpers, *self._probes])
            await self._flights.close()
            self._recorder.close()
            await recording
        if not self._ledger.finished:
            raise AssertionError("the run ended with rows that have no outcome")

    def pump(self) -> None:
        """Carry out what the dispatcher decides, until it says to wait."""
        if self._ended.done():
            return
        self._check_tolerance()
        while True:
            match self._dispatcher.next(self._loop.time()):
                case Send(tickets):
                    self._flights.start(tickets)
                case Probe():
                    task = self._loop.create_task(self._probe())
                    self._probes.add(task)
                    task.add_done_callback(self._probe_ended)
                case Stop(error):
                    self.end(error)
                    return
                case Wait(until):
                    self._wake_at(until)
                    break
        if self._feeder is not None:
            self._feeder.wake_if_low()
            if self._feeder.exhausted and not self._dispatcher.queued and not self._dispatcher.in_flight:
                self.end(None)

    def hold(self, *, yields: bool) -> None:
        """Send nothing more; with `yields`, also give up what is in flight. The rows go again later."""
        self._dispatcher.hold()
        if yields:
            self._flights.give_up(Yielded())

    def release(self, *, limit: int, closes_s: float | None) -> None:
        """Send again; see `Dispatcher.release`."""
        self._dispatcher.release(limit=limit, closes_s=closes_s)
        self.pump()

    def _landed(self, ticket: Ticket, ending: Completion | Failure | Yielded) -> None:
        now = self._loop.time()
        match ending:
            case Yielded():
                self._dispatcher.yielded(ticket)
            case Failure() as failure:
                if (error := self._dispatcher.failed(ticket, failure, now)) is not None:
                    self._recorder.errored(ticket.request, error, ticket.attempts)
            case completion:
                self._answers += 1
                if self._dispatcher.answered(ticket, now):
                    self._recorder.succeeded(ticket.request, completion, ticket.attempts)
        self.pump()

    async def _probe(self) -> None:
        self._dispatcher.probed(await self._identify(), self._loop.time())

    async def _identify(self) -> Failure | None:
        """Ask the server who it is; ends the run where it serves another model now."""
        identity = await self._client.identify()
        if isinstance(identity, Failure):
            return identity
        try:
            check_swap(resolve_model(identity, self._served.id), self._served)
        except LLMBatchError as error:
            self._dispatcher.stop(error)
            self.pump()
        return None

    async def _watch_identity(self) -> None:
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

    def _check_tolerance(self) -> None:
        totals = self._ledger.totals
        if totals.errored == self._errored_seen:
            return
        self._errored_seen = totals.errored
        if self._tolerance.hopeless(errored=totals.errored, done=totals.done, rows=self._ledger.plan.total_rows):
            self._dispatcher.stop(
                TooManyErrorsError(
                    f"Stopped early: {totals.errored:,} of the first {totals.done:,} rows errored, more than "
                    f"max_error_rate={self._tolerance.max_error_rate:g} bears; the last: {self._recorder.last_error}. "
                    "Raise max_error_rate and clear the task to go on from here; to begin anew once the cause is "
                    "mended, remove the run's folder and clear the task with rerun=True"
                )
            )

    def _probe_ended(self, task: asyncio.Task[None]) -> None:
        self._probes.discard(task)
        self._helper_ended(task)
        self.pump()

    def _helper_ended(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.end(error)

    def _stopped(self, reason: str) -> None:
        done, total = self._ledger.totals.done, self._ledger.plan.total_rows
        self.end(RunStoppedError(f"{reason}: {done:,} of {total:,} rows are kept; the next try goes on from there"))

    def _wake_at(self, until: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if until is not None:
            self._timer = self._loop.call_at(until, self.pump)

    def end(self, error: BaseException | None) -> None:
        """End the try, with `error` or, None, because there is nothing left to do; the first end stands."""
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


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
