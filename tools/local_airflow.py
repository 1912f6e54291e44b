"""A real Airflow on this machine: one scheduler, API server, DAG processor and triggerer; SQLite unless told otherwise.

Owns its settings and its life. What happens inside it is asked through ``airflow_rest``; processes are
``program``'s; workers on Celery are ``celery_airflow``'s. Everything it writes lies below its home:

::

    {home}/airflow.cfg          every setting, so that `AIRFLOW_HOME={home} airflow …` works beside it
    {home}/airflow.db           SQLite, where no other database is named
    {home}/components/*.log     what the four components print
    {home}/logs/                the tasks' logs, as in any Airflow
    {home}/migrated-to          the Airflow version the database was migrated to
    {home}/processes.json       who runs, for the start after a `kill -9`

The components are started one by one and not by `airflow standalone`, which orphans them on SIGTERM and
hides which of them failed.
"""

from __future__ import annotations

import base64
import configparser
import logging
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tools.airflow_rest import AirflowRest, AirflowRestError
from tools.program import KILL_PATIENCE_S, Program, ProgramError, end_leftovers, is_alive, write_records

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    import psutil  # type: ignore[import-untyped]

MODE_OWNER_ONLY = 0o600
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    "dag-processor": ("dag-processor",),
    # log servers listen on every address of the machine; the API server reads the files instead
    "triggerer": ("triggerer", "--skip-serve-logs"),
    "scheduler": ("scheduler", "--skip-serve-logs"),
}
STOP_ORDER = ("scheduler", "triggerer", "dag-processor", "api-server")
HEALTH_NAMES = ("metadatabase", "scheduler", "dag_processor", "triggerer")
POLL_S = 0.5
MIGRATION_TIMEOUT_S = 180.0
TRIGGERER_PATIENCE_S = 1.0

_log = logging.getLogger(__name__)


