"""Tries as processes: started from one that has imported everything, awaited with a bound, killed by their id.

Owns the processes. What they do is `try_process`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.chaos import try_process

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from benchmarks.chaos.try_process import Order

PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class End:
    """How a try ended.

    Attributes:
        killed: by SIGKILL.
        manifest: where it finished.
        error: where it said that it failed.
        for_good: whether it said that no other try would mend it.
        changes: to files below its run's path, where it was not killed.
    """

    killed: bool
    manifest: dict[str, Any] | None = None
    error: str | None = None
    for_good: bool = False
    changes: int = 0


class RunningTry:
    """A try that works.

    Args:
        order: what it is told.

    Raises:
        RuntimeError: when it is awaited, and ended in a way that no try may.
    """

    _context = multiprocessing.get_context("forkserver")
    # Each process imports the main module again, which is quick where all that it imports is there.
    _context.set_forkserver_preload([try_process.__name__, "benchmarks.chaos.__main__"])

    def __init__(self, order: Order) -> None:
        self._hears, tells = self._context.Pipe(duplex=False)
        self._process: ForkServerProcess = self._context.Process(target=try_process.work, args=(order, tells))
        self._process.start()
        tells.close()

    def kill(self) -> None:
        """SIGKILL, now."""
        self._process.kill()

    def stands_still(self) -> bool:
        """Wait until it does; False where it ended before.

        Raises:
            RuntimeError: neither.
        """
        until_s = time.monotonic() + PATIENCE_S
        state = Path(f"/proc/{self._process.pid}/stat")
        while time.monotonic() < until_s:
            if self._hears.poll(0.005):
                return False
            if state.read_text().rpartition(")")[2].split()[0] == "T":
                return True
        raise RuntimeError(f"A try neither stood still nor ended within {PATIENCE_S:g} s")

    def go_on(self) -> None:
        """It stood still, and works again."""
        if self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGCONT)

    def end(self) -> End:
        """Wait for it."""
        try:
            told = self._hears.recv() if self._hears.poll(PATIENCE_S) else None
        except EOFError:
            told = {}
        if told is None:
            self._process.kill()
        self._process.join(PATIENCE_S)
        code = self._process.exitcode
        self._process.close()
        self._hears.close()
        if told is None:
            raise RuntimeError(f"A try did not end within {PATIENCE_S:g} s")
        if code == -signal.SIGKILL and not told:
            return End(killed=True)
        if not told:
            raise RuntimeError(f"A try ended with exit code {code} and no word; see its traceback above")
        return End(
            killed=False,
            manifest=told.get("manifest"),
            error=told.get("error"),
            for_good=bool(told.get("for_good")),
            changes=told["changes"],
        )
