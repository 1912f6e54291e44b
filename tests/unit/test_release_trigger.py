"""The trigger: what it keeps, what it waits for, what it fires."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_llm_provider.core.objective import Health, Standing, parse_objectives
from airflow_llm_provider.core.terms import Asked, Promise
from airflow_llm_provider.core.window_text import parse_windows
from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings
from airflow_llm_provider.exceptions import ConnectionMissingError
from airflow_llm_provider.hooks.vllm import VLLMHook
from airflow_llm_provider.triggers import release as module
from airflow_llm_provider.triggers.release import PATIENCE_S, ReleaseTrigger

if TYPE_CHECKING:
    from collections.abc import Callable

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
NIGHT = "23:00-07:00 Europe/London"


class World:
    """A clock that moves an hour a look, and a connection that says what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOON
        self.step = timedelta(hours=1)
        self.looks = 0
        self.settings: Callable[[int], EndpointSettings] = lambda _: settings_of(Promise())
        monkeypatch.setattr(module, "utc_now", self._utc_now)
        monkeypatch.setattr(module, "POLL_S", 0.0)
        monkeypatch.setattr(module, "MINIMUM_S", 0.0)
        world = self

        async def aget_settings(_hook: VLLMHook) -> EndpointSettings:
            world.looks += 1
            return world.settings(world.looks)

        monkeypatch.setattr(VLLMHook, "aget_settings", aget_settings)

    def _utc_now(self) -> datetime:
        self.now += self.step
        return self.now


def settings_of(promise: Promise, latency: Any = None) -> EndpointSettings:
    return EndpointSettings(base_urls=("http://gpu1:8000",), api_key="sk-secret", promise=promise, latency=latency)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def fired(trigger: ReleaseTrigger) -> dict[str, Any]:
    async with asyncio.timeout(20):
        events = [event.payload async for event in trigger.run()]
    assert len(events) == 1
    return events[0]


def trigger_of(**changes: Any) -> ReleaseTrigger:
    return ReleaseTrigger(**{"vllm_conn_id": "gpu", "asked": Asked().as_dict(), **changes})


def test_what_it_keeps_is_plain_no_secret_and_enough() -> None:
    made = trigger_of(remaining_s=12.5, recovering=True, unknown_since=NOON.isoformat(), alerted=True)
    path, kept = made.serialize()
    assert path == "airflow_llm_provider.triggers.release.ReleaseTrigger"
    assert "secret" not in json.dumps(kept)
    assert ReleaseTrigger(**json.loads(json.dumps(kept))).serialize() == (path, json.loads(json.dumps(kept)))


async def test_fires_when_the_window_opens(world: World) -> None:
    event = await fired(trigger_of(asked=Asked(window=NIGHT).as_dict()))
    assert event["event"] == "released"
    assert world.now == datetime(2026, 11, 24, 23, tzinfo=UTC)


async def test_what_was_drained_waits_for_the_close_though_the_window_is_open(world: World) -> None:
    world.now = datetime(2026, 11, 25, 6, 30, tzinfo=UTC)
    world.step = timedelta(minutes=10)
    close = datetime(2026, 11, 25, 7, tzinfo=UTC)
    event = await fired(trigger_of(asked=Asked(window=NIGHT).as_dict(), not_before=close.isoformat()))
    assert event["event"] == "released"
    assert world.now >= datetime(2026, 11, 25, 23, tzinfo=UTC)


