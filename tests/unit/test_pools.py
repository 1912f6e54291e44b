"""Which pools keep a batch task from starting, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_llm_provider.core.pools import Pool, PoolProblem, PoolUse, pool_problems
from airflow_llm_provider.get_provider_info import get_provider_info

ROOT = Path(__file__).parents[2]
POOLS_FILE = ROOT / "example_dags" / "pools.json"


def pool(slots=4, *, name="night", include_deferred=False):
    return Pool(name=name, slots=slots, include_deferred=include_deferred)


def use(slots=1, *, by="task d.t", of="night"):
    return PoolUse(pool=of, slots=slots, by=by)


@pytest.mark.parametrize(
    ("pools", "uses"),
    [
        ([], []),
        ([pool(4)], [use(1), use(4)]),
        ([pool(None)], [use(1000)]),  # without bounds
        ([pool(include_deferred=True, name="others"), pool()], [use()]),  # not used by us: their business
        ([pool(0, name="others")], []),
    ],
)
def test_nothing_is_wrong(pools, uses):
    assert pool_problems(pools, uses) == []


def test_a_pool_that_is_not_there():
    uses = [use(2, by="task d.b"), use(by="task d.a"), use(by="task d.a"), use(by="task e.c"), use(by="task f.d")]
    (found,) = pool_problems([pool(name="day")], uses)
    assert found == PoolProblem(
        pool="night",
        problem="does not exist: a task in it never starts",
        used_by="task d.a, task d.b, task e.c and 1 more",
        remedy="make it, with 2 slots or more",
    )


def test_a_pool_that_counts_deferred_tasks():
    (found,) = pool_problems([pool(include_deferred=True)], [use()])
    assert found.problem.startswith("counts deferred tasks")
    assert found.used_by == "task d.t"


@pytest.mark.parametrize("slots", [0, 1, 2])
def test_a_pool_that_is_too_small_names_every_task_that_never_starts(slots):
    uses = [use(3, by="task d.wide"), use(slots, by="task d.fits"), use(5, by="task e.wider")]
    (found,) = pool_problems([pool(slots)], uses)
    assert found.problem == f"has {slots} slots, and a task that needs more never starts"
    assert found.used_by == "task d.wide (3), task e.wider (5)"
    assert found.remedy == "make it 5 slots or more, or pool_slots less"


def test_a_pool_may_be_wrong_twice_and_pools_come_by_name():
    problems = pool_problems([pool(1, name="b", include_deferred=True)], [use(2, of="b"), use(of="c"), use(of="a")])
    assert [each.pool for each in problems] == ["a", "b", "b", "c"]


def test_the_docs_show_the_example_as_it_is():
    assert f"```json\n{POOLS_FILE.read_text()}```" in (ROOT / "docs" / "how-to" / "pools.md").read_text()


def test_the_example_pools_are_those_of_the_configurations_examples():
    pools = json.loads(POOLS_FILE.read_text())
    options = get_provider_info()["config"]["llm_batch"]["options"]
    assert set(pools) == {options["pool_scheduled_batch"]["example"], options["pool_burst_batch"]["example"]}
    per_slot = int(options["requests_per_slot"]["example"])
    assert all(f"One slot is {per_slot} requests in flight" in each["description"] for each in pools.values())
    assert sum(each["slots"] for each in pools.values()) * per_slot == 256 - 16  # docs/how-to/pools.md
