"""Traffic to play against a real server and the simulator: none of it is like the loads they were fitted with. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request: its lengths in tokens, and whether it streams."""

    prompt_tokens: int
    max_tokens: int
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What clients do.

    Attributes:
        name: of this kind.
        arrivals: requests that come at their moments, in order.
        loops: requests of clients that send one after the other's answer.
        duration_s: when they stop sending.
    """

    name: str
    arrivals: tuple[tuple[float, Asked], ...]
    loops: tuple[tuple[Asked, ...], ...]
    duration_s: float


def bursts(seed: int, duration_s: float) -> Traffic:
    """Chat in Poisson bursts of 8 requests/s, 2 s of every 5, beside four clients that want whole answers."""
    rng = Random(seed)
    at_s, arrivals = 0.0, []
    while (at_s := at_s + rng.expovariate(8)) < duration_s * 0.4:
        arrivals.append((at_s % 2 + at_s // 2 * 5, _asked(rng, (20, 200), (64, 192), stream=True)))
    return Traffic(
        name="bursts beside batch",
        arrivals=tuple(arrivals),
        loops=_loops(rng, 4, duration_s, (50, 400), (100, 300)),
        duration_s=duration_s,
    )


def mixed(seed: int, duration_s: float) -> Traffic:
    """Streams at 5 requests/s, of prompts of 10 to 1,500 tokens and answers of 16 to 256."""
    rng = Random(seed)
    at_s, arrivals = 0.0, []
    while (at_s := at_s + rng.expovariate(5)) < duration_s:
        arrivals.append((at_s, _asked(rng, (10, 1500), (16, 256), stream=True)))
    return Traffic(name="mixed lengths", arrivals=tuple(arrivals), loops=(), duration_s=duration_s)


def overload(seed: int, duration_s: float) -> Traffic:
    """Twenty clients of whole answers, and a stream a second that waits in their midst."""
    rng = Random(seed)
    arrivals = tuple((0.5 + second, _asked(rng, (20, 200), (16, 64), stream=True)) for second in range(int(duration_s)))
    loops = _loops(rng, 20, duration_s, (20, 200), (50, 250))
    return Traffic(name="overload", arrivals=arrivals, loops=loops, duration_s=duration_s)


SHAPES: tuple[Callable[[int, float], Traffic], ...] = (bursts, mixed, overload)


def _loops(
    rng: Random, clients: int, duration_s: float, prompts: tuple[int, int], answers: tuple[int, int]
) -> tuple[tuple[Asked, ...], ...]:
    enough = int(duration_s * 50)  # no server answers more than that in the time
    return tuple(tuple(_asked(rng, prompts, answers, stream=False) for _ in range(enough)) for _ in range(clients))


def _asked(rng: Random, prompts: tuple[int, int], answers: tuple[int, int], *, stream: bool) -> Asked:
    return Asked(prompt_tokens=rng.randint(*prompts), max_tokens=rng.randint(*answers), stream=stream)
