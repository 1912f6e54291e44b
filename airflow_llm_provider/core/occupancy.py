"""What a run holds of its servers just now, what bounds that, and what others want of them.

Owns the numbers and their words, for the log, ``progress.json`` and metrics. Does not own a limit (`core.dispatch`
knows which there are), nor where any of it is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_llm_provider.core.dispatch import Dispatcher


class Bound(StrEnum):
    """Whose limit is the least."""

    RELEASE = "release"  # what was agreed on and is released; nothing on hold
    SHARE = "share"  # this server's part of what the run may have in flight
    LEARNED = "learned"  # what the server's load leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """Of one server, or of all of them.

    Attributes:
        in_flight: sequences of this run.
        limit: of them, at most.
        bound: whose that limit is.
        others: sequences of everybody else: real-time, and other batch tasks; None where no load was read.
        waiting: sequences in the servers' queues, whoever sent them; None where no load was read.
        yields: requests that this try gave up.
        reason: why what is learned is what it is; empty where nothing is.
    """

    in_flight: int
    limit: int
    bound: Bound
    others: int | None = None
    waiting: int | None = None
    yields: int = 0
    reason: str = ""

    def __str__(self) -> str:
        of = f" of {self.limit:,} ({self.bound})" if self.bound is not Bound.RELEASE else ""
        others = "" if self.others is None else f", {self.others:,} of others"
        yields = f", {self.yields:,} given up" if self.yields else ""
        return f"{self.in_flight:,} in flight{of}{others}{yields}"


def occupancy_of(dispatcher: Dispatcher) -> Occupancy:
    """Of one server."""
    learnt = dispatcher.learnt
    bounds = [
        (dispatcher.limit, Bound.RELEASE),
        (dispatcher.share, Bound.SHARE),
        (None if learnt is None else learnt.limit, Bound.LEARNED),
    ]
    limit, bound = min(((limit, bound) for limit, bound in bounds if limit is not None), key=lambda each: each[0])
    load = None if learnt is None else learnt.load
    return Occupancy(
        in_flight=dispatcher.in_flight,
        limit=0 if dispatcher.held else limit,
        bound=Bound.RELEASE if dispatcher.held else bound,
        others=None if learnt is None or load is None else learnt.others,
        waiting=None if load is None else load.waiting,
        yields=dispatcher.yields,
        reason="" if learnt is None else learnt.reason,
    )


def together(servers: Sequence[Occupancy], *, limit: int, told: Occupancy) -> Occupancy:
    """Of all servers.

    Args:
        servers: of each.
        limit: in flight over all of them, at most.
        told: the one whose reason is told.
    """
    others = [each.others for each in servers if each.others is not None]
    waiting = [each.waiting for each in servers if each.waiting is not None]
    allowed = sum(each.limit for each in servers)
    return Occupancy(
        in_flight=sum(each.in_flight for each in servers),
        limit=min(limit, allowed),
        bound=told.bound if allowed < limit else Bound.RELEASE,
        others=sum(others) if others else None,
        waiting=sum(waiting) if waiting else None,
        yields=sum(each.yields for each in servers),
        reason=told.reason,
    )
