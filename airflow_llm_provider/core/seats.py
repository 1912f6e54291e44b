"""How many sequences a server runs at once: its slots, or fewer where its memory is full.

Owns that number. Pure. Does not know what follows from it (`core.limit_headroom`).

Where requests wait beside free slots while the KV cache is full, memory bounds the server, and what runs is taken for
its slots. When more run, or none wait, it is found out again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_llm_provider.core.load import Load

FULL_MEMORY = 0.9
"""Share of the KV blocks in use from which on requests that wait beside free slots wait for memory."""

MANY = 3
"""So many looks must tell the same: chunked prompts, too, have requests wait beside free slots for a step."""


class Seats:
    """See the module.

    Args:
        slots: sequences that the server runs at once at most.

    Attributes:
        number: sequences that it runs at once as things are; 1 at least.
    """

    def __init__(self, slots: int) -> None:
        self.number = slots
        self._slots = slots
        self._starved = 0

    def look(self, load: Load) -> None:
        """The load was read."""
        short = load.waiting > 0 and load.running < self.number and (load.kv_usage or 0.0) >= FULL_MEMORY
        self._starved = self._starved + 1 if short else 0
        if self._starved >= MANY:
            self.number = max(1, load.running)
        elif load.running > self.number:
            self.number = min(self._slots, load.running)
        elif not load.waiting and self.number < self._slots:
            self.number += 1
