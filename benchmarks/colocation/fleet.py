"""Batch, in as many processes as asked for: started once, told what to run, asked what came of it.

Owns the processes. What they do is `batch_process`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from benchmarks.colocation.batch_process import Order, write_rows
from benchmarks.colocation.log_tail import log_tail
from benchmarks.colocation.look import Look

if TYPE_CHECKING:
    from types import TracebackType

    from benchmarks.colocation.policies import Policy

_ROOT = Path(__file__).resolve().parents[2]  # where `benchmarks` is found


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What one process noted of one run; see `batch_process`."""

    requests: list[tuple[float, float, float | None, int, str]]
    looks: list[Look]
    cpu_s: float


class Fleet:
    """Batch processes. A context manager.

    Args:
        size: how many there are.
        folder: scratch space.
        rows: of each process and run; they must not run out.
    """

    def __init__(self, size: int, folder: Path, *, rows: int = 10_000) -> None:
        self._folder = folder
        self._sources = [folder / f"rows-{number}.jsonl" for number in range(size)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._rows = rows
        self._runs = 0

    def __enter__(self) -> Self:
        for number, source in enumerate(self._sources):
            write_rows(source, self._rows, seed=number)
            command = [sys.executable, "-m", "benchmarks.colocation.batch_process"]
            with self._log(number).open("wb") as log:
                process = subprocess.Popen(
                    command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
                )
            self._processes.append(process)
        try:
            for process in self._processes:
                self._hear(process)
        except BaseException:
            self._end()  # nobody else does
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def run(self, policy: Policy, *, processes: int, url: str, api_key: str | None, slots: int) -> None:
        """Have the first `processes` of them begin a run each, and wait until all have.

        Raises:
            RuntimeError: one could not.
        """
        self._runs += 1
        for number, process in enumerate(self._processes[:processes]):
            order = Order(
                url=url,
                api_key=api_key,
                rows=str(self._sources[number]),
                out=str(self._folder / f"out-{self._runs}-{number}"),
                policy=policy,
                slots=slots,
            )
            self._tell(process, {"do": "run", **asdict(order)})
        for process in self._processes[:processes]:
            if (heard := self._hear(process))["event"] != "begun":
                raise RuntimeError(f"A batch process could not begin: {heard['error']}; {self._tail(process)}")

    def stop(self, processes: int) -> list[Noted]:
        """End what runs there.

        Raises:
            RuntimeError: a run ended otherwise.
        """
        for process in self._processes[:processes]:
            self._tell(process, {"do": "stop"})
        noted = []
        for process in self._processes[:processes]:
            ended = self._hear(process)
            if ended["error"] is not None:
                raise RuntimeError(f"A batch process failed: {ended['error']}; {self._tail(process)}")
            noted.append(
                Noted(
                    requests=[tuple(each) for each in ended["requests"]],
                    looks=[Look(*each) for each in ended["looks"]],
                    cpu_s=ended["cpu_s"],
                )
            )
        return noted

    def _tell(self, process: subprocess.Popen[bytes], order: dict[str, Any]) -> None:
        if process.stdin is None:
            raise AssertionError
        process.stdin.write(orjson.dumps(order, option=orjson.OPT_APPEND_NEWLINE))
        process.stdin.flush()

    def _hear(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        line = process.stdout.readline() if process.stdout is not None else b""
        if not line:
            code = process.wait(timeout=10)
            raise RuntimeError(f"A batch process is gone, exit code {code}; {self._tail(process)}")
        heard: dict[str, Any] = orjson.loads(line)
        return heard

    def _log(self, number: int) -> Path:
        return self._folder / f"batch-{number}.log"

    def _tail(self, process: subprocess.Popen[bytes]) -> str:
        return log_tail(self._log(self._processes.index(process)))
