"""The limit on a server of our own: fill it, without being told how much it holds.

Owns the control law over what runs and waits. Does not know refusals (`core.limit_ceiling`), preemptions
(`core.limit_pressure`), servers whose load cannot be read (`core.limit_slope`), nor who reads the load or carries a
verdict out (`batch.control`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from airflow_llm_provider.core.limit import Verdict
from airflow_llm_provider.core.limit_ceiling import Ceiling
from airflow_llm_provider.core.limit_pressure import Pressure
from airflow_llm_provider.core.limit_slope import Slope
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from airflow_llm_provider.core.load import Load

START = 16
GROW_LOOK_S = 0.1
"""Between looks while it grows. It grows again when what was sent shows in the gauges, has ended, or is old."""

SHOWN, SHOWS_S = 0.75, 1.0
"""Such a share of it shows, and at such an age it will not any more."""


LOOK_S = 1.0
BLIND_AFTER = 3
"""Looks in vain, at a server whose load was never read, before the pace of rows is learnt from."""

SPARE_SHARE = 8
MIN_SPARE = 2
SPARE_S = 0.5
"""So long an API server, or a client, may be busy with something else while the engine has rows to go on with."""

SMOOTH = 1 / 16
"""Weight of the latest row in how long they take."""

BOUND = 0.75
"""In flight from this share of the limit on, the limit is what binds."""

FADE = 1 / 16
FORGIVE = 1 / 64
MAX_LEARNT = 64
MAX_DOUBLED = 8
"""Times that what is learnt doubles: from the least spare to more than is ever learnt, and short of a float's end."""

RISING = 1.05
"""A server that runs so many times more than it did is still taking in what it has: prompts are computed bit by bit."""

DEAD_BAND = 1 / 32


