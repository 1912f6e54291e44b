"""The limit on a server that is shared with real-time: take what real-time leaves, and a little less.

Owns the control law. Does not know priorities, windows or latency: the release brain decides whether batch runs at
all, this how much of it, many times a second.

**What it knows.** The server's totals, ``T = running + waiting``, of all clients together; the task's own sequences in
flight, ``own``; the server's slots ``S``. Other batch tasks look just like real-time in them, and no channel leads to
them that is fast enough. So tasks take turns (`core.turns`): one fills the room that there is, and whoever comes beside
it is real-time; the others wait, or let what they have there end. The law is the holder's; it steers ``T``.

- **Target.** ``T* = S - h``, where ``h`` is what real-time has lately wanted at once (`core.arrivals`) and the
  platform's `floor` at least. In a *calm* ``T* = S - floor``, or ``S + 1`` where that is 0: no slot waits for a client,
  since one row waits in the server, behind real-time by its priority.
- **Shrink at once.** ``e = T - T*``, ``limit = own - e``. So many are cancelled that `AT_ONCE` slots are free, the
  cheapest loss first; what is missing of ``h`` beyond them is not replaced as it ends.
- **Grow back quickly.** By ``T* - T``, one or ``S / MOST_GROWTH`` in a step of the engine, where ``T`` counts the most
  others that were seen in the last moments: what is sent shows in the load a step later, and until it does nothing
  more is sent.
- **Others' turns.** Whoever is away sees that it is calm where others fill the server up to its queue
  (`core.watching`), and then asks first whether the room that it takes was offered (`core.asking`). Where it is not
  calm it takes room with what real-time may want in hand: ``1 + S / CAUTION``, and not much more than what wavers.
  Whoever offers fills the server up to the place offered.
- **Looks** (`core.looks`) are above all the holder's while real-time is about, and of whoever has room to fill. A task
  that is away looks as seldom as `core.turns` says.
- **Many slots.** One in `SPARE` is always kept free. So many rows are always between an answer and the next request:
  ``S / WAVERS`` more slots are kept free while real-time is about, and several tasks see room at the same time, hold it
  together, and give up their part each of what is too much, since the others see the same.

**What it gave up** the server shows for a moment yet: `core.departing` takes it from ``T``.

**Assumes** that the server schedules by priority, or real-time waits behind a row in a calm; that its load can be
read; that `slots` is what it was started with (``--max-num-seqs``), or less where memory is short (`core.seats`).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from airflow_llm_provider.core.arrivals import Arrivals
from airflow_llm_provider.core.asking import Asking
from airflow_llm_provider.core.departing import Departing
from airflow_llm_provider.core.limit import Verdict
from airflow_llm_provider.core.looks import Looks
from airflow_llm_provider.core.seats import Seats
from airflow_llm_provider.core.turns import State, Turns
from airflow_llm_provider.core.watching import Watch
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from random import Random

    from airflow_llm_provider.core.load import Load

AT_ONCE = 1
"""Slots that are freed by giving rows up, where real-time is about; more headroom comes as rows end."""

MOST_GROWTH = 128
"""It grows by no more of the slots in one step: real-time's prompts wait while others are computed."""

LARGEST = 2
"""One in so many slots at most is kept free for what may come at once; the rest of a larger herd gets its slots as rows
are given up. Otherwise herds as large as the server would leave batch nothing for hours, and still find it full."""

CAUTION = 8
"""Who begins while it is not calm keeps one in so many slots free, and one more, until it has learned better: 2 of 8 is
what bursts are found to want there."""

PART = 1.5
"""Where many rows run, a task gives up so many times its share of ``T`` of what is too much in one look: all together a
little more than enough, since not all of them see it at once."""

NO_CAPACITY_S = 0.25
"""It does not grow for so long after the server refused, or timed out: far longer than a refused request was under
way."""

SPARE = 64
"""One of so many slots is always kept free: where there are many it costs little, and spares whoever comes a wait."""

WAVERS = 50
"""One of so many rows has ended in the server, and the next one is under way, whenever somebody looks."""

MANY = 3
"""So many looks in a row must read nothing before it is believed that the load can't be read."""


