"""What the system tests of the operator share: a stub server in a process of its own, and an Airflow that knows it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from tools.local_airflow import LocalAirflow

DAGS = Path(__file__).parent / "dags"
EXAMPLES = Path(__file__).parents[2] / "example_dags"
ALWAYS = "00:00-00:00 Europe/London"


class StubProcess:
    """`python -m airflow_llm_provider.testing` with its request log."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "requests.log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "airflow_llm_provider.testing", "--model", "stub", "--log", str(self.log)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), "the stub did not start"

    def state(self, **fields: object) -> None:
        """Set fields of the stub's `Behaviour`."""
        self._send("PATCH", "/_state", fields)

    def faults(self, *rules: dict) -> None:
        """What goes wrong from now on: `Rule`s as JSON. None: nothing."""
        self._send("PUT", "/_faults", list(rules))

    def _send(self, method: str, path: str, content: object) -> None:
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=json.dumps(content).encode(),
            method=method,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30):
            pass

    def tally(self) -> dict:
        """What the stub counts: requests ``received``, ``in_flight``, ``peak_in_flight`` …; not each by its id."""
        with urllib.request.urlopen(f"{self.url}/_state", timeout=30) as answer:
            return {name: value for name, value in json.load(answer).items() if name != "counts"}

    def tries(self) -> list[str]:
        """The token of the try that made each request, in the order in which they came."""
        return [line.split("-")[1] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def requested(self) -> list[int]:
        """Row indices in the order in which requests came: an id is fingerprint-try-index-send."""
        return [int(line.split("-")[2]) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.terminate()
        self._process.wait(10)
        self._process.stdout.close()


class StatsdSocket:
    """Takes StatsD's datagrams, and keeps those of ours: Airflow's scheduler sends many."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.2)
        self.port = self._socket.getsockname()[1]
        self.lines: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._ended.is_set():
            try:
                line = self._socket.recv(65536).decode()
            except TimeoutError:
                continue
            if "llm_batch." in line:
                self.lines.append(line)


@pytest.fixture(scope="session")
def statsd():
    taking = StatsdSocket()
    yield taking
    taking.close()


@pytest.fixture(scope="session")
def llm_stub(tmp_path_factory: pytest.TempPathFactory):
    stub = StubProcess(tmp_path_factory.mktemp("stub"))
    yield stub
    stub.close()


@pytest.fixture(scope="session")
def llm_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the test DAGs read."""
    work = tmp_path_factory.mktemp("work")
    good = "".join(f'{{"custom_id": "g{n}", "text": "good {n}"}}\n' for n in range(40))
    (work / "good.jsonl").write_text(good)
    (work / "malformed.jsonl").write_text(good + '{"text": "broken"\n' + '{"text": "after it"}\n')
    (work / "empty.jsonl").write_text("")
    (work / "duplicates.jsonl").write_text(good + '{"custom_id": "g7", "text": "again"}\n')
    return work


@pytest.fixture(scope="session")
def llm_airflow(llm_stub: StubProcess, llm_work: Path, statsd: StatsdSocket, tmp_path_factory: pytest.TempPathFactory):
    connection = {
        "conn_type": "vllm",
        "host": llm_stub.url,
        "password": "sk-very-secret-key",
        "extra": {"model": "stub"},
    }
    home = tmp_path_factory.mktemp("llm-airflow")
    env = {
        "AIRFLOW_CONN_VLLM_DEFAULT": json.dumps(connection),
        "AIRFLOW__LLM_BATCH__RESULTS_BASE": f"file://{home}/results",
        "AIRFLOW__LLM_BATCH__REQUESTS_PER_SLOT": "16",
        "LLM_TEST_WORK": str(llm_work),
        "AIRFLOW__METRICS__STATSD_ON": "True",
        "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_PORT": str(statsd.port),
        "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
    }
    with LocalAirflow(home, DAGS, env=env) as airflow:
        yield airflow


@pytest.fixture(scope="session")
def examples_airflow(llm_stub: StubProcess, tmp_path_factory: pytest.TempPathFactory):
    """An Airflow that runs the example DAGs as they are, at any hour: the connections open the window."""
    extras = {"vllm_default": {"window": ALWAYS}, "vllm_shared": {"slots": 8}, "vllm_batch": {"slots": 256}}
    home = tmp_path_factory.mktemp("examples-airflow")
    env = {
        "AIRFLOW__LLM_BATCH__RESULTS_BASE": f"file://{home}/results",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",  # what is broken is seen at once
    }
    for name, extra in extras.items():
        connection = {"conn_type": "vllm", "host": llm_stub.url, "extra": {"model": "stub", **extra}}
        env[f"AIRFLOW_CONN_{name.upper()}"] = json.dumps(connection)
    with LocalAirflow(home, EXAMPLES, env=env) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def acts_stub(tmp_path_factory: pytest.TempPathFactory):
    """A stub of the acts' own: it takes its time with every answer, so that each act finds rows in flight."""
    stub = StubProcess(tmp_path_factory.mktemp("acts-stub"))
    stub.state(delay_s=0.25)
    yield stub
    stub.close()


@pytest.fixture(scope="module")
def acts_airflow(acts_stub: StubProcess, tmp_path_factory: pytest.TempPathFactory):
    """An Airflow of the acts' own: many tasks at once, and a scheduler that soon misses one that is dead."""
    connection = {"conn_type": "vllm", "host": acts_stub.url, "extra": {"model": "stub"}}
    home = tmp_path_factory.mktemp("acts-airflow")
    env = {
        "AIRFLOW_CONN_VLLM_DEFAULT": json.dumps(connection),
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",  # 30 by default
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",  # 300 by default
    }
    with LocalAirflow(home, DAGS, env=env, parallelism=12) as airflow:
        yield airflow
