"""One look of a batch task at the server's load, and what followed from it.

Owns the value, which a task notes and a measurement reads. Does not know the law that decided (`policies`).
"""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """See the module.

    Attributes:
        at_s: when, on the clock of whoever noted it.
        running: sequences in the server's batch.
        waiting: sequences in its queue.
        own: the task's sequences in flight.
        limit: how many of them there may be from here on.
        given_up: how many of them were cancelled.
    """

    at_s: float
    running: int
    waiting: int
    own: int
    limit: int
    given_up: int

    def has_room(self, slots: int) -> bool:
        """Whether it made room on a server of so many slots, or found some."""
        return self.given_up > 0 or self.running + self.waiting < slots
