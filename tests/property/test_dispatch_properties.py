"""Whatever the server does, rows settle once or the run stops; never too many in flight, never for ever."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dispatch_model import World, dispatcher
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_llm_provider.core.dispatch import MAX_IMMEDIATE, MAX_SUSPICIONS
from airflow_llm_provider.core.retry import REACTIONS, SUSPECT, Failure, FailureKind, Reaction

if TYPE_CHECKING:
    from airflow_llm_provider.core.row_queue import Ticket

GOES_ON = [kind for kind, reaction in REACTIONS.items() if reaction is not Reaction.STOP]
ROW_PAYS = [
    kind
    for kind, reaction in REACTIONS.items()
    if reaction in (Reaction.DEAD_LETTER, Reaction.RETRY, Reaction.RETRY_NOW) or kind in SUSPECT
]
DURATIONS_S = st.sampled_from([0.0, 0.01, 1.0, 6.0, 700.0])


def endings(kinds: list[FailureKind]) -> st.SearchStrategy[tuple[float, Failure | None]]:
    failures = st.builds(
        Failure, st.sampled_from(kinds), st.just("x"), st.none(), st.sampled_from([None, 0.5, 40.0, 900.0])
    )
    return st.tuples(DURATIONS_S, st.one_of(st.none(), failures))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 40),
    limit=st.integers(1, 24),
    low_water=st.integers(1, 40),
    script=st.lists(endings(list(FailureKind)), max_size=150),
    probes=st.lists(endings(GOES_ON), max_size=20),
)
def test_every_row_settles_once_or_the_run_stops(
    rows: int,
    limit: int,
    low_water: int,
    script: list[tuple[float, Failure | None]],
    probes: list[tuple[float, Failure | None]],
) -> None:
    sends, asked = iter(script), iter(probes)
    world = World(
        dispatcher(limit=limit),
        rows,
        lambda _ticket, _world: next(sends, (0.1, None)),
        probe=lambda _world: next(asked, (0.1, None)),
        low_water=low_water,
    ).run()
    if world.stopped is None:
        assert world.settled.keys() == set(range(rows))
    waiting = world.made.queued + len(world.flying) + len(world.settled)
    assert waiting == world._fed, "a row is lost"


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 30),
    limit=st.integers(1, 8),
    poison=st.sets(st.integers(0, 29), max_size=4),
    script=st.lists(endings(ROW_PAYS), min_size=1, max_size=30),
)
def test_a_row_that_always_fails_for_its_own_sake_ends_while_others_are_answered(
    rows: int, limit: int, poison: set[int], script: list[tuple[float, Failure | None]]
) -> None:
    failures = [(after_s, failure) for after_s, failure in script if failure is not None] or [
        (0.1, Failure(FailureKind.GARBLED, "x"))
    ]
    number = iter(range(10**9))

    def serve(ticket: Ticket, _world: World) -> tuple[float, Failure | None]:
        return failures[next(number) % len(failures)] if ticket.request.index in poison else (0.1, None)

    world = World(dispatcher(limit=limit, patience_s=1e9), rows, serve).run()
    assert world.stopped is None
    assert {index for index, error in world.settled.items() if error} == poison & set(range(rows))
    most = (3 + MAX_SUSPICIONS) * (MAX_IMMEDIATE + 1)
    assert max(Counter(world.sent).values()) <= most
