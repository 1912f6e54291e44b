"""A real Prometheus that scrapes a real exporter with a gateway's latency histogram.

Needs `.run/prometheus` (tools/prometheus/install.sh). Without it these tests fail: they are only collected when named.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest
from prometheus_client import CollectorRegistry, Histogram, start_http_server

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tools.local_airflow import free_port  # noqa: E402 - after the path
from tools.program import Program  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = ROOT / ".run" / "prometheus" / "prometheus"
BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
CONFIG = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
- job_name: gateway
  static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


class Gateway:
    """What a gateway in front of vLLM exports: time to first token by route; `stop` makes it disappear."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.ttft = Histogram(
            "gateway_ttft_seconds", "Time to first token.", ["route"], buckets=BUCKETS, registry=registry
        )
        self._server, self._thread = start_http_server(0, addr="127.0.0.1", registry=registry)
        self.port = self._server.server_port

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@dataclass(frozen=True)
class Prometheus:
    """A running server; `program` ends it."""

    url: str
    program: Program

    def query(self, promql: str) -> list[dict]:
        """The result of an instant query."""
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{urlencode({'query': promql})}", timeout=10) as answer:
            return json.load(answer)["data"]["result"]


@contextmanager
def scraped(folder: Path) -> Iterator[tuple[Gateway, Prometheus]]:
    """A gateway and the Prometheus that scrapes it. It takes Prometheus five seconds to find its first target."""
    if not PROGRAM.exists():
        pytest.fail("There is no Prometheus in .run/prometheus. Run: bash tools/prometheus/install.sh .run/prometheus")
    gateway, port = Gateway(), free_port()
    (folder / "prometheus.yml").write_text(CONFIG.format(port=gateway.port))
    program = Program(
        name="Prometheus",
        argv=[
            str(PROGRAM),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        cwd=folder,
        log_path=folder / "prometheus.log",
    )
    program.start()
    try:
        yield gateway, Prometheus(f"http://127.0.0.1:{port}", program)
    finally:
        program.stop()
        with suppress(OSError):
            gateway.stop()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Gateway, Prometheus]]:
    """For a test that stops them."""
    with scraped(tmp_path) as both:
        yield both


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Prometheus]]:
    """For tests that only ask; each uses routes of its own."""
    with scraped(tmp_path_factory.mktemp("prometheus")) as both:
        yield both


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Waits until a condition holds."""

    def wait(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
        deadline = monotonic() + timeout_s
        while monotonic() < deadline:
            with suppress(OSError):
                if condition():
                    return
            sleep(0.05)
        pytest.fail("what was waited for did not happen")

    return wait
