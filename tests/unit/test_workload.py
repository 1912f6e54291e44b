"""The table from workload and placement to a policy: what it promises, and that the docs show it as it is."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import pytest

from airflow_llm_provider.core.workload import (
    BATCH,
    POLICIES,
    Placement,
    Policy,
    Workload,
    batch_workload,
    implied_placement,
    placement_of,
)
from airflow_llm_provider.exceptions import ConfigurationError

DOC = Path(__file__).parents[2] / "docs" / "workloads.md"

HEAD = (
    "| workload | placement | vLLM `priority` | Airflow pool | priority weight | window | limit | headroom unread "
    "| objective obeyed | outage patience | deadline opens early |"
)


def rendered() -> str:
    """The table as docs/workloads.md must show it."""
    rows = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    for (workload, placement), policy in POLICIES.items():
        cells = (
            workload,
            placement,
            "not sent" if policy.priority is None else policy.priority,
            f"`[llm_batch] {policy.pool_option}`" if policy.pool_option else "`default_pool`",
            policy.priority_weight,
            "23:00-07:00 Europe/London" if policy.default_window else "–",
            policy.law if workload in BATCH else "–",
            policy.headroom,
            "yes" if policy.gated else "no",
            f"{policy.outage_patience_s:g} s",
            "yes" if policy.deadline_opens else "no",
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def test_the_docs_show_the_table_as_it_is():
    assert rendered() in DOC.read_text(), f"put this into {DOC.name}:\n{rendered()}"


def test_every_pair_has_a_policy():
    assert set(POLICIES) == set(product(Workload, Placement))


@pytest.mark.parametrize("workload", Workload)
def test_what_airflow_needs_at_parse_time_does_not_hang_on_the_connections_placement(workload):
    policies = [POLICIES[workload, placement] for placement in Placement]
    assert len({(each.pool_option, each.priority_weight) for each in policies}) == 1


@pytest.mark.parametrize("placement", [Placement.SHARED, Placement.TIME_SHIFTED])
def test_the_more_urgent_comes_first(placement):
    priorities = [POLICIES[workload, placement].priority for workload in Workload]
    assert priorities == sorted(set(priorities))
    assert priorities[0] == 0, "a real-time client that sends none has 0: nothing of ours may come before it"
    weights = [POLICIES[workload, placement].priority_weight for workload in Workload]
    assert weights == sorted(set(weights), reverse=True)


def test_a_dedicated_server_is_not_sent_priorities():
    assert {POLICIES[workload, Placement.DEDICATED].priority for workload in Workload} == {None}


@pytest.mark.parametrize("workload", sorted(BATCH))
def test_batch_leaves_real_time_its_share_wherever_they_meet(workload):
    dedicated, shared, shifted = (POLICIES[workload, placement] for placement in Placement)
    assert (dedicated.headroom, dedicated.gated, dedicated.default_window) == (0, False, False)
    assert (dedicated.law, shared.law, shifted.law) == ("adaptive", "headroom", "headroom")
    assert shared.headroom > shifted.headroom > 0
    assert (shared.gated, shifted.gated) == (True, True)
    assert (shared.default_window, shifted.default_window) == (False, True)


def test_only_burst_batch_may_open_a_window_early():
    assert {workload for (workload, _), policy in POLICIES.items() if policy.deadline_opens} == {Workload.BURST_BATCH}


@pytest.mark.parametrize(("slots", "headroom"), [(256, 16), (64, 16), (63, 15), (8, 2), (4, 1), (2, 1), (1, 0)])
def test_headroom_leaves_both_something_on_a_small_server(slots, headroom):
    assert POLICIES[Workload.SCHEDULED_BATCH, Placement.SHARED].headroom_of(slots) == headroom


def test_strictness():
    assert [one.stricter_than(other) for one, other in product(Placement, Placement)] == [
        *(False, False, False),
        *(True, False, False),
        *(True, True, False),
    ]


@pytest.mark.parametrize(
    ("window", "objective", "placement"),
    [(False, False, "dedicated"), (False, True, "shared"), (True, False, "time-shifted"), (True, True, "time-shifted")],
)
def test_a_connection_that_promises_something_is_not_taken_for_dedicated(window, objective, placement):
    assert implied_placement(window=window, objective=objective) == placement


def test_the_words():
    assert batch_workload("burst-batch") is Workload.BURST_BATCH
    assert placement_of("time-shifted") is Placement.TIME_SHIFTED
    with pytest.raises(ConfigurationError, match="workload is 'nightly'; it is one of realtime-interactive, realtime"):
        batch_workload("nightly")
    with pytest.raises(ConfigurationError, match="placement is 'cloud'; it is one of dedicated, shared, time-shifted"):
        placement_of("cloud")


@pytest.mark.parametrize("word", ["realtime-interactive", "realtime-async"])
def test_real_time_is_no_batch_task(word):
    with pytest.raises(ConfigurationError, match=f"workload is '{word}', .*'burst-batch' or 'scheduled-batch'"):
        batch_workload(word)


@pytest.mark.parametrize("name", ["headroom", "outage_patience_s", "priority_weight"])
def test_an_impossible_policy_cannot_be_made(name):
    sound = POLICIES[Workload.BURST_BATCH, Placement.SHARED]
    assert isinstance(sound, Policy)
    with pytest.raises(ConfigurationError, match=f"{name} must be 0 or more, not -1"):
        dataclasses.replace(sound, **{name: -1})
