"""The dispatcher: what to send next, and what each answer means for its row.

Owns what an event means for row and endpoint. Pure: `next` says what to do, the runner does it and reports back through
`answered`, `asks_again`, `sliced`, `begun_anew`, `failed`, `yielded` and `probed`. Does not know in which order rows go
(`core.row_queue`), what they may spend (`core.row_budget`), nor HTTP, files or clocks.

Decide, do, apply, as vLLM's own scheduler does it (`schedule()` → output → `update_from_output()`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_llm_provider.core.circuit import State
from airflow_llm_provider.core.commands import Probe, Send, Stop, Wait
from airflow_llm_provider.core.drain import RowDurations
from airflow_llm_provider.core.progress import duration
from airflow_llm_provider.core.retry import NO_CAPACITY, SUSPECT, Failure, Reaction
from airflow_llm_provider.core.row_budget import may_go_at_once, row_error, spend, suspect
from airflow_llm_provider.core.row_queue import RowQueue
from airflow_llm_provider.exceptions import ConfigurationError, EndpointDownError, EndpointRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_llm_provider.core.circuit import Circuit
    from airflow_llm_provider.core.commands import Command
    from airflow_llm_provider.core.limit import Learnt
    from airflow_llm_provider.core.request import RowError, RowRequest
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.exceptions import LLMBatchError

SICK_ROWS = 16
"""After this many different rows failed with no answer in between, the endpoint is taken for sick: failures cost the
rows nothing, the run is held, and only an answer lets it go on. A row that was answered before is sent again to get
one: if it fails, too, it is the endpoint; if not, it is the rows, and they go on to spend their attempts."""


class Dispatcher:
    """Decides for one run against one endpoint.

    Args:
        limit: requests in flight at most, 1 or more; `release` changes it.
        max_attempts: how often a row may fail by itself before it errors.
        wait_s: seconds before the n-th retry of a row, n from 1.
        circuit: the server's breaker.
        queue: the rows that wait; several dispatchers, one for each server, may share one.
        learnt: what is learned from the server's load; None: nothing is.
    """

    def __init__(
        self,
        *,
        limit: int,
        max_attempts: int,
        wait_s: Callable[[int], float],
        circuit: Circuit,
        queue: RowQueue | None = None,
        learnt: Learnt | None = None,
    ) -> None:
        if limit < 1 or max_attempts < 1:
            raise ConfigurationError(f"max_in_flight ({limit}) and max_attempts ({max_attempts}) must be 1 or more")
        self.limit = limit
        self.in_flight = 0  # sequences: a request for several answers counts as so many
        self.yields = 0  # requests given up by ourselves
        self.circuit = circuit
        self.learnt = learnt
        self.durations = RowDurations()
        self.held = False
        self.alone = True  # no other server of the run has requests in flight
        self.share: int | None = None
        """Requests in flight at most, as the run's limit is spread just now; None: all of `limit`."""
        self._closes_s: float | None = None
        self._draining = False
        self._max_attempts = max_attempts
        self._wait_s = wait_s
        self._queue = RowQueue() if queue is None else queue
        self._stop: LLMBatchError | None = None
        self._failing: set[int] = set()  # rows that failed since the last answer
        self._witness: Ticket | None = None  # answered last; None while it is in flight again, too
        self._trial: Ticket | None = None  # the trial in flight

    @property
    def queued(self) -> int:
        """Rows that wait to be sent, back-offs included."""
        return len(self._queue)

    @property
    def ready_bytes(self) -> int:
        """Of the bodies of rows that wait for their turn."""
        return self._queue.ready_bytes

    @property
    def begun(self) -> bool:
        """Whether a row waits of which slices are kept."""
        return self._queue.begun

    @property
    def needs(self) -> int:
        """Sequences that the next row asks for; 1 where none waits."""
        head = self._queue.head
        return 1 if head is None else head.request.sequences

    @property
    def most(self) -> int:
        """Sequences in flight at most, just now: the least of limit, share and what was learned."""
        learnt = None if self.learnt is None else self.learnt.limit
        return min(bound for bound in (self.limit, self.share, learnt) if bound is not None)

    def feed(self, requests: Iterable[RowRequest]) -> None:
        """Take in rows, in the order in which they should go."""
        self._queue.feed(requests)

    def release(self, *, limit: int, closes_s: float | None) -> None:
        """Rows may be sent, `limit` of them at a time, if they will have ended by `closes_s` (monotonic seconds)."""
        self.limit, self._closes_s, self.held, self._draining = limit, closes_s, False, False

    def drain(self) -> None:
        """No row may be begun; those that are go on, slice by slice, as long as the window is open."""
        self._draining = True

    def hold(self) -> None:
        """No row may be sent; those in flight are the runner's business."""
        self.held = True

    def fits(self, now: float) -> bool:
        """Whether a row may be begun at `now`: it should end before the window closes."""
        if self._draining:
            return False
        return self._closes_s is None or now + self.durations.predicted_s() <= self._closes_s

    def _open(self, now: float) -> bool:
        """Whether the window is open still: a row that began in time may use it to its end."""
        return self._closes_s is None or now < self._closes_s

    @property
    def away(self) -> bool:
        """Whether the server takes no rows just now, for whatever trouble it has."""
        return self.circuit.state is not State.UP

    def lost(self, now: float) -> bool:
        """Whether the server has gone without an answer for longer than the patience."""
        return not self.held and not self._patient(self.circuit.look(now)) and self.circuit.impatient(now)

    def next(self, now: float, *, may_give_up: bool = True) -> Command:
        """What to do at `now`. Tickets it hands out count as in flight from here on.

        Args:
            now: monotonic seconds.
            may_give_up: whether a server that is `lost` ends the try; not while another one works.
        """
        if self._stop is not None:
            return Stop(self._stop)
        if self.held:
            return Wait(None)
        state = self.circuit.look(now)
        if may_give_up and not self._patient(state) and self.circuit.impatient(now):
            return Stop(self._gave_up())
        if state is State.DOWN or state is State.PAUSED:
            deadline = None if not may_give_up or self._patient(state) else self.circuit.deadline
            return Wait(self._earliest(self.circuit.until, deadline))
        if state is State.PROBING:
            if self.circuit.asked:
                return Wait(None)
            self.circuit.asked = True
            return Probe()
        return self._send(now, state)

    def answered(self, ticket: Ticket, now: float) -> bool:
        """A row has a usable answer.

        Returns:
            Whether it is the row's first; another one is not to be kept.
        """
        self._landed(ticket)
        self.durations.note(ticket.took_s + now - ticket.sent_s)
        self._ended_well(ticket, now)
        is_first = not ticket.answered
        ticket.answered = True
        self._witness = ticket
        return is_first

    def sliced(self, ticket: Ticket, now: float) -> None:
        """A slice of a row ended: the row goes on, before others, if there is still room for it."""
        self._landed(ticket)
        ticket.parts += 1
        ticket.begun = True
        ticket.took_s += now - ticket.sent_s
        ticket.fruitless = ticket.immediate = 0
        self._ended_well(ticket, now)
        self._queue.first(ticket)

    def begun_anew(self, ticket: Ticket, now: float, *, answered: bool) -> None:
        """A row could not go on in slices: it goes again from its beginning, before others, and nothing of it is kept.

        Args:
            ticket: the row's.
            now: monotonic seconds.
            answered: whether its request was, which shows that the endpoint works.
        """
        self._landed(ticket)
        ticket.begun, ticket.took_s = False, 0.0
        if answered:
            self._ended_well(ticket, now)
        self._queue.first(ticket)

    def asks_again(self, ticket: Ticket, request: RowRequest, now: float) -> None:
        """A row has an answer that does not land: it asks for another one, in other words, before others do."""
        self._landed(ticket)
        ticket.request, ticket.sliced = request, None
        ticket.begun, ticket.took_s = True, 0.0  # it goes on in a drain, too: what it has would be asked for again
        ticket.fruitless = ticket.immediate = 0
        self._ended_well(ticket, now)
        self._queue.first(ticket)

    def failed(self, ticket: Ticket, failure: Failure, now: float) -> RowError | None:
        """The request failed.

        Returns:
            The row's error where the row ends here; None where it goes again or the run stops.
        """
        self._landed(ticket)
        if self.learnt is not None and failure.kind in NO_CAPACITY:
            self.learnt.capacity(now)
        if ticket.answered:
            self._witnessed(ticket, failure, now)
            return None
        return self._react(ticket, failure, now)

    def _react(self, ticket: Ticket, failure: Failure, now: float) -> RowError | None:
        match failure.reaction:
            case Reaction.DEAD_LETTER:
                self._works()
                return row_error(failure)
            case Reaction.RETRY:
                return self._spend(ticket, failure, now)
            case Reaction.RETRY_NOW:
                return self._again(ticket, failure, now)
            case Reaction.BACK_OFF:
                self.circuit.failed(failure, now)
                self._queue.first(ticket)
            case Reaction.HOLD:
                trial = self.circuit.state is State.TRIAL
                self.circuit.failed(failure, now)
                if failure.kind in SUSPECT:
                    return self._suspect(ticket, failure)
                if trial:  # another row makes the next one, should it be this one's fault
                    self._queue.last(ticket)
                else:
                    self._queue.first(ticket)
            case Reaction.STOP:
                self._queue.first(ticket)
                self._refuse(failure)
        return None

    def yielded(self, ticket: Ticket, now: float) -> None:
        """The request was given up by ourselves: the row goes again, before others, and has spent nothing."""
        if self.learnt is not None:
            self.learnt.gave_up(now, ticket.request.sequences)
        ticket.yields += 1
        ticket.fruitless += 1
        self.yields += 1
        self._landed(ticket)
        if ticket.answered:
            self._witness = ticket
        else:
            self._queue.first(ticket)

    def probed(self, failure: Failure | None, now: float) -> None:
        """The probe came back; None where the server is there and serves what the run asks for."""
        if failure is not None and failure.reaction is Reaction.STOP:
            self._refuse(failure)
        self.circuit.probed(failure, now)

    def stop(self, error: LLMBatchError) -> None:
        """Make the next command `Stop` with `error`; the first reason stands."""
        if self._stop is None:
            self._stop = error

    def _send(self, now: float, state: State) -> Send | Wait:
        """Send what the limit has room for and the window has time for; on trial, one row and no other."""
        due_s = self._queue.due_s(now)
        fits = self.fits(now)
        room = self.most - self.in_flight if fits or self._open(now) else 0
        idle = self.alone and self.in_flight == 0
        if state is State.TRIAL:
            tickets = self._try(room if fits else 0, now)
        else:
            tickets = self._queue.take(room, idle=idle, begun=not fits)
        if tickets:
            self.in_flight += sum(ticket.request.sequences for ticket in tickets)
            for ticket in tickets:
                ticket.sends += 1
                ticket.sent_s = now
            return Send(tickets)
        return Wait(self._earliest(self.circuit.until, due_s))

    def _try(self, room: int, now: float) -> list[Ticket]:
        """The one request of a trial, once: where the next row may fail by its own fault, of the row answered last."""
        head = self._queue.head
        if room < 1 or self.circuit.asked or head is None:
            return []
        doubtful = self._sick or head.doubtful
        if doubtful and self._witness is not None:
            tickets, self._witness = [self._witness], None
        else:
            tickets = self._queue.take_head()
        self._trial = tickets[0]
        self.circuit.tried(now, by_answer=doubtful)
        return tickets

    def _landed(self, ticket: Ticket) -> None:
        self.in_flight -= ticket.request.sequences
        self._queue.landed(ticket)
        if ticket is self._trial:
            self._trial = None
            if self.circuit.state is State.TRIAL:
                self.circuit.untried()  # unless what became of it is reported to the circuit next

    def _witnessed(self, ticket: Ticket, failure: Failure, now: float) -> None:
        """A row that was answered before is not now, which says nothing about the row."""
        self._witness = self._witness or ticket
        match failure.reaction:
            case Reaction.DEAD_LETTER:
                self._works()
            case Reaction.STOP:
                self._refuse(failure)
            case Reaction.BACK_OFF:
                self.circuit.failed(failure, now)
            case Reaction.HOLD:
                self.circuit.failed(failure, now)
            case Reaction.RETRY | Reaction.RETRY_NOW:
                if self.circuit.state is State.TRIAL:
                    self.circuit.lost(failure, now)

    @property
    def _sick(self) -> bool:
        return len(self._failing) >= SICK_ROWS

    def _ended_well(self, ticket: Ticket, now: float) -> None:
        if self.learnt is not None:
            self.learnt.ended(now, now - ticket.sent_s, in_flight=self.in_flight)
        self._works()

    def _works(self) -> None:
        self._failing.clear()
        self.circuit.answered()

    def _patient(self, state: State) -> bool:
        if state is State.PAUSED:
            return self.in_flight > 0  # the capacity that is missing is what our own requests hold
        if state is State.PROBING:
            return not self.circuit.asked  # after a hold, one look before giving up
        return state in (State.UP, State.TRIAL)  # an endpoint that is back gets its trial, however late

    def _spend(self, ticket: Ticket, failure: Failure, now: float) -> RowError | None:
        self._failing.add(ticket.request.index)
        if self._sick:
            self.circuit.lost(failure, now)
            self._queue.last(ticket)
            return None
        error = spend(ticket, failure, max_attempts=self._max_attempts)
        if error is None:
            self._queue.later(ticket, now + max(self._wait_s(ticket.spent), failure.retry_after_s or 0.0))
        return error

    def _again(self, ticket: Ticket, failure: Failure, now: float) -> RowError | None:
        if may_go_at_once(ticket):
            self._queue.first(ticket)
            return None
        self.circuit.lost(failure, now)
        return self._suspect(ticket, failure)  # or a row that a proxy hangs up on would go round for ever

    def _suspect(self, ticket: Ticket, failure: Failure) -> RowError | None:
        error = suspect(ticket, failure, death=self.circuit.was_alive)
        if error is None:
            self._queue.last(ticket)  # another row makes the trial
        return error

    def _refuse(self, failure: Failure) -> None:
        self.stop(EndpointRefusedError(f"The endpoint refuses every row: {failure.kind} – {failure.message}"))

    def _gave_up(self) -> EndpointDownError:
        circuit = self.circuit
        rows = f" {len(self._failing)} rows failed in the meantime." if self._sick else ""
        return EndpointDownError(
            f"The endpoint gave no answer for {duration(circuit.patience_s)}; last: {circuit.reason}.{rows} "
            "What has settled is kept; the next try goes on from there"
        )

    @staticmethod
    def _earliest(*moments: float | None) -> float | None:
        return min((moment for moment in moments if moment is not None), default=None)