class AdaptiveLimit:
    """Keeps a few sequences of each task waiting in the server, so that a place that falls free is taken at once.

    Law, at each look, for this task (FAST TCP's window law, Wei et al. 2006, with the share that runs in place of
    baseRTT/RTT, which Little's law makes the same)::

        spare  = max(MIN_SPARE, R / SPARE_SHARE, min(R, SPARE_S × rows that end per second)) + what was learnt
        some wait:  L ← max(L, own) × R / (R + waiting) + spare
        none wait:  L ← 2 × own       while more run than ever did while some waited (the ramp)
                    L ← own + spare   otherwise, and spare grows: by 1, 2, 4 … times its base, for each look in a row

    What ends per second is all that is there over how long our rows take (Little's law): the same for all tasks.
    R is what runs, a maximum that fades by `FADE` of the difference per look: a gauge read between a step's end and the
    next may miss a whole batch. What was learnt fades by `FORGIVE` per look at which some wait. Less than `DEAD_BAND`
    of change is none. L grows only where it binds: ``own ≥ BOUND × L``.

    A single task comes to rest at ``L = R + spare`` in one look, whatever R is: slots, KV memory, or what prefill lets
    through. Several tasks come to rest where each has `spare` waiting and hence, first come first served, the same
    number running: the fixed point of the first line is the same for all of them, and differences shrink by
    ``R / (R + waiting)`` per look, as fast as rows end. Nobody needs to know how many they are.

    Refusals and time-outs put a `Ceiling` above L, preemptions a `Pressure`; while one of them binds, L does not grow.
    A load that was never read leaves L to the pace of rows (`Slope`), one that cannot be read just now, where it is.

    Assumes that all who send to this server are ours, and that a request that waits there costs nothing but the time
    out of its own deadline. Gauges may cover one of several replicas behind a name: the law has only ratios of them.

    Args:
        start: where to begin, 1 or more.

    Raises:
        ConfigurationError: for a `start` below 1.
    """

    def __init__(self, start: int = START) -> None:
        if start < 1:
            raise ConfigurationError(f"A limit begins at 1 or more, not at {start}")
        self._limit = float(start)
        self._runs = 0.0  # R
        self._plateau = 0.0  # what ran while some waited; 0: not known
        self._typical_s: float | None = None  # how long a row takes, its time in the server's queue included
        self._learnt = 0.0
        self._grown_s, self._ended = -math.inf, 0  # when it last grew, and rows that ended since
        self._empty = 0  # looks in a row that found none waiting, `MAX_DOUBLED` at most
        self._ceiling = Ceiling()
        self._pressure = Pressure()
        self._slope: Slope | None = None
        self._unread = 0
        self._read = False

    def look(self, now: float, load: Load, own: int, *, needs: int = 1) -> Verdict:  # noqa: ARG002 - spare is more
        """The load was read; see the law."""
        self._read, self._slope = True, None
        before = self._allowed
        share = own * load.running / load.total if load.total else 0.0
        moved = self._ceiling.look(now, own=own, limit=before, runs=share, queued=load.waiting > 0)
        short = self._pressure.look(load, own)
        wanted, reason, look_s = self._law(now, load, own)
        if abs(wanted - self._limit) > DEAD_BAND * self._limit:
            self._limit = max(1.0, wanted)
        if self._ceiling.value < self._limit:
            return self._verdict(moved or "the server refused more", LOOK_S)
        if self._pressure.value < self._limit:
            return self._verdict(short or "KV memory is short", LOOK_S)
        return self._verdict(reason, look_s)

    def unread(self, now: float, own: int) -> Verdict:
        """The load could not be read: the limit stays, or is learnt from the pace of rows."""
        if self._read:
            return self._verdict("the load cannot be read just now", LOOK_S)
        self._unread += 1
        if self._unread < BLIND_AFTER:
            return self._verdict("the load is not known yet", GROW_LOOK_S)
        if self._slope is None:
            self._slope = Slope(round(self._limit))
        refused = self._ceiling.look(now, own=round(self._allowed), limit=self._allowed, runs=0.0)
        self._limit = self._slope.limit
        if self._ceiling.value < self._limit:
            self._slope.disturbed()
            return self._verdict(refused or "refusals", LOOK_S)
        if own + 1 < BOUND * self._limit:  # one may be between two rows
            self._slope.disturbed()
        return self._verdict(self._slope.reason, LOOK_S)

    def gave_up(self, now: float, sequences: int) -> None:
        """It gives nothing up itself."""

    def rested(self) -> None:
        """What was learned stands."""

    def capacity(self, now: float) -> None:
        """A request was refused for want of capacity, or timed out."""
        self._ceiling.refused(now)

    def ended(self, now: float, duration_s: float) -> bool:
        """A row ended well: its place is taken again."""
        self._ended += 1
        self._typical_s = duration_s if self._typical_s is None else _smooth(self._typical_s, duration_s)
        self._ceiling.ended(now, duration_s)
        self._pressure.ended()
        if self._slope is not None:
            self._slope.ended(now)
        return True

    @property
    def _allowed(self) -> float:
        return min(self._limit, self._ceiling.value, self._pressure.value)

    def _law(self, now: float, load: Load, own: int) -> tuple[float, str, float]:
        """What the limit would be, why, and when to look again."""
        runs, waiting = load.running, load.waiting
        rising = runs > RISING * self._runs
        turned = not waiting and self._ended >= own
        self._runs = _faded(self._runs, max(runs, own) if turned else runs)
        spare = self._spare(load.total)
        if waiting:
            self._empty = 0
            self._learnt -= self._learnt * FORGIVE
            self._plateau = _faded(self._plateau, self._runs)
            wanted = max(self._limit, own) * self._runs / (self._runs + waiting) + spare + self._learnt
            if rising:
                return max(self._limit, wanted), f"the server still takes in: {runs} run, {waiting} wait", GROW_LOOK_S
            return wanted, f"the server runs {runs} and queues {waiting}", LOOK_S
        if own < BOUND * self._limit or self._allowed < self._limit:
            return self._limit, f"{own} in flight are fewer than it allows", LOOK_S if own else GROW_LOOK_S
        if not turned and load.total < SHOWN * own and now < self._grown_s + SHOWS_S:
            return self._limit, f"the server shows {load.total} of {own} yet", GROW_LOOK_S
        self._grown_s, self._ended = now, 0
        if self._runs > self._plateau:
            return max(self._limit, 2.0 * own), f"the server runs {runs} and queues none", GROW_LOOK_S
        self._learnt = min(self._learnt + spare * 2.0**self._empty, max(MAX_LEARNT, self._runs))
        self._empty = min(self._empty + 1, MAX_DOUBLED)
        reason = f"the server runs {runs} and had used up its queue"
        return max(self._limit, own + spare + self._learnt), reason, GROW_LOOK_S

    def _spare(self, total: int) -> float:
        """How many of ours should wait, before what was learnt."""
        least = max(MIN_SPARE, self._runs / SPARE_SHARE)
        if not self._typical_s:
            return least
        return max(least, min(self._runs, SPARE_S * total / self._typical_s))

    def _verdict(self, reason: str, look_s: float) -> Verdict:
        return Verdict(limit=max(1, round(self._allowed)), reason=reason, look_in_s=look_s)


def _faded(peak: float, value: float) -> float:
    """A maximum that fades."""
    return max(value, peak - (peak - value) * FADE)


def _smooth(mean: float, value: float) -> float:
    return mean + (value - mean) * SMOOTH
