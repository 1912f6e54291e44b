"""What real-time asks for: requests with their moments, and the phases they fall into. Pure.

Owns the values, and the form of a trace: JSONL lines with ``at_s``, ``prompt_tokens`` and ``max_tokens``, in any order,
and a ``phase`` where there is one. Does not know the shapes (`shapes`), servers, nor how long an answer takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


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


def read_trace(path: Path) -> Traffic:
    """The traffic a file tells of: one JSON object per line, with ``at_s``, ``prompt_tokens`` and ``max_tokens``.

    A ``phase`` names the stretch from its line's moment to the next line that names another one.

    Raises:
        ValueError: when a line is none, or there is none at all.
    """
    lines: list[Mapping[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                fields = orjson.loads(line)
                arrival = Arrival(**{name: fields[name] for name in ("at_s", "prompt_tokens", "max_tokens")})
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no arrival ({error}); write "
                    '{"at_s": 0.5, "prompt_tokens": 40, "max_tokens": 128}'
                ) from error
            lines.append({"arrival": arrival, "phase": fields.get("phase")})
    if not lines:
        raise ValueError(f"{path} holds no arrival")
    lines.sort(key=lambda each: each["arrival"].at_s)
    duration_s = lines[-1]["arrival"].at_s + 1.0
    marks = [(0.0, str(lines[0]["phase"] or "all"))]
    for each in lines:
        if each["phase"] is not None and each["phase"] != marks[-1][1]:
            marks.append((each["arrival"].at_s, str(each["phase"])))
    ends = [at_s for at_s, _ in marks[1:]] + [duration_s]
    phases = [Phase(name=name, from_s=at_s, to_s=end_s) for (at_s, name), end_s in zip(marks, ends, strict=True)]
    return Traffic(
        name=path.stem,
        duration_s=duration_s,
        arrivals=tuple(each["arrival"] for each in lines),
        phases=tuple(phases),
    )
