from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from dispatch_model import World, dispatcher, request

from airflow_llm_provider.core.circuit import State
from airflow_llm_provider.core.commands import Probe, Send, Stop, Wait
from airflow_llm_provider.core.dispatch import SICK_ROWS
from airflow_llm_provider.core.drain import UNMEASURED_S
from airflow_llm_provider.core.retry import REACTIONS, SUSPECT, Failure, FailureKind, Reaction
from airflow_llm_provider.core.row_budget import MAX_IMMEDIATE, MAX_SUSPICIONS
from airflow_llm_provider.core.row_queue import ALONE_FROM
from airflow_llm_provider.exceptions import (
    ConfigurationError,
    EndpointDownError,
    EndpointRefusedError,
    RunStoppedError,
    TooManyErrorsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_llm_provider.core.commands import Command
    from airflow_llm_provider.core.dispatch import Dispatcher
    from airflow_llm_provider.core.row_queue import Ticket

BUSY = Failure(FailureKind.BUSY, "engine is currently busy", 503)
DRAINING = Failure(FailureKind.DRAINING, "cannot schedule new futures after shutdown", 500)
DIED = Failure(FailureKind.ENGINE_DEAD, "EngineCore encountered an issue", 500)
STALE = Failure(FailureKind.STALE_CONNECTION, "server disconnected")
GARBLED = Failure(FailureKind.GARBLED, "not JSON", 200)
BAD_GATEWAY = Failure(FailureKind.GATEWAY_LOST, "502 Bad Gateway", 502)
TIMED_OUT = Failure(FailureKind.TIMEOUT, "504 Gateway Time-out", 504)
BAD = Failure(FailureKind.BAD_REQUEST, "top_p must be in (0, 1]", 400)


def kinds(reaction: Reaction) -> list[FailureKind]:
    return [kind for kind, its in REACTIONS.items() if its is reaction]


def fed(rows: int, **settings: int) -> Dispatcher:
    made = dispatcher(**settings)
    made.feed(request(index) for index in range(rows))
    return made


def sent(command: Command) -> list[Ticket]:
    assert isinstance(command, Send), command
    return command.tickets


def indices(tickets: Iterable[Ticket]) -> list[int]:
    return [ticket.request.index for ticket in tickets]


def test_rows_go_in_order_and_never_more_than_the_limit() -> None:
    made = fed(5, limit=2)
    first = sent(made.next(0))
    assert indices(first) == [0, 1]
    assert (made.in_flight, made.queued) == (2, 3)
    assert made.next(0) == Wait(None)
    made.answered(first[0], 1)
    assert indices(sent(made.next(1))) == [2]


def test_the_limit_may_change_while_rows_are_in_flight() -> None:
    made = fed(6, limit=3)
    flying = sent(made.next(0))
    made.limit = 1
    made.answered(flying[0], 1)
    assert made.next(1) == Wait(None)
    made.answered(flying[1], 2)
    made.answered(flying[2], 2)
    assert indices(sent(made.next(2))) == [3]
    made.limit = 3
    assert indices(sent(made.next(2))) == [4, 5]


@pytest.mark.parametrize(("limit", "max_attempts"), [(0, 1), (1, 0)])
def test_a_limit_or_budget_below_one_is_refused(limit: int, max_attempts: int) -> None:
    with pytest.raises(ConfigurationError, match="1 or more"):
        dispatcher(limit=limit, max_attempts=max_attempts)


@pytest.mark.parametrize("kind", kinds(Reaction.DEAD_LETTER))
def test_dead_letter_ends_the_row_at_once_and_shows_that_the_endpoint_works(kind: FailureKind) -> None:
    made = fed(2, limit=1)
    error = made.failed(sent(made.next(0))[0], Failure(kind, "no", 400), 0)
    assert error is not None
    assert (error.kind, error.message, error.http_status) == (kind, "no", 400)
    assert indices(sent(made.next(0))) == [1]


@pytest.mark.parametrize("kind", kinds(Reaction.RETRY))
def test_retry_spends_an_attempt_waits_and_errors_when_they_are_spent(kind: FailureKind) -> None:
    made = fed(1, max_attempts=3)
    now = 0.0
    for wait in (1.0, 2.0):
        assert made.failed(sent(made.next(now))[0], Failure(kind, "x"), now) is None
        assert made.next(now) == Wait(now + wait)
        assert made.queued == 1
        now += wait
    ticket = sent(made.next(now))[0]
    error = made.failed(ticket, Failure(kind, "x"), now)
    assert error is not None
    assert error.kind == kind
    assert ticket.sends == 3
    assert (made.queued, made.in_flight) == (0, 0)


def test_retry_after_lengthens_the_wait_of_a_row() -> None:
    made = fed(1)
    made.failed(sent(made.next(0))[0], Failure(FailureKind.SERVER_ERROR, "x", 500, 30.0), 0)
    assert made.next(0) == Wait(30.0)


def test_other_rows_go_while_one_waits_and_the_earliest_comes_first() -> None:
    made = fed(3, limit=2)
    first, second = sent(made.next(0))
    made.failed(first, Failure(FailureKind.SERVER_ERROR, "x", 500, 9.0), 0)
    made.failed(second, GARBLED, 0)
    third = sent(made.next(0))
    assert indices(third) == [2]
    assert made.next(0) == Wait(1.0)
    assert indices(sent(made.next(1.0))) == [1]
    made.answered(third[0], 1.0)
    assert made.next(1.0) == Wait(9.0)


def test_retry_now_goes_again_at_once_before_all_others_and_spends_nothing() -> None:
    made = fed(3, limit=1, max_attempts=1)
    ticket = sent(made.next(0))[0]
    for _ in range(MAX_IMMEDIATE):
        assert made.failed(ticket, STALE, 0) is None
        assert sent(made.next(0)) == [ticket]
    assert ticket.spent == 0


def test_one_stale_connection_too_many_and_the_endpoint_counts_as_lost() -> None:
    made = fed(3, limit=1)
    ticket = sent(made.next(0))[0]
    for _ in range(MAX_IMMEDIATE):
        made.failed(ticket, STALE, 0)
        made.next(0)
    made.failed(ticket, STALE, 0)
    assert made.circuit.state is State.DOWN
    assert made.queued == 3


def test_a_row_that_a_proxy_always_hangs_up_on_ends() -> None:
    world = World(
        dispatcher(limit=2), 50, lambda ticket, _: (0.01, STALE if ticket.request.index == 7 else None), low_water=8
    ).run()
    assert {index for index, error in world.settled.items() if error} == {7}
    assert Counter(world.sent)[7] == MAX_SUSPICIONS * (MAX_IMMEDIATE + 1)


@pytest.mark.parametrize("kind", kinds(Reaction.BACK_OFF))
def test_back_off_pauses_everything_and_spends_nothing(kind: FailureKind) -> None:
    made = fed(4, limit=2, max_attempts=1)
    first, second = sent(made.next(0))
    assert made.failed(first, Failure(kind, "busy", 503, 7.0), 0) is None
    assert made.failed(second, Failure(kind, "busy", 503), 0) is None
    assert (made.in_flight, made.queued) == (0, 4)
    assert made.next(0) == Wait(7.0)
    again = sent(made.next(7.0))
    assert sorted(indices(again)) == [0, 1]
    assert [ticket.spent for ticket in again] == [0, 0]


@pytest.mark.parametrize("kind", kinds(Reaction.HOLD))
def test_hold_sends_nothing_until_probe_and_trial_succeed(kind: FailureKind) -> None:
    made = fed(3, limit=2, max_attempts=1)
    first, second = sent(made.next(0))
    assert made.failed(first, Failure(kind, "gone"), 0) is None
    assert made.failed(second, Failure(kind, "gone"), 0) is None
    assert made.next(0) == Wait(1.0)
    assert made.next(1.0) == Probe()
    assert made.next(1.0) == Wait(None)
    made.probed(None, 1.1)
    trial = sent(made.next(1.1))
    assert len(trial) == 1
    assert isinstance(made.next(1.1), Wait)
    made.answered(trial[0], 1.2)
    assert len(sent(made.next(1.2))) == 2
    assert first.spent == second.spent == 0


@pytest.mark.parametrize("kind", kinds(Reaction.STOP))
def test_stop_ends_the_run_with_the_servers_words_and_keeps_the_row(kind: FailureKind) -> None:
    made = fed(3, limit=1)
    assert made.failed(sent(made.next(0))[0], Failure(kind, "the model does not exist", 404), 0) is None
    command = made.next(0)
    assert isinstance(command, Stop)
    assert isinstance(command.error, EndpointRefusedError)
    assert "the model does not exist" in str(command.error)
    assert made.queued == 3


def test_every_reaction_is_tested() -> None:
    assert all(kinds(reaction) for reaction in Reaction)
    assert set(REACTIONS) == set(FailureKind)
    assert set(kinds(Reaction.HOLD)) >= SUSPECT


@pytest.mark.parametrize("kind", kinds(Reaction.STOP))
def test_a_probe_that_is_refused_stops_the_run(kind: FailureKind) -> None:
    made = fed(1)
    made.failed(sent(made.next(0))[0], DRAINING, 0)
    assert made.next(1.0) == Probe()
    made.probed(Failure(kind, "no"), 1.0)
    assert isinstance(made.next(1.0), Stop)


def test_the_first_reason_to_stop_stands() -> None:
    made = fed(1)
    first = RunStoppedError("first")
    made.stop(first)
    made.stop(TooManyErrorsError("second"))
    assert made.next(0) == Stop(first)


def test_an_endpoint_that_stays_down_ends_the_try_when_patience_does() -> None:
    world = World(
        dispatcher(patience_s=600), 3, lambda _t, _w: (0.01, DRAINING), probe=lambda _: (0.01, DRAINING)
    ).run()
    assert isinstance(world.stopped, EndpointDownError)
    assert "10 min 00 s" in str(world.stopped)
    assert 600 <= world.now - 1000 < 601
    assert world.made.queued == 3
    assert len(world.sent) == 3  # the rows were sent once, and only probes after that


def test_a_pause_lasts_while_our_own_requests_hold_the_capacity() -> None:
    """The long row is answered long after patience; waiting for it must neither give up nor spin."""
    made = fed(2, limit=2, patience_s=10)
    long, refused = sent(made.next(0))
    made.failed(refused, Failure(FailureKind.BUSY, "busy", 503, 1000.0), 0)
    assert made.next(5) == Wait(1000.0)
    assert made.next(500) == Wait(1000.0)  # past the patience: the moment to wait for is not
    made.answered(long, 600)
    assert made.next(600) == Wait(1000.0)
    assert indices(sent(made.next(1000))) == [1]


def test_a_pause_with_nothing_in_flight_ends_with_patience() -> None:
    made = fed(1, patience_s=10)
    made.failed(sent(made.next(0))[0], Failure(FailureKind.BUSY, "busy", 503, 1000.0), 0)
    assert made.next(1) == Wait(10.0)
    command = made.next(10)
    assert isinstance(command, Stop)
    assert isinstance(command.error, EndpointDownError)


def test_an_endpoint_that_comes_back_late_gets_its_trial() -> None:
    made = fed(2, limit=1, patience_s=10)
    made.failed(sent(made.next(0))[0], DRAINING, 0)
    assert made.next(9.0) == Probe()
    made.probed(None, 9.9)
    trial = sent(made.next(9.9))
    assert isinstance(made.next(11.0), Wait)  # patience is over, and the answer is on its way
    made.answered(trial[0], 12.0)
    assert isinstance(made.next(12.0), Send)


def test_a_row_that_fails_its_trial_lets_another_make_the_next() -> None:
    """A gateway that finds no server for one row only would hold the run for ever, were it the trial each time."""
    no_server = Failure(FailureKind.UNREACHABLE, "no healthy upstream", 503)
    world = World(
        dispatcher(limit=1, patience_s=60),
        20,
        lambda ticket, _: (0.01, no_server if ticket.request.index == 3 else None),
    ).run()
    assert world.settled.keys() == set(range(20)) - {3}


@pytest.mark.parametrize("died", [DIED, BAD_GATEWAY], ids=lambda failure: str(failure.kind))
@pytest.mark.parametrize("answer_s", [1.0, 60.0])
def test_a_row_that_kills_the_engine_ends_as_errored(died: Failure, answer_s: float) -> None:
    world = World(
        dispatcher(limit=1), 2, lambda ticket, _: (answer_s, None) if ticket.request.index else (0.01, died)
    ).run()
    error = world.settled[0]
    assert error is not None
    assert (error.kind, error.http_status) == (died.kind, died.http_status)
    assert f"{MAX_SUSPICIONS} deaths" in error.message
    assert Counter(world.sent)[0] == MAX_SUSPICIONS


def test_a_row_that_no_other_vouches_for_waits_until_patience_ends() -> None:
    """Nothing was ever answered: whether it is the row or the server, nobody can say."""
    world = World(dispatcher(), 1, lambda _t, _w: (1.0, DIED)).run()
    assert isinstance(world.stopped, EndpointDownError)
    assert not world.settled


@pytest.mark.parametrize("died", [DIED, BAD_GATEWAY], ids=lambda failure: str(failure.kind))
@pytest.mark.parametrize("limit", [1, 8, 64])
@pytest.mark.parametrize("killer", [0, 50, 199])
def test_a_row_that_kills_the_engine_takes_no_other_row_with_it(limit: int, killer: int, died: Failure) -> None:
    def serve(ticket: Ticket, world: World) -> tuple[float, Failure | None]:
        if ticket.request.index != killer:
            return 1.0, None
        world.end_all(died)
        return 0.001, died

    world = World(dispatcher(limit=limit), 200, serve, low_water=max(128, 2 * limit)).run()
    assert {index for index, error in world.settled.items() if error} == {killer}
    assert len(world.settled) == 200


def test_failures_of_many_rows_mean_that_the_endpoint_is_sick_and_hold_the_run() -> None:
    made = fed(SICK_ROWS + 10, limit=SICK_ROWS + 10, max_attempts=2)
    flying = sent(made.next(0))
    assert [made.failed(ticket, GARBLED, 0) for ticket in flying] == [None] * len(flying)
    assert [ticket.spent for ticket in flying] == [1] * (SICK_ROWS - 1) + [0] * 11
    assert made.circuit.state is State.DOWN


def test_one_failing_row_is_no_sickness_however_often_it_fails() -> None:
    made = fed(1, max_attempts=SICK_ROWS + 5)
    now = 0.0
    for _ in range(SICK_ROWS + 4):
        assert made.failed(sent(made.next(now))[0], GARBLED, now) is None
        now += 30.0
    assert made.circuit.state is State.UP


def test_rows_that_failed_before_count_when_the_endpoint_gets_sick() -> None:
    """The last rows of a run have all failed once; then the endpoint answers nothing any more."""
    made = fed(SICK_ROWS + 4, limit=SICK_ROWS + 4, max_attempts=3)
    flying = sent(made.next(0))
    for ticket in flying[: SICK_ROWS // 2]:
        made.failed(ticket, GARBLED, 0)
    made.answered(flying[-1], 0)
    for ticket in flying[SICK_ROWS // 2 : -1]:
        made.failed(ticket, GARBLED, 0)
    made.feed([request(100)])
    extra = sent(made.next(0.5))
    made.answered(extra[0], 0.5)
    again = sent(made.next(1.0))
    assert len(again) == SICK_ROWS + 3
    for ticket in again:
        made.failed(ticket, GARBLED, 1.0)
    assert made.circuit.state is State.DOWN
    assert sum(ticket.spent == 2 for ticket in again) == SICK_ROWS - 1


def test_an_answer_between_failures_means_that_the_endpoint_is_well() -> None:
    made = fed(4 * SICK_ROWS, limit=4 * SICK_ROWS)
    flying = sent(made.next(0))
    for place, ticket in enumerate(flying):
        if place % 4 == 0:
            made.answered(ticket, 0)
        else:
            made.failed(ticket, GARBLED, 0)
    assert made.circuit.state is State.UP


OUTAGE_S = 6000.0

AFTER_TRIAL = {
    kind: {
        Reaction.DEAD_LETTER: State.UP,  # it is read and refused: the endpoint works
        Reaction.STOP: State.TRIAL,  # the run ends
        Reaction.BACK_OFF: State.PAUSED,
    }.get(reaction, State.DOWN)
    for kind, reaction in REACTIONS.items()
}


@pytest.mark.parametrize(("rows", "after_s"), [(17, 6.0), (64, 6.0), (100, 30.0), (300, 61.0), (300, 0.01)])
@pytest.mark.parametrize("kind", sorted({*kinds(Reaction.RETRY), *kinds(Reaction.HOLD), *kinds(Reaction.RETRY_NOW)}))
def test_an_outage_costs_no_row_however_slowly_it_fails(kind: FailureKind, rows: int, after_s: float) -> None:
    """A gateway's 504 comes after more than a trial's grace."""

    def serve(_: Ticket, world: World) -> tuple[float, Failure | None]:
        return (after_s, Failure(kind, "x")) if world.now < 1000 + OUTAGE_S else (1.0, None)

    world = World(dispatcher(limit=64, patience_s=7200), rows, serve).run(steps=100_000)
    assert world.settled == dict.fromkeys(range(rows))


@pytest.mark.parametrize("kind", sorted({*kinds(Reaction.RETRY), *SUSPECT}))
def test_an_outage_that_fails_slowly_ends_the_try_when_patience_does(kind: FailureKind) -> None:
    world = World(dispatcher(limit=64), 64, lambda _t, _w: (6.0, Failure(kind, "x"))).run()
    assert isinstance(world.stopped, EndpointDownError)
    assert not world.settled


@pytest.mark.parametrize("kind", kinds(Reaction.RETRY))
@pytest.mark.parametrize("poison", [SICK_ROWS - 1, SICK_ROWS, 3 * SICK_ROWS])
def test_rows_that_always_fail_end_when_no_others_are_left(kind: FailureKind, poison: int) -> None:
    """As many as make an endpoint look sick: a row that was answered before shows that it is not."""
    rows = 200

    def serve(ticket: Ticket, _: World) -> tuple[float, Failure | None]:
        return (60.0, Failure(kind, "x")) if ticket.request.index >= rows - poison else (1.0, None)

    world = World(dispatcher(limit=64), rows, serve).run()
    assert {index for index, error in world.settled.items() if error} == set(range(rows - poison, rows))
    assert len(world.settled) == rows


def sick(made: Dispatcher) -> float:
    """Let every row in flight fail; returns the moment at which a trial may be sent."""
    for ticket in sent(made.next(0)):
        assert made.failed(ticket, TIMED_OUT, 0) is None
    assert made.next(1.0) == Probe()
    made.probed(None, 1.0)
    return 1.0


def answered_then_sick() -> tuple[Dispatcher, Ticket]:
    """A sick endpoint that answered row 0 before, and the trial that is in flight."""
    made = fed(SICK_ROWS + 1, limit=SICK_ROWS)
    first, *others = sent(made.next(0))
    assert made.answered(first, 0)
    for ticket in [*others, *sent(made.next(0))]:
        assert made.failed(ticket, TIMED_OUT, 0) is None
    made.next(1.0)
    made.probed(None, 1.0)
    trial = sent(made.next(1.0))
    assert trial == [first]
    return made, trial[0]


def test_a_sick_endpoint_is_taken_back_on_an_answer_and_not_on_a_trial_that_lives() -> None:
    made = fed(3 * SICK_ROWS, limit=2 * SICK_ROWS)
    now = sick(made)
    trial = sent(made.next(now))
    assert len(trial) == 1
    assert made.next(now + 300.0) == Wait(None)
    made.answered(trial[0], now + 400.0)
    assert len(sent(made.next(now + 400.0))) == 2 * SICK_ROWS


def test_a_sick_endpoint_is_asked_for_what_it_has_answered_before() -> None:
    made, trial = answered_then_sick()
    queued = made.queued
    assert made.failed(trial, TIMED_OUT, 2.0) is None
    assert made.circuit.state is State.DOWN
    assert (made.queued, made.in_flight) == (queued, 0)
    assert made.next(10.0) == Probe()
    made.probed(None, 10.0)
    assert sent(made.next(10.0)) == [trial]


def test_its_second_answer_is_not_kept_and_clears_the_endpoint() -> None:
    made, trial = answered_then_sick()
    assert not made.answered(trial, 2.0)
    again = sent(made.next(2.0))
    assert len(again) == SICK_ROWS
    for ticket in again[:-1]:
        assert made.failed(ticket, TIMED_OUT, 3.0) is None
    assert made.circuit.state is State.UP
    assert max(ticket.spent for ticket in again) == 2


@pytest.mark.parametrize(("kind", "state"), [(kind, AFTER_TRIAL[kind]) for kind in FailureKind])
def test_what_a_row_that_was_answered_before_meets_says_nothing_about_the_row(kind: FailureKind, state: State) -> None:
    made, trial = answered_then_sick()
    queued = made.queued
    for _ in range(5):
        assert made.failed(trial, Failure(kind, "x"), 2.0) is None
        assert made.circuit.state is state
        assert (made.queued, made.in_flight) == (queued, 0)
        made.in_flight += 1  # as if it had been sent once more
    assert isinstance(made.next(2.0), Stop) is (REACTIONS[kind] is Reaction.STOP)


@pytest.mark.parametrize("decided", ["yielded", "stale"])
def test_where_a_trials_end_decides_nothing_another_is_sent(decided: str) -> None:
    made = fed(3 * SICK_ROWS, limit=2 * SICK_ROWS)
    now = sick(made)
    (trial,) = sent(made.next(now))
    if decided == "yielded":
        made.yielded(trial, 0.0)
    else:
        made.failed(trial, STALE, now)
    assert sent(made.next(now)) == [trial]
    assert made.next(now) == Wait(None)


def test_a_trial_of_a_row_that_was_answered_before_may_be_yielded() -> None:
    made, trial = answered_then_sick()
    queued = made.queued
    made.yielded(trial, 0.0)
    assert made.queued == queued
    assert sent(made.next(1.0)) == [trial]
    assert trial.attempts == 2


def test_a_late_failure_of_a_row_that_was_answered_before_does_not_take_the_endpoint_down() -> None:
    made, trial = answered_then_sick()
    made.circuit.answered()
    assert made.circuit.state is State.UP
    assert made.failed(trial, TIMED_OUT, 2.0) is None
    assert made.circuit.state is State.UP


def test_the_last_words_of_a_sick_endpoint_say_how_many_rows_failed() -> None:
    made = fed(SICK_ROWS + 1, limit=SICK_ROWS, patience_s=10)
    now = sick(made)
    assert made.failed(sent(made.next(now))[0], TIMED_OUT, 20.0) is None
    command = made.next(20.0)
    assert isinstance(command, Stop)
    assert f"{SICK_ROWS + 1} rows failed in the meantime" in str(command.error)


def test_nothing_is_sent_during_a_hold_and_what_is_in_flight_may_end() -> None:
    made = fed(3, limit=2)
    answered, failed = sent(made.next(0))
    made.hold()
    assert made.held
    assert made.next(0) == Wait(None)
    made.answered(answered, 1.0)
    assert made.failed(failed, GARBLED, 1.0) is None
    assert made.next(100.0) == Wait(None)
    assert (made.in_flight, made.queued) == (0, 2)
    made.release(limit=2, closes_s=None)
    assert not made.held
    assert indices(sent(made.next(100.0))) == [2, 1]


def test_no_probe_is_sent_during_a_hold() -> None:
    made = fed(1)
    made.failed(sent(made.next(0))[0], DRAINING, 0)
    made.hold()
    assert made.next(100.0) == Wait(None)
    made.release(limit=1, closes_s=None)
    assert made.next(100.0) == Probe()


def test_after_a_hold_the_endpoint_is_asked_before_the_try_gives_up() -> None:
    made = fed(1, patience_s=10)
    made.failed(sent(made.next(0))[0], DRAINING, 0)
    made.hold()
    assert made.next(1000.0) == Wait(None)
    made.release(limit=1, closes_s=None)
    assert made.next(1000.0) == Probe()
    made.probed(DRAINING, 1000.0)
    assert isinstance(made.next(1000.0), Stop)


def test_a_reason_to_stop_is_said_during_a_hold() -> None:
    made = fed(1)
    made.hold()
    reason = RunStoppedError("stopped")
    made.stop(reason)
    assert made.next(0) == Stop(reason)


def test_a_release_says_how_many_rows_may_be_in_flight() -> None:
    made = fed(9, limit=1)
    made.release(limit=3, closes_s=None)
    flying = sent(made.next(0))
    assert len(flying) == 3
    made.release(limit=1, closes_s=None)
    made.answered(flying[0], 1.0)
    made.answered(flying[1], 1.0)
    assert made.next(1.0) == Wait(None)
    made.answered(flying[2], 1.0)
    assert len(sent(made.next(1.0))) == 1


def test_a_row_is_sent_if_it_should_end_before_the_close() -> None:
    made = fed(4, limit=1)
    made.release(limit=1, closes_s=100.0)
    assert made.fits(100.0 - UNMEASURED_S)
    assert not made.fits(100.1 - UNMEASURED_S)
    (ticket,) = sent(made.next(100.0 - UNMEASURED_S))
    made.answered(ticket, 80.0)  # after 10 s, so that 12.5 s are allowed for
    assert made.fits(87.5)
    assert made.next(87.6) == Wait(None)
    assert len(sent(made.next(87.5))) == 1
    made.release(limit=1, closes_s=None)
    assert made.fits(1e9)


def test_a_trial_waits_for_a_close_too_and_a_probe_does_not() -> None:
    made = fed(2, limit=1)
    made.release(limit=1, closes_s=31.0)
    made.failed(sent(made.next(0))[0], DRAINING, 0)
    assert made.next(2.0) == Probe()
    made.probed(None, 2.0)
    assert made.next(2.0) == Wait(None)
    made.release(limit=1, closes_s=None)
    assert len(sent(made.next(2.0))) == 1


def test_a_back_off_goes_on_while_no_row_fits() -> None:
    made = fed(1)
    made.failed(sent(made.next(0))[0], GARBLED, 0)
    made.release(limit=1, closes_s=10.0)
    assert made.next(0) == Wait(1.0)
    assert made.next(1.0) == Wait(None)
    made.release(limit=1, closes_s=None)
    assert len(sent(made.next(1.0))) == 1


def test_a_row_that_yielded_goes_first_and_has_spent_nothing() -> None:
    made = fed(4, limit=2, max_attempts=1)
    first, second = sent(made.next(0))
    made.answered(first, 1.0)
    made.hold()
    made.yielded(second, 0.0)
    assert (made.in_flight, made.queued) == (0, 3)
    assert (second.sends, second.attempts, second.spent) == (1, 0, 0)
    made.release(limit=2, closes_s=None)
    assert indices(sent(made.next(2.0))) == [1, 2]
    assert (second.sends, second.attempts) == (2, 1)
    assert made.durations.predicted_s() == 1.25, "how long a row needs is not learnt from one that was given up"


def test_a_row_that_goes_alone_does_so_after_it_yielded_too() -> None:
    made = fed(3, limit=3)
    flying = sent(made.next(0))
    for ticket in flying[:2]:
        ticket.suspicions = ALONE_FROM
    for ticket in flying:
        made.yielded(ticket, 0.0)
    assert indices(sent(made.next(0))) in ([0, 2], [1, 2])


def test_a_trial_that_yielded_is_made_again() -> None:
    made = fed(2, limit=1)
    made.failed(sent(made.next(0))[0], DRAINING, 0)
    made.next(1.0)
    made.probed(None, 1.0)
    (trial,) = sent(made.next(1.0))
    made.hold()
    made.yielded(trial, 0.0)
    made.release(limit=1, closes_s=None)
    assert sent(made.next(500.0)) == [trial]
    assert made.circuit.state is State.TRIAL
