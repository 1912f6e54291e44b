"""A batch task in virtual time: our core, fed without end, and what its rows ask the simulated engine for.

Owns the task's rows, its requests, and what an answer means for them. Does not know when anything happens (`virtual`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from airflow_llm_provider.core.circuit import Circuit
from airflow_llm_provider.core.dispatch import Dispatcher
from airflow_llm_provider.core.limit import FixedLimit, Learnt
from airflow_llm_provider.core.request import Position, RowRequest
from airflow_llm_provider.core.row_queue import RowQueue
from airflow_llm_provider.core.slice_rules import WORTH, eased_pace, slice_tokens_at
from airflow_llm_provider.simulator.engine import LARGE_GPU, TINY_ON_CPU, EngineSpec, SimRequest
from benchmarks.colocation.measures import Stretch
from benchmarks.colocation.policies import limit_of

if TYPE_CHECKING:
    from airflow_llm_provider.core.limit import Limit
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.simulator.engine import Finished
    from benchmarks.colocation.look import Look
    from benchmarks.colocation.policies import Policy

ROW_PROMPT = (60, 240)
ROW_ANSWER = (160, 640)


@dataclass(slots=True, kw_only=True)
class _Row:
    """A batch row on its way."""

    index: int
    prompt: int
    answer: int
    done: int = 0

    def next_tokens(self, slice_tokens: int | None) -> int:
        """Of its next request; `slice_tokens`: None where rows run whole. The rule is `core.slices.SlicedRow`'s."""
        left = self.answer - self.done
        return left if slice_tokens is None or left <= WORTH * slice_tokens else slice_tokens


@dataclass(slots=True, kw_only=True)
class VirtualTask:
    """See the module. Use `task_of`.

    Attributes:
        number: of all tasks.
        policy: what it may do.
        dispatcher: decides.
        rng: of its rows.
        pace: of one row in slices, tokens/s; None: not known yet.
        rows: on their way, by index.
        flights: in flight, by request id.
        landed: its answers.
        looks: its looks at the load.
    """

    number: int
    policy: Policy
    dispatcher: Dispatcher
    rng: Random
    pace: float | None = None
    rows: dict[int, _Row] = field(default_factory=dict)
    flights: dict[str, Ticket] = field(default_factory=dict)
    landed: list[Stretch] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def next_row(self, index: int) -> RowRequest:
        """Another row, for the dispatcher."""
        self.rows[index] = _Row(index=index, prompt=self.rng.randint(*ROW_PROMPT), answer=self.rng.randint(*ROW_ANSWER))
        return RowRequest(index, f"row-{index}", "/v1/completions", b"", Position(file="", line=index))

    def request(self, ticket: Ticket, request_id: str, *, block_size: int) -> SimRequest:
        """What a ticket's row asks for next."""
        row = self.rows[ticket.request.index]
        blocks = (row.prompt + row.answer) // block_size
        return SimRequest(
            request_id=request_id,
            prompt_tokens=row.prompt + row.done,
            max_tokens=row.next_tokens(self._slice_tokens),
            priority=self.policy.priority or 0,
            block_keys=tuple((self.number, row.index, block) for block in range(blocks)),
            every_token=False,
        )

    def answered(self, now: float, event: Finished) -> None:
        """A request in flight has its answer."""
        ticket = self.flights.pop(event.request_id)
        self.landed.append(
            Stretch(from_s=event.at_s - event.inference_s, to_s=event.at_s, amount=event.generated_tokens)
        )
        self.pace = eased_pace(self.pace, tokens=event.generated_tokens, seconds=now - ticket.sent_s)
        row = self.rows[ticket.request.index]
        row.done += event.generated_tokens
        if row.done < row.answer:
            self.dispatcher.sliced(ticket, now)
        else:
            self.dispatcher.answered(ticket, now)
            del self.rows[row.index]

    @property
    def _slice_tokens(self) -> int | None:
        if not self.policy.slices:
            return None
        return slice_tokens_at(self.pace, calm=self.dispatcher.learnt is not None and self.dispatcher.learnt.calm)


def task_of(policy: Policy, *, slots: int, number: int, seed: int) -> VirtualTask:
    """A task under a policy, on a server of so many slots.

    Args:
        policy: what it may do.
        slots: the server's.
        number: which of all tasks.
        seed: of everything that is random.
    """
    law: Limit | None
    if policy.law == "ideal":
        law = FixedLimit(slots)
    else:
        law = limit_of(policy, limit=policy.most(slots), slots=slots, rng=Random(f"{seed}/{number}/law"))
    dispatcher = Dispatcher(
        limit=policy.most(slots),
        max_attempts=5,
        wait_s=lambda _: 1.0,
        circuit=Circuit(wait_s=lambda _: 1.0, patience_s=600.0),
        queue=RowQueue(),
        learnt=None if law is None else Learnt(law),
    )
    return VirtualTask(number=number, policy=policy, dispatcher=dispatcher, rng=Random(f"{seed}/{number}/rows"))


def engine_spec(slots: int) -> EngineSpec:
    """The engine of so many slots: the tiny model on a CPU, or, of many, a large one on a GPU."""
    large = slots >= 64
    return EngineSpec(
        max_num_seqs=slots,
        policy="priority",
        async_scheduling=large,
        step=LARGE_GPU if large else TINY_ON_CPU,
    )
