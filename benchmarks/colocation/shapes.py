"""The shapes of real-time's traffic. Pure, and seeded.

Owns them all; the sizes have the 8 slots of `docs/colocation.md` in mind, where a request holds a slot for a third of a
second:

- ``bursts``: nothing, then a burst of 8 requests/s, and so on: the issue's own.
- ``ramp``: from nothing to 12 requests/s and back, evenly.
- ``waves``: never quiet. A Poisson stream that changes its rate at random between 1, 4 and 9 requests/s.
- ``herd``: one request/s, and now and then six at once: what no control can see coming.
- ``day``: a day's curve, as short as asked for, with fluctuations on top: for virtual time and many slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.colocation.traffic import Arrival, Phase, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from random import Random


MOST_TOKENS = 3_000
"""Of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long prompts and answers are: uniform between two bounds, in tokens.

    Attributes:
        prompt: bounds of prompts.
        answer: bounds of answers.
        tail: sigma of a lognormal factor that prompts get on top, up to `MOST_TOKENS`, since people's are like that.
    """

    prompt: tuple[int, int] = (20, 80)
    answer: tuple[int, int] = (64, 192)
    tail: float = 0.0

    def of(self, moments: Iterable[float], rng: Random) -> tuple[Arrival, ...]:
        """A request at each of these moments, in their order."""
        return tuple(
            Arrival(at_s=at_s, prompt_tokens=self._prompt_tokens(rng), max_tokens=rng.randint(*self.answer))
            for at_s in sorted(moments)
        )

    def _prompt_tokens(self, rng: Random) -> int:
        tokens = rng.randint(*self.prompt)
        return min(MOST_TOKENS, round(tokens * rng.lognormvariate(0, self.tail))) if self.tail else tokens


CHAT = Lengths()
PEOPLE = Lengths(prompt=(60, 240), answer=(200, 800), tail=1.0)
"""Of a day on 256 slots: prompts of about 150 tokens, one in a hundred of 1,500, and answers that take ten seconds."""


def bursts(
    duration_s: float,
    rng: Random,
    *,
    per_s: float = 8.0,
    on_s: float = 10.0,
    off_s: float = 18.0,
    quiet_per_s: float = 0.0,
    lengths: Lengths = CHAT,
) -> Traffic:
    """Quiet for about `off_s`, then Poisson at `per_s` for about `on_s`; both vary by a fifth."""
    phases: list[Phase] = []
    at_s, busy = 0.0, False
    while at_s < duration_s:
        lasts_s = (on_s if busy else off_s) * rng.uniform(0.8, 1.2)
        end_s = min(duration_s, at_s + lasts_s)
        phases.append(Phase(name="burst" if busy else "quiet", from_s=at_s, to_s=end_s))
        at_s, busy = end_s, not busy
    moments = _steady(phases, {"burst": per_s, "quiet": quiet_per_s}, rng)
    return Traffic(name="bursts", duration_s=duration_s, arrivals=lengths.of(moments, rng), phases=tuple(phases))


def ramp(
    duration_s: float, rng: Random, *, most_per_s: float = 12.0, period_s: float = 90.0, lengths: Lengths = CHAT
) -> Traffic:
    """The rate climbs from nothing to `most_per_s` and falls again, once per `period_s`. Its phases are its thirds."""

    def rate(at_s: float) -> float:
        return most_per_s * (1 - abs(2 * (at_s % period_s) / period_s - 1))

    marks = ((1 / 6, "low"), (1 / 3, "middle"), (2 / 3, "high"), (5 / 6, "middle"), (1.0, "low"))
    phases: list[Phase] = []
    start_s = 0.0
    while start_s < duration_s:
        from_s = start_s
        for mark, name in marks:
            to_s = min(duration_s, start_s + mark * period_s)
            if to_s > from_s:
                phases.append(Phase(name=name, from_s=from_s, to_s=to_s))
                from_s = to_s
        start_s += period_s
    whole = Phase(name="", from_s=0.0, to_s=duration_s)
    moments = _poisson(whole, rate, most_per_s, rng)
    return Traffic(name="ramp", duration_s=duration_s, arrivals=lengths.of(moments, rng), phases=tuple(phases))


def waves(
    duration_s: float,
    rng: Random,
    *,
    rates: Mapping[str, float] | None = None,
    dwell_s: float = 6.0,
    lengths: Lengths = CHAT,
) -> Traffic:
    """A Poisson stream whose rate jumps between levels at random (a Markov-modulated Poisson process)."""
    levels = dict(rates or {"calm": 1.0, "usual": 4.0, "busy": 9.0})
    phases: list[Phase] = []
    at_s, level = 0.0, next(iter(levels))
    while at_s < duration_s:
        end_s = min(duration_s, at_s + 1.0 + rng.expovariate(1 / (dwell_s - 1.0)))
        phases.append(Phase(name=level, from_s=at_s, to_s=end_s))
        at_s, level = end_s, rng.choice([name for name in levels if name != level])
    moments = _steady(phases, levels, rng)
    return Traffic(name="waves", duration_s=duration_s, arrivals=lengths.of(moments, rng), phases=tuple(phases))


def herd(
    duration_s: float,
    rng: Random,
    *,
    per_s: float = 1.0,
    size: int = 6,
    every_s: float = 8.0,
    lengths: Lengths = CHAT,
) -> Traffic:
    """A request now and then, and a herd of `size` within 50 ms, with `every_s` between herds on average."""
    phases: list[Phase] = []
    at_s = 0.0
    moments: list[float] = []
    while at_s < duration_s:
        comes_s = at_s + every_s * rng.uniform(0.5, 1.5)
        phases.append(Phase(name="between", from_s=at_s, to_s=min(duration_s, comes_s)))
        moments += _steady(phases[-1:], {"between": per_s}, rng)
        if comes_s >= duration_s:
            break
        phases.append(Phase(name="herd", from_s=comes_s, to_s=min(duration_s, comes_s + 1.0)))
        moments += [comes_s + rng.uniform(0, 0.05) for _ in range(size)]
        at_s = comes_s + 1.0
    inside = [at_s for at_s in moments if at_s < duration_s]
    return Traffic(name="herd", duration_s=duration_s, arrivals=lengths.of(inside, rng), phases=tuple(phases))


def day(
    duration_s: float,
    rng: Random,
    *,
    most_per_s: float = 14.0,
    night_share: float = 0.05,
    jumps: float = 0.3,
    jump_s: float = 20.0,
    lengths: Lengths = PEOPLE,
) -> Traffic:
    """A day in `duration_s`: least at 04:00, most at 15:00, and a level that jumps by up to `jumps` of itself.

    Args:
        duration_s: so long is the day; a real one has 86,400 s. Requests keep their length, so the shorter the day,
            the steeper its slopes.
        rng: seeded.
        most_per_s: requests/s at the peak.
        night_share: of the peak, at night.
        jumps: how far minutes differ from the curve: each `jump_s` another factor from ``1 - jumps`` to ``1 + jumps``.
        jump_s: see `jumps`.
        lengths: of prompts and answers.
    """
    factors = [rng.uniform(1 - jumps, 1 + jumps) for _ in range(int(duration_s / jump_s) + 1)]

    def rate(at_s: float) -> float:
        hour = 24 * at_s / duration_s
        rises = (hour - 4) % 24 < 11
        turn = ((hour - 4) % 24) / 11 if rises else 1 - ((hour - 15) % 24) / 13
        level = night_share + (1 - night_share) * (1 - math.cos(math.pi * turn)) / 2
        return most_per_s * level * factors[int(at_s / jump_s)]

    hours = ((0, 7, "night"), (7, 10, "morning"), (10, 18, "day"), (18, 23, "evening"), (23, 24, "night"))
    phases = [
        Phase(name=name, from_s=duration_s * begin / 24, to_s=duration_s * end / 24) for begin, end, name in hours
    ]
    whole = Phase(name="", from_s=0.0, to_s=duration_s)
    moments = _poisson(whole, rate, most_per_s * (1 + jumps), rng)
    return Traffic(name="day", duration_s=duration_s, arrivals=lengths.of(moments, rng), phases=tuple(phases))


def _poisson(phase: Phase, rate: Callable[[float], float], highest: float, rng: Random) -> list[float]:
    """The moments of a Poisson process whose rate changes: drawn at the highest and thinned (Lewis, Shedler 1979)."""
    moments = []
    at_s = phase.from_s
    while highest > 0 and (at_s := at_s + rng.expovariate(highest)) < phase.to_s:
        if rng.random() * highest < rate(at_s):
            moments.append(at_s)
    return moments


def _steady(phases: Iterable[Phase], rates: Mapping[str, float], rng: Random) -> list[float]:
    """The moments of a Poisson process with one rate for the phases of each name."""
    moments = []
    for phase in phases:
        at_s = phase.from_s
        while (per_s := rates[phase.name]) > 0 and (at_s := at_s + rng.expovariate(per_s)) < phase.to_s:
            moments.append(at_s)
    return moments


SHAPES: dict[str, Callable[[float, Random], Traffic]] = {
    "bursts": bursts,
    "ramp": ramp,
    "waves": waves,
    "herd": herd,
    "day": day,
}
