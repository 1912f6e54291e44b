"""`LLMBatchGroup` as a DAG author and the scheduler see it; what its tasks do is in `test_shares` and tests/system."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from airflow.serialization.serialized_objects import DagSerialization

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.operators.batch_group import LLMBatchGroup
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator


def group_of(group_id: str = "batch", **arguments: Any) -> tuple[DAG, LLMBatchGroup]:
    with DAG("dag", schedule=None, default_args={"owner": "us"}) as dag:
        return dag, LLMBatchGroup(group_id, **{"source": "rows.jsonl", "prompt": "{{ row.text }}", **arguments})


def test_three_kinds_of_tasks_in_a_row() -> None:
    dag, group = group_of(tasks_at_once=3, pool="gpus", pool_slots=2)
    assert sorted(dag.task_ids) == ["batch.assemble", "batch.plan", "batch.work"]
    plan, work, assemble = (dag.get_task(f"batch.{name}") for name in ("plan", "work", "assemble"))
    assert work.upstream_task_ids == {"batch.plan"}
    assert assemble.upstream_task_ids == {"batch.plan", "batch.work"}
    assert work.max_active_tis_per_dagrun == 3
    assert (work.pool, work.pool_slots, work.retries) == ("gpus", 2, 3)
    assert group.output.operator is assemble
    assert {plan.run_task_id, work.partial_kwargs["run_task_id"], assemble.run_task_id} == {"batch"}


def test_it_stands_in_a_dag_as_one_thing() -> None:
    with DAG("dag", schedule=None) as dag:
        first = LLMBatchOperator(task_id="first", source="a", prompt="{{ row.text }}")
        group = LLMBatchGroup("batch", source="rows.jsonl", prompt="{{ row.text }}")
        first >> group
    assert dag.get_task("batch.plan").upstream_task_ids == {"first"}


@pytest.mark.parametrize("shares", [0, -1, 1025, 2.5, True, "8"])
def test_a_number_of_shares_that_none_can_have(shares: Any) -> None:
    with pytest.raises(ConfigurationError, match="shares must be a whole number from 1 to 1024"):
        group_of(shares=shares)


@pytest.mark.parametrize("name", ["task_id", "share", "run_task_id"])
def test_what_the_group_sets_itself(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}: the group sets that itself"):
        group_of(**{name: "x"})


def test_arguments_that_contradict_each_other_are_told_of_at_parse_time() -> None:
    with pytest.raises(ConfigurationError, match="no valid template"):
        group_of(prompt="{{ row.text")


def test_what_is_meant_for_all_of_it_is_not_done_three_times() -> None:
    results = Asset("s3://results/it")
    dag, group = group_of(
        outlets=[results],
        on_success_callback=print,
        trigger_rule="all_done",
        tooltip="words",
        default_args={"retries": 7},
    )
    plan, work, assemble = (dag.get_task(f"batch.{name}") for name in ("plan", "work", "assemble"))
    assert [task.outlets for task in (plan, assemble)] == [[], [results]]
    assert not work.partial_kwargs.get("outlets")
    assert not plan.on_success_callback
    assert assemble.on_success_callback
    assert [task.trigger_rule.value for task in (plan, work, assemble)] == ["all_done", "all_success", "all_success"]
    assert group.tooltip == "words"
    assert [task.retries for task in (plan, work, assemble)] == [7, 7, 7]


def test_its_default_args_reach_the_mapped_tasks_too() -> None:
    dag, _ = group_of(default_args={"vllm_conn_id": "b", "max_in_flight": 2})
    assert dag.get_task("batch.plan").vllm_conn_id == "b"
    work = dag.get_task("batch.work").unmap({"share": 3})
    assert (work.vllm_conn_id, work.max_in_flight, work.share) == ("b", 2, 3)


def test_shares_travel_by_xcom() -> None:
    with pytest.raises(ConfigurationError, match="do_xcom_push"):
        group_of(do_xcom_push=False)


def test_a_dag_with_a_group_can_be_serialised() -> None:
    dag, _ = group_of(shares=7)
    assert "batch.work" in str(DagSerialization.to_dict(dag))


@pytest.mark.parametrize("at_once", [0, -1, 1.5, True, "2"])
def test_a_number_of_tasks_at_once_that_none_can_have(at_once: Any) -> None:
    """Airflow would parse it, and its scheduler die of it."""
    with pytest.raises(ConfigurationError, match="tasks_at_once must be a whole number of 1 or more"):
        group_of(tasks_at_once=at_once)


@pytest.mark.parametrize(
    "path",
    [
        "s3://b/{{ ti.map_index }}",
        "/x/{{ task_instance.task_id }}",
        "/x/{{ task.task_id }}",
        "/x/{{ ti['map_index'] }}",
        "/x/{{ task_instance_key_str }}",
    ],
)
def test_a_result_path_of_one_task_alone(path: str) -> None:
    with pytest.raises(ConfigurationError, match="which differs from task to task of the group"):
        group_of(result_path=path)


@pytest.mark.parametrize(
    "path",
    [
        "s3://b/tasks/ti.id/nightly-task.key/{{ run_id }}",
        "{{ ti.xcom_pull(task_ids='prepare') }}",
        "/x/{{ ti.dag_id }}/{{ ti.run_id }}",
        "/x/{{ params.task.name }}",
    ],
)
def test_a_result_path_with_words_like_those(path: str) -> None:
    group_of(result_path=path)
