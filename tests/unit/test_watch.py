"""Looking at latency, reading the hold switch, and what a stretch of a run leaves for the next one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import pytest

from airflow_llm_provider.batch import switch as switch_module
from airflow_llm_provider.batch import watch as watch_module
from airflow_llm_provider.batch.reporter import Earlier
from airflow_llm_provider.batch.switch import HoldSwitch
from airflow_llm_provider.batch.watch import LatencyWatch
from airflow_llm_provider.core.objective import Health, Idle, parse_objectives
from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings, Source
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from pathlib import Path

OBJECTIVES = parse_objectives("ttft p95 < 2 s")
LATENCY = LatencySettings(objectives=OBJECTIVES, source=Source.CANARY)
ENDPOINT = EndpointSettings(base_urls=("http://gpu1:8000",), latency=LATENCY)


class IdleSource:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""

    async def read(self) -> Any:
        return {OBJECTIVES[0]: Idle()}


async def until(watch: LatencyWatch, health: Health) -> None:
    async with asyncio.timeout(20):
        while watch.standing is None or watch.standing.health is not health:  # noqa: ASYNC110 - the watch sets no event
            await asyncio.sleep(0)


async def test_what_keeps_it_from_looking_is_unknown_and_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def source_of(*_: Any, **__: Any) -> IdleSource:
        if broken:
            raise ConfigurationError("the CA bundle '/etc/ssl/our-ca.pem' can't be read")
        return IdleSource()

    monkeypatch.setattr(watch_module, "latency_source", source_of)
    monkeypatch.setattr(watch_module, "SHORTEST_INTERVAL_S", 0.0)
    monkeypatch.setattr(watch_module, "LOOKS_PER_PERIOD", 10**9)
    watch = LatencyWatch(LATENCY, ENDPOINT)
    running = asyncio.create_task(watch.run())
    await until(watch, Health.UNKNOWN)
    assert watch.standing is not None
    assert "our-ca.pem" in watch.standing.reason
    broken = False
    await until(watch, Health.HEALTHY)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_task_that_began_to_wait_for_real_times_sake_waits_until_it_has_been_well_for_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "latency_source", lambda *_, **__: IdleSource())
    assert (await LatencyWatch(LATENCY, ENDPOINT).look()).recovered
    assert not (await LatencyWatch(LATENCY, ENDPOINT, recovering=True).look()).recovered


async def test_a_switch_that_cannot_be_read_counts_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Any] = ["GPU swap", OSError("away"), OSError("away"), None]

    def read() -> str | None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    switch = HoldSwitch(read)
    seen = []
    for _ in range(4):
        await switch.refresh()
        seen.append(switch.reason)
    assert seen == ["GPU swap", "GPU swap", "GPU swap", None]
    assert caplog.text.count("can't be read") == 1


async def test_the_switch_is_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch_module, "INTERVAL_S", 0.0)
    answers = iter([None, None, "GPU swap"])
    switch = HoldSwitch(lambda: next(answers, "GPU swap"))
    running = asyncio.create_task(switch.run())
    async with asyncio.timeout(20):
        while switch.reason is None:  # noqa: ASYNC110 - the switch sets no event
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("progress", "row_s", "remaining_s"),
    [
        (None, None, None),
        (b"torn {", None, None),
        (b"[]", None, None),
        (b'{"row_s": null, "remaining_s": null}', None, None),
        (b'{"row_s": true, "remaining_s": "soon"}', None, None),
        (b'{"row_s": 1.5, "remaining_s": 3600}', 1.5, 3600.0),
    ],
)
def test_what_the_last_stretch_left_is_a_guess_at_best(
    tmp_path: Path, progress: bytes | None, row_s: float | None, remaining_s: float | None
) -> None:
    store = RunStore(f"file://{tmp_path}")
    if progress is not None:
        store.write("_run/progress.json", progress)
    assert Earlier.read(store) == Earlier(row_s, remaining_s)
