"""Fixtures for tests of DAGs: a simulated vLLM, an instant one, and a connection to either.

In a ``conftest.py``::

    pytest_plugins = ["airflow_llm_provider.testing.plugin"]

In a test::

    @pytest.mark.simulated_vllm(max_num_seqs=4, speed=20)
    def test_my_dag(simulated_vllm, connect_vllm):
        connect_vllm(simulated_vllm)
        assert my_dag.test().state == "success"

Owns names and lifetimes of the fixtures. Does not know what the servers do, and imports no Airflow.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_llm_provider.simulator.simulated import SimulatedVLLM
from airflow_llm_provider.testing.stub import StubVLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_llm_provider.simulator.thread import ServerThread


def pytest_configure(config: pytest.Config) -> None:
    """Makes the markers known."""
    for name, server in (("simulated_vllm", "SimulatedVLLM"), ("stub_vllm", "StubVLLM")):
        config.addinivalue_line("markers", f"{name}(**flags): arguments of the fixture's {server}")


@pytest.fixture
def simulated_vllm(request: pytest.FixtureRequest) -> Iterator[SimulatedVLLM]:
    """A running `SimulatedVLLM`; the marker of the same name carries its arguments."""
    with SimulatedVLLM(**_flags(request, "simulated_vllm")) as server:
        yield server


@pytest.fixture
def stub_vllm(request: pytest.FixtureRequest) -> Iterator[StubVLLM]:
    """A running `StubVLLM`; the marker of the same name carries its arguments."""
    with StubVLLM(**_flags(request, "stub_vllm")) as server:
        yield server


@pytest.fixture
def connect_vllm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes an Airflow connection to a server, for as long as the test lasts.

    It takes the server and, by name, ``conn_id`` (``vllm_default``) and the fields of the connection's ``extra``.
    """

    def connect(server: ServerThread, *, conn_id: str = "vllm_default", **extra: object) -> None:
        connection = {"conn_type": "vllm", "host": server.url, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    return connect


def _flags(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    """The nearest marker's arguments, over those of the markers around it."""
    flags: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers(name))):
        flags |= marker.kwargs
    return flags
