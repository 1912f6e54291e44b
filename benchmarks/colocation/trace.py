"""Traffic from a file: JSONL, a request per line.

Owns the form: lines with ``at_s``, ``prompt_tokens`` and ``max_tokens``, in any order, and a ``phase`` where there is
one. Does not know what a server takes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.colocation.traffic import Arrival, Phase, Traffic

if TYPE_CHECKING:
    from pathlib import Path


def read_trace(path: Path) -> Traffic:
    """The traffic a file tells of: one JSON object per line, with ``at_s``, ``prompt_tokens`` and ``max_tokens``.

    A ``phase`` names the stretch from its line's moment to the next line that names another one; the first line's
    begins at 0.

    Raises:
        ValueError: when a line is none, two of them contradict each other, or there is none at all.
        OSError: when the file can't be read.
    """
    arrivals: list[Arrival] = []
    names: dict[float, tuple[str, int]] = {}  # by moment: the phase, and the line that says so
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                arrival, name = _parsed(orjson.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no arrival ({error}); write "
                    '{"at_s": 0.5, "prompt_tokens": 40, "max_tokens": 128}'
                ) from error
            arrivals.append(arrival)
            if name is None:
                continue
            other, where = names.setdefault(arrival.at_s, (name, number))
            if other != name:
                raise ValueError(
                    f"{path}, line {number}: the phase at {arrival.at_s} s can't be {name!r} and, as line {where} has "
                    f"it, {other!r}; name one for each moment"
                )
    if not arrivals:
        raise ValueError(f"{path} holds no arrival")
    arrivals.sort(key=lambda each: each.at_s)
    duration_s = arrivals[-1].at_s + 1.0
    first, _ = names.pop(arrivals[0].at_s, ("all", 0))
    marks = [(0.0, first)]
    for at_s, (name, _) in sorted(names.items()):
        if name != marks[-1][1]:
            marks.append((at_s, name))
    marks.append((duration_s, ""))
    return Traffic(
        name=path.stem,
        duration_s=duration_s,
        arrivals=tuple(arrivals),
        phases=tuple(Phase(name=name, from_s=at_s, to_s=to_s) for (at_s, name), (to_s, _) in pairwise(marks)),
    )


def _parsed(fields: Any) -> tuple[Arrival, str | None]:
    """A line's arrival and phase. JSON has one kind of number, and Python takes true for one."""
    at_s, phase = fields["at_s"], fields.get("phase")
    if type(at_s) not in (int, float) or not math.isfinite(at_s):
        raise ValueError(f"at_s is {at_s!r}, and should be seconds")
    for name in ("prompt_tokens", "max_tokens"):
        if type(fields[name]) is not int:
            raise ValueError(f"{name} is {fields[name]!r}, and should be a whole number")
    if phase is not None and (type(phase) is not str or not phase):
        raise ValueError(f"phase is {phase!r}, and should be a name")
    arrival = Arrival(at_s=at_s, prompt_tokens=fields["prompt_tokens"], max_tokens=fields["max_tokens"])
    return arrival, phase
