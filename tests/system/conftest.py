"""What the system tests share: the checkout on the path, so that `tools` is found, and Airflows to test on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from llm_fixtures import (  # noqa: E402 - after the path
    acts_airflow,
    acts_stub,
    examples_airflow,
    llm_airflow,
    llm_stub,
    llm_work,
    statsd,
)

from tools.local_airflow import LocalAirflow  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["acts_airflow", "acts_stub", "examples_airflow", "llm_airflow", "llm_stub", "llm_work", "statsd"]


@pytest.fixture(scope="module")
def trivial_airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    """An Airflow that knows the DAGs of `dags_trivial`; a module that uses it pays 20 s to start and stop it."""
    with LocalAirflow(tmp_path_factory.mktemp("airflow"), Path(__file__).parent / "dags_trivial") as airflow:
        yield airflow
