"""Whatever the server does, rows settle once or the run stops; never too many in flight, never for ever."""

from __future__ import annotations

from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING

from dispatch_model import World, dispatcher
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_llm_provider.core.retry import REACTIONS, SUSPECT, Failure, FailureKind, Reaction
from airflow_llm_provider.core.row_budget import MAX_IMMEDIATE, MAX_SUSPICIONS

if TYPE_CHECKING:
    from dispatch_model import Order

    from airflow_llm_provider.core.row_queue import Ticket

GOES_ON = [kind for kind, reaction in REACTIONS.items() if reaction is not Reaction.STOP]
ROW_PAYS = [
    kind
    for kind, reaction in REACTIONS.items()
    if reaction in (Reaction.DEAD_LETTER, Reaction.RETRY, Reaction.RETRY_NOW) or kind in SUSPECT
]
DURATIONS_S = st.sampled_from([0.0, 0.01, 1.0, 6.0, 700.0])
LIMITS = st.integers(1, 24)


def endings(kinds: list[FailureKind]) -> st.SearchStrategy[tuple[float, Failure | None]]:
    failures = st.builds(
        Failure, st.sampled_from(kinds), st.just("x"), st.none(), st.sampled_from([None, 0.5, 40.0, 900.0])
    )
    return st.tuples(DURATIONS_S, st.one_of(st.none(), failures))


def held(*, yields: bool) -> Order:
    return lambda world: world.hold(yields=yields)


def released(limit: int, closes_in_s: float | None) -> Order:
    return lambda world: world.release(limit=limit, closes_in_s=closes_in_s)


@st.composite
def gates(draw: st.DrawFn) -> list[tuple[float, Order]]:
    """Holds and releases at any moment, the last of them a release that nothing ends."""
    orders = st.one_of(
        st.builds(held, yields=st.booleans()),
        st.builds(released, LIMITS, st.one_of(st.none(), st.sampled_from([0.0, 1.0, 31.0, 900.0]))),
    )
    return [
        *draw(st.lists(st.tuples(st.sampled_from([0.0, 0.005, 0.7, 5.0, 100.0]), orders), max_size=30)),
        (draw(DURATIONS_S), released(draw(LIMITS), None)),
    ]


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 40),
    limit=LIMITS,
    low_water=st.integers(1, 40),
    script=st.lists(endings(list(FailureKind)), max_size=150),
    probes=st.lists(endings(GOES_ON), max_size=20),
    gate=gates(),
)
def test_every_row_settles_once_or_the_run_stops(  # noqa: PLR0917 - hypothesis hands them over by name
    rows: int,
    limit: int,
    low_water: int,
    script: list[tuple[float, Failure | None]],
    probes: list[tuple[float, Failure | None]],
    gate: list[tuple[float, Order]],
) -> None:
    sends, asked = iter(script), iter(probes)
    world = World(
        dispatcher(limit=limit),
        rows,
        lambda _ticket, _world: next(sends, (0.1, None)),
        probe=lambda _world: next(asked, (0.1, None)),
        low_water=low_water,
        gate=gate,
    ).run()
    if world.stopped is None:
        assert world.settled.keys() == set(range(rows))
    unsettled = world.flying.keys() - world.settled.keys()
    assert world.made.queued + len(unsettled) + len(world.settled) == world._fed, "a row is lost"


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(17, 40),
    limit=st.integers(1, 64),
    kinds=st.sampled_from(
        [
            [kind for kind, reaction in REACTIONS.items() if reaction is Reaction.RETRY],
            [
                kind
                for kind, reaction in REACTIONS.items()
                if reaction in (Reaction.HOLD, Reaction.BACK_OFF, Reaction.RETRY_NOW)
            ],
        ]
    ),
    outage_s=st.sampled_from([5.0, 200.0, 9_000.0]),
    data=st.data(),
)
def test_an_outage_costs_no_row(
    rows: int, limit: int, kinds: list[FailureKind], outage_s: float, data: st.DataObject
) -> None:
    """Whatever it looks like and however long it takes, while nothing is answered.

    Where each failure would be the row's, all rows fail after the same time: the quick ones of a few would have spent
    their attempts before enough others had failed once.
    """
    once_s = data.draw(DURATIONS_S)
    after_s = st.just(once_s) if FailureKind.TIMEOUT in kinds else DURATIONS_S
    failures = st.builds(Failure, st.sampled_from(kinds), st.just("x"))
    sends = cycle(data.draw(st.lists(st.tuples(after_s, failures), min_size=1, max_size=8)))
    probes = cycle(data.draw(st.lists(endings(GOES_ON), min_size=1, max_size=8)))
    world = World(
        dispatcher(limit=limit, patience_s=1e9),
        rows,
        lambda _ticket, world: next(sends) if world.now < 1000 + outage_s else (0.1, None),
        probe=lambda world: next(probes) if world.now < 1000 + outage_s else (0.1, None),
        gate=data.draw(gates()),
    ).run(steps=20_000)
    assert world.settled == dict.fromkeys(range(rows))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 30),
    limit=st.integers(1, 8),
    innocent=st.integers(0, 29),
    answer_s=st.sampled_from([0.1, 20.0]),
    poison=st.sets(st.integers(0, 29), max_size=4),
    script=st.lists(endings(ROW_PAYS), min_size=1, max_size=30),
)
def test_a_row_that_always_fails_for_its_own_sake_ends_while_others_are_answered(  # noqa: PLR0917 - by name, too
    rows: int, limit: int, innocent: int, answer_s: float, poison: set[int], script: list[tuple[float, Failure | None]]
) -> None:
    poison &= set(range(rows)) - {innocent % rows}
    failures = [(after_s, failure) for after_s, failure in script if failure is not None] or [
        (0.1, Failure(FailureKind.GARBLED, "x"))
    ]
    number = iter(range(10**9))

    def serve(ticket: Ticket, _world: World) -> tuple[float, Failure | None]:
        return failures[next(number) % len(failures)] if ticket.request.index in poison else (answer_s, None)

    world = World(dispatcher(limit=limit, patience_s=1e9), rows, serve).run()
    assert world.stopped is None
    assert {index for index, error in world.settled.items() if error} == poison
    most = (3 + MAX_SUSPICIONS) * (MAX_IMMEDIATE + 1)
    assert max(Counter(world.sent).values()) <= most
