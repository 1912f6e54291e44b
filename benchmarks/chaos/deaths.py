"""Kills this process with SIGKILL at its n-th change to files below a folder, or has it stand still there.

Owns what a change is: what the interpreter tells an audit hook before it opens a file for writing, renames, links,
removes, or makes a folder. So nothing of the code that is killed is wrapped or knows of it, and a change that nobody
thought of counts as well. To be killed after a change is to be killed before the next one.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

_ONE_PATH = frozenset({"os.remove", "os.rmdir", "os.mkdir", "os.truncate"})
_TWO_PATHS = frozenset({"os.rename", "os.link", "os.symlink"})


class Deaths:
    """Counts changes, and kills. There is one in a process: an audit hook cannot be taken back.

    Args:
        below: only what lies there counts.
        at: the change before which the process is killed; 0: none.
        stands_still: it is not killed, but stopped (SIGSTOP), until somebody has it go on (SIGCONT): as a machine that
            is paused, or cut off from the rest of the world for a while.
        torn: half of what was to be put in place is cut off first, as if the kill had come while it was written.
    """

    def __init__(self, below: str, *, at: int, torn: bool, stands_still: bool = False) -> None:
        self._below = f"{below.rstrip('/')}/"
        self._at = at
        self._torn = torn
        self._signal = signal.SIGSTOP if stands_still else signal.SIGKILL
        self.changes = 0

    def install(self) -> None:
        """From now on."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._change(path)
        elif event in _ONE_PATH:
            self._change(_whole(arguments[0], arguments[-1]))
        elif event in _TWO_PATHS:
            self._change(arguments[1], arguments[0])

    def _change(self, target: Any, source: Any = None) -> None:
        if not isinstance(target, str | os.PathLike) or not str(target).startswith(self._below):
            return
        self.changes += 1
        if self.changes == self._at:
            if self._torn and source is not None:
                size = Path(source).stat().st_size
                os.truncate(source, size // 2)
            os.kill(os.getpid(), self._signal)


def _whole(path: Any, dir_fd: Any) -> Any:
    """The path, where it is told relative to an open folder, as when a tree is removed."""
    if isinstance(path, str) and not path.startswith("/") and isinstance(dir_fd, int) and dir_fd >= 0:
        return f"{Path(f'/proc/self/fd/{dir_fd}').readlink()}/{path}"
    return path
