"""Which of Airflow's pools would keep a batch task from ever starting, or from leaving when it waits.

Owns the judgement and its words. Does not know where pools and tasks are read from (`cli.check_pools`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool as Airflow has it.

    Attributes:
        name: its name.
        slots: its size; None is without bounds.
        include_deferred: whether deferred tasks keep their slots.
    """

    name: str
    slots: int | None
    include_deferred: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """Somebody who wants slots of a pool.

    Attributes:
        pool: the pool's name.
        slots: how many at once.
        by: a task or a provider configuration's option, for people.
    """

    pool: str
    slots: int
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolProblem:
    """What is wrong with a pool, for whom, and what to do."""

    pool: str
    problem: str
    used_by: str
    remedy: str


def pool_problems(pools: Iterable[Pool], uses: Iterable[PoolUse]) -> list[PoolProblem]:
    """What is wrong with the pools that are used; pools that nobody uses may be as they like."""
    known = {pool.name: pool for pool in pools}
    used: dict[str, list[PoolUse]] = {}
    for use in uses:
        used.setdefault(use.pool, []).append(use)
    found = []
    for name in sorted(used):
        found += _of(known.get(name), name, sorted(used[name], key=lambda use: use.by))
    return found


def _of(pool: Pool | None, name: str, uses: list[PoolUse]) -> list[PoolProblem]:
    most = max(use.slots for use in uses)
    if pool is None:
        return [
            PoolProblem(
                pool=name,
                problem="does not exist: a task in it never starts",
                used_by=_names(uses),
                remedy=f"make it, with {most} slots or more",
            )
        ]
    found = []
    if pool.include_deferred:
        found.append(
            PoolProblem(
                pool=name,
                problem="counts deferred tasks: one that waits for its window keeps its slots all day",
                used_by=_names(uses),
                remedy="make it again, without --include-deferred",
            )
        )
    if pool.slots is not None and (wide := [use for use in uses if use.slots > (pool.slots or 0)]):
        found.append(
            PoolProblem(
                pool=name,
                problem=f"has {pool.slots} slots, and a task that needs more never starts",
                used_by=", ".join(f"{use.by} ({use.slots})" for use in wide),
                remedy=f"make it {most} slots or more, or pool_slots less",
            )
        )
    return found


def _names(uses: list[PoolUse]) -> str:
    names = list(dict.fromkeys(use.by for use in uses))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
