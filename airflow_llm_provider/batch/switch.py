"""The connection's hold switch, read while a batch runs.

Owns when it is read. Does not know connections: the shell hands in how one is read.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Running tasks are to obey within 10 s."""


class HoldSwitch:
    """Keeps `reason` up to date: why the platform holds batch on this connection; None while it does not.

    Args:
        read: reads it; blocks, and may raise, after which the last answer stands.
        reason: what was read last.
    """

    def __init__(self, read: Callable[[], str | None], reason: str | None = None) -> None:
        self._read = read
        self._failing = False
        self.reason = reason

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Read it now."""
        try:
            self.reason = await asyncio.to_thread(self._read)
            self._failing = False
        except Exception as error:  # noqa: BLE001 - whatever Airflow's API, a secrets backend or a bad field raises
            if not self._failing:
                log.warning("The connection's hold switch can't be read, so it counts as it was: %s", error)
            self._failing = True
