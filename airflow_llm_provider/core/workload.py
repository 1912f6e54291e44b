"""What a piece of work is and where it runs: two words, and everything that follows from them.

Owns the words, the one table from (workload, placement) to a `Policy`, and which placement is stricter. Does not know
what a connection or a DAG says (`operators.placing` does), nor how a window, an objective or a pool works.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.core.control_law import Kind


class Workload(StrEnum):
    """What the work is, most urgent first."""

    REALTIME_INTERACTIVE = "realtime-interactive"  # chat, voice: somebody waits for the first token
    REALTIME_ASYNC = "realtime-async"  # a service waits for the whole answer
    BURST_BATCH = "burst-batch"  # ad-hoc large documents: somebody waits, but not in front of the screen
    SCHEDULED_BATCH = "scheduled-batch"  # nightly summaries, weekly reports: throughput


class Placement(StrEnum):
    """Whose GPUs it runs on, from the freest to the strictest."""

    DEDICATED = "dedicated"  # batch's own
    SHARED = "shared"  # one vLLM with real-time, at any hour
    TIME_SHIFTED = "time-shifted"  # real-time's by day, batch's by night

    def stricter_than(self, other: Placement) -> bool:
        """Whether this placement leaves batch less than `other`: dedicated < shared < time-shifted."""
        order = list(Placement)
        return order.index(self) > order.index(other)


BATCH = frozenset({Workload.SCHEDULED_BATCH, Workload.BURST_BATCH})
"""The workloads a batch task may be."""

HEADROOM_SHARE = 4
"""The table's headroom takes at most one slot in so many, though always one: on a small server it must not leave batch
nothing, and one free slot does more for real-time than any priority does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What follows from a workload and a placement where nobody says otherwise.

    Attributes:
        priority: vLLM's ``priority``, lower is earlier, and a request that names none has 0; None: not sent. A server
            without ``--scheduling-policy priority`` ignores it silently.
        pool_option: the provider configuration's option that names the Airflow pool; None: ``default_pool``.
        priority_weight: Airflow's, absolute: who gets a pool's next slot, highest first.
        default_window: whether batch waits for 23:00-07:00 Europe/London where the connection names no window.
        law: what the limit on each server learns from its load; see `ControlLaw`.
        headroom: sequences left free for real-time while that load can't be read; see `headroom_of`.
        gated: whether a configured objective is obeyed.
        outage_patience_s: how long a try waits for an endpoint that is down or without capacity.
        deadline_opens: whether a deadline may open the window early, where the platform allows it.

    Raises:
        ConfigurationError: when a value is impossible.
    """

    priority: int | None
    pool_option: str | None
    priority_weight: int
    default_window: bool
    law: Kind
    headroom: int
    gated: bool
    outage_patience_s: float
    deadline_opens: bool

    def __post_init__(self) -> None:
        for name in ("headroom", "outage_patience_s", "priority_weight"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"A policy's {name} must be 0 or more, not {getattr(self, name)}")

    def headroom_of(self, slots: int) -> int:
        """The headroom on a server of `slots` sequences, which may be too small for the table's."""
        return min(self.headroom, max(slots // HEADROOM_SHARE, 1), slots - 1)


_Row = tuple[int | None, str | None, int, bool, "Kind", int, bool, float, bool]

# fmt: off
_ROWS: Mapping[Workload, Mapping[Placement, _Row]] = {
    # priority, pool option, priority_weight, default_window, law, headroom, gated, outage_patience_s, deadline_opens
    Workload.REALTIME_INTERACTIVE: {
        Placement.DEDICATED:    (None, None,                   100, False, "fixed",    0,  False, 2.0,    False),
        Placement.SHARED:       (0,    None,                   100, False, "fixed",    0,  False, 2.0,    False),
        Placement.TIME_SHIFTED: (0,    None,                   100, False, "fixed",    0,  False, 2.0,    False),
    },
    Workload.REALTIME_ASYNC: {
        Placement.DEDICATED:    (None, None,                   50,  False, "fixed",    0,  False, 10.0,   False),
        Placement.SHARED:       (10,   None,                   50,  False, "fixed",    0,  False, 10.0,   False),
        Placement.TIME_SHIFTED: (10,   None,                   50,  False, "fixed",    0,  False, 10.0,   False),
    },
    Workload.BURST_BATCH: {
        Placement.DEDICATED:    (None, "pool_burst_batch",     10,  False, "adaptive", 0,  False, 600.0,  True),
        Placement.SHARED:       (50,   "pool_burst_batch",     10,  False, "headroom", 16, True,  600.0,  True),
        Placement.TIME_SHIFTED: (50,   "pool_burst_batch",     10,  True,  "headroom", 4,  True,  600.0,  True),
    },
    Workload.SCHEDULED_BATCH: {
        Placement.DEDICATED:    (None, "pool_scheduled_batch", 1,   False, "adaptive", 0,  False, 1800.0, False),
        Placement.SHARED:       (100,  "pool_scheduled_batch", 1,   False, "headroom", 16, True,  1800.0, False),
        Placement.TIME_SHIFTED: (100,  "pool_scheduled_batch", 1,   True,  "headroom", 4,  True,  1800.0, False),
    },
}
# fmt: on


def _policy(row: _Row) -> Policy:
    priority, pool_option, priority_weight, default_window, law, headroom, gated, patience_s, deadline_opens = row
    return Policy(
        priority=priority,
        pool_option=pool_option,
        priority_weight=priority_weight,
        default_window=default_window,
        law=law,
        headroom=headroom,
        gated=gated,
        outage_patience_s=patience_s,
        deadline_opens=deadline_opens,
    )


POLICIES: Mapping[tuple[Workload, Placement], Policy] = MappingProxyType(
    {(workload, placement): _policy(row) for workload, rows in _ROWS.items() for placement, row in rows.items()}
)
"""The table. Pool option and weight are the same for every placement of a workload: Airflow needs them when the DAG is
parsed, long before a connection, which may name the placement, is read."""


def batch_workload(word: str) -> Workload:
    """The workload of that name.

    Raises:
        ConfigurationError: where there is none, or it is not batch's.
    """
    workload = _word(Workload, "workload", word)
    if workload not in BATCH:
        raise ConfigurationError(
            f"workload is {str(word)!r}, which is work that somebody waits for in front of the screen: a batch task is "
            f"{' or '.join(repr(str(each)) for each in Workload if each in BATCH)}. "
            f"Real-time requests go to the server by themselves; VLLMHook makes a client for one"
        )
    return workload


def placement_of(word: str) -> Placement:
    """The placement of that name.

    Raises:
        ConfigurationError: where there is none.
    """
    return _word(Placement, "placement", word)


def implied_placement(*, window: bool, objective: bool) -> Placement:
    """The placement of a connection that names none but says when batch may run, or what real-time was promised."""
    if window:
        return Placement.TIME_SHIFTED
    return Placement.SHARED if objective else Placement.DEDICATED


Word = TypeVar("Word", Workload, Placement)


def _word(kind: type[Word], name: str, word: str) -> Word:
    try:
        return kind(word)
    except ValueError:
        raise ConfigurationError(f"{name} is {word!r}; it is one of {', '.join(map(str, kind))}") from None
