"""When a batch task looks at the load of a server that it shares, and whether it saw anything new.

Owns the budget of looks, which all tasks share without a channel, and what a step of the engine takes. Pure. Does not
know what follows from a look (`core.limit_headroom`).

- **Budget.** ``rate = LOOK_BUDGET / cost of a look * (s + s') / 2``, with ``s = own / T``, ``T`` the server's total,
  and ``s'`` the mean of ``s`` over `MEAN_SHARE_S`: shares add up to 1, so do the looks of all tasks to the budget,
  however many there are. Whoever is at work looks as if all were its own: mostly that is one at a time. Nobody looks
  more often than `LOOKS_PER_S`, nor than `SPARE_LOOKS_PER_S` while whoever comes next finds a slot.
- **Steps.** What a server shows is as of its last step, which takes a millisecond or a hundred. Between two looks it
  made ``steps = tokens generated / sequences running``, since each gets one in a step. No task looks more often than
  that, and what is the same as before, tokens and all, is no news.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

    from airflow_llm_provider.core.load import Load

LOOKS_PER_S = 80.0
"""Most often that one task looks: a look takes the client 0.2 to 0.5 ms of CPU."""

SPARE_LOOKS_PER_S = 50.0
"""The same where `SPARE` slots or more are free: whoever comes next finds one. In virtual time p95 is the same, for a
quarter of the looks less than with 100 a second throughout."""

SPARE = 2

LOOK_BUDGET = 0.042
"""Of a core of the server, for the looks of all tasks that have something there."""

SLOWEST_LOOK_S = 0.5
LEAST_BUDGET = 0.0014
"""A task looks once in `SLOWEST_LOOK_S` at least, or as often as this buys, of a core of the server."""

WAITING_BUDGET = 0.02
LONGEST_WAIT_S = 20.0
"""A task that waits looks once in ``waited * cost of a look / WAITING_BUDGET`` at most, and once in `LONGEST_WAIT_S` at
least. As turns go round, N tasks have waited for one to N turns, and ``sum(1 / waited)`` grows with the logarithm of N
only: all who wait cost the server one to three hundredths of a core, however many they are."""

MEAN_SHARE_S = 10.0
"""Some turns: a task that has just lost its place still looks for room, one without any for long hardly does."""

FIRST_SHARE = 0.1

JITTER = 0.3
"""Looks are spread by so much of their interval, so that tasks do not look in step."""

STALE_S = 0.25
"""A step is taken to last no longer: what is still the same then is so."""

EASE = 0.1
"""A step's weight in the usual one."""


class Looks:
    """See the module.

    Args:
        rng: of their moments.

    Attributes:
        step_s: what a step of the engine usually takes; 0: not known.
    """

    def __init__(self, rng: Random) -> None:
        self.step_s = 0.0
        self._rng = rng
        self._shown: tuple[float, int, int] | None = None
        self._news_s = 0.0
        self._looked_s = 0.0
        self._mean_share = FIRST_SHARE

    def news(self, now: float, load: Load) -> bool:
        """Whether the server shows another step than when there were news last; where it can't be told, it does."""
        if load.generated is None:
            return True
        shown, then, since_s = (load.generated, load.running, load.waiting), self._shown, now - self._news_s
        if shown == then and load.running and since_s < STALE_S:
            return False
        if then is not None and load.running and (steps := (load.generated - then[0]) / load.running) >= 1:
            self.step_s += EASE * (min(STALE_S, since_s / steps) - self.step_s)
        self._shown, self._news_s = shown, now
        return True

    def forget(self) -> None:
        """Whatever is seen next is news."""
        self._shown = None

    def in_s(self, now: float, load: Load, own: int, *, at_work: bool, free: int) -> float:
        """When to look again, in seconds; called once a look.

        Args:
            now: monotonic seconds.
            load: what was seen.
            own: sequences of this task in flight.
            at_work: whether what happens is the task's to see.
            free: slots of the server that nobody has; less than 0 where requests wait.
        """
        share = own / max(load.total, own, 1)
        self._mean_share += (share - self._mean_share) * min(1.0, (now - self._looked_s) / MEAN_SHARE_S)
        self._looked_s = now
        per_s = LOOK_BUDGET / load.cost_s * (1.0 if at_work else (share + self._mean_share) / 2)
        slowest_s = max(SLOWEST_LOOK_S, load.cost_s / LEAST_BUDGET)
        most_per_s = SPARE_LOOKS_PER_S if free >= SPARE else LOOKS_PER_S
        return self.about(max(1 / most_per_s, self.step_s, 1 / max(per_s, 1 / slowest_s)))

    def waiting_in_s(self, load: Load, waited_s: float, *, sees_room: bool) -> float:
        """The same for a task that has nothing there and waits: no sooner than that.

        Args:
            load: what was seen.
            waited_s: for how long it has.
            sees_room: whether it saw room, and may take it after a few more looks.
        """
        if sees_room:
            return 2 * load.cost_s / LOOK_BUDGET  # half of the budget each: several may see the same room
        mean_s = min(LONGEST_WAIT_S, max(load.cost_s / LEAST_BUDGET, waited_s * load.cost_s / WAITING_BUDGET))
        return self.about(mean_s)

    def about(self, mean_s: float) -> float:
        """A moment like it."""
        return mean_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
