"""What real-time asks for: requests with their moments, and the phases they fall into. Pure.

Owns the values. Does not know the shapes (`shapes`), files (`trace`), servers, nor how long an answer takes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of real-time.

    Attributes:
        at_s: when it is sent, from the beginning.
        prompt_tokens: 1 or more.
        max_tokens: tokens it gets: streamed, and no natural end before.

    Raises:
        ValueError: when a value is impossible.
    """

    at_s: float
    prompt_tokens: int
    max_tokens: int

    def __post_init__(self) -> None:
        if not (self.at_s >= 0 and self.prompt_tokens >= 1 and self.max_tokens >= 1):
            raise ValueError(f"an arrival needs at_s ≥ 0 and prompt_tokens and max_tokens ≥ 1: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of time in which real-time is of one kind, such as ``quiet``."""

    name: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What real-time asks for.

    Attributes:
        name: the shape's.
        duration_s: how long it lasts.
        arrivals: in the order of their moments, all before `duration_s`.
        phases: they cover the whole time, without a gap.
    """

    name: str
    duration_s: float
    arrivals: tuple[Arrival, ...]
    phases: tuple[Phase, ...]

    def phase_at(self, at_s: float) -> str:
        """The phase's name at a moment; the last one's after the end."""
        return next((phase.name for phase in self.phases if at_s < phase.to_s), self.phases[-1].name)

    @property
    def names(self) -> list[str]:
        """The phases' names, each once, in the order they come in."""
        return list(dict.fromkeys(phase.name for phase in self.phases))

    def share_s(self, name: str) -> float:
        """How many seconds the phases of that name last, all together."""
        return sum(phase.to_s - phase.from_s for phase in self.phases if phase.name == name)
