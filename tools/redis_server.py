"""A real Redis on loopback, the broker of an Airflow of tests: made here, ended here, its data thrown away.

Owns its settings and its life. Does not know what is kept in it, none of which reaches the disk. The program is what
``tools/redis/install.sh`` found or unpacked.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tools.local_airflow import free_port
from tools.program import Program, ProgramError

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
READY_S = 30.0
POLL_S = 0.05
MODE_OWNER_ONLY = 0o600


class RedisServer:
    """A server; a context manager.

    Attributes:
        url: its database 0, as Celery's ``broker_url``.
    """

    def __init__(self) -> None:
        self.url = ""
        self._folder = Path()
        self._program: Program | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="llm-redis-"))
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
        """End it."""
        try:
            if self._program is not None:
                self._program.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        port, password = free_port(), secrets.token_urlsafe(16)
        settings = self._folder / "redis.conf"
        settings.touch(mode=MODE_OWNER_ONLY)
        settings.write_text(
            f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {self._folder}\n"
            'save ""\nappendonly no\ndaemonize no\n'
        )
        self._program = Program(
            name="redis",
            argv=[str(_server()), str(settings)],
            cwd=self._folder,
            log_path=self._folder / "redis.log",
        )
        self._program.start()
        self._await_ready(self._program, port, password)
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"

    def _await_ready(self, program: Program, port: int, password: str) -> None:
        deadline = time.monotonic() + READY_S  # noqa: TID251 - it waits for a process
        while time.monotonic() < deadline:  # noqa: TID251
            program.require_running()
            if _answers(port, password):
                return
            time.sleep(POLL_S)  # noqa: TID251
        raise ProgramError(f"redis did not answer after {READY_S:.0f} s:\n{program.log_tail()}")


def _answers(port: int, password: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            said = b""
            while said.count(b"\r\n") < 2 and (more := connection.recv(256)):  # noqa: PLR2004 - an answer to each
                said += more
    except OSError:
        return False
    return said == b"+OK\r\n+PONG\r\n"


def _server() -> Path:
    server = ROOT / ".run" / "redis" / "redis-server"
    if not server.exists():
        raise ProgramError(
            f"There is no Redis: {server} is not there. `make test-distributed` puts it there; by hand: "
            "bash tools/redis/install.sh .run/redis"
        )
    return server
