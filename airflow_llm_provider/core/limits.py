"""How many requests a task may have in flight: the least of what everybody says.

Owns which candidates there are and which of them binds. Does not know what a limit learns while a run goes on: that is
less still, and never more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_llm_provider.core.effective import Effective
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from airflow_llm_provider.core.control_law import ControlLaw

DEFAULT = 64
"""Requests in flight where nobody says and nothing is learned."""

DEFAULT_LEARNING = 1024
"""On each server, where nobody says and the limit finds the server's capacity by itself: beyond any that it should."""

ROOM = 2
"""Times a dedicated server's slots that may be in flight where the DAG does not say: what is learned is less."""


def limit_in_force(
    *,
    asked: int | None,
    connection: str,
    ceiling: int | None,
    slots: int | None,
    headroom: int,
    law: ControlLaw,
    servers: int = 1,
    pool_in_flight: int | None,
    default: tuple[int, str] | None = None,
) -> Effective[int]:
    """``min(asked, ceiling, servers × what one takes, pool_in_flight)`` of those that are said, and which it is.

    What one server takes is what the law may want in flight there at most. Where it knows no such number, it is
    ``slots - headroom``; without headroom the GPUs are batch's own, and a DAG may ask for more, which waits there.

    Args:
        asked: the DAG's; None where it leaves it to the others.
        connection: the connection's id, for words.
        ceiling: the connection's.
        slots: sequences that a server runs at once.
        headroom: how many sequences of each always stay free for real-time.
        law: what is learned on top.
        servers: how many servers there are.
        pool_in_flight: the task's pool slots times the requests that one stands for.
        default: where neither DAG nor connection nor pool says, with who set it; None: nobody did.

    Raises:
        ConfigurationError: the DAG asks for more than the connection allows, or nothing is left for batch.
    """
    by = f"connection {connection}"
    ceilings = [] if ceiling is None else [(ceiling, f"{by} (max_in_flight)")]
    if (each := _each(slots, headroom, law, asked=asked is not None, connection=connection)) is not None:
        most, words = each
        ceilings.append((servers * most, f"{by} ({words})" if servers == 1 else f"{by} ({servers} servers, {words})"))
    for value, who in ceilings:
        if asked is not None and asked > value:
            raise ConfigurationError(
                f"max_in_flight: the DAG asks for {asked}, and {who} allows {value}. A DAG may ask for less than the "
                "platform allows, not for more: leave max_in_flight out, or have the connection changed"
            )
    candidates = [*ceilings]
    if asked is not None:
        candidates.insert(0, (asked, "DAG"))
    if pool_in_flight is not None:
        candidates.append((pool_in_flight, "pool_slots"))
    if not candidates:
        learns = law.kind == "adaptive"
        candidates.append(default or (servers * DEFAULT_LEARNING if learns else DEFAULT, "default"))
    value, who = min(candidates, key=lambda candidate: candidate[0])
    return Effective("max_in_flight", value, who)


def _each(slots: int | None, headroom: int, law: ControlLaw, *, asked: bool, connection: str) -> tuple[int, str] | None:
    """What one server takes, and why; None where nothing says."""
    if slots is None:
        return None
    if headroom >= slots:
        raise ConfigurationError(
            f"Nothing is left for batch: connection {connection!r} says slots {slots}, of which headroom keeps "
            f"{headroom} free. Lower headroom, or serve with more --max-num-seqs"
        )
    if headroom:
        return slots - headroom, f"slots {slots} less headroom {headroom}"
    if law.most is not None:
        waits = law.most - slots
        return law.most, f"slots {slots} and {waits} that wait" if waits else "slots"
    if asked:
        return None
    return (ROOM * slots, f"{ROOM} × slots {slots}") if law.kind == "adaptive" else (slots, "slots")
