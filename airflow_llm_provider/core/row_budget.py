"""What a failure costs its row, and when the row ends of it.

Owns the budgets. Does not know when a failure is the row's business and when the endpoint's (`core.dispatch`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_llm_provider.core.request import RowError

if TYPE_CHECKING:
    from airflow_llm_provider.core.retry import Failure
    from airflow_llm_provider.core.row_queue import Ticket

MAX_IMMEDIATE = 3
"""How often in a row a request goes again at once after a stale connection; then the endpoint counts as lost."""

MAX_SUSPICIONS = 5
"""How many deaths of the server a row may have been inside of before it is taken for their cause."""


def row_error(failure: Failure) -> RowError:
    """The error of a row that ends with `failure`."""
    return RowError(failure.kind, failure.message, failure.http_status)


def spend(ticket: Ticket, failure: Failure, *, max_attempts: int) -> RowError | None:
    """The row failed by itself; its error where that was the last attempt."""
    ticket.spent += 1
    ticket.immediate = 0
    return row_error(failure) if ticket.spent >= max_attempts else None


def may_go_at_once(ticket: Ticket) -> bool:
    """The connection was stale; whether that may be believed once more."""
    ticket.immediate = (ticket.immediate + 1) % (MAX_IMMEDIATE + 1)
    return ticket.immediate > 0


def suspect(ticket: Ticket, failure: Failure, *, death: bool) -> RowError | None:
    """The server was lost with the row in flight; its error where it is taken for the cause.

    Args:
        ticket: the row's.
        failure: how it ended.
        death: whether that loss counts: after one that no answer followed, the server may just be away still, and
            waiting out an outage convicts nobody.
    """
    ticket.doubtful = True
    ticket.suspicions += death
    if ticket.suspicions < MAX_SUSPICIONS:
        return None
    return RowError(
        failure.kind,
        f"in flight at {ticket.suspicions} deaths of the server and taken for their cause; the last: {failure.message}",
        failure.http_status,
    )
