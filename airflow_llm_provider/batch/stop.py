"""Telling a running batch to stop, from a signal handler or another thread.

Owns the hand-over to the event loop, which runs in another thread. Airflow calls ``on_kill`` between two bytecodes
of the main thread, wherever that is; nothing is raised in ``execute``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class StopSwitch:
    """Set once, from anywhere; seen by whichever loop is attached now or later."""

    def __init__(self) -> None:
        self._guard = threading.RLock()  # re-entrant: a signal may come while `set` is being called
        self._reason: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._callback: Callable[[str], None] | None = None

    @property
    def reason(self) -> str | None:
        """Why to stop; None while nobody asked."""
        return self._reason

    def set(self, reason: str) -> None:
        """Ask the run to stop; the first reason stands."""
        with self._guard:
            if self._reason is not None:
                return
            self._reason = reason
            if self._loop is not None and self._callback is not None:
                self._loop.call_soon_threadsafe(self._callback, reason)

    def attach(self, loop: asyncio.AbstractEventLoop, callback: Callable[[str], None]) -> None:
        """Call `callback` in `loop` when the switch is set, at once if it is already."""
        with self._guard:
            self._loop, self._callback = loop, callback
            if self._reason is not None:
                loop.call_soon(callback, self._reason)

    def detach(self) -> None:
        """Forget the loop, before it closes."""
        with self._guard:
            self._loop = self._callback = None
