"""Which control law a run obeys on each server.

Owns the choice. Does not own a law, nor where the choice comes from (`core.terms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from airflow_llm_provider.core.limit import Learnt
from airflow_llm_provider.core.limit_adaptive import START, AdaptiveLimit
from airflow_llm_provider.core.limit_headroom import HeadroomLimit, most_at_once
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from random import Random

    from airflow_llm_provider.core.limit import Limit

Kind = Literal["fixed", "headroom", "adaptive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLaw:
    """A control law, by name, with what it needs.

    Attributes:
        kind: ``fixed``: nothing is learned, no load is read. ``headroom``: for real-time's server. ``adaptive``: for a
            server of batch's own.
        slots: sequences that a server runs at once (``--max-num-seqs``); None where nobody says.
        floor: sequences always left free for real-time.
        blind: sequences left free while the load can't be read; None: the law's own.
        sliced: whether long rows run in slices, so that little is lost where they give way; only with ``headroom``.

    Raises:
        ConfigurationError: ``headroom`` without slots, or with a floor that leaves batch none.
    """

    kind: Kind = "fixed"
    slots: int | None = None
    floor: int = 0
    blind: int | None = None
    sliced: bool = True

    def __post_init__(self) -> None:
        if self.kind != "headroom":
            return
        if self.slots is None:
            raise ConfigurationError("A limit that keeps headroom must be told the server's slots (--max-num-seqs)")
        if not 0 <= self.floor < self.slots:
            raise ConfigurationError(
                f"Nothing is left for batch: of {self.slots} slots, headroom keeps {self.floor} free. Lower headroom, "
                "or serve with more --max-num-seqs"
            )

    @property
    def slices(self) -> bool:
        """Whether long rows run in slices."""
        return self.sliced and self.kind == "headroom"

    @property
    def most(self) -> int | None:
        """Sequences that may be in flight on one server; None where the law knows no such number.

        The law itself may want a few less: of many slots it always leaves some free.
        """
        if self.kind != "headroom" or self.slots is None:
            return None
        return max(self.slots - self.floor, most_at_once(self.slots, self.floor))

    def learnt(self, limit: int, rng: Random) -> Learnt | None:
        """What is learned of one server; None where nothing is.

        Args:
            limit: sequences in flight at most, whatever is learned.
            rng: see `HeadroomLimit`.
        """
        law: Limit
        match self.kind:
            case "fixed":
                return None
            case "headroom":
                law = HeadroomLimit(self.slots or limit, floor=self.floor, blind=self.blind, rng=rng)
            case "adaptive":
                law = AdaptiveLimit(min(limit, START))
        return Learnt(law)


FIXED = ControlLaw()
"""Nothing is learned."""
