"""What batch may do beside real-time: ours, and what others do. The names that the command line takes.

Owns the list, and the peers' control law. Ours is `core.limit_headroom`, as the operator would run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_llm_provider.core.control_law import ControlLaw, Kind
from airflow_llm_provider.core.limit import Learnt, Verdict
from airflow_llm_provider.core.limit_headroom import HeadroomLimit
from benchmarks.colocation.look import Look

if TYPE_CHECKING:
    from random import Random

    from airflow_llm_provider.core.limit import Limit
    from airflow_llm_provider.core.load import Load

BATCH_PRIORITY = 100
PLENTY = 64
"""Requests in flight of who takes no heed of anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one batch process does.

    Attributes:
        name: on the command line and in the table.
        max_in_flight: of each process; 0: there is no batch.
        priority: vLLM's; None: not sent, which is real-time's.
        law: ``fixed``, ``aimd`` or ``headroom``; in virtual time also ``ideal``, which knows of each request of
            real-time the moment it comes, and gives up at no delay.
        floor: sequences always left free, for ``headroom``.
        realtime: whether there is real-time at all.
        whole: whether rows run whole under ``headroom``, too.
        scales: whether `max_in_flight` is meant for 8 slots, and more of them take more.
    """

    name: str
    max_in_flight: int = PLENTY
    priority: int | None = BATCH_PRIORITY
    law: str = "fixed"
    floor: int = 0
    realtime: bool = True
    whole: bool = False
    scales: bool = True

    @property
    def slices(self) -> bool:
        """Whether long rows run in token slices, as they do where our law gives way."""
        return self.law in {"headroom", "ideal"} and not self.whole

    def most(self, slots: int) -> int:
        """Requests in flight at most on a server of so many slots."""
        return self.max_in_flight * slots // 8 if self.scales else self.max_in_flight


NONE = Policy(name="none", max_in_flight=0)
IDEAL = Policy(name="ideal", law="ideal")
ALONE = Policy(name="alone", realtime=False)
"""Batch that saturates the server with no real-time there: what saturation yields."""

POLICIES = {
    each.name: each
    for each in (
        NONE,
        ALONE,
        IDEAL,
        Policy(name="saturated", priority=None),
        Policy(name="saturated-priority"),
        Policy(name="aimd-errors", law="aimd"),
        Policy(name="ours", law="headroom"),
        Policy(name="ours-floor-1", law="headroom", floor=1),
        Policy(name="ours-whole", law="headroom", whole=True),
    )
}


def policy_of(name: str) -> Policy:
    """The policy of that name; ``fixed-7`` caps each process at 7.

    Raises:
        ValueError: where there is none, or a cap of nothing.
    """
    if name.startswith("fixed-") and name.removeprefix("fixed-").isdecimal():
        if (cap := int(name.removeprefix("fixed-"))) < 1:
            raise ValueError(f"{name!r} lets batch send nothing; a cap is 1 or more")
        return Policy(name=name, max_in_flight=cap, scales=False)
    if name not in POLICIES:
        raise ValueError(f"{name!r} is no policy; there are {', '.join(POLICIES)}, and fixed-7 for a cap of 7")
    return POLICIES[name]


class AimdOnErrors:
    """The peers' limit: one more for each round of answers, half as many on a 429, a 503 or a time-out.

    Law: ``limit += 1 / limit`` at each answer, ``limit *= 1/2`` at each refusal, no more than once a second. As llm-d's
    batch gateway has it. It assumes that an overloaded server refuses; vLLM queues instead.

    Args:
        most: it grows no further.
        first: where it begins.
    """

    def __init__(self, most: int, *, first: int = 4) -> None:
        self._limit = float(min(first, most))
        self._most = most
        self._halved_s = float("-inf")

    def look(self, now: float, load: Load, own: int, *, needs: int = 1) -> Verdict:  # noqa: ARG002 - it does not look
        """What answers and refusals have made of it."""
        return Verdict(limit=int(self._limit), reason="AIMD on errors", look_in_s=0.5)

    def unread(self, now: float, own: int) -> Verdict:  # noqa: ARG002
        """The same."""
        return Verdict(limit=int(self._limit), reason="AIMD on errors", look_in_s=0.5)

    def gave_up(self, now: float, sequences: int) -> None:
        """It gives nothing up itself."""

    def rested(self) -> None:
        """What was learned stands."""

    def capacity(self, now: float) -> None:
        """Half as many."""
        if now - self._halved_s >= 1.0:
            self._limit, self._halved_s = max(1.0, self._limit / 2), now

    def ended(self, now: float, duration_s: float) -> bool:  # noqa: ARG002
        """One more for a round of answers."""
        self._limit = min(float(self._most), self._limit + 1 / self._limit)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedLaw(ControlLaw):
    """A control law that keeps note of each look.

    Attributes:
        policy: which one.
        server_slots: the server's ``--max-num-seqs``.
        looks: the notes.
    """

    policy: Policy
    server_slots: int
    looks: list[Look]

    @classmethod
    def of(cls, policy: Policy, *, slots: int, looks: list[Look]) -> WatchedLaw:
        """The law of `policy` on a server of `slots`."""
        kind: Kind = "headroom" if policy.law == "headroom" else "fixed"
        return cls(kind=kind, slots=slots, sliced=policy.slices, policy=policy, server_slots=slots, looks=looks)

    def learnt(self, limit: int, rng: Random) -> Learnt | None:
        """See `ControlLaw.learnt`."""
        law = limit_of(self.policy, limit=limit, slots=self.server_slots, rng=rng)
        return None if law is None else _WatchedLearnt(law, self.looks)


def limit_of(policy: Policy, *, limit: int, slots: int, rng: Random) -> Limit | None:
    """The policy's control law for one server; None where it learns nothing."""
    if policy.law == "aimd":
        return AimdOnErrors(limit)
    if policy.law == "fixed":
        return None
    if policy.law == "ideal":
        raise ValueError("The ideal policy can be had in virtual time only")
    return HeadroomLimit(slots, floor=policy.floor, rng=rng)


class _WatchedLearnt(Learnt):
    def __init__(self, law: Limit, looks: list[Look]) -> None:
        super().__init__(law)
        self._looks = looks

    def look(self, now: float, load: Load | None, own: int, *, needs: int = 1) -> Verdict:
        """See `Learnt.look`."""
        verdict = super().look(now, load, own, needs=needs)
        if load is not None:
            self._looks.append(Look(now, load.running, load.waiting, own, verdict.limit, verdict.give_up))
        return verdict
