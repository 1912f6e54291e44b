"""The limit on a server that is shared with real-time: take what real-time leaves, and a little less.

Owns the control law. Does not know priorities, windows or latency: the release brain decides whether batch runs at
all, this how much of it, many times a second.

**What it knows.** The server's totals, ``T = running + waiting``, of all clients together; the task's own sequences in
flight, ``own``; the server's slots ``S``. Other batch tasks look just like real-time in them, and no channel leads to
them that is fast enough. So the law is made of what all tasks see alike, ``T``, and steers ``T``, not ``own``:

- **Target.** ``T* = S - h``, with ``h`` the headroom; in a *calm* ``T* = S - floor``, and a task that seems alone keeps
  ``q = max(1, S/50)`` rows waiting in the server on top of that, so that no slot waits for a client.
- **Excess.** ``e = T - T*``. No task of ours ever lifts ``T`` above its target, so a rise above it is an arrival of
  real-time: ``a = min(e, rise of T - own since the last look)``.
- **Headroom.** ``h`` = the `QUANTILE` of what arrived within `REACTION_S`, over the latest looks that saw real-time
  about, 1 at least: as many slots as real-time has lately wanted at once, before one could be freed. The platform's
  `floor` bounds it from below.
- **Shrink at once.** ``limit = own - e``. Cancelled of them are as many as somebody waits for, ``T - S``, and the
  others where they are young, so that little is lost; the rest are not replaced when they end. Tasks look at random
  moments, so the next one sees in ``T`` what the one before has given up already, and does not give it up again.
  Of what keeps nobody waiting a task gives up its part, `PART` times its share, rounded at random.
- **Grow back quickly.** ``limit = own + (T* - T)``; where other tasks may be about (``T - own > 0`` for `ALONE_S` on
  end, or in a calm, when nobody else can be) half of that, one at least, and once in `GROW_S` at most: equal steps
  for all.
- **Calm.** No arrival for `CALM_S`. A task that is half-way there and sees ``T`` between its target and ``S`` for
  `FOLLOW_S` takes it for the doing of tasks that count from an earlier moment, and is calm, too.
- **Fair.** Whoever holds more gives up more and grows no faster. And a place is left empty now and then: with a
  probability of ``LEAK_PER_S * own / T`` per second and place, where few are free anyhow (``S / SLACK``), or, by a task
  that seems alone, ``q + 1`` at once in `LONE_LEAK_S`.
  It takes nothing for `LEFT_S` (`LONE_LEFT_S`) then, so that whoever is short of places finds one. Equal growth and a
  leak that rises with the square of the share lead to equal shares (Chiu & Jain 1989: additive increase,
  multiplicative decrease).
- **Looks.** ``rate = LOOK_BUDGET / cost of a look * (s + s') / 2``, `LOOKS_PER_S` at most, with ``s = own / T`` and
  ``s'`` its mean over `MEAN_SHARE_S`: shares add up to 1, so do the looks of all tasks to the budget, however many
  there are. Each task looks once in `SLOWEST_LOOK_S` at least, or, where looks
  are dear, as often as `LEAST_BUDGET` allows.

**What it gave up** the server shows for a moment yet: `core.departing` takes it from ``T``.

**Assumes** that the server schedules by priority, or real-time waits behind ``q`` rows in a calm; that its load can be
read; that `slots` is what it was started with (``--max-num-seqs``). Where requests wait beside free slots and the KV
cache is full, memory bounds the server, and ``S`` is taken to be what runs.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from airflow_llm_provider.core.departing import Departing
from airflow_llm_provider.core.limit import Verdict
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from random import Random

    from airflow_llm_provider.core.load import Load

LOOKS_PER_S = 50.0
"""Most often that one task looks."""

LOOK_BUDGET = 0.045
"""Of a core of the server, for the looks of all tasks together."""

SLOWEST_LOOK_S = 0.5
LEAST_BUDGET = 0.0014
"""Of a core of the server, for the looks of a task without a place; and no more than one in `SLOWEST_LOOK_S`."""

MEAN_SHARE_S = 10.0
JITTER = 0.3
"""Looks are spread by so much of their interval, so that tasks do not look in step."""

CALM_S = 2.0
FOLLOW_S = 0.3
YOUNG = 0.7
PART = 4.0
ALONE_S = 10.0
GROW_S = 0.15
GROW_PART = 2
MOST_GROWTH = 16
"""A task alone grows by no more of the slots in one look: real-time's prompts wait while others are computed."""

FULL_MEMORY = 0.9
"""Share of the KV blocks in use from which on requests that wait beside free slots wait for memory."""

RACE_S = 0.15
LEAK_PER_S = 0.1
MOST_LEAK = 0.5
SLACK = 32
LONE_LEAK_S = 5.0
LEFT_S = 0.25
LONE_LEFT_S = 0.5
REMEMBERED = 100
"""Looks that headroom is learnt from."""

REACTION_S = 0.12
QUANTILE = 0.95
LATEST_S = 0.1
"""Growth goes by the highest count of others of so long: a row between two slices is on no server for a moment."""

