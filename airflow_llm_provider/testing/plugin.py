"""For tests of DAGs: a simulated vLLM, an instant one, a connection to either, and an Airflow of the tests' own.

In ``pytest.ini``, beside the folder with the DAGs; no ``conftest.py`` is needed, and no Airflow set up::

    [pytest]
    addopts = -p airflow_llm_provider.testing.plugin
    airflow_dags_folder = dags

In ``test_my_dag.py``; ``my_dag`` is the DAG in ``dags/my_dag.py``::

    import pytest
    from my_dag import my_dag


    @pytest.mark.simulated_vllm(max_num_seqs=4, speed=20)
    def test_my_dag(simulated_vllm, connect_vllm):
        connect_vllm(simulated_vllm)
        assert my_dag.test().state == "success"
        assert simulated_vllm.received == 2


    @pytest.mark.simulated_vllm(max_num_seqs=4, speed=20)
    def test_my_dag_at_any_hour(simulated_vllm, connect_vllm):
        connect_vllm(simulated_vllm, placement="time-shifted", window="00:00-00:00 Europe/London")
        assert my_dag.test().state == "success"

Owns names and lifetimes of the fixtures, and where the tests' Airflow lies. Does not know what the servers do, and
imports no Airflow: it is set up in a process of its own, before any test is imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from airflow_llm_provider.simulator.simulated import SimulatedVLLM
from airflow_llm_provider.testing.stub import StubVLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_llm_provider.simulator.thread import ServerThread


DAGS_FOLDER = "airflow_dags_folder"
_HOME = pytest.StashKey[Path]()

# What would lead the tests elsewhere than to their own folder.
_FOREIGN = (
    "AIRFLOW_CONFIG",
    "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC",
    "AIRFLOW__LLM_BATCH__RESULTS_BASE",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Makes the setting known."""
    parser.addini(DAGS_FOLDER, "the DAGs under test: Airflow is set up anew for these in a temporary AIRFLOW_HOME")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before a ``conftest.py`` can import Airflow, which looks for its home when it is imported."""
    _own_airflow(early_config)


def pytest_configure(config: pytest.Config) -> None:
    """Makes the markers known."""
    for name, server in (("simulated_vllm", "SimulatedVLLM"), ("stub_vllm", "StubVLLM")):
        config.addinivalue_line("markers", f"{name}(**flags): arguments of the fixture's {server}")
    _own_airflow(config)  # where a conftest.py names this plugin


def pytest_sessionstart(session: pytest.Session) -> None:
    """Makes the tables of the tests' Airflow."""
    if _HOME not in session.config.stash:
        return
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    made = subprocess.run(  # noqa: S603 - this interpreter, and nothing from outside
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", check=False
    )
    if made.returncode:
        raise pytest.UsageError(f"{DAGS_FOLDER}: the tests' Airflow has no database, for this failed: {made.stdout}")


def _own_airflow(config: pytest.Config) -> None:
    """Lead Airflow, once it is imported, to a temporary home and to the DAGs under test, until pytest ends."""
    setting = config.getini(DAGS_FOLDER)
    if not setting or _HOME in config.stash:
        return
    folder = (config.inipath.parent if config.inipath else config.rootpath) / setting
    if not folder.is_dir():
        raise pytest.UsageError(f"{DAGS_FOLDER}: there is no folder {folder}")
    if "airflow" in sys.modules:
        raise pytest.UsageError(
            f"{DAGS_FOLDER}: Airflow was imported before it could be led to a temporary home. Name this plugin in "
            f"addopts, as '-p {__name__}', before others that import Airflow"
        )
    home = TemporaryDirectory(prefix="airflow-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for name in _FOREIGN:
        patch.delenv(name, raising=False)
    patch.setenv("AIRFLOW_HOME", home.name)
    patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{home.name}/airflow.db")
    patch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(folder))
    patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    patch.syspath_prepend(folder)
    config.stash[_HOME] = Path(home.name)


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
