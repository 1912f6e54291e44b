"""Which requests in flight are given up when real-time needs their slots.

Owns the order: the cheapest loss first. Pure. Does not know how many must go (`core.limit_headroom`) nor how a request
is cancelled (`batch.flights`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from airflow_llm_provider.core.row_queue import Ticket

OFTEN = 5
"""A row given up so often in a row is finished, whoever wants its slot."""

Key = TypeVar("Key", bound="Hashable")


def cheapest(in_flight: Mapping[Key, Ticket], sequences: int, *, often: float = OFTEN) -> list[Key]:
    """The requests whose loss is the cheapest: those that were sent last.

    Args:
        in_flight: the rows' tickets, by request.
        sequences: how many sequences are given up; of a request for several answers, all are.
        often: a row that was given up so many times in a row, with nothing kept of it, is spared: it would never end.
    """
    chosen = []
    for key, ticket in sorted(in_flight.items(), key=lambda each: each[1].sent_s, reverse=True):
        if sequences <= 0:
            break
        if ticket.fruitless < often:
            chosen.append(key)
            sequences -= ticket.request.sequences
    return chosen
