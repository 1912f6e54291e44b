"""Pool, slots, weight and retries as the scheduler sees them: in serialised DAGs, of every kind of task."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, TaskGroup, task_group

from airflow_llm_provider.decorators.vllm_batch import vllm_batch_task
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.operators.placing import place, pool_in_flight

try:
    from airflow.serialization.serialized_objects import DagSerialization
except ImportError:  # Airflow 3.1 calls it so
    from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Placed = dict[str, Any]


def rows(text: str = "") -> list[str]:
    return [text]


def plain(**arguments: Any) -> None:
    LLMBatchOperator(task_id="t", source=[], prompt="x", **arguments)


def mapped(**arguments: Any) -> None:
    LLMBatchOperator.partial(task_id="t", prompt="x", **arguments).expand(source=["a", "b"])


def mapped_by_kwargs(**arguments: Any) -> None:
    LLMBatchOperator.partial(task_id="t", prompt="x", **arguments).expand_kwargs([{"source": "a"}])


def in_a_mapped_group(**arguments: Any) -> None:
    @task_group
    def group(source: str) -> None:
        LLMBatchOperator(task_id="t", source=source, prompt="x", **arguments)

    group.expand(source=["a", "b"])


def decorated(**arguments: Any) -> None:
    vllm_batch_task(rows, task_id="t", prompt="x", **arguments)()


def decorated_and_mapped(**arguments: Any) -> None:
    vllm_batch_task(rows, task_id="t", prompt="x", **arguments).expand(text=["a", "b"])


KINDS = (plain, mapped, mapped_by_kwargs, in_a_mapped_group, decorated, decorated_and_mapped)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def scheduled(request: pytest.FixtureRequest) -> Callable[..., Placed]:
    """Make a task of one kind, and return what the scheduler reads from its serialised DAG."""

    def make(default_args: dict[str, Any] | None = None, **arguments: Any) -> Placed:
        with DAG("d", schedule=None, default_args=default_args or {}) as dag:
            request.param(**arguments)
        return seen(dag)

    return make


def seen(dag: DAG) -> Placed:
    (task,) = DagSerialization.from_dict(DagSerialization.to_dict(dag)).tasks
    rule = type(task.weight_rule).__name__  # a strategy, made from the serialised word
    return {
        "pool": task.pool,
        "pool_slots": task.pool_slots,
        "priority_weight": task.priority_weight,
        "weight_rule": rule.removeprefix("_").removesuffix("PriorityWeightStrategy").lower(),
        "retries": task.retries,
    }


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The platform team has named its pools."""
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__POOL_SCHEDULED_BATCH", "nightly")
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__POOL_BURST_BATCH", "bursts")


UNCONFIGURED = {
    "pool": "default_pool",
    "pool_slots": 1,
    "priority_weight": 1,
    "weight_rule": "absolute",
    "retries": 3,
}
EXPLICIT = {
    "pool": "mine",
    "pool_slots": 4,
    "priority_weight": 77,
    "weight_rule": "upstream",
    "retries": 0,
}


def test_no_pool_is_used_that_nobody_configured(scheduled):
    assert scheduled() == UNCONFIGURED
    assert scheduled(workload="burst-batch") == {**UNCONFIGURED, "priority_weight": 10}


@pytest.mark.usefixtures("pools")
def test_the_workload_leads_to_its_pool(scheduled):
    assert scheduled() == {**UNCONFIGURED, "pool": "nightly"}
    assert scheduled(workload="burst-batch") == {**UNCONFIGURED, "pool": "bursts", "priority_weight": 10}


@pytest.mark.usefixtures("pools")
@pytest.mark.parametrize("name", EXPLICIT)
def test_what_the_dag_says_beats_our_defaults(scheduled, name):
    expected = {**UNCONFIGURED, "pool": "nightly", name: EXPLICIT[name]}
    assert scheduled(**{name: EXPLICIT[name]}) == expected
    assert scheduled({name: EXPLICIT[name]}) == expected
    assert scheduled(default_args={name: EXPLICIT[name]}) == expected
    assert scheduled({name: UNCONFIGURED[name]}, **{name: EXPLICIT[name]}) == expected


@pytest.mark.usefixtures("pools")
def test_default_args_may_name_the_workload(scheduled):
    assert scheduled({"workload": "burst-batch"}) == {**UNCONFIGURED, "pool": "bursts", "priority_weight": 10}
    assert scheduled({"workload": "burst-batch"}, workload="scheduled-batch")["pool"] == "nightly"


@pytest.mark.usefixtures("pools")
@pytest.mark.parametrize("kind", [plain, mapped, decorated, decorated_and_mapped], ids=lambda kind: kind.__name__)
def test_a_groups_default_args_beat_the_dags(kind):
    outer = {"pool": "outers", "priority_weight": 8}
    with (
        DAG("d", schedule=None, default_args={"pool": "dags", "retries": 5}) as dag,
        TaskGroup("outer", default_args=outer),
        TaskGroup("inner"),
    ):
        kind()
    assert seen(dag) == {**UNCONFIGURED, "pool": "outers", "priority_weight": 8, "retries": 5}


