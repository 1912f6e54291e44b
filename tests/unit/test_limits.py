"""How many requests may be in flight: the least of what everybody says, and who it was."""

from __future__ import annotations

import pytest

from airflow_llm_provider.core.control_law import FIXED, ControlLaw
from airflow_llm_provider.core.limits import limit_in_force
from airflow_llm_provider.exceptions import ConfigurationError

ADAPTIVE = ControlLaw(kind="adaptive")


def gives_way(slots, floor=0):
    return {"slots": slots, "headroom": floor, "law": ControlLaw(kind="headroom", slots=slots, floor=floor)}


def limit(**said):
    nothing = {"asked": None, "ceiling": None, "slots": None, "headroom": 0, "pool_in_flight": None, "law": FIXED}
    return limit_in_force(connection="gpu", **{**nothing, **said})


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
        ({"default": (48, "[llm_batch] max_in_flight")}, 48, "[llm_batch] max_in_flight"),
        # what is learned fills the server by itself: the bound is beyond what it should ever find
        ({"law": ADAPTIVE}, 1024, "default"),
        ({"law": ADAPTIVE, "servers": 3}, 3072, "default"),
        ({"law": ADAPTIVE, "default": (48, "[llm_batch] max_in_flight")}, 48, "[llm_batch] max_in_flight"),
        ({"law": ADAPTIVE, "slots": 256}, 512, "connection gpu (2 × slots 256)"),
        ({"law": ADAPTIVE, "slots": 256, "servers": 2}, 1024, "connection gpu (2 servers, 2 × slots 256)"),
        ({"law": ADAPTIVE, "slots": 256, "asked": 2000}, 2000, "DAG"),
        ({"law": ADAPTIVE, "slots": 256, "headroom": 16}, 240, "connection gpu (slots 256 less headroom 16)"),
        ({"law": ADAPTIVE, "pool_in_flight": 32}, 32, "pool_slots"),
        # beside real-time, in a calm, one waits in the server, unless a few of many slots are free
        (gives_way(256), 256, "connection gpu (slots)"),
        (gives_way(8), 9, "connection gpu (slots 8 and 1 that wait)"),
        ({**gives_way(8), "servers": 2}, 18, "connection gpu (2 servers, slots 8 and 1 that wait)"),
        (gives_way(256, 16), 240, "connection gpu (slots 256 less headroom 16)"),
        ({**gives_way(256), "asked": 256}, 256, "DAG"),
        ({**gives_way(256), "ceiling": 100}, 100, "connection gpu (max_in_flight)"),
        ({**gives_way(256), "pool_in_flight": 32}, 32, "pool_slots"),
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
        (
            {**gives_way(8), "asked": 10},
            r"asks for 10, and connection gpu \(slots 8 and 1 that wait\) allows 9",
        ),
    ],
)
def test_a_dag_that_asks_for_more_than_the_connection_allows_is_refused(said, words):
    with pytest.raises(ConfigurationError, match=words):
        limit(**said)


@pytest.mark.parametrize(("slots", "headroom"), [(8, 8), (8, 9), (1, 1)])
def test_a_connection_that_leaves_batch_nothing_is_refused(slots, headroom):
    with pytest.raises(ConfigurationError, match=f"slots {slots}, of which headroom keeps {headroom} free"):
        limit(slots=slots, headroom=headroom)
