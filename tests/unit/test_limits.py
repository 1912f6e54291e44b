"""How many requests may be in flight: the least of what everybody says, and who it was."""

from __future__ import annotations

import pytest

from airflow_llm_provider.core.limits import limit_in_force
from airflow_llm_provider.exceptions import ConfigurationError


def limit(**said):
    nothing = {"asked": None, "ceiling": None, "slots": None, "headroom": 0, "pool_in_flight": None}
    return limit_in_force(connection="gpu", default=(64, "default"), **{**nothing, **said})


@pytest.mark.parametrize(
    ("said", "value", "set_by"),
    [
        ({}, 64, "default"),
        ({"asked": 200}, 200, "DAG"),
        ({"asked": 8, "ceiling": 8}, 8, "DAG"),
        ({"ceiling": 100}, 100, "connection gpu (max_in_flight)"),
        ({"ceiling": 100, "asked": 99}, 99, "DAG"),
        ({"slots": 256}, 256, "connection gpu (slots)"),
        ({"slots": 256, "headroom": 16}, 240, "connection gpu (slots 256 less headroom 16)"),
        ({"slots": 256, "headroom": 16, "ceiling": 100}, 100, "connection gpu (max_in_flight)"),
        ({"slots": 8, "headroom": 1, "ceiling": 100}, 7, "connection gpu (slots 8 less headroom 1)"),
        ({"slots": 8, "asked": 32}, 32, "DAG"),  # batch's own GPUs: the server may queue
        ({"pool_in_flight": 32}, 32, "pool_slots"),
        ({"pool_in_flight": 32, "asked": 33}, 32, "pool_slots"),  # cut, not refused: slots are the DAG's own to ask for
        ({"pool_in_flight": 32, "asked": 31}, 31, "DAG"),
        ({"pool_in_flight": 32, "slots": 48, "headroom": 16}, 32, "connection gpu (slots 48 less headroom 16)"),
        ({"pool_in_flight": 31, "slots": 48, "headroom": 16}, 31, "pool_slots"),
    ],
)
def test_the_least_binds_and_is_named(said, value, set_by):
    found = limit(**said)
    assert (found.name, found.value, found.set_by) == ("max_in_flight", value, set_by)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"asked": 101, "ceiling": 100}, r"asks for 101, and connection gpu \(max_in_flight\) allows 100"),
        (
            {"asked": 241, "slots": 256, "headroom": 16},
            r"asks for 241, and connection gpu \(slots 256 less headroom 16\)",
        ),
        ({"asked": 101, "ceiling": 100, "pool_in_flight": 1}, "asks for 101"),  # whatever else would have cut it
    ],
)
def test_a_dag_that_asks_for_more_than_the_connection_allows_is_refused(said, words):
    with pytest.raises(ConfigurationError, match=words):
        limit(**said)


@pytest.mark.parametrize(("slots", "headroom"), [(8, 8), (8, 9), (1, 1)])
def test_a_connection_that_leaves_batch_nothing_is_refused(slots, headroom):
    with pytest.raises(ConfigurationError, match=f"slots {slots}, of which headroom keeps {headroom} free"):
        limit(slots=slots, headroom=headroom)
