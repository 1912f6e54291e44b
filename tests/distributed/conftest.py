"""What the tests on Airflow's distributed engines share: servers, the stub in a process of its own, and Airflows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from evidence import Asked

from benchmarks.bench import stub_server
from benchmarks.scale_out.group import DAGS, environment
from tools.celery_airflow import CeleryAirflow
from tools.local_airflow import LocalAirflow
from tools.postgres import Postgres
from tools.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for one Airflow."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A broker for one Airflow."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def stub_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stub") / "requests.log"


@pytest.fixture(scope="module")
def stub_url(stub_log: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The stub, instant but for the module's own ``STUB_DELAY_S``."""
    with stub_server(stub_log, delay_s=getattr(request.module, "STUB_DELAY_S", 0.0)) as url:
        yield url


@pytest.fixture
def asked(stub_url: str, stub_log: Path) -> Asked:
    """What the stub is asked from now on."""
    return Asked(stub_log)


@pytest.fixture(scope="module")
def local_airflow(
    stub_url: str, postgres: Postgres, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    """LocalExecutor on PostgreSQL; the run's sizes are the module's ``SIZES``."""
    env = environment(stub_url, **request.module.SIZES)
    with LocalAirflow(tmp_path_factory.mktemp("airflow"), DAGS, database=postgres.url, env=env) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def celery(
    stub_url: str,
    postgres: Postgres,
    redis: RedisServer,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[CeleryAirflow]:
    """CeleryExecutor on Redis and PostgreSQL; the module's ``WORKERS``, of one task each, and its ``SETTINGS``."""
    module = request.module
    env = environment(stub_url, **module.SIZES) | {f"AIRFLOW__{name}": value for name, value in module.SETTINGS.items()}
    home, waiting = tmp_path_factory.mktemp("airflow"), 2 * module.SIZES["shares"]
    with CeleryAirflow(home, DAGS, database=postgres.url, broker=redis.url, env=env, parallelism=waiting) as airflow:
        airflow.start_workers(module.WORKERS)
        yield airflow
