from __future__ import annotations

from typing import Any

import pytest

from airflow_llm_provider.core.identity import RunIdentity, canonical, differences, fingerprint


def path_of(dag_id: str = "d", task_id: str = "t", run_id: str = "r", map_index: int = -1) -> str:
    return RunIdentity(dag_id=dag_id, task_id=task_id, run_id=run_id, map_index=map_index).path()


@pytest.mark.parametrize(
    ("run_id", "segment"),
    [
        ("manual__2026-01-01T00:00:00+00:00", "manual__2026-01-01T00~3A00~3A00~2B00~3A00"),
        ("a/b", "a~2Fb"),
        ("a~2Fb", "a~7E2Fb"),
        ("..", "~2E~2E"),
        (".", "~2E"),
        ("", ""),
        ("...x", "...x"),
        ("é", "~C3~A9"),
        ("a b", "a~20b"),
    ],
)
def test_a_segment_is_one_segment(run_id: str, segment: str) -> None:
    assert path_of(run_id=run_id) == f"d/t/{segment}"


def test_mapped_instances_lie_below_their_task() -> None:
    assert path_of(map_index=0) == "d/t/r/0"
    assert path_of(map_index=-1) == "d/t/r"


def test_says_who_it_is() -> None:
    assert str(RunIdentity(dag_id="d", task_id="g.t", run_id="r", map_index=3)) == "d.g.t[3] of run r"
    assert str(RunIdentity(dag_id="d", task_id="g.t", run_id="r")) == "d.g.t of run r"


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": None, "b": 1}, {"b": 1}, []),
        ({"prompt": "x"}, {"prompt": "y"}, ["prompt was 'x' and is 'y' now"]),
        ({"model": None}, {"model": "m"}, ["model was not set and is 'm' now"]),
        ({"model": "m"}, {"model": None}, ["model was 'm' and is not set now"]),
        (
            {"parameters": {"temperature": 0, "seed": 1}},
            {"parameters": {"temperature": 0.5, "top_p": 1}},
            [
                "parameters.seed was 1 and is not set now",
                "parameters.temperature was 0 and is 0.5 now",
                "parameters.top_p was not set and is 1 now",
            ],
        ),
    ],
)
def test_a_mismatch_says_what_changed(then: dict[str, Any], now: dict[str, Any], words: list[str]) -> None:
    assert differences(then, now) == words


def test_long_values_are_shown_by_their_ends() -> None:
    [line] = differences({"prompt": "a" * 500 + "old"}, {"prompt": "a" * 500 + "new"})
    assert len(line) < 300
    assert "old'" in line
    assert "new'" in line


def test_a_change_in_the_middle_of_a_long_value_is_a_change() -> None:
    assert differences({"p": "a" * 500 + "x" + "b" * 500}, {"p": "a" * 500 + "y" + "b" * 500})


def test_the_fingerprint_is_twelve_hex_digits_and_stable() -> None:
    assert fingerprint({"model": "m", "prompt": "ä"}) == fingerprint({"prompt": "ä", "model": "m"}) == "26960f414834"


def test_canonical_says_what_json_cannot() -> None:
    assert canonical({"b": [1, "ä"], "a": None}) == '{"a":null,"b":[1,"ä"]}'.encode()
    with pytest.raises(TypeError):
        canonical({"a": {1, 2}})


def test_a_name_longer_than_file_systems_bear_is_cut_and_stays_its_own() -> None:
    long, other = "\u65e5" * 40, "\u65e5" * 41
    path = RunIdentity(dag_id=long, task_id="t", run_id="r").path()
    segment = path.split("/")[0]
    assert len(segment) == 240
    assert segment.startswith("~E6~97~A5~E6")
    assert segment != RunIdentity(dag_id=other, task_id="t", run_id="r").path().split("/")[0]
    assert RunIdentity(dag_id="d" * 240, task_id="t", run_id="r").path() == f"{'d' * 240}/t/r"
