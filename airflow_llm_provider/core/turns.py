"""Whose turn it is, among batch tasks that share a server and have no channel between them.

Owns when a task takes the room that it sees, and when it leaves it to others. Pure. Does not know how much room there
is, nor whether it is calm (`core.limit_headroom`).

Tasks that all fill the same room at once take each other for real-time, and none of them learns what real-time wants.
So they take turns. A task **holds** the room for `TURN_S`: it fills it and keeps it filled, and whoever comes is
real-time. Then it is **away**: what it has in flight ends and is not replaced, and others take the room. In a calm,
where it costs little to ask, it first **offers**: it leaves a place empty, and goes on where nobody takes it.

- **Who comes next.** Whoever is away takes room that it sees for `CONFIRM_S` on end, `BUSY_S` where it is not calm:
  while somebody holds, there is none for so long. Each waits a little more or less than that, so that the second sees
  what the first has sent. It looks seldom at first, and more often the nearer it comes to `PATIENT_S`: those who have
  waited longest see the room first.
- **Nobody else.** A task that has just held takes room again that was there for `LEFT_S` on end: others would have had
  it. Its turns grow by `LONGER` each time, up to `LONGEST_TURN_S`, until others are seen: a task alone loses next
  to nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

TURN_S = 5.0
"""Of the order of what it takes others to learn what real-time wants, and far more than a slice takes to end."""

LONGEST_TURN_S = 32.0
LONGER = 1.5
"""An offer leaves a place empty for `OFFER_S`: of eight, 0.4 % in turns of this length. Whoever comes waits half of
it."""

ALONE_TURNS = 2
"""Whose turns have grown to more than so many times `TURN_S` has nobody beside it: nobody took two of its offers."""

BUSY_TURNS = 3
"""A turn lasts so many times longer where it is not calm: to leave is to lose what others need a while to take."""


CONFIRM_S = 0.15
BUSY_S = 0.4
"""Whoever holds sees room within a look, and what it sends shows within some tens of milliseconds: room that lasts
longer is nobody's. Where it is not calm, requests that end make room that real-time takes again, and headroom is no
room."""

AGAIN_S = 0.03
"""It looks so often while it sees room: some times within the shortest of these."""

SPREAD = (0.5, 1.5)
"""Of `CONFIRM_S` and `BUSY_S`, drawn each time."""

LEFT_S = 0.8
REST_S = 1.5
"""A task that was away for less than `REST_S` takes room that lasts for `LEFT_S`: others, who look once in `LOOK_S` and
confirm it, would have taken it."""

OFFER_S = 1.0
"""Long enough for whoever waits to look and to confirm, mostly."""

FRESH_S = 0.3
"""A turn has just begun: whoever had the one before is leaving, and maybe others have begun, too."""

PATIENT_S = 20.0
"""Who has been away for so long waits for `CONFIRM_S`; others so many times longer as they have waited less, and the
other way round, from `LEAST_PATIENT` to `MOST_PATIENT` times."""

LEAST_PATIENT = 0.25
MOST_PATIENT = 2.0

LOOK_S = 0.8
KEEN_LOOK_S = 0.2
"""It looks so often when it has been away for `PATIENT_S`, or more rarely where there are many: see `core.looks`."""

JITTER = 0.3
"""Moments are spread by so much, so that tasks do not come in step."""


class State(Enum):
    """What a task does with the room it sees."""

    AWAY = "away"
    HOLDING = "holding"
    OFFERING = "offering"


class Turns:
    """One task's turns.

    Args:
        rng: of how long all of it takes.
    """

    def __init__(self, rng: Random) -> None:
        self.state = State.AWAY
        self._rng = rng
        self._turn_s = TURN_S
        self._until_s = 0.0  # of the turn, or of the offer
        self._held_s: float | None = None  # since when it has held
        self._away_s: float | None = None  # since when; None: it has not looked yet
        self._look_s = KEEN_LOOK_S
        self._out_s: float | None = None  # the same; later, where real-time or others took all of its room meanwhile
        self._room_s: float | None = None  # since when there was room in all looks
        self._confirm = 1.0  # of `CONFIRM_S`
        self._taken = True  # while away: others were seen to take the room
        self._had = False  # something in flight, since it began to hold
        self._others = 0  # when it began to offer

    @property
    def new(self) -> bool:
        """Whether it has held nothing yet."""
        return self._held_s is None

    @property
    def sees_room(self) -> bool:
        """Whether it is away, and may take the room that it saw."""
        return self.state is State.AWAY and self._room_s is not None

    @property
    def look_in_s(self) -> float | None:
        """When to look again where the task is away; None: as the load asks for."""
        if self.state is not State.AWAY:
            return None
        return AGAIN_S if self.sees_room else self._look_s

    @property
    def _alone(self) -> bool:
        """Nobody took what it offered, or left, of late."""
        return self._turn_s > ALONE_TURNS * TURN_S

    def waited_s(self, now: float) -> float:
        """For how long it has had nothing; 0 where it is not away."""
        return 0.0 if self.state is not State.AWAY or self._out_s is None else max(0.0, now - self._out_s)

    def fresh(self, now: float) -> bool:
        """Whether a turn has just begun."""
        return self.state is State.HOLDING and self._held_s is not None and now - self._held_s < FRESH_S

    def filling(self, now: float) -> None:
        """Others are just taking the room that it sees."""
        if self.sees_room:
            self._room_s = now

    def mistaken(self) -> None:
        """What it has just taken is nobody's to give: it waits on, as if it had not."""
        self.state, self._room_s, self._taken = State.AWAY, None, True

    def look(self, now: float, *, room: bool, own: int, others: int, calm: bool, open_place: bool) -> None:
        """Go on.

        Args:
            now: monotonic seconds.
            room: whether a sequence more would fit.
            own: sequences of this task in flight.
            others: sequences of everybody else.
            calm: whether real-time is quiet.
            open_place: whether the place that is offered is free by now.
        """
        self._had |= own > 0
        match self.state:
            case State.AWAY:
                self._wait(now, room=room, calm=calm)
            case State.HOLDING if not own and not room and not self.fresh(now) and not (self._had and self._alone):
                # another was faster, or real-time has it all, as it may for a moment where nobody else waits
                if self._had:
                    self._out_s = now
                self.state, self._room_s, self._taken = State.AWAY, None, calm
            case State.HOLDING if now >= self._until_s and calm:
                self.state, self._until_s, self._others = State.OFFERING, now + OFFER_S, others
            case State.HOLDING if now >= self._until_s + (BUSY_TURNS - 1) * self._turn_s:
                self._leave(now)
            case State.OFFERING:
                self._offer(now, others=others, calm=calm, open_place=open_place)

    def _offer(self, now: float, *, others: int, calm: bool, open_place: bool) -> None:
        if others > self._others:
            self._leave(now)
        elif not calm:
            self._hold(now)
        elif not open_place:
            self._until_s = now + OFFER_S
        elif now >= self._until_s:
            self._turn_s = min(LONGEST_TURN_S, LONGER * self._turn_s)
            self._hold(now)

    def _wait(self, now: float, *, room: bool, calm: bool) -> None:
        if self._away_s is None:
            self._away_s = self._out_s = now - REST_S
        waited_s = now - self._away_s
        mean_s = max(KEEN_LOOK_S, min(LOOK_S, KEEN_LOOK_S * PATIENT_S / max(waited_s, 1.0)))
        self._look_s = mean_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
        rested = waited_s >= REST_S
        if not room:
            self._taken |= calm and (self._room_s is not None or rested)
            self._room_s = None
            return
        if self._room_s is None:
            self._room_s, self._confirm = now, self._rng.uniform(*SPREAD)
        confirm_s = CONFIRM_S if calm else BUSY_S
        patience = min(MOST_PATIENT, max(LEAST_PATIENT, PATIENT_S / max(waited_s, 1.0)))
        if now - self._room_s < (self._confirm * confirm_s * patience if rested else LEFT_S):
            return
        if self._taken or rested:
            self._turn_s = TURN_S
        else:
            self._turn_s = min(LONGEST_TURN_S, LONGER * self._turn_s)
        self._held_s, self._had = now, False
        self._hold(now)

    def _hold(self, now: float) -> None:
        self.state = State.HOLDING
        self._until_s = now + self._turn_s * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _leave(self, now: float) -> None:
        self.state, self._away_s, self._out_s = State.AWAY, now, now
        self._room_s, self._taken, self._look_s = None, False, LOOK_S