@pytest.mark.usefixtures("pools")
@pytest.mark.parametrize("kind", ["plain", "mapped"])
def test_a_subclass_may_have_defaults_of_its_own(kind):
    class Ours(LLMBatchOperator):
        def __init__(self, *, workload="burst-batch", retries=9, pool_slots=2, **kwargs):
            super().__init__(workload=workload, retries=retries, pool_slots=pool_slots, **kwargs)

    with DAG("d", schedule=None) as dag:
        if kind == "plain":
            Ours(task_id="t", source=[], prompt="x")
        else:
            Ours.partial(task_id="t", prompt="x").expand(source=["a"])
    assert seen(dag) == {**UNCONFIGURED, "pool": "bursts", "priority_weight": 10, "retries": 9, "pool_slots": 2}


@pytest.mark.usefixtures("pools")
def test_a_mapped_task_runs_as_what_was_scheduled():
    with DAG("d", schedule=None, default_args={"workload": "burst-batch", "placement": "shared"}):
        task = LLMBatchOperator.partial(task_id="t", prompt="x", pool_slots=2).expand(source=["a", "b"])
    one = task.unmap({"source": "a"})
    assert (one.workload, one.placement, one.source) == ("burst-batch", "shared", "a")
    assert (one.pool, one.pool_slots, one.priority_weight, one.retries) == ("bursts", 2, 10, 3)


@pytest.mark.parametrize("name", ["workload", "pool", "pool_slots"])
def test_what_all_map_indexes_share_cannot_be_expanded_over(name):
    with DAG("d", schedule=None):
        partial = LLMBatchOperator.partial(task_id="t", prompt="x", source=[])
    with pytest.raises(TypeError, match=f"unmappable or already specified argument: {name}"):
        partial.expand(**{name: ["a", "b"]})
    partial._expand_called = True  # or it warns, wherever it is collected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"workload": "realtime-async"}, "'realtime-async', which is work that somebody waits for"),
        ({"workload": "nightly"}, "workload is 'nightly'; it is one of"),
        ({"placement": "night"}, "placement is 'night'; it is one of"),
        ({"pool_slots": 0}, "pool_slots must be a whole number of 1 or more, not 0"),
        ({"pool_slots": True}, "pool_slots must be a whole number of 1 or more, not True"),
        ({"pool_slots": "2"}, "pool_slots must be a whole number of 1 or more, not '2'"),
        ({"priority_weight": 1.5}, "priority_weight must be a whole number, not 1.5"),
    ],
)
def test_what_cannot_be_is_an_import_error(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        plain(**arguments)


@pytest.mark.filterwarnings("ignore:Task 't' was never mapped")
def test_a_mapped_task_is_judged_when_it_is_made():
    with pytest.raises(ConfigurationError, match="'realtime-async'"):
        mapped(workload="realtime-async")


def test_without_a_dag_only_the_call_counts():
    assert place(
        workload="scheduled-batch",
        placement=None,
        pool=None,
        pool_slots=1,
        priority_weight=-5,
        weight_rule=None,
    ) == {"pool": "default_pool", "pool_slots": 1, "priority_weight": -5, "weight_rule": "absolute"}
    partial = LLMBatchOperator.partial(task_id="t", prompt="x", default_args={"retries": 8})
    assert (partial.kwargs["retries"], partial.kwargs["pool"]) == (8, "default_pool")
    partial.expand(source=["a"])


def test_configuration_is_not_read_on_import():
    code = (
        "from airflow.configuration import conf\n"
        "read = []\n"
        "whole = type(conf).get\n"
        "def get(self, section, *args, **kwargs):\n"
        "    read.append(section)\n"
        "    return whole(self, section, *args, **kwargs)\n"
        "type(conf).get = get\n"
        "import airflow_llm_provider.operators.llm_batch\n"
        "print('llm_batch' in read)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(("configured", "in_flight"), [("", None), ("16", 48)])
def test_slots_stand_for_requests_in_flight(monkeypatch, configured, in_flight):
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__REQUESTS_PER_SLOT", configured)
    assert pool_in_flight(3) == in_flight


@pytest.mark.parametrize(
    ("configured", "words"), [("0", "must be 1 or more, not 0"), ("many", "'many', which is no int")]
)
def test_a_slot_cannot_stand_for_nothing(monkeypatch, configured, words):
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__REQUESTS_PER_SLOT", configured)
    with pytest.raises(ConfigurationError, match=rf"provider configuration \[llm_batch\] requests_per_slot .*{words}"):
        pool_in_flight(3)
