"""What a server says of its load at one moment.

Owns the value. Does not know how it is read (`endpoint.load`) nor what follows from it (`core.limit`).
"""

from __future__ import annotations

from dataclasses import dataclass

CHOSEN_COST_S = 0.00042
"""Of a page with nothing else on it; see `endpoint.load`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Sequences in a server, of all clients together: vLLM's metrics do not tell them apart.

    Attributes:
        running: in the batch that is being computed.
        waiting: in the server's queue.
        preemptions: so far, of running sequences for want of KV blocks; None where that was not read.
        kv_usage: share of the KV blocks in use, 0 to 1, in the engine that has the fewest left; None where that was not
            read.
        generated: tokens so far, which tells a step of the engine from the one before; None where that was not read.
        cost_s: seconds of the server's CPU that reading it took.
    """

    running: int
    waiting: int
    preemptions: float | None = None
    kv_usage: float | None = None
    generated: float | None = None
    cost_s: float = CHOSEN_COST_S

    @property
    def total(self) -> int:
        """Sequences that are there."""
        return self.running + self.waiting