MANY = 3
"""So many looks on end must tell the same before it is believed that the server waits for memory, or can't be read."""


def queued(slots: int) -> int:
    """Rows that wait in a server of so many slots in a calm, so that none of them waits for a client: ``q``."""
    return max(1, slots // 50)


class HeadroomLimit:
    """See the module.

    Args:
        slots: sequences that the server runs at once.
        floor: sequences always left free, whatever real-time asked for of late; 0 or more.
        blind: sequences left free while the load can't be read, or `floor` where that is more; None: a quarter of them.
        rng: of the moments of looks and leaks; seeded where a run must be repeatable.

    Raises:
        ConfigurationError: when `floor` leaves no slot.
    """

    def __init__(self, slots: int, *, rng: Random, floor: int = 0, blind: int | None = None) -> None:
        if not 0 <= floor < slots:
            raise ConfigurationError(f"headroom {floor} of {slots} slots leaves batch nothing")
        self.slots = slots
        self.floor = floor
        self.blind = min(slots, max(floor, -(-slots // 4) if blind is None else blind))
        self.headroom = max(1, floor)
        self._rng = rng
        self._seats = slots  # what runs at most, less than `slots` where memory is short
        self._starved = 0
        self._unread = 0
        self._at_once: deque[tuple[float, int]] = deque()  # arrivals of the last `REACTION_S`
        self._peaks: deque[int] = deque(maxlen=REMEMBERED)  # their sum at each look that saw real-time about
        self._began = False  # there was a look since the last rest
        self._departing = Departing()
        self._calm_since: float | None = None  # the last arrival, or the first look
        self._others: deque[tuple[float, int]] = deque()  # of the last `LATEST_S`, the latest look at least
        self._above_from_s: float | None = None  # the target, and no higher than others in a calm may fill the server
        self._others_seen_s = 0.0  # when there was nobody else last
        self._grow_from_s = 0.0
        self._grew = 0  # by so much it grew last, as one of several tasks
        self._own_then = 0
        self._grew_s = float("-inf")
        self._leak_from_s = 0.0
        self._looked_s = 0.0
        self._mean_share = 0.1
        self._leaves = 0  # places still to be left empty
        self._duration_s: float | None = None
        self._share = 0.0
        self._full = False
        self._sharing = False

    def look(self, now: float, load: Load, own: int) -> Verdict:
        """See `Limit.look`."""
        self._unread = 0
        self._bound_by_memory(load)
        total = load.total - self._departing.look(now, load.total, own)
        others = max(0, total - own)
        if not self._began:
            self._began, self._calm_since, self._others_seen_s = True, now, now - ALONE_S
            self._leak_from_s = now + LONE_LEAK_S
        came = max(0, others - self._others[-1][1]) if self._others else 0
        at_most = self._note_others(now, others)
        excess = 0 if self._follows(now, total) else total - self._target(now)
        if not own and self._calm(now):  # whoever is there may be alone, and keep rows queued
            excess -= queued(self.slots)
        if self._sharing and now - self._grew_s < RACE_S:  # another task may have grown at the same moment
            excess -= self._grew
        self._learn(now, min(max(0, excess), came))
        target = self._target(now)
        excess = 0 if self._above_from_s is not None else total - target
        free = target - own - at_most
        self._share, self._full = own / total if total else 0.0, free <= self.slots // SLACK
        look_in_s = self._look_in_s(now, load, own)
        words = f"real-time and others {others}, {self._words(now)}"
        if excess <= 0:
            return Verdict(limit=own + self._growth(now, free, own), reason=words, look_in_s=look_in_s)
        must = min(own, excess, max(0, total - self._seats))
        gone = min(own, must + self._part(excess - must))
        return Verdict(
            limit=own - gone,
            give_up=must,
            give_up_young=gone - must,
            young_s=YOUNG * (self._duration_s or 0.0),
            reason=words,
            look_in_s=look_in_s,
        )

    def gave_up(self, now: float, sequences: int) -> None:
        """See `Limit.gave_up`."""
        self._departing.given_up(sequences, now)

    def unread(self, now: float, own: int) -> Verdict:
        """Without the load all that is left is to keep well away: see `blind`.

        Where it could be read before, what is in flight may go on, up to that; after `MANY` looks it grows by one in
        each.
        """
        self._unread += 1
        self._calm_since = now
        most = self.slots - self.blind
        if self._began:
            most = min(most, own + (self._unread >= MANY))
        reason = f"the load can't be read, {self.blind} kept free"
        return Verdict(limit=most, reason=reason, look_in_s=self._interval(1.0))

    def rested(self) -> None:
        """See `Limit.rested`: who is there is found out anew."""
        self._began = False
        self._calm_since = self._above_from_s = None
        self._departing = Departing()
        self._others.clear()
        self._at_once.clear()

    def capacity(self, now: float) -> None:
        """The server is full, whoever filled it."""
        self._calm_since = now
        self._grow_from_s = now + LEFT_S

    def ended(self, now: float, duration_s: float) -> bool:
        """See `Limit.ended`: now and then a place stays empty."""
        before = self._duration_s
        self._duration_s = duration_s if before is None else before + (duration_s - before) / 8
        if not self._full:
            self._leaves = 0
            return True
        if self._sharing:
            leaves = 1 if self._rng.random() < min(MOST_LEAK, LEAK_PER_S * self._duration_s) * self._share else 0
        elif now >= self._leak_from_s:
            leaves = 1 + self._queued
        else:
            leaves = 0
        if leaves:
            self._leaves, self._leak_from_s = leaves, now + LONE_LEAK_S
            self._grow_from_s = max(self._grow_from_s, now + (LEFT_S if self._sharing else LONE_LEFT_S))
        if self._leaves and now < self._grow_from_s:
            self._leaves -= 1
            return False
        return True

    @property
    def _brim(self) -> int:
        """As many sequences as the server is filled with in a calm."""
        return self._seats - self.floor + self._queued

    @property
    def _queued(self) -> int:
        """Rows kept waiting in the server in a calm; several tasks keep none, so that who waits is real-time."""
        return 0 if self.floor or self._sharing else queued(self.slots)

    def _note_others(self, now: float, others: int) -> int:
        """Take note of how many others there are; how many there were at most of late."""
        self._others.append((now, others))
        while self._others[0][0] < now - LATEST_S:
            self._others.popleft()
        at_most = max(number for _, number in self._others)
        if not at_most:
            self._others_seen_s = now
        self._sharing = now - self._others_seen_s > ALONE_S or (at_most > 0 and self._calm(now))
        return at_most

    def _follows(self, now: float, total: int) -> bool:
        """Whether others, half-way to this task's calm, may have found theirs; after a while, it is taken for sure."""
        half_way = self._calm_since is not None and CALM_S / 2 < now - self._calm_since < CALM_S
        if not (half_way and self._sharing and self._target(now) < total <= self._brim):
            self._above_from_s = None
            return False
        if self._above_from_s is None:
            self._above_from_s = now
        elif now - self._above_from_s >= FOLLOW_S:
            self._calm_since, self._above_from_s = now - CALM_S, None
        return True

    def _calm(self, now: float) -> bool:
        return self._calm_since is not None and now - self._calm_since >= CALM_S

    def _target(self, now: float) -> int:
        return self._brim if self._calm(now) else self._seats - self.headroom

    def _learn(self, now: float, arrived: int) -> None:
        if arrived:
            self._calm_since = now
        elif self._calm(now):
            return
        self._at_once.append((now, arrived))
        while self._at_once[0][0] <= now - REACTION_S:
            self._at_once.popleft()
        self._peaks.append(sum(number for _, number in self._at_once))
        if arrived or len(self._peaks) == REMEMBERED:
            ranked = sorted(self._peaks)
            wanted = ranked[min(len(ranked) - 1, int(QUANTILE * len(ranked)))]
            self.headroom = min(self.slots, max(1, self.floor, wanted))

    def _part(self, excess: int) -> int:
        """This task's part of what is to be given back and keeps nobody waiting."""
        return int(excess * min(1.0, PART * self._share) + self._rng.random()) if self._sharing else excess

    def _growth(self, now: float, free: int, own: int) -> int:
        if free <= 0 or now < self._grow_from_s:
            return 0
        if not self._sharing:
            return min(free, max(2, self.slots // MOST_GROWTH))
        self._grow_from_s = now + self._interval(GROW_S)
        unused = self._grew > 0 and own == self._own_then  # the next row asks for more sequences than were granted
        self._grew = min(free, 2 * self._grew) if unused else max(1, free // GROW_PART)
        self._grew_s, self._own_then = now, own
        return self._grew

    def _bound_by_memory(self, load: Load) -> None:
        short = load.waiting > 0 and load.running < self._seats and (load.kv_usage or 0.0) >= FULL_MEMORY
        self._starved = self._starved + 1 if short else 0
        if self._starved >= MANY:
            self._seats = max(1, load.running)
        elif load.running > self._seats:
            self._seats = min(self.slots, load.running)
        elif not load.waiting and self._seats < self.slots:
            self._seats += 1

    def _look_in_s(self, now: float, load: Load, own: int) -> float:
        share = own / max(load.total, own, 1)
        self._mean_share += (share - self._mean_share) * min(1.0, (now - self._looked_s) / MEAN_SHARE_S)
        self._looked_s = now
        per_s = LOOK_BUDGET / load.cost_s * (share + self._mean_share) / 2
        slowest_s = max(SLOWEST_LOOK_S, load.cost_s / LEAST_BUDGET)
        return self._interval(max(1 / LOOKS_PER_S, 1 / max(per_s, 1 / slowest_s)))

    def _interval(self, mean_s: float) -> float:
        return mean_s * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _words(self, now: float) -> str:
        return f"calm, {self.floor} kept free" if self._calm(now) else f"{self.headroom} kept free"
