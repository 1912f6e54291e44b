"""How the operator waits and comes back, and the sensors; a real scheduler is in tests/system/test_release.py."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_llm_provider.batch.gate import RunHeld
from airflow_llm_provider.core.release import Cause, Hold
from airflow_llm_provider.core.terms import Asked
from airflow_llm_provider.exceptions import ConfigurationError, EndpointDownError
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException
from airflow_llm_provider.operators import llm_batch
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.sensors import release as sensors
from airflow_llm_provider.sensors.release import OffPeakWindowSensor, RealtimeSLOSensor
from airflow_llm_provider.triggers.release import ReleaseTrigger

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

    from airflow_llm_provider.testing import StubVLLM

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
NIGHT = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
CLOSED = "03:00-03:01 Europe/London mon -2026-11-30"
UNKNOWN = {
    "event": "unknown",
    "since": NOON.isoformat(),
    "reason": "no answer from Prometheus",
    "remaining_s": 12.5,
}


def context_of() -> Any:
    ti = {"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": -1, "try_number": 1, "max_tries": 3}
    return {
        "ti": SimpleNamespace(**ti),
        "dag_run": SimpleNamespace(run_after=NOON, logical_date=None),
        "params": {},
    }


def operator(**arguments: Any) -> LLMBatchOperator:
    return LLMBatchOperator(**{"task_id": "t", "source": [{"text": "hi"}], "prompt": "Say {{ row.text }}", **arguments})


@pytest.fixture
def connect(stub: StubVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the default connection say something."""
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__RESULTS_BASE", f"file://{tmp_path}/results")

    def say(**extra: Any) -> None:
        connection = {"conn_type": "vllm", "host": stub.url, "password": "sk-secret", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", json.dumps(connection))

    say()
    return say


def deferral_of(call: Any, *arguments: Any) -> ReleaseTrigger:
    with pytest.raises(TaskDeferred) as raised:
        call(*arguments)
    deferred = raised.value
    assert deferred.method_name == "resume"
    assert not deferred.kwargs, "state that a deferral carries is lost where Airflow drops it"
    assert isinstance(deferred.trigger, ReleaseTrigger)
    return deferred.trigger


def test_a_closed_window_defers_before_anything_is_read_or_sent(connect: Any, stub: StubVLLM, tmp_path: Path) -> None:
    connect(window=CLOSED)
    trigger = deferral_of(operator(source=str(tmp_path / "not there yet.jsonl")).execute, context_of())
    assert (trigger.vllm_conn_id, trigger.recovering, trigger.unknown_since) == ("vllm_default", False, None)
    assert stub.received == 0
    assert not (tmp_path / "results").exists()
    assert "sk-secret" not in json.dumps(trigger.serialize())


def test_the_hold_switch_defers_too(connect: Any, stub: StubVLLM) -> None:
    connect(hold="GPU swap")
    deferral_of(operator().execute, context_of())
    assert stub.received == 0


def test_it_waits_for_what_it_was_asked_for(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__REQUESTS_PER_SLOT", "4")
    connect(hold=True)
    task = operator(
        workload="burst-batch",
        placement="shared",
        window="23:00-07:00 Europe/London",
        deadline="2026-11-24T18:00:00+00:00",
        pool_slots=2,
        headroom=20,
        extra_body={"priority": 70, "top_k": 3},
    )
    trigger = deferral_of(task.execute, context_of())
    assert Asked.from_dict(trigger.asked) == Asked(
        workload="burst-batch",
        placement="shared",
        window="23:00-07:00 Europe/London",
        deadline="2026-11-24T18:00:00+00:00",
        pool_in_flight=8,
        headroom=20,
        priority=70,
    )


@pytest.mark.parametrize(
    ("cause", "recovering", "unknown"),
    [(Cause.WINDOW, False, False), (Cause.OBJECTIVE, True, False), (Cause.UNKNOWN, True, True)],
)
def test_what_the_trigger_is_told_of_the_hold(
    connect: Any, monkeypatch: pytest.MonkeyPatch, cause: Cause, *, recovering: bool, unknown: bool
) -> None:
    def held(*_: Any, **__: Any) -> Any:
        raise RunHeld(Hold(cause=cause, reason="x"), remaining_s=12.5)

    monkeypatch.setattr(llm_batch, "run_job", held)
    trigger = deferral_of(operator().execute, context_of())
    assert (trigger.remaining_s, trigger.recovering) == (12.5, recovering)
    assert (trigger.unknown_since is not None) is unknown


def test_released_it_runs_like_any_other_try(connect: Any) -> None:
    manifest = operator().resume(context_of(), {"event": "released", "reason": "the window is open"})
    assert manifest["counts"] == {"total": 1, "succeeded": 1, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert manifest["release"]["placement"] == "dedicated"


def test_an_error_of_the_trigger_is_not_retried(connect: Any) -> None:
    with pytest.raises(AirflowFailException, match="no connection"):
        operator().resume(context_of(), {"event": "error", "reason": "Airflow knows no connection 'vllm_default'"})


def test_a_connection_that_was_lost_for_long_is_looked_for_by_the_next_try(connect: Any) -> None:
    with pytest.raises(AirflowException, match="no connection") as raised:
        operator().resume(context_of(), {"event": "lost", "reason": "Airflow knows no connection 'vllm_default'"})
    assert not isinstance(raised.value, AirflowFailException)


@pytest.mark.parametrize("amount", [1, 2])
def test_a_latency_that_stays_unknown_is_told_to_callbacks_and_waited_for_on(connect: Any, amount: int) -> None:
    told: list[Any] = []
    callbacks = [told.append] * amount
    task = operator(on_unknown_callback=callbacks if amount > 1 else callbacks[0])
    trigger = deferral_of(task.resume, context_of(), UNKNOWN)
    assert [context["reason"] for context in told] == [
        f"Batch has been held since {NOON.isoformat()}, and nobody knows how real-time does: no answer from Prometheus"
    ] * amount
    assert (trigger.alerted, trigger.recovering, trigger.unknown_since) == (True, True, NOON.isoformat())
    assert trigger.remaining_s == 12.5


@pytest.mark.parametrize("released", [False, True])
def test_what_only_the_worker_cannot_read_is_told_of_too(
    connect: Any, monkeypatch: pytest.MonkeyPatch, *, released: bool
) -> None:
    """The triggerer reads the metrics and releases, the worker cannot and waits again, and so on all night."""
    connect(objective="ttft p95 < 2 s", latency_source="canary", unknown_alert_s=60)

    def held(*_: Any, **__: Any) -> Any:
        raise RunHeld(Hold(cause=Cause.UNKNOWN, reason="no route to the metrics"), released=released)

    monkeypatch.setattr(llm_batch, "run_job", held)
    told: list[Any] = []
    task = operator(on_unknown_callback=told.append)
    event = {"event": "released", "reason": "healthy", "unknown_since": NOON.isoformat(), "alerted": False}
    trigger = deferral_of(task.resume, context_of(), event)
    assert (len(told), trigger.alerted) == ((0, False) if released else (1, True))
    assert (trigger.unknown_since == NOON.isoformat()) is not released


def test_a_task_that_drained_waits_for_the_close(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*_: Any, **__: Any) -> Any:
        raise RunHeld(Hold(cause=Cause.WINDOW, reason="closed"), drained_until=NOON)

    monkeypatch.setattr(llm_batch, "run_job", held)
    assert deferral_of(operator().execute, context_of()).not_before == NOON.isoformat()


@pytest.mark.parametrize(("settled", "fruitless_retries", "waits"), [(7, 3, True), (0, 3, False), (7, None, False)])
def test_an_endpoint_that_goes_away_under_a_try_that_got_somewhere_spends_no_retry(
    connect: Any, mocker: MockerFixture, *, settled: int, fruitless_retries: int | None, waits: bool
) -> None:
    error = EndpointDownError("no answer for 10 min")
    error.settled = settled
    mocker.patch.object(llm_batch, "run_job", side_effect=error)
    mocker.patch.object(llm_batch, "utc_now", return_value=NOON)
    task = operator(fruitless_retries=fruitless_retries, retries=20, retry_delay=timedelta(minutes=7))
    if waits:
        trigger = deferral_of(task.execute, context_of())
        assert trigger.not_before == (NOON + timedelta(minutes=7)).isoformat()
        return
    with pytest.raises(AirflowException, match="EndpointDownError: no answer"):
        task.execute(context_of())


def test_a_task_whose_shift_is_over_waits_for_nothing_but_its_turn(connect: Any, mocker: MockerFixture) -> None:
    held = RunHeld(Hold(cause=Cause.SHIFT, reason="the shift was over", yields=False), remaining_s=5.0, released=True)
    mocker.patch.object(llm_batch, "run_job", side_effect=held)
    trigger = deferral_of(operator(shift=timedelta(minutes=30)).execute, context_of())
    assert (trigger.recovering, trigger.not_before, trigger.unknown_since) == (False, None, None)
    assert trigger.remaining_s == 5.0


@pytest.mark.parametrize("priority", ["200", 0.5, True])
def test_a_priority_that_is_none(connect: Any, priority: Any) -> None:
    with pytest.raises(ConfigurationError, match="priority must be a whole number"):
        operator(extra_body={"priority": priority})


def test_where_nobody_is_told_the_try_fails(connect: Any) -> None:
    with pytest.raises(AirflowException, match="no answer from Prometheus") as raised:
        operator().resume(context_of(), UNKNOWN)
    assert not isinstance(raised.value, AirflowFailException)


def test_a_finished_run_needs_no_window(connect: Any, stub: StubVLLM) -> None:
    first = operator().execute(context_of())
    connect(window=CLOSED, hold=True)
    assert operator().execute(context_of()) == first
    assert stub.received == 1


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ({"window": "23:00-07:00 Europe/London"}, {"window": "22:00-07:00 Europe/London"}),
        ({"placement": "shared"}, {"placement": "dedicated"}),
        ({"max_in_flight": 8}, {"max_in_flight": 9}),
        ({"slots": 32, "headroom": 4}, {"headroom": 3}),
        ({"placement": "shared", "priority": 100}, {"extra_body": {"priority": 99}}),
    ],
)
def test_more_than_the_connection_allows_is_refused(connect: Any, extra: Any, arguments: Any) -> None:
    connect(**extra)
    with pytest.raises(AirflowFailException, match=r"ConfigurationError: .* allows"):
        operator(**arguments).execute(context_of())


def test_the_priority_is_sent_and_shapes_no_answer(connect: Any, stub: StubVLLM) -> None:
    connect(placement="shared")
    first = operator().execute(context_of())
    assert first["release"]["priority"] == 100
    again = operator(extra_body={"priority": 200}, rerun=False).execute(context_of())
    assert again["fingerprint"] == first["fingerprint"]


class TestSensors:
    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def say(now: datetime) -> None:
            monkeypatch.setattr(sensors, "utc_now", lambda: now)

        say(NOON)
        return say

    def test_the_window_sensor_defers_until_the_uk_night_by_default(self, clock: Any) -> None:
        trigger = deferral_of(OffPeakWindowSensor(task_id="s").execute, context_of())
        assert (trigger.vllm_conn_id, trigger.asked["gates"]) == (None, ("window",))
        clock(NIGHT)
        assert OffPeakWindowSensor(task_id="s").execute(context_of()) is None

    def test_it_pokes(self, clock: Any, connect: Any) -> None:
        connect(window="12:00-13:00 Europe/London")
        poking = OffPeakWindowSensor(task_id="s", vllm_conn_id="vllm_default", deferrable=False)
        assert poking.poke(context_of())
        connect(window="12:00-13:00 Europe/London", hold=True)
        assert not poking.poke(context_of())

    def test_a_wider_window_than_the_connections_is_refused(self, connect: Any) -> None:
        connect(window="23:00-07:00 Europe/London")
        sensor = OffPeakWindowSensor(task_id="s", vllm_conn_id="vllm_default", window="11:00-13:00 Europe/London")
        with pytest.raises(AirflowFailException, match="window"):
            sensor.execute(context_of())

    def test_the_slo_sensor_needs_an_objective(self, connect: Any) -> None:
        for deferrable in (True, False):
            with pytest.raises(AirflowFailException, match="names no objective"):
                RealtimeSLOSensor(task_id="s", deferrable=deferrable).execute(context_of())

    def test_what_the_trigger_says_ends_it(self) -> None:
        sensor = OffPeakWindowSensor(task_id="s")
        sensor.resume(context_of(), {"event": "released", "reason": "x"})
        with pytest.raises(AirflowFailException, match="gone"):
            sensor.resume(context_of(), {"event": "error", "reason": "gone"})
        with pytest.raises(AirflowException, match="Prometheus"):
            sensor.resume(context_of(), UNKNOWN)