def most_at_once(slots: int, floor: int) -> int:
    """Sequences that the law wants in a server of so many slots at most, of all clients: ``T*`` in a calm.

    Where no slot is kept free one row waits in the server, so that no slot waits for a client.
    """
    kept = max(floor, slots // SPARE)
    return slots - kept if kept else slots + 1


class HeadroomLimit:
    """See the module.

    Args:
        slots: sequences that the server runs at once.
        floor: sequences always left free, whatever real-time asked for of late; 0 or more.
        blind: sequences left free while the load can't be read, or `floor` where that is more; None: a quarter of them.
        rng: of the moments of looks and turns; seeded where a run must be repeatable.

    Raises:
        ConfigurationError: when `floor` leaves no slot.
    """

    def __init__(self, slots: int, *, rng: Random, floor: int = 0, blind: int | None = None) -> None:
        if not 0 <= floor < slots:
            raise ConfigurationError(f"headroom {floor} of {slots} slots leaves batch nothing")
        self.slots = slots
        self.floor = max(floor, slots // SPARE)
        self.blind = min(slots, max(floor, -(-slots // 4) if blind is None else blind))
        self._rng = rng
        self._wavers = slots // WAVERS
        self._cautious = min(1 + slots // CAUTION, 2 + self._wavers)
        self._must_then = 0  # while it was away: what was to be given up at the last look
        self._seen = 0  # others, when it began to see room, or when others were seen to fill it
        self._arrivals = Arrivals()
        self._turns = Turns(rng)
        self._departing = Departing()
        self._looks = Looks(rng)
        self._seats = Seats(slots)
        self._unread = 0
        self._began = False  # there was a look since the last rest
        self._watch = Watch(self._wavers)
        self._asking = Asking()
        self._grow_from_s = float("-inf")
        self._verdict = Verdict(limit=0)  # the last one that followed from news
        self._filling = False  # it sees more room than what wavers
        self._leaves = 0  # places still to be left empty

    @property
    def headroom(self) -> int:
        """What real-time has wanted at once, as far as slots are kept free for it."""
        return min(max(1, self.slots // LARGEST), self._arrivals.headroom)

    def look(self, now: float, load: Load, own: int, *, needs: int = 1) -> Verdict:
        """See `Limit.look`."""
        self._unread = 0
        if not self._looks.news(now, load):
            return replace(self._verdict, give_up=0, look_in_s=self._look_in_s(now, load, own))
        self._arrivals.step_s = self._looks.step_s
        self._seats.look(load)
        total = load.total - self._departing.look(now, load.total, own)
        if not self._began:
            self._began = True
            self._arrivals.busy(now)
        others = max(0, total - own)
        self._learn(now, total, own, came=self._arrivals.see(now, others))
        self._take_turns(now, total, own)
        self._ask(now, total)
        calm = self._arrivals.calm(now)
        target = self._target(now)
        excess = total - target
        limit, give_up, free = own, 0, 0
        must_then, self._must_then = self._must_then, 0
        if excess > 0:
            limit = max(0, own - excess)
            must = total - self._seats.number + max(self.floor, 0 if calm else AT_ONCE)
            if self._turns.state is State.AWAY and not calm:  # who holds goes first
                must, self._must_then = min(must, must_then), must
            if self._wavers:  # other tasks may see the same
                must = ceil(must * min(1.0, PART * own / total))
            give_up = min(own, excess, max(0, must))
        elif self._may_grow and now >= self._grow_from_s:
            free = target - self._offers - own - self._arrivals.others(now)[1]
            most = needs - own if self._asking.open else max(needs, self.slots // MOST_GROWTH)
            limit = own + max(0, min(free, most))
        self._filling = free > self._wavers
        self._verdict = Verdict(
            limit=limit,
            give_up=give_up,
            calm=calm,
            reason=f"real-time and others {others}{', calm' if calm else ''}, {self._kept(now)} kept free{self._whose}",
            look_in_s=self._look_in_s(now, load, own),
        )
        return self._verdict

    def gave_up(self, now: float, sequences: int) -> None:
        """See `Limit.gave_up`."""
        self._departing.given_up(sequences, now)

    def unread(self, now: float, own: int) -> Verdict:
        """Without the load all that is left is to keep well away: see `blind`.

        Where it could be read before, what is in flight may go on, up to that; after `MANY` looks it grows by one in
        each.
        """
        self._unread += 1
        self._arrivals.busy(now)
        most = self.slots - self.blind
        if self._began:
            most = min(most, own + (self._unread >= MANY))
        reason = f"the load can't be read, {self.blind} kept free"
        return Verdict(limit=most, reason=reason, look_in_s=self._looks.about(1.0))

    def rested(self) -> None:
        """See `Limit.rested`: who is there is found out anew."""
        self._began = False
        self._looks.forget()
        self._departing = Departing()
        self._turns = Turns(self._rng)
        self._arrivals.forget()
        self._watch.forget()
        self._asking.forget()

    def capacity(self, now: float) -> None:
        """The server is full, whoever filled it."""
        self._arrivals.busy(now)
        self._grow_from_s = now + NO_CAPACITY_S

    def ended(self, now: float, duration_s: float) -> bool:  # noqa: ARG002 - how long it took is not asked
        """See `Limit.ended`: a task that is away, or offers, leaves places to others, as far as it sees them."""
        if self._unread:
            return True
        if self._turns.state is State.AWAY:
            return False
        if self._leaves:
            self._leaves -= 1
            return False
        return True

    @property
    def _queued(self) -> int:
        return 0 if self.floor else 1

    @property
    def _brim(self) -> int:
        """Sequences that fill the server, as far as batch may."""
        return self._seats.number - self.floor

    @property
    def _may_grow(self) -> bool:
        """Who offers fills the server up to the offered place; of many slots, some are always between two rows."""
        return self._turns.state is State.HOLDING or (self._turns.state is State.OFFERING and not self._wavers)

    @property
    def _offers(self) -> int:
        """Sequences fewer than else, so that a place is empty that others may take."""
        return 1 + self._queued if self._turns.state is State.OFFERING else 0

    def _kept(self, now: float) -> int:
        """Slots that are kept free just now."""
        if self._arrivals.calm(now):
            return self.floor
        wanted = min(self.headroom, self._arrivals.wanted(now))
        return max(self.floor, min(wanted + self._wavers, self._seats.number))

    def _target(self, now: float) -> int:
        """``T*``, 0 or more."""
        queued = self._queued if self._arrivals.calm(now) else 0
        return max(0, self._seats.number - self._kept(now) + queued)

    @property
    def _whose(self) -> str:
        """Whose turn it is, for the log."""
        match self._turns.state:
            case State.AWAY if self._turns.new:
                return ", and whether others want the room is looked at first"
            case State.AWAY:
                return ", and others have their turn"
            case State.OFFERING:
                return ", and a place is offered to others"
            case _:
                return ""

    def _learn(self, now: float, total: int, own: int, *, came: int) -> None:
        """What real-time wants is seen by whoever holds; others see whether the holder thinks that it is calm."""
        away = self._turns.state is State.AWAY
        if away and not own:
            calm = self._watch.look(total, brim=self._brim, queued=self._queued, sees_room=self._turns.sees_room)
            (self._arrivals.quiet if calm else self._arrivals.busy)(now)
        elif self._turns.state is State.HOLDING and not self._turns.fresh(now):
            above = max(0, total - self._target(now))
            self._arrivals.learn(now, min(above, came) if self._arrivals.calm(now) else came)
        elif came and (not self._arrivals.calm(now) or (self._turns.state is State.HOLDING and not self._wavers)):
            self._arrivals.busy(now)
            self._arrivals.expect(self._cautious)  # how many came cannot be told from other tasks

    def _take_turns(self, now: float, total: int, own: int) -> None:
        was = self._turns.state
        calm, target = self._arrivals.calm(now), self._target(now)
        fewest, most = self._arrivals.others(now)
        if self._wavers and self._turns.sees_room and most > self._seen + self._wavers:
            self._turns.filling(now)
        if not self._turns.sees_room or most > self._seen + self._wavers:
            self._seen = most
        if was is State.AWAY:
            kept = self.floor if calm else max(self.floor, self.headroom + 2 * self._wavers, self._cautious)
            target = self._seats.number - kept
        self._turns.look(
            now,
            room=own + most < max(1, target),
            own=own,
            others=fewest,
            calm=calm,
            open_place=total < self._target(now) - self._queued,
        )
        state = self._turns.state
        if state is was:
            return
        self._leaves = max(0, own + most + self._offers - self._target(now)) if state is State.OFFERING else 0
        self._asking.forget()
        if state is State.AWAY:
            self._watch.forget()
        elif was is State.AWAY and not calm:
            self._arrivals.expect(self._cautious)
        elif was is State.AWAY and not self._wavers:
            self._asking.begin(now, self._looks.step_s)

    def _ask(self, now: float, total: int) -> None:
        """See whether what it takes up is an offer; where it is not, wait on."""
        if self._asking.look(now, full=total >= self._brim):
            self._arrivals.busy(now)
            self._watch.forget()
            self._turns.mistaken()

    def _look_in_s(self, now: float, load: Load, own: int) -> float:
        if self._asking.open:
            return self._looks.about(self._asking.look_in_s)
        away_s = self._turns.look_in_s
        if away_s is not None and not own:
            seldom_s = self._looks.waiting_in_s(load, self._turns.waited_s(now), sees_room=self._turns.sees_room)
            return max(away_s, seldom_s)
        holds_on = self._turns.state is State.HOLDING and (self._turns.fresh(now) or not self._arrivals.calm(now))
        at_work = self._filling if self._wavers else holds_on
        return self._looks.in_s(now, load, own, at_work=at_work, free=self._seats.number - load.total)
