"""The model server dies, or answers as broken ones do, while tries work and die beside it.

Owns who is killed when. What must hold is `scene`'s. Requests are counted by the server's own log, which survives it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault
from benchmarks.chaos.scene import Scene, Tally
from benchmarks.chaos.try_process import Order

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random
    from typing import Any

    from airflow_llm_provider.testing import StubVLLM
    from benchmarks.chaos.tries import RunningTry

READY_S = 60.0


class ModelServer:
    """The stub as a process, on a port that it keeps over its deaths.

    Args:
        folder: where its log lies.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "requests.log"
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it, and wait until it says where it listens."""
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "airflow_llm_provider.testing", "--port", port, "--log", str(self._log)]
        self._process = subprocess.Popen([*command, "--delay-s", "0.05"], stdout=subprocess.PIPE, text=True)
        if self._process.stdout is None:
            raise AssertionError
        self.url = self._process.stdout.readline().strip()
        if not self.url.startswith("http"):
            raise RuntimeError("The model server did not start")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(READY_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def counts(self) -> Counter[str]:
        """Requests by their ids, over all its lives."""
        return Counter(self._log.read_text().split()) if self._log.exists() else Counter()


def model_server_dies(folder: Path, source: str, times: int, rng: Random) -> Tally:
    """It is killed at a random moment of a try, and is back half a second later. The try goes on by itself."""
    tally = Tally("the model server")
    server = ModelServer(folder)
    server.start()
    try:
        for number in range(times):
            order = Order(uri=f"file://{folder}/{number}", source=source, url=server.url)
            scene = Scene(tally, f"death {number}", server.counts, RunStore(order.uri), refuses=False, once=False)

            def strike(_: RunningTry) -> None:
                time.sleep(rng.uniform(0.0, 0.3))
                server.kill()
                tally.kills += 1
                time.sleep(0.2)
                server.start()

            scene.attempt(order, strike)
            scene.finish(order)
    finally:
        server.kill()
    return tally


def faults(folder: Path, source: str, stub: StubVLLM, kills: int, rng: Random) -> Tally:
    """A third of all answers is wrong, in the ways of servers and of what stands before them; tries die, too."""
    tally = Tally("wrong answers, tries killed at random")
    ways = [
        Fault.busy(),
        Fault.engine_dead(),
        Fault.gateway(502),
        Fault.slow(0.05),
        *(Fault.from_json({"kind": kind}) for kind in ("truncated", "garbage", "empty", "reset", "reset_mid_answer")),
    ]
    honest = stub.behaviour.fault

    def wrong(request: dict[str, Any], nth: int) -> Fault | None:
        refused = honest(request, nth) if honest is not None else None
        return refused or (rng.choice(ways) if rng.random() < 0.33 else None)

    stub.behaviour.fault = wrong
    try:
        while tally.kills < kills:
            order = Order(uri=f"file://{folder}/faults-{tally.runs}", source=source, url=stub.url)
            scene = Scene(tally, f"run {tally.runs}", lambda: stub.counts, RunStore(order.uri), once=False)
            for number in range(1, rng.randint(2, 6)):
                scene.attempt(replace(order, die_at=rng.randint(1, 60), try_number=number))
            scene.finish(replace(order, try_number=9))
    finally:
        stub.behaviour.fault = honest
    return tally