class LocalAirflow:
    """One Airflow with its home, its DAG folder and its port; a context manager from start to stop.

    Args:
        home: Everything it writes lies here. A home used before is used again, database included.
        dags: The folder the DAG processor reads.
        env: Added to the environment of every component and so of every task, for example
            ``AIRFLOW_CONN_…`` or ``AIRFLOW__SECTION__KEY``. ``AIRFLOW…`` variables of this process are not
            passed on, so a developer's own Airflow cannot leak in.
        database: SQLAlchemy's URL of the metadata database, which belongs to this home; None: SQLite in there.
        parallelism: Tasks that run at the same time.
        timeout_s: How long ``start`` waits for healthy; a busy machine has taken two minutes.
        stop_patience_s: How long running tasks may go on when it stops, before they get a SIGTERM.
        note: Called with a line of text at each step.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        env: Mapping[str, str] | None = None,
        database: str | None = None,
        parallelism: int = 4,
        timeout_s: float = 180.0,
        stop_patience_s: float = 3.0,
        note: Callable[[str], None] = _log.info,
    ) -> None:
        self.home = home.resolve()
        self.dags = dags.resolve()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.rest = AirflowRest(self.url)
        self._extra_env = dict(env or {})
        self._database = database
        self._parallelism = parallelism
        self._timeout_s = timeout_s
        self._stop_patience_s = stop_patience_s
        self._note = note
        self._programs: dict[str, Program] = {}
        self._orphaned: list[Program] = []
        """Components that were killed, of which what they had started may live on."""

    # --- life ---------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Migrate the database, start the components, wait until all four are healthy."""
        self.home.mkdir(parents=True, exist_ok=True)
        if left := end_leftovers(self._records):
            self._note(f"ended what an earlier start had left running: {', '.join(left)}")
        used_before = self._migrated_to.exists()
        self._write_settings()
        self._migrate()
        self._note(f"starting at {self.url}")
        started_at = datetime.now(UTC)  # noqa: TID251 - compared with Airflow's own heartbeats
        try:
            for name in COMPONENTS:
                if name == "scheduler" and used_before:
                    # it goes on with interrupted runs at once, and a task that finds no API server loses a try
                    self._wait_until_healthy(started_at, ["metadatabase"])
                self.start_component(name)
            self._wait_until_healthy(started_at, HEALTH_NAMES)
        except BaseException:
            with suppress(ProgramError):
                self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all components and tasks; raises ``ProgramError`` if a process stays. Safe to call twice.

        The API server goes last: a task that is told to stop still reports through it.
        """
        stops = [
            *(partial(program.stop, patience_s=0) for program in self._orphaned),
            *(partial(self.stop_component, name) for name in STOP_ORDER),
        ]
        failures = []
        for stop in stops:
            try:
                stop()
            except ProgramError as error:
                failures.append(str(error))
        if failures:
            raise ProgramError("\n".join(failures))
        self._orphaned.clear()
        self._records.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what runs ----------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Every process of this Airflow: components, executor workers, tasks and what they started."""
        return [process for program in self._all_programs() for process in program.processes()]

    def component(self, name: str) -> Program:
        """One of ``api-server``, ``scheduler``, ``dag-processor``, ``triggerer``."""
        return self._programs[name]

    def stop_component(self, name: str) -> None:
        """End one component, for good or until :meth:`start_component`."""
        program = self._programs.pop(name, None)
        if program is not None:
            # its child does not answer a SIGTERM, and triggers start again wherever they are cut off
            term_patience_s = TRIGGERER_PATIENCE_S if name == "triggerer" else KILL_PATIENCE_S
            patience_s = TRIGGERER_PATIENCE_S if name == "triggerer" else self._stop_patience_s
            program.stop(patience_s=patience_s, term_patience_s=term_patience_s)

    def kill_component(self, name: str) -> None:
        """``kill -9`` of one component alone: the tasks that a scheduler runs live on, as orphans, until `stop`."""
        program = self._programs.pop(name)
        self._orphaned.append(program)
        program.kill_leader()

    def start_component(self, name: str) -> None:
        """Start one component, for example after it was killed."""
        self.stop_component(name)
        self._start_program(name, COMPONENTS[name])

    def task_processes(self) -> list[psutil.Process]:
        """The processes that run task code now: the ones to ``kill -9`` in a test."""
        scheduler = self._programs["scheduler"]
        return [process for process in scheduler.processes() if is_alive(process) and _leads_a_group(process)]

    def require_running(self) -> None:
        """Raise ``ProgramError`` with the tail of its log if a component has ended."""
        for program in self._programs.values():
            program.require_running()

    # --- steps --------------------------------------------------------------------------------------

    def _all_programs(self) -> list[Program]:
        return [*self._programs.values(), *self._orphaned]

    def _start_program(self, name: str, arguments: Sequence[str]) -> Program:
        program = Program(
            name=f"airflow {name}",
            argv=[sys.executable, "-m", "airflow", *arguments],
            cwd=self.home,
            log_path=self.home / "components" / f"{name}.log",
            env=self.environment(),
        )
        program.start()
        self._programs[name] = program
        write_records(self._records, self._all_programs())
        return program

    @property
    def _records(self) -> Path:
        return self.home / "processes.json"

    @property
    def _migrated_to(self) -> Path:
        return self.home / "migrated-to"

    def environment(self) -> dict[str, str]:
        """The environment of the components; also what a command line beside them needs."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        env["AIRFLOW_HOME"] = str(self.home)
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
        local = "127.0.0.1,localhost"
        for name in ("NO_PROXY", "no_proxy"):  # tasks talk to the API server through httpx, which obeys them
            env[name] = f"{env[name]},{local}" if env.get(name) else local
        return env | self._extra_env

    def _write_settings(self) -> None:
        config = configparser.ConfigParser(interpolation=None)
        config.read_dict(
            {
                section: {key: value.replace("%", "%%") for key, value in values.items()}
                for section, values in self._settings().items()
            }
        )
        path = self.home / "airflow.cfg"
        path.touch(mode=MODE_OWNER_ONLY)
        with path.open("w") as file:
            config.write(file)

    def _settings(self) -> dict[str, dict[str, str]]:
        return {
            "core": {
                "dags_folder": str(self.dags),
                "executor": "LocalExecutor",
                "parallelism": str(self._parallelism),
                "load_examples": "False",
                "dags_are_paused_at_creation": "False",
                "simple_auth_manager_all_admins": "True",  # everybody on this machine, and nobody else
                "execution_api_server_url": f"{self.url}/execution/",
                "hostname_callable": "socket.gethostname",  # getfqdn asks a DNS server that may be missing
                "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            },
            "database": {
                # readers wait for a writer for so long: the 5 s by default are few on a busy machine
                "sql_alchemy_conn": self._database or f"sqlite:///{self.home / 'airflow.db'}?timeout=30",
                "load_default_connections": "False",
            },
            "logging": {"base_log_folder": str(self.home / "logs")},
            "api": {
                "base_url": self.url,
                "host": "127.0.0.1",  # the default is every address of the machine
                "port": str(self.port),
                "workers": "1",
                "secret_key": secrets.token_urlsafe(32),
            },
            "api_auth": {"jwt_secret": secrets.token_urlsafe(64)},
            "workers": {
                "min_heartbeat_interval": "1",
                # 5 s by default: a busy machine's first call took 17 s, and the task lost its try
                "execution_api_timeout": "60",
            },
            "scheduler": {"scheduler_idle_sleep_time": "0.5"},
            "dag_processor": {
                "dag_bundle_storage_path": str(self.home / "bundles"),
                "refresh_interval": "2",  # seconds until a new file is seen
                "bundle_refresh_check_interval": "1",
                "parsing_processes": "1",
            },
            "usage_data_collection": {"enabled": "False"},
        }

    def _migrate(self) -> None:
        stamp = self._migrated_to
        version = metadata.version("apache-airflow-core")
        if stamp.exists() and stamp.read_text() == version:
            return
        self._note("migrating the database")
        log_path = self.home / "components" / "migrate.log"
        log_path.parent.mkdir(exist_ok=True)
        with log_path.open("wb") as log:
            result = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                cwd=self.home,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=MIGRATION_TIMEOUT_S,
                check=False,
            )
        if result.returncode != 0:
            tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-30:])
            raise ProgramError(f"airflow db migrate failed. Its log, {log_path}, ends with:\n{tail}")
        if self._database is None:
            # readers and the writer stop waiting for each other; the mode stays with the file
            with closing(sqlite3.connect(self.home / "airflow.db")) as database:
                database.execute("PRAGMA journal_mode=WAL")
        stamp.write_text(version)

    def _wait_until_healthy(self, started_at: datetime, names: Sequence[str]) -> None:
        deadline = time.monotonic() + self._timeout_s  # noqa: TID251 - a tool that waits for other processes
        missing = list(names)
        while time.monotonic() < deadline:  # noqa: TID251
            self.require_running()
            with suppress(OSError, AirflowRestError):
                missing = _unhealthy(self.rest.health(), names, started_at)
                if not missing:
                    return
            time.sleep(POLL_S)  # noqa: TID251
        tails = "\n".join(f"--- {each.log_path}\n{each.log_tail(15)}" for each in self._programs.values())
        raise ProgramError(
            f"Airflow was not healthy after {self._timeout_s:.0f} s; still missing: {', '.join(missing)}\n{tails}"
        )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, chosen by the operating system."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _unhealthy(health: Mapping[str, Mapping[str, str | None]], names: Sequence[str], started_at: datetime) -> list[str]:
    """Names that are not healthy yet. A heartbeat from before the start belongs to an earlier life."""
    missing = []
    for name in names:
        part = health.get(name) or {}
        heartbeat = part.get(f"latest_{name}_heartbeat")
        fresh = name == "metadatabase" or (heartbeat is not None and datetime.fromisoformat(heartbeat) >= started_at)
        if part.get("status") != "healthy" or not fresh:
            missing.append(name)
    return missing


def _leads_a_group(process: psutil.Process) -> bool:
    """Airflow puts each task into a process group of its own, and nothing else below the scheduler."""
    try:
        return bool(os.getpgid(process.pid) == process.pid != os.getsid(process.pid))
    except OSError:
        return False
