"""How many requests a task may have in flight: the least of what everybody says.

Owns which candidates there are and which of them binds. Does not know what a limit learns while a run goes on.
"""

from __future__ import annotations

from airflow_llm_provider.core.effective import Effective
from airflow_llm_provider.exceptions import ConfigurationError


def limit_in_force(
    *,
    asked: int | None,
    connection: str,
    ceiling: int | None,
    slots: int | None,
    headroom: int,
    servers: int = 1,
    pool_in_flight: int | None,
    default: tuple[int, str],
) -> Effective[int]:
    """``min(asked, ceiling, servers × (slots - headroom), pool_in_flight)`` of those that are said, and which it is.

    Args:
        asked: the DAG's; None where it leaves it to the others.
        connection: the connection's id, for words.
        ceiling: the connection's.
        slots: sequences that a server runs at once.
        servers: how many servers there are.
        headroom: how many sequences of each stay free for real-time. With 0 the GPUs are batch's own: more than `slots`
            may then be asked for, and wait in the server.
        pool_in_flight: the task's pool slots times the requests that one stands for.
        default: where neither DAG nor connection nor pool says, with who set it.

    Raises:
        ConfigurationError: the DAG asks for more than the connection allows, or nothing is left for batch.
    """
    by = f"connection {connection}"
    left = None if slots is None else slots - headroom
    if left is not None and left < 1:
        raise ConfigurationError(
            f"Nothing is left for batch: connection {connection!r} says slots {slots}, of which headroom keeps "
            f"{headroom} free. Lower headroom, or serve with more --max-num-seqs"
        )
    ceilings = [(ceiling, f"{by} (max_in_flight)")]
    if left is not None and (headroom or asked is None):
        each = f"slots {slots} less headroom {headroom}" if headroom else "slots"
        ceilings.append((servers * left, f"{by} ({each})" if servers == 1 else f"{by} ({servers} servers, {each})"))
    allowed = [(value, who) for value, who in ceilings if value is not None]
    for value, who in allowed:
        if asked is not None and asked > value:
            raise ConfigurationError(
                f"max_in_flight: the DAG asks for {asked}, and {who} allows {value}. A DAG may ask for less than the "
                "platform allows, not for more: leave max_in_flight out, or have the connection changed"
            )
    candidates = [*allowed]
    if asked is not None:
        candidates.insert(0, (asked, "DAG"))
    if pool_in_flight is not None:
        candidates.append((pool_in_flight, "pool_slots"))
    if not candidates:
        candidates.append(default)
    value, who = min(candidates, key=lambda candidate: candidate[0])
    return Effective("max_in_flight", value, who)
