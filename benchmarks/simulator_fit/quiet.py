"""How much of this machine others used while something was measured, and measuring again until it was little.

Owns the accounting of CPU time. Does not know what is measured.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """What counts as undisturbed.

    Attributes:
        pid: the server's, whose children are its engine; None if it is elsewhere, and nothing is known of its machine.
        others_at_most: of the machine's CPU time, the share that other processes may have.
        tries: measurements at most; the least disturbed one is taken.
    """

    pid: int | None
    others_at_most: float
    tries: int

    async def measured(self, measure: Callable[[], Awaitable[T]]) -> tuple[T, float]:
        """What `measure` returns, and the share of the machine that others had meanwhile."""
        best: tuple[T, float] | None = None
        for _ in range(self.tries):
            busy_s, own_s = self._cpu_s()
            result = await measure()
            busy_after_s, own_after_s = self._cpu_s()
            total_s = busy_after_s[0] - busy_s[0]
            others = max(0.0, (busy_after_s[1] - busy_s[1]) - (own_after_s - own_s)) / total_s if total_s else 0.0
            if self.pid is None:
                return result, 0.0
            if best is None or others < best[1]:
                best = result, others
            if others <= self.others_at_most:
                break
        assert best is not None  # noqa: S101 - there is one try at least
        return best

    def _cpu_s(self) -> tuple[tuple[float, float], float]:
        """The machine's CPU seconds, all and those not idle; those of the server and of this process."""
        times = psutil.cpu_times()
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own_s = _process_cpu_s(os.getpid())
        if self.pid is not None:
            with suppress(psutil.NoSuchProcess):
                children = psutil.Process(self.pid).children(recursive=True)
                own_s += _process_cpu_s(self.pid) + sum(_process_cpu_s(child.pid) for child in children)
        return (total_s, total_s - times.idle - getattr(times, "iowait", 0.0)), own_s


def _process_cpu_s(pid: int) -> float:
    with suppress(psutil.NoSuchProcess):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0
