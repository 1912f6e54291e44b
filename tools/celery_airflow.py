"""A real Airflow on Celery: what ``local_airflow`` starts, a broker, and workers that come, go and are lost.

Owns Celery's settings and the workers' lives. Does not start the servers it needs (``postgres``, ``redis_server``).

Each worker is an ``airflow celery worker`` in a session of its own, as if on a machine of its own, and below it, for
the task that it works at, a supervisor and the task's process. So `Program.kill` of a worker is the loss of a machine.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]

from tools.local_airflow import LocalAirflow
from tools.program import ProgramError, is_alive

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tools.program import Program

WORKER_READY_S = 180.0
POLL_S = 0.2


class CeleryAirflow(LocalAirflow):
    """An Airflow whose tasks run on workers that are started one by one.

    Args:
        home: as `LocalAirflow`'s.
        dags: the same.
        database: SQLAlchemy's URL; SQLite would not do.
        broker: Celery's.
        **more: as `LocalAirflow`'s. ``parallelism`` is how many tasks may wait in the broker or run.
    """

    def __init__(self, home: Path, dags: Path, *, database: str, broker: str, **more: Any) -> None:
        super().__init__(home, dags, database=database, **more)
        self._broker = broker
        self._results = f"db+{database}"
        self.workers: dict[str, Program] = {}

    def start_workers(self, names: Iterable[str], *, concurrency: int = 1) -> None:
        """Start workers of these names, and wait until all of them take tasks.

        Args:
            names: new ones.
            concurrency: tasks that each works at side by side.
        """
        started = []
        for name in names:
            arguments = ("celery", "worker", "--celery-hostname", name, "--concurrency", str(concurrency))
            options = ("--skip-serve-logs", "--without-mingle", "--without-gossip")
            self.workers[name] = self._start_program(f"worker-{name}", (*arguments, *options))
            started.append(self.workers[name])
        deadline = time.monotonic() + WORKER_READY_S  # noqa: TID251 - it waits for processes
        for worker in started:
            while "ready." not in worker.log_tail(100):
                worker.require_running()
                if time.monotonic() > deadline:  # noqa: TID251
                    raise ProgramError(f"{worker.name} was not ready in {WORKER_READY_S:.0f} s:\n{worker.log_tail()}")
                time.sleep(POLL_S)  # noqa: TID251

    def lose_worker(self, name: str) -> None:
        """End a worker, its tasks and their supervisors at once, as a machine ends that is lost."""
        self.workers[name].kill()
        self.forget_worker(name)

    def forget_worker(self, name: str) -> None:
        """A worker that has ended is no part of this Airflow any more; one that has not is ended."""
        del self.workers[name]
        self.stop_component(f"worker-{name}")

    def task_of(self, name: str) -> psutil.Process | None:
        """The process of the task that a worker with a concurrency of 1 works at: below its supervisor."""
        with suppress(psutil.Error):
            for supervisor in psutil.Process(self.workers[name].pid).children():
                for task in supervisor.children():
                    if is_alive(task):
                        return task
        return None

    def stop(self) -> None:
        """End everything: the scheduler first, workers while there is an API server to report to."""
        failures = []
        for name in ("scheduler", *(f"worker-{worker}" for worker in self.workers)):
            try:
                self.stop_component(name)
            except ProgramError as error:
                failures.append(str(error))
        self.workers.clear()
        try:
            super().stop()
        except ProgramError as error:
            failures.append(str(error))
        if failures:
            raise ProgramError("\n".join(failures))

    def _settings(self) -> dict[str, dict[str, str]]:
        settings = super()._settings()
        settings["core"]["executor"] = "CeleryExecutor"
        settings["celery"] = {
            "broker_url": self._broker,
            "result_backend": self._results,
            "sync_parallelism": "1",  # else a pool of processes for each look
        }
        return settings
