"""Which control law a run obeys on each server.

Owns the choice. Does not own a law, nor where the choice comes from (`core.terms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from airflow_llm_provider.core.limit import Learnt
from airflow_llm_provider.core.limit_headroom import HeadroomLimit
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from random import Random

Kind = Literal["fixed", "headroom"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLaw:
    """A control law, by name, with what it needs.

    Attributes:
        kind: ``fixed``: nothing is learned, no load is read. ``headroom``: real-time's server.
        slots: sequences that a server runs at once (``--max-num-seqs``); None where nobody says.
        floor: sequences always left free for real-time.

    Raises:
        ConfigurationError: ``headroom`` without slots.
    """

    kind: Kind = "fixed"
    slots: int | None = None
    floor: int = 0

    def __post_init__(self) -> None:
        if self.kind == "headroom" and self.slots is None:
            raise ConfigurationError("A limit that keeps headroom must be told the server's slots (--max-num-seqs)")

    def learnt(self, limit: int, rng: Random) -> Learnt | None:
        """What is learned of one server; None where nothing is.

        Args:
            limit: sequences in flight at most, whatever is learned.
            rng: see `HeadroomLimit`.
        """
        if self.kind == "fixed":
            return None
        return Learnt(HeadroomLimit(self.slots or limit, floor=self.floor, rng=rng))


FIXED = ControlLaw()
"""Nothing is learned."""
