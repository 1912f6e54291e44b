"""However a runner is woken, a bug in what it does then ends the try: nothing would wake it again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from dispatch_model import dispatcher, request

from airflow_llm_provider.batch.runner import Runner
from airflow_llm_provider.core.answers import AnswerRules
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.core.row_queue import Ticket
from airflow_llm_provider.core.spread import Spread
from airflow_llm_provider.endpoint.identity import ServedModel

if TYPE_CHECKING:
    from airflow_llm_provider.core.dispatch import Dispatcher

GONE = Failure(FailureKind.UNREACHABLE, "refused")


class BugError(Exception):
    """What nobody thought of."""


class Buggy(Spread):
    """Works once."""

    pumped = 0

    def order(self) -> list[int]:
        self.pumped += 1
        if self.pumped > 1:
            raise BugError
        return super().order()


class Client:
    async def identify(self) -> Failure:
        return GONE


def runner_of(*made: Dispatcher) -> Runner:
    nothing: Any = SimpleNamespace(totals=SimpleNamespace(failed=0))
    client: Any = Client()
    return Runner(
        clients=[(client, None) for _ in made],
        senders=[nothing for _ in made],
        spread=Buggy(made, made[0]._queue, limit=4),
        recorder=nothing,
        ledger=nothing,
        answers=AnswerRules(),
        tolerance=nothing,
        served=ServedModel("m", None, None),
        request_prefix="run",
    )


def waits(made: Dispatcher, now: float) -> None:
    """A row's back-off is over soon."""
    made._queue.later(Ticket(request(0)), now + 0.01)


def is_down(made: Dispatcher, now: float) -> None:
    """The server is to be asked whether it is there."""
    made.circuit.lost(GONE, now - 100)


@pytest.mark.parametrize("wakes", [waits, is_down])
async def test_a_bug_after_it_was_woken_ends_the_try(wakes: Any) -> None:
    made = dispatcher()
    runner = runner_of(made)
    wakes(made, asyncio.get_running_loop().time())
    runner.pump()
    assert not runner._ended.done()
    with pytest.raises(BugError):
        await asyncio.wait_for(runner._ended, 5)