async def test_what_it_found_is_looked_at_again_before_it_fires(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lives for a minimum, and what released at its beginning may be on hold at its end."""
    monkeypatch.setattr(module, "MINIMUM_S", 0.2)
    monkeypatch.setattr(module, "POLL_S", 0.05)
    world.settings = lambda look: settings_of(Promise(hold="GPU swap" if 1 < look < 8 else None))
    await fired(trigger_of())
    assert world.looks >= 8


async def test_a_release_hands_back_what_was_known_of_an_unreadable_latency(world: World) -> None:
    since = NOON.isoformat()
    event = await fired(trigger_of(unknown_since=since, alerted=True))
    assert (event["unknown_since"], event["alerted"]) == (since, True)


async def test_without_a_connection_the_window_is_enough(world: World) -> None:
    event = await fired(trigger_of(vllm_conn_id=None, asked=Asked(window=NIGHT, gates=("window",)).as_dict()))
    assert (event["event"], world.looks) == ("released", 0)


async def test_reads_the_connection_at_each_look(world: World) -> None:
    switch = {1: "GPU swap", 2: "GPU swap", 3: "GPU swap"}
    world.settings = lambda look: settings_of(Promise(hold=switch.get(look)))
    assert (await fired(trigger_of()))["event"] == "released"
    assert world.looks == 4


async def test_a_window_that_the_platform_moves_is_obeyed_while_waiting(world: World) -> None:
    later = parse_windows("02:00-07:00 Europe/London")
    earlier = parse_windows("23:00-07:00 Europe/London")
    world.settings = lambda look: settings_of(Promise(windows=earlier if look < 5 else later))
    await fired(trigger_of())
    assert world.now == datetime(2026, 11, 25, 2, tzinfo=UTC)


async def test_a_connection_that_cannot_be_read_for_a_moment_releases_nothing(world: World) -> None:
    world.step = timedelta(seconds=5)

    def settings(look: int) -> EndpointSettings:
        if look < 4:
            raise OSError("the API server is away")
        return settings_of(Promise())

    world.settings = settings
    assert (await fired(trigger_of()))["event"] == "released"
    assert world.looks == 4


@pytest.mark.parametrize(("how", "event"), [("gone", "lost"), ("refused", "error")])
async def test_waiting_that_makes_no_sense_ends_after_a_while(world: World, how: str, event: str) -> None:
    world.step = timedelta(seconds=5)

    def settings(_look: int) -> EndpointSettings:
        if how == "gone":
            raise ConnectionMissingError("Airflow knows no connection 'gpu'")
        return settings_of(Promise(windows=parse_windows(NIGHT)))

    world.settings = settings
    fires = await fired(trigger_of(asked=Asked(window="20:00-07:00 Europe/London").as_dict()))
    assert fires["event"] == event
    assert fires["reason"]
    assert world.now - NOON >= timedelta(seconds=PATIENCE_S)


async def test_what_several_servers_allow_is_allowed_while_waiting_too(world: World) -> None:
    promise = Promise(servers=2, slots=100, headroom=16)
    world.settings = lambda _: replace(settings_of(promise), base_urls=("http://gpu1:8000", "http://gpu2:8000"))
    assert (await fired(trigger_of(asked=Asked(max_in_flight=150).as_dict())))["event"] == "released"


class TestLatency:
    """The watch is a stand-in: what it says is judged in `core.objective`."""

    @pytest.fixture
    def watch(self, world: World, monkeypatch: pytest.MonkeyPatch) -> type:
        class Watch:
            made: list[Any] = []  # noqa: RUF012 - a new class for each test
            says: Health | None = None
            recovered = True
            unknown_since: datetime | None = None

            def __init__(self, settings: Any, endpoint: Any, *, base_url: str, recovering: bool) -> None:
                self.settings, self.endpoint = settings, endpoint
                self.recovering, self.base_url = recovering, base_url
                self.running = False
                Watch.made.append(self)

            @property
            def standing(self) -> Standing | None:
                if Watch.says is None:
                    return None
                return Standing(
                    health=Watch.says,
                    reason="x",
                    since=NOON,
                    recovered=Watch.recovered,
                    unknown_since=Watch.unknown_since or (NOON if Watch.says is Health.UNKNOWN else None),
                )

            async def run(self) -> None:
                self.running = True
                try:
                    await asyncio.sleep(3600)
                finally:
                    self.running = False

        world.step = timedelta(seconds=5)
        monkeypatch.setattr(module, "LatencyWatch", Watch)
        return Watch

    def settings(self, **changes: Any) -> EndpointSettings:
        latency = LatencySettings(
            **{"source": "canary", "objectives": parse_objectives("ttft p95 < 2 s"), "unknown_alert_s": 60, **changes}
        )
        return settings_of(Promise(objective="ttft p95 < 2 s"), latency)

    async def test_waits_until_real_time_is_well(self, world: World, watch: Any) -> None:
        def settings(look: int) -> EndpointSettings:
            watch.says = Health.HEALTHY if look > 4 else Health.VIOLATED if look > 2 else None
            return self.settings()

        world.settings = settings
        assert (await fired(trigger_of(recovering=True)))["event"] == "released"
        (made,) = watch.made
        await asyncio.sleep(0)
        assert made.recovering
        assert not made.running, "it goes on looking after the trigger is done"

    async def test_one_server_that_is_well_is_enough(self, world: World, watch: Any) -> None:
        urls = ("http://gpu1:8000", "http://gpu2:8000")
        world.settings = lambda _: replace(self.settings(), base_urls=urls)

        class OneWell(watch):  # type: ignore[misc,valid-type]
            @property
            def standing(self) -> Standing:
                health = Health.HEALTHY if self.base_url == urls[1] else Health.VIOLATED
                return Standing(health=health, reason="x", since=NOON, recovered=True, unknown_since=None)

        module.LatencyWatch = OneWell  # type: ignore[misc,assignment] # the fixture puts it back
        assert (await fired(trigger_of()))["event"] == "released"
        assert [made.base_url for made in watch.made] == list(urls)

    async def test_says_when_nobody_knows_for_too_long(self, world: World, watch: Any) -> None:
        watch.says = Health.UNKNOWN
        world.settings = lambda _: self.settings()
        event = await fired(trigger_of())
        assert event["event"] == "unknown"
        assert world.now - datetime.fromisoformat(event["since"]) >= timedelta(seconds=60)

    async def test_counts_from_before_it_was_made(self, world: World, watch: Any) -> None:
        watch.says = Health.UNKNOWN
        world.settings = lambda _: self.settings()
        since = (NOON - timedelta(seconds=50)).isoformat()
        event = await fired(trigger_of(unknown_since=since))
        assert (event["event"], event["since"]) == ("unknown", since)
        assert world.now - NOON <= timedelta(seconds=15)

    async def test_a_metric_that_comes_and_goes_is_told_of_too(self, world: World, watch: Any) -> None:
        watch.recovered, watch.unknown_since = False, NOON

        def settings(look: int) -> EndpointSettings:
            watch.says = Health.HEALTHY if look % 3 == 0 else Health.UNKNOWN
            return self.settings()

        world.settings = settings
        event = await fired(trigger_of())
        assert (event["event"], event["since"]) == ("unknown", NOON.isoformat())

    async def test_the_closed_day_does_not_count(self, world: World, watch: Any) -> None:
        """Unknown when the window closed; the next evening it has to be unknown for as long as ever."""
        world.step = timedelta(minutes=10)
        watch.says = Health.UNKNOWN
        world.settings = lambda _: self.settings(unknown_alert_s=3600)
        morning = (NOON - timedelta(hours=5)).isoformat()
        made = trigger_of(asked=Asked(window=NIGHT).as_dict(), unknown_since=morning, alerted=True)
        watch.unknown_since = datetime(2026, 11, 24, 23, 10, tzinfo=UTC)
        event = await fired(made)
        assert event["event"] == "unknown"
        assert datetime.fromisoformat(event["since"]) >= datetime(2026, 11, 24, 23, tzinfo=UTC)

    async def test_a_key_that_is_changed_is_taken_up(self, world: World, watch: Any) -> None:
        def settings(look: int) -> EndpointSettings:
            watch.says = Health.HEALTHY if look > 6 else Health.UNKNOWN
            return replace(self.settings(unknown_alert_s=3600), api_key="new" if look > 3 else "old")

        world.settings = settings
        await fired(trigger_of())
        assert [made.endpoint.api_key for made in watch.made] == ["old", "new"]

    async def test_says_it_once(self, world: World, watch: Any) -> None:
        def settings(look: int) -> EndpointSettings:
            watch.says = Health.HEALTHY if look > 40 else Health.UNKNOWN
            return self.settings()

        world.settings = settings
        event = await fired(trigger_of(unknown_since=NOON.isoformat(), alerted=True))
        assert event["event"] == "released"

    async def test_tells_nobody_of_what_it_cannot_read_while_nothing_would_fit(self, world: World, watch: Any) -> None:
        """Drained at half past six: until seven nothing would be sent anyway, and nobody looks."""
        world.now = datetime(2026, 11, 25, 6, 30, tzinfo=UTC)
        world.step = timedelta(minutes=10)
        watch.says = Health.UNKNOWN
        close = datetime(2026, 11, 25, 7, tzinfo=UTC)

        def settings(_look: int) -> EndpointSettings:
            assert not watch.made or world.now >= close
            if world.now > datetime(2026, 11, 25, 12, tzinfo=UTC):
                watch.says = Health.HEALTHY
            return self.settings(unknown_alert_s=1)

        world.settings = settings
        trigger = trigger_of(asked=Asked(window=NIGHT).as_dict(), not_before=close.isoformat())
        assert (await fired(trigger))["event"] == "released"

    async def test_what_is_carried_ends_with_the_window(self, world: World, watch: Any) -> None:
        world.step = timedelta(hours=1)
        watch.says = Health.HEALTHY
        world.settings = lambda _: self.settings()
        trigger = trigger_of(asked=Asked(window=NIGHT).as_dict(), unknown_since=NOON.isoformat(), alerted=True)
        event = await fired(trigger)
        assert (event["unknown_since"], event["alerted"]) == (None, False)

    async def test_looks_at_no_latency_while_the_window_is_closed(self, world: World, watch: Any) -> None:
        world.step = timedelta(hours=1)
        world.settings = lambda _: self.settings()
        watch.says = Health.HEALTHY
        await fired(trigger_of(asked=Asked(window=NIGHT).as_dict()))
        assert world.now >= datetime(2026, 11, 24, 23, tzinfo=UTC)
        assert len(watch.made) == 1
