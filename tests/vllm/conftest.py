"""A real vLLM, started with the flags a test asks for.

Needs `.venv-vllm` (tools/vllm/install.sh). Without it these tests fail: they are only collected when they are named.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.local_airflow import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "vllm"
VENV = ROOT / ".venv-vllm"
RUN = ROOT / ".run"
MODEL = RUN / "tiny-llama"
RESTLESS = RUN / "tiny-restless"
CLASSIFIER = RUN / "tiny-classifier"
API_KEY = "sk-contract"
START_WITHIN_S = 400


@dataclass(frozen=True)
class RealVLLM:
    """A running server.

    Attributes:
        url: its root.
        pid: the API server's process id, which is its group's.
    """

    url: str
    pid: int

    def terminate(self) -> None:
        """SIGTERM to the API server alone, as an init system sends it."""
        os.kill(self.pid, signal.SIGTERM)


@pytest.fixture(scope="session")
def model() -> Path:
    """The folder of a model to serve, made once per checkout."""
    if not (VENV / "installed.lock").exists():
        pytest.fail("There is no vLLM in .venv-vllm. Run: bash tools/vllm/install.sh .venv-vllm")
    return _made(MODEL)


@pytest.fixture(scope="session")
def restless(model: Path) -> Path:
    """The same, of a model that never says the same for long."""
    return _made(RESTLESS, "--restless")


@pytest.fixture(scope="session")
def classifier(model: Path) -> Path:
    """The same, of a model that names labels."""
    return _made(CLASSIFIER, "--classifies")


def _made(folder: Path, *flags: str) -> Path:
    if not folder.exists():
        RUN.mkdir(exist_ok=True)
        half = folder.with_suffix(".half")
        subprocess.run([VENV / "bin" / "python", TOOLS / "make_tiny_model.py", half, *flags], check=True)
        half.rename(folder)
    return folder


@pytest.fixture(scope="session")
def start(model: Path) -> Callable[..., AbstractContextManager[RealVLLM]]:
    """Starts a server with flags; it is gone, engine and all, at the end of the `with`."""

    @contextmanager
    def started(*flags: str, port: int | None = None, model_folder: Path = model) -> Iterator[RealVLLM]:
        port = port or free_port()
        always = ["--enforce-eager", "--api-key", API_KEY]
        command = ["bash", TOOLS / "serve.sh", VENV, model_folder, str(port), *always, *flags]
        environment = {**os.environ, "MAX_MODEL_LEN": "8192"}
        started = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=START_WITHIN_S
        )
        server = RealVLLM(f"http://127.0.0.1:{port}", int(started.stdout))
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)

    return started
