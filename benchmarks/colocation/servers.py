"""What real-time and batch run on: a real vLLM, or the simulator in a process of its own.

Owns starting and ending them, and reading their counters. Both are asked the same, and the same way.
Does not know what a task's look at their load costs (`look_cost`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from airflow_llm_provider.endpoint.load import GENERATED, RUNNING, WAITING
from benchmarks.colocation.log_tail import log_tail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_ROOT = Path(__file__).resolve().parents[2]
_API_KEY = "sk-colocation"
MAX_MODEL_LEN = 2048
"""Tokens of prompt and answer together that the real vLLM takes at most."""

COUNTERS = "/metrics/?" + "&".join(f"name[]={name}" for name in (RUNNING, WAITING, GENERATED))


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server.

    Attributes:
        kind: ``vllm`` or ``sim``.
        url: its root.
        model: what it serves.
        slots: sequences it runs at once.
        pid: of its API server.
        api_key: None where it asks for none.
    """

    kind: str
    url: str
    model: str
    slots: int
    pid: int
    api_key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> Mapping[str, str]:
        """Sent with every request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def counters(self) -> dict[str, float]:
        """Running, waiting and generated tokens, as the server says. Blocks for a millisecond."""
        with urllib.request.urlopen(self.url + COUNTERS, timeout=10) as answer:  # noqa: S310 - loopback
            text = answer.read().decode()
        values: dict[str, float] = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if line and not line.startswith("#"):
                values[name.partition("{")[0]] = values.get(name.partition("{")[0], 0.0) + float(value)
        return values

    def cpu_s(self) -> float:
        """The API server's CPU time so far; its engine's is not in it."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def settle(self, wait_s: float = 60.0) -> None:
        """Wait until it is idle.

        Raises:
            RuntimeError: it is not, after `wait_s`.
        """
        until_s = _now_s() + wait_s
        while _now_s() < until_s:
            counters = self.counters()
            if not counters[RUNNING] and not counters[WAITING]:
                return
            time.sleep(0.1)  # noqa: TID251 - waits for a process
        raise RuntimeError(f"{self.url} is still busy after {wait_s:g} s: {counters}")


@contextmanager
def vllm(slots: int, log: Path, *, model: Path | None = None, more: Sequence[str] = ()) -> Iterator[Server]:
    """A real vLLM on CPU, scheduled by priority.

    Args:
        slots: its ``--max-num-seqs``.
        log: gets what it says.
        model: a folder to serve; None: the tiny random model of `tools/vllm`, which is made where it is not there.
        more: further flags.

    Raises:
        RuntimeError: it is not installed, or did not start.
    """
    venv = _ROOT / ".venv-vllm"
    if not (venv / "installed.lock").exists():
        raise RuntimeError("There is no vLLM in .venv-vllm. Run: make .venv-vllm/.installed")
    model = model or made(_ROOT / ".run" / "tiny-llama", "make_tiny_model.py")
    port = _free_port()
    flags = ["--enforce-eager", "--scheduling-policy", "priority", "--max-num-seqs", str(slots), "--api-key", _API_KEY]
    flags += ["--enable-per-request-metrics", "--disable-uvicorn-access-log", *more]
    command = ["bash", str(_ROOT / "tools" / "vllm" / "serve.sh"), str(venv), str(model), str(port), *flags]
    environment = {**os.environ, "MAX_MODEL_LEN": str(MAX_MODEL_LEN), "VLLM_LOG": str(log)}
    started = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False, timeout=400)
    if started.returncode:
        raise RuntimeError(f"vLLM did not start; {log_tail(log)}")
    pid = int(started.stdout)
    try:
        yield Server(
            kind="vllm", url=f"http://127.0.0.1:{port}", model=str(model), slots=slots, pid=pid, api_key=_API_KEY
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def made(folder: Path, tool: str, *arguments: str) -> Path:
    """A model's folder, made by a tool of `tools/vllm` where it is not there.

    Raises:
        RuntimeError: it could not be made.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(exist_ok=True)
    half = folder.with_suffix(".half")
    python = str(_ROOT / ".venv-vllm" / "bin" / "python")
    command = [python, str(_ROOT / "tools" / "vllm" / tool), *arguments, str(half)]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"{tool} could not make {folder}; see above")
    half.rename(folder)
    return folder


@contextmanager
def simulator(slots: int, log: Path) -> Iterator[Server]:
    """The simulator, in real time.

    Raises:
        RuntimeError: it did not start.
    """
    command = [sys.executable, "-m", "airflow_llm_provider.simulator", "--port", "0", "--max-num-seqs", str(slots)]
    command += ["--scheduling-policy", "priority", "--enable-per-request-metrics", "--served-model-name", "sim"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            url = process.stdout.readline().strip() if process.stdout is not None else ""
            if not url:
                raise RuntimeError(f"The simulator did not start; {log_tail(log)}")
            yield Server(kind="sim", url=url, model="sim", slots=slots, pid=process.pid)
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251
