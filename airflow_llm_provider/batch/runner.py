"""The runner: one event loop that works off a run's rows and settles what comes of them.

Owns the end of a try. Does not decide what is sent when (`core.dispatch`, `core.spread`), whether anything may be
(`gate`), what a failure means (`core.retry`), or when anything is written (`recorder`), and does not send (`server`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_llm_provider.batch.flights import Yielded, cancel
from airflow_llm_provider.batch.gate import RunHeld
from airflow_llm_provider.batch.server import Server
from airflow_llm_provider.batch.slicer import BegunAnew, SliceEnded
from airflow_llm_provider.core.answers import Asked
from airflow_llm_provider.core.commands import Stop
from airflow_llm_provider.core.release import Cause
from airflow_llm_provider.core.request import RowError, RowRequest
from airflow_llm_provider.core.retry import Failure
from airflow_llm_provider.exceptions import RunStoppedError, TooManyErrorsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from airflow_llm_provider.batch.feeder import Feeder
    from airflow_llm_provider.batch.flights import Ending
    from airflow_llm_provider.batch.recorder import Recorder
    from airflow_llm_provider.batch.slicer import Plain
    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.core.answers import AnswerRules
    from airflow_llm_provider.core.ledger import Ledger
    from airflow_llm_provider.core.limit import Verdict
    from airflow_llm_provider.core.own_requests import OwnRequests
    from airflow_llm_provider.core.request import Completion
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.core.spread import Spread
    from airflow_llm_provider.core.tolerance import Tolerance
    from airflow_llm_provider.endpoint.client import EndpointClient
    from airflow_llm_provider.endpoint.identity import ServedModel


class Runner:
    """Works off a run's pending rows.

    Args:
        clients: one for each server, already entered, with who takes notes of its requests (see `Flights`).
        senders: one for each server, that send its rows.
        spread: decides; with as many dispatchers.
        recorder: keeps.
        ledger: counts.
        answers: what is made of answers.
        tolerance: when too many rows have errored.
        in_part: rows of before are there, not in the order of the input, so that the share of those done says little.
        served: the model that must stay behind its name.
        request_prefix: begins every ``X-Request-Id``, so that a server's log tells runs and tries apart.
    """

    def __init__(
        self,
        *,
        clients: Sequence[tuple[EndpointClient, OwnRequests | None]],
        senders: Sequence[Plain],
        spread: Spread,
        recorder: Recorder,
        ledger: Ledger,
        answers: AnswerRules,
        tolerance: Tolerance,
        in_part: bool = False,
        served: ServedModel,
        request_prefix: str,
    ) -> None:
        self._spread = spread
        self._recorder = recorder
        self._ledger = ledger
        self._answers = answers
        self._tolerance = tolerance
        self._in_part = in_part
        self._loop = asyncio.get_running_loop()
        self._servers = [
            Server(
                number,
                client=client,
                spread=spread,
                served=served,
                request_prefix=request_prefix,
                own=own,
                sender=sender,
                landed=self._landed,
                pump=self._pump_soon,
                end=self.end,
            )
            for number, ((client, own), sender) in enumerate(zip(clients, senders, strict=True))
        ]
        self.handles = [Handle(self, server) for server in self._servers]
        self._leaving: dict[int, RunHeld] = {}
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._feeder: Feeder | None = None
        self._errored_seen = 0
        self._pumping = False

    async def run(self, feeder: Feeder, stop: StopSwitch, companions: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Run to the end, or until an error or `stop` ends the try; what has settled is flushed either way.

        Args:
            feeder: supplies rows; it calls `pump`.
            stop: the way to end the try from outside.
            companions: endless helpers that live as long as the run, such as the progress reporter.

        Raises:
            LLMBatchError: why the try ended before the run did.
            RunHeld: no server may be sent anything for a while.
        """
        self._feeder = feeder
        stop.attach(self._loop, self._stopped)
        recording = asyncio.create_task(self._recorder.run())
        watching = [server.watch_identity for server in self._servers]
        helpers = [asyncio.ensure_future(each()) for each in (feeder.run, *watching, *companions)]
        for helper in (recording, *helpers):
            helper.add_done_callback(self._helper_ended)
        try:
            await self._ended
        finally:
            stop.detach()
            if self._timer is not None:
                self._timer.cancel()
            await cancel(helpers)
            await asyncio.gather(*(server.close() for server in self._servers))
            self._recorder.close()
            await recording
        if not self._ledger.finished:
            raise AssertionError("the run ended with rows that have no outcome")

    def pump(self) -> None:
        """Have every server do what there is to do, the least loaded first. Its caller reports what it raises."""
        if self._ended.done():
            return
        self._check_tolerance()
        waits = []
        for number in self._spread.order():
            command = self._servers[number].carry_out()
            if isinstance(command, Stop):
                self.end(command.error)
                return
            waits.append(command.until)
        self._wake_at(min((until for until in waits if until is not None), default=None))
        if self._feeder is not None:
            self._feeder.wake_if_low()
            if self._feeder.exhausted and not self._spread.queued and not self._spread.in_flight:
                self.end(None)

    def _pump_soon(self) -> None:
        """Pump once for all that came in this turn of the loop, and not once for each."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._pumping = False
        try:
            self.pump()
        except Exception as bug:  # noqa: BLE001 - a callback's exception would only be logged, and the run never end
            self.end(bug)

    def leave(self, number: int, held: RunHeld) -> None:
        """A server may be sent nothing for a while. Where that is so for all of them, the worker is given back."""
        if held.hold.cause is Cause.SHIFT and self._spread.in_flight:  # a row in slices may go on at this server yet
            self._leaving.pop(number, None)
            return
        self._leaving[number] = held
        now = self._loop.time()
        shift = held.hold.cause is Cause.SHIFT  # it waits for nobody who may come back
        if all(
            each.number in self._leaving or each.dispatcher.lost(now) or (shift and each.dispatcher.away)
            for each in self._servers
        ):
            self.end(soonest(list(self._leaving.values())))

    def stay(self, number: int) -> None:
        """A server may be sent requests, or may be soon."""
        self._leaving.pop(number, None)

    def end(self, error: BaseException | None) -> None:
        """End the try, with `error` or, None, because there is nothing left to do; the first end stands."""
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def _landed(self, server: Server, ticket: Ticket, ending: Ending) -> None:
        now = self._loop.time()
        match ending:
            case Yielded():
                server.dispatcher.yielded(ticket, now)
            case SliceEnded():
                server.dispatcher.sliced(ticket, now)
            case BegunAnew(ended):
                server.dispatcher.begun_anew(ticket, now, answered=ended is not None)
            case Failure() as failure:
                if (error := server.dispatcher.failed(ticket, failure, now)) is not None:
                    self._ended_in_error(ticket, error)
            case completion:
                self._answered(server, ticket, completion, now)
        self._pump_soon()

    def _answered(self, server: Server, ticket: Ticket, completion: Completion, now: float) -> None:
        if ticket.answered:  # sent once more to see whether the server answers: nothing of it is kept
            server.dispatcher.answered(ticket, now)
            return
        asked = ticket.asked or Asked(ticket.request)
        found = self._answers.judge(asked, completion)
        if isinstance(found, RowRequest):
            ticket.asked = asked
            server.dispatcher.asks_again(ticket, found, now)
        else:
            server.dispatcher.answered(ticket, now)
            self._recorder.landed(asked.first, found, ticket.attempts)

    def _ended_in_error(self, ticket: Ticket, error: RowError) -> None:
        """Where the row has an answer that was to be bettered, that one lands."""
        if ticket.asked is None or ticket.asked.rejected is None:
            self._recorder.errored(ticket.request, error, ticket.attempts)
            return
        landing = ticket.asked.rejected
        why = "" if landing.error is None else landing.error.message
        told = RowError(landing.status, f"{why}. Asking again failed: {error.message}", error.http_status)
        self._recorder.landed(ticket.asked.first, replace(landing, error=told), ticket.attempts)

    def _check_tolerance(self) -> None:
        totals = self._ledger.totals
        if totals.failed == self._errored_seen or totals.done == self._ledger.total_rows:  # the end is judged itself
            return
        self._errored_seen = totals.failed
        rows = self._ledger.plan.total_rows
        shared = self._ledger.total_rows < rows
        in_part = shared or self._in_part
        if self._tolerance.hopeless(errored=totals.failed, done=totals.done, rows=rows, shared=in_part):
            of_what = "rows of this share" if shared else "rows"
            clear = "clear the group's plan and what is downstream of it" if shared else "clear the task"
            self._spread.stop(
                TooManyErrorsError(
                    f"Stopped early: {totals.failed:,} of the first {totals.done:,} {of_what} errored, more than "
                    f"max_error_rate={self._tolerance.max_error_rate:g} bears; the last: {self._recorder.last_error}. "
                    "Raise max_error_rate and clear the task to go on from here; to begin anew once the cause is "
                    f"mended, remove the run's folder (result_path in this log), set rerun=True, and {clear}"
                )
            )

    def _helper_ended(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.end(error)

    def _stopped(self, reason: str) -> None:
        done, total = self._ledger.totals.done, self._ledger.total_rows
        self.end(RunStoppedError(f"{reason}: {done:,} of {total:,} rows are kept; the next try goes on from there"))

    def _wake_at(self, until: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if until is not None:
            self._timer = self._loop.call_at(until, self._pump_now)


class Handle:
    """What a server's gate does to the run: `gate.Held`.

    Args:
        runner: the run.
        server: the server.
    """

    def __init__(self, runner: Runner, server: Server) -> None:
        self._runner = runner
        self._server = server

    def hold(self, *, yields: bool) -> None:
        """Send it nothing more; with `yields`, also give up what is in flight there. The rows go again somewhere."""
        self._server.dispatcher.hold()
        if yields:
            self._server.give_up(Yielded())
        self._runner.pump()  # another server may take them

    def release(self, *, limit: int, closes_s: float | None) -> None:
        """Send to it again; see `Dispatcher.release`."""
        self._runner.stay(self._server.number)
        self._server.dispatcher.release(limit=limit, closes_s=closes_s)
        self._runner.pump()

    def drain(self) -> None:
        """Begin nothing more there; what is begun goes on."""
        self._server.dispatcher.drain()
        self._runner.pump()

    def obey(self, verdict: Verdict) -> None:
        """Do what follows from the server's load; the limit is the dispatcher's already."""
        if verdict.give_up:
            self._server.give_up_some(verdict.give_up)
        self._runner.pump()

    def stay(self) -> None:
        """Wait in place."""
        self._runner.stay(self._server.number)

    def end(self, error: BaseException) -> None:
        """End the try, or, on a hold, this server's part in it."""
        if isinstance(error, RunHeld):
            self._runner.leave(self._server.number, error)
        else:
            self._runner.end(error)


def soonest(held: Sequence[RunHeld]) -> RunHeld:
    """The hold that may be over first: one without a known end may be at any moment.

    It tells for all of them whether anything was released, and until when a drained server is of no use.
    """
    first = min(held, key=lambda each: each.hold.until.timestamp() if each.hold.until is not None else 0.0)
    drained = [each.drained_until for each in held if each.drained_until is not None]
    first.released, first.drained_until = any(each.released for each in held), max(drained, default=None)
    return first
