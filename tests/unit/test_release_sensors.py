"""`RealtimeSLOSensor` that pokes: several servers, what lasts from poke to poke, and when it gives up."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import pytest

from airflow_llm_provider.batch import watch
from airflow_llm_provider.core.objective import Failed, Idle, Measured
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException
from airflow_llm_provider.sensors import release as sensors
from airflow_llm_provider.sensors.release import OffPeakWindowSensor, RealtimeSLOSensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.core.objective import Objective, Reading
    from airflow_llm_provider.endpoint.settings import EndpointSettings

GPU1, GPU2 = "http://gpu1:8000", "http://gpu2:8000"
SLOW = Measured(lower_s=9.0, upper_s=9.0)


class World:
    """A clock, a connection, and what is read of each of its servers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = datetime(2026, 11, 24, 12, tzinfo=UTC)
        self.readings: dict[str, Reading] = {}
        self.looked: list[str] = []
        self._monkeypatch = monkeypatch
        for module in (sensors, watch):
            monkeypatch.setattr(module, "utc_now", lambda: self.now)
        monkeypatch.setattr(watch, "latency_source", self._source)
        self.connect(GPU1, GPU2)

    def connect(self, *urls: str, **extra: Any) -> None:
        promised = {"objective": "ttft p95 < 2 s", "latency_source": "canary", "healthy_for_s": 60, **extra}
        connection = {"conn_type": "vllm", "host": ",".join(urls), "extra": promised}
        self._monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", json.dumps(connection))

    def later(self, seconds: float, **readings: Reading) -> None:
        """Some time goes by, and then this is read, by host."""
        self.now += timedelta(seconds=seconds)
        self.readings = {f"http://{host}:8000": reading for host, reading in readings.items()}

    def _source(self, settings: EndpointSettings, own: Any, *, base_url: str) -> Any:
        del own
        world = self

        class Source:
            async def __aenter__(self) -> Self:
                return self

            async def __aexit__(self, *_: object) -> None:
                pass

            async def read(self) -> Mapping[Objective, Reading]:
                world.looked.append(base_url)
                assert settings.latency is not None
                return dict.fromkeys(settings.latency.objectives, world.readings[base_url])

        return Source()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def poking() -> RealtimeSLOSensor:
    return RealtimeSLOSensor(task_id="well", deferrable=False)


def poke(sensor: RealtimeSLOSensor) -> bool:
    return sensor.poke({})  # type: ignore[typeddict-item] # it looks at nothing of it


def test_one_server_that_is_well_is_enough(world: World) -> None:
    sensor = poking()
    world.later(0, gpu1=SLOW, gpu2=SLOW)
    assert not poke(sensor)
    assert sorted(world.looked) == [GPU1, GPU2]
    world.later(10, gpu1=SLOW, gpu2=Idle())
    assert not poke(sensor), "well, and not for long enough"
    world.later(60, gpu1=SLOW, gpu2=Idle())
    assert poke(sensor)


def test_each_servers_time_of_being_well_is_its_own(world: World) -> None:
    sensor = poking()
    for seconds, gpu1, gpu2 in [(0, SLOW, SLOW), (10, Idle(), SLOW), (40, SLOW, Idle()), (40, Idle(), Idle())]:
        world.later(seconds, gpu1=gpu1, gpu2=gpu2)
        assert not poke(sensor)
    world.later(20, gpu1=SLOW, gpu2=Idle())
    assert poke(sensor)


def test_a_latency_that_stays_unknown_fails_it(world: World) -> None:
    world.connect(GPU1, unknown_alert_s=600)
    sensor = poking()
    world.later(0, gpu1=Failed("no answer from Prometheus"))
    assert not poke(sensor)
    world.later(560, gpu1=Idle())
    assert not poke(sensor), "a short spell of health does not end it"
    world.later(39, gpu1=Failed("no answer from Prometheus"))
    assert not poke(sensor)
    world.later(1, gpu1=Failed("no answer from Prometheus"))
    with pytest.raises(AirflowException, match=r"since 2026-11-24T12:00:00\+00:00 .*no answer from Prom") as raised:
        poke(sensor)
    assert not isinstance(raised.value, AirflowFailException), "the next try looks again"


