from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.core.identity import RunIdentity, canonical, differences, fingerprint

IDS = st.one_of(st.text(min_size=1), st.text("./~ab:2F", min_size=1))
IDENTITIES = st.builds(RunIdentity, dag_id=IDS, task_id=IDS, run_id=IDS, map_index=st.integers(-1, 3))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SHAPING = st.dictionaries(st.text("ab", min_size=1, max_size=3), VALUES, max_size=4)


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(inner) for key, inner in reversed(value.items())}
    return [shuffled(inner) for inner in value] if isinstance(value, list) else value


@given(IDENTITIES, IDENTITIES)
def test_two_runs_never_share_a_path(one: RunIdentity, other: RunIdentity) -> None:
    assert (one.path() == other.path()) == (one == other)


@given(IDENTITIES)
def test_a_path_is_plain_and_never_climbs(identity: RunIdentity) -> None:
    segments = identity.path().split("/")
    assert len(segments) == (3 if identity.map_index < 0 else 4)
    assert all(segment.strip(".") for segment in segments)
    assert identity.path().isascii()
    assert "\\" not in identity.path()


@given(IDENTITIES, IDENTITIES)
def test_no_run_lies_inside_another(one: RunIdentity, other: RunIdentity) -> None:
    """But for a task that is mapped after it was not: its instances lie below where the task alone lay."""
    if (one.dag_id, one.task_id, one.run_id) != (other.dag_id, other.task_id, other.run_id):
        assert not one.path().startswith(f"{other.path()}/")


@given(SHAPING)
def test_the_fingerprint_knows_values_and_not_their_order(shaping: dict[str, Any]) -> None:
    assert canonical(shuffled(shaping)) == canonical(shaping)
    assert json.loads(canonical(shaping)) == shaping
    assert fingerprint(shuffled(shaping)) == fingerprint(shaping)


@given(SHAPING, SHAPING)
def test_a_difference_is_told_wherever_there_is_one(then: dict[str, Any], now: dict[str, Any]) -> None:
    def set_values(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: set_values(inner) for key, inner in value.items() if inner is not None}
        return value

    if differences(then, now):
        assert then != now
    else:
        assert set_values(then) == set_values(now)
    assert not differences(then, shuffled(then))
