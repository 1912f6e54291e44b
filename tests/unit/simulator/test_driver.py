from __future__ import annotations

import asyncio

import pytest

from airflow_llm_provider.simulator.driver import Driver, Flight
from airflow_llm_provider.simulator.engine import Engine, EngineSpec, SimRequest, StepModel
from airflow_llm_provider.simulator.vllm_metrics import Metrics

STEP = StepModel(base_s=1.0, per_seq_s=0.0, per_prefill_token_s=0.0)


def driver_of(speed: float) -> Driver:
    engine = Engine(EngineSpec(step=STEP), tell_steps=True)
    return Driver(engine, Metrics(engine, model="m", started_s=0.0), speed=speed)


def submitted(driver: Driver, name: str = "a") -> Flight:
    flight = driver.submit(SimRequest(request_id=name, prompt_tokens=3, max_tokens=2), asyncio.Event())
    assert isinstance(flight, Flight)
    return flight


@pytest.mark.parametrize(("speed", "ended"), [(1e12, True), (1.0, False)])
async def test_a_flight_given_up_leaves_no_events_for_nobody(speed: float, *, ended: bool) -> None:
    """Even where the engine was through with it and nobody had looked yet."""
    driver = driver_of(speed)
    flight = submitted(driver)
    driver.abort(flight)
    assert (flight.end is not None) == ended
    driver.catch_up()
    driver.abort(flight)
    driver.die()


async def test_a_dead_engine_takes_and_tells_nothing() -> None:
    driver = driver_of(1e12)
    flight = submitted(driver)
    driver.die()
    late = submitted(driver, "b")
    for each in (flight, late):
        assert each.lost
        assert each.news.is_set()
        driver.abort(each)
    driver.catch_up()
    assert flight.end is None