def test_unknown_counts_from_when_it_was_last_read(world: World) -> None:
    world.connect(GPU1, GPU2, unknown_alert_s=600)
    sensor = poking()
    for seconds, gpu1, gpu2 in [
        (0, Failed("x"), SLOW),
        (300, SLOW, SLOW),
        (301, Failed("x"), SLOW),
        (599, Failed("x"), Failed("x")),
    ]:
        world.later(seconds, gpu1=gpu1, gpu2=gpu2)
        assert not poke(sensor)
    world.later(1, gpu1=Failed("x"), gpu2=Failed("x"))
    with pytest.raises(AirflowException, match=r"how real-time does: x$"):
        poke(sensor)


def test_one_that_is_unknown_fails_nothing_where_another_is_well(world: World) -> None:
    world.connect(GPU1, GPU2, unknown_alert_s=60, healthy_for_s=1000)
    sensor = poking()
    world.later(0, gpu1=Failed("x"), gpu2=Idle())
    assert poke(sensor)
    world.later(100, gpu1=Failed("x"), gpu2=Idle())
    assert poke(sensor)


def test_the_hold_switch_spares_the_look(world: World) -> None:
    sensor = poking()
    world.connect(GPU1, GPU2, hold="GPU swap")
    assert not poke(sensor)
    assert not world.looked


def test_what_was_unknown_before_a_hold_does_not_count_after_it(world: World) -> None:
    sensor = poking()
    world.later(0, gpu1=Failed("x"), gpu2=Failed("x"))
    assert not poke(sensor)
    world.connect(GPU1, GPU2, hold=True)
    world.later(3600, gpu1=Failed("x"), gpu2=Failed("x"))
    assert not poke(sensor)
    world.connect(GPU1, GPU2)
    assert not poke(sensor)


def test_a_connection_that_changes_is_looked_at_as_it_is(world: World) -> None:
    sensor = poking()
    world.later(0, gpu1=SLOW, gpu2=SLOW)
    assert not poke(sensor)
    world.connect(GPU2)
    world.later(1, gpu2=Idle())
    assert poke(sensor)


def test_rescheduled_it_would_forget_and_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'well'.*mode='reschedule'.*healthy_for_s.*deferrable"):
        RealtimeSLOSensor(task_id="well", deferrable=False, mode="reschedule")
    RealtimeSLOSensor(task_id="deferred", mode="reschedule")
    OffPeakWindowSensor(task_id="night", deferrable=False, mode="reschedule")


@pytest.mark.parametrize("kind", [OffPeakWindowSensor, RealtimeSLOSensor])
def test_a_connection_that_the_trigger_lost_is_no_release(kind: type[RealtimeSLOSensor]) -> None:
    with pytest.raises(AirflowException, match="no connection") as raised:
        kind(task_id="s").resume({}, {"event": "lost", "reason": "Airflow knows no connection 'x'"})  # type: ignore[typeddict-item]
    assert not isinstance(raised.value, AirflowFailException)


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize("kind", [OffPeakWindowSensor, RealtimeSLOSensor])
def test_a_connection_that_is_not_there_is_looked_for_by_the_next_try(
    kind: type[RealtimeSLOSensor], *, deferrable: bool
) -> None:
    sensor = kind(task_id="s", vllm_conn_id="nowhere", deferrable=deferrable)
    with pytest.raises(AirflowException, match=r"ConnectionMissingError: .*'nowhere'") as raised:
        sensor.execute({})  # type: ignore[typeddict-item]
    assert not isinstance(raised.value, AirflowFailException)
