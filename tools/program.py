"""A program in a session of its own: started, watched, and ended together with everything it started.

Owns process lifetimes: start, log file, stop, and the proof that nothing stayed. Knows neither Airflow nor models.

A session (``setsid``) and not a process group, because Airflow puts every task into a group of its own.
A session's number cannot be given to another process while any member lives, so a record of it finds the
leftovers of a parent that was killed with ``kill -9``, however its children were re-parented.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

POLL_S = 0.1
KILL_PATIENCE_S = 5.0
CREATE_TIME_SLACK_S = 1.0  # psutil computes it from boot time and clock ticks
FREEZE_ROUNDS = 20  # each finds what was begun while the one before was being stopped; two are enough


class ProgramError(RuntimeError):
    """A program did not start, died, or could not be ended; the message carries the tail of its log."""


@dataclass(kw_only=True)
class Program:
    """One running program. ``stdin`` is a pipe that we hold: it closes when we die, whatever kills us."""

    name: str
    argv: Sequence[str]
    cwd: Path
    log_path: Path
    env: Mapping[str, str] | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _created: float = field(default=0.0, init=False, repr=False)
    _seen: set[psutil.Process] = field(default_factory=set, init=False, repr=False)

    def start(self) -> None:
        """Start it; its output replaces what an earlier start left in the log."""
        self.cwd.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.argv,
                cwd=self.cwd,
                env=None if self.env is None else dict(self.env),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._created = psutil.Process(self.pid).create_time()

    @property
    def pid(self) -> int:
        """Process id, and at once the number of the session."""
        if self._process is None:
            raise ProgramError(f"{self.name} was not started")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def log_tail(self, lines: int = 30) -> str:
        """The last lines it wrote."""
        with suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def require_running(self) -> None:
        """Raise with the tail of the log if it has ended."""
        if self.exit_code is not None:
            raise ProgramError(
                f"{self.name} ended with exit code {self.exit_code}. Its log, {self.log_path}, ends with:\n"
                f"{self.log_tail()}"
            )

    def processes(self) -> list[psutil.Process]:
        """Every living process of its session, and whatever left the session but descends from it."""
        if self._process is None:
            return []
        self._seen.update(session_members(self.pid))
        for process in list(self._seen):
            with suppress(psutil.Error):
                self._seen.update(process.children(recursive=True))
        self._seen = {process for process in self._seen if is_alive(process)}
        return sorted(self._seen, key=lambda process: process.pid)

    def stop(self, *, patience_s: float = 10.0, term_patience_s: float = KILL_PATIENCE_S) -> None:
        """End it; raises if something stays.

        SIGTERM to the leader, after ``patience_s`` to everybody in the session, and SIGKILL to whoever is
        left after ``term_patience_s`` more.
        """
        if self._process is None:
            return
        self.processes()  # remember who descends from it while the leader is there to tell
        if self._process.poll() is None:
            self._process.terminate()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        if not self._gone_within(patience_s):
            end_processes(self.processes(), patience_s=term_patience_s)
        if not self._gone_within(KILL_PATIENCE_S):
            stayed = ", ".join(f"{process.pid} ({process.name()})" for process in self.processes())
            raise ProgramError(f"{self.name} was stopped and these processes stayed: {stayed}")
        self._process.wait(KILL_PATIENCE_S)  # it may have ended between the last look at it and the one at all of them
        self._process = None

    def kill_leader(self) -> None:
        """``kill -9`` of the program itself; what it has started lives on, until :meth:`stop`."""
        if self._process is not None:
            self.processes()  # remember who descends from it while it is there to tell
            self._process.kill()
            self._process.wait(KILL_PATIENCE_S)

    def freeze(self) -> None:
        """SIGSTOP to all of it, until :meth:`thaw`: nothing of it does anything any more, nor sees another die."""
        stopped: set[psutil.Process] = set()
        for _ in range(FREEZE_ROUNDS):
            fresh = set(self.processes()) - stopped
            if not fresh:
                return
            _send(fresh, signal.SIGSTOP)
            stopped |= fresh
        raise ProgramError(f"{self.name} begins processes faster than they can be stopped")

    def thaw(self) -> None:
        """Let it go on."""
        _send(self.processes(), signal.SIGCONT)

    def kill(self) -> None:
        """End all of it at once, as a machine ends that is lost: no process of it outlives another by a moment."""
        if self._process is None:
            return
        self.freeze()
        _send(self.processes(), signal.SIGKILL)
        self.stop(patience_s=KILL_PATIENCE_S)

    def record(self) -> dict[str, object]:
        """What a later start needs to find the leftovers of this one."""
        return {"name": self.name, "sid": self.pid, "created": self._created}

    def _gone_within(self, patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s  # noqa: TID251 - a tool that waits for other processes
        while True:
            if self._process is not None:
                self._process.poll()  # reaps the leader
            if not self.processes():
                return True
            if time.monotonic() > deadline:  # noqa: TID251
                return False
            time.sleep(POLL_S)  # noqa: TID251


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie waits for its parent to read its exit code and does nothing any more."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def session_members(sid: int) -> list[psutil.Process]:
    """Every living process of a session."""
    members = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) == sid:
                members.append(psutil.Process(pid))
    return [process for process in members if is_alive(process)]


def end_processes(processes: Sequence[psutil.Process], *, patience_s: float) -> None:
    """SIGTERM, and SIGKILL to whoever is left after ``patience_s``."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=patience_s)


def write_records(path: Path, programs: Sequence[Program]) -> None:
    """Note which programs run now, for whoever comes after a ``kill -9`` of this process."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps([program.record() for program in programs]))
    temporary.replace(path)


def end_leftovers(path: Path) -> list[str]:
    """End what an earlier process noted in ``path`` and could not stop itself; returns the names of it.

    Nobody else's process is touched: a leader must have been created when the record says, and members
    whose leader is gone must still work in the folder that holds the record.
    """
    try:
        records = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    ended = []
    for record in records:
        members = [
            process
            for process in session_members(record["sid"])
            if _belongs(process, record["sid"], record["created"], path.parent)
        ]
        if members:
            end_processes(members, patience_s=KILL_PATIENCE_S)
            ended.append(record["name"])
    path.unlink(missing_ok=True)
    return ended


def _belongs(process: psutil.Process, sid: int, leader_created: float, home: Path) -> bool:
    try:
        if process.pid == sid:
            return bool(abs(process.create_time() - leader_created) < CREATE_TIME_SLACK_S)
        younger = process.create_time() > leader_created - CREATE_TIME_SLACK_S
        return bool(younger and Path(process.cwd()) == home)
    except psutil.Error:
        return False
