"""The end of a process's log, for the error that tells of its end: the folder it lies in goes when the benchmark ends.

Owns nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LINES = 30


def log_tail(log: Path) -> str:
    """A paragraph with it."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()[-LINES:]
    except OSError as error:
        return f"and its log can't be read: {error}"
    return "\n".join([f"the last lines of {log.name}:", *lines]) if lines else f"and {log.name} is empty"
