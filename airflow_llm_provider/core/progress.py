"""How far a run is and how fast it goes.

Owns the rates and the words of the progress line. Does not read a clock, log or write.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

RATE_WINDOW_S = 60.0
"""Rates are averages over this long: long enough to be steady, short enough to show a change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Where a run stands.

    Attributes:
        done: rows with an outcome.
        total: rows of the run.
        rows_per_s: over the last minute; 0 where nothing has been measured.
        tokens_per_s: completion tokens, over the last minute.
        eta_s: seconds to the end at this pace; None where it is not known.
        otherwise: who of them did not succeed, in words.
    """

    done: int
    total: int
    rows_per_s: float
    tokens_per_s: float
    eta_s: float | None
    otherwise: str = ""

    def __str__(self) -> str:
        share = f"{100 * self.done / self.total:.1f} %" if self.total else "-"
        said = (
            f"{self.done:,}/{self.total:,} rows ({share}){self.bad}, {self.rows_per_s:.1f} rows/s, "
            f"{self.tokens_per_s:.0f} tokens/s"
        )
        if self.done >= self.total:
            return said
        return f"{said}, ETA {'unknown' if self.eta_s is None else duration(self.eta_s)}"

    @property
    def bad(self) -> str:
        """The same as a part of a sentence; nothing where all succeeded."""
        return f", of them {self.otherwise}" if self.otherwise else ""

    def at_the_end(self, *, settled: int, completion_tokens: int, elapsed_s: float) -> Pace:
        """Of a try that has ended: where its last stretch was shorter than a minute, rates are that one's averages.

        Args:
            settled: rows that it settled in the stretch.
            completion_tokens: of these.
            elapsed_s: how long it was.
        """
        pace = replace(self, eta_s=0.0) if self.done >= self.total else self
        if not 0 < elapsed_s < RATE_WINDOW_S:
            return pace
        return replace(pace, rows_per_s=settled / elapsed_s, tokens_per_s=completion_tokens / elapsed_s)


class PaceMeter:
    """Rates over the last minute from samples of running totals."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()

    def sample(self, *, now: float, done: int, total: int, settled: int | None = None, completion_tokens: int) -> Pace:
        """Take in the totals at `now` (monotonic seconds) and say where the run stands.

        Args:
            now: monotonic seconds.
            done: rows with an outcome, those of earlier tries included.
            total: rows of the run.
            settled: rows that this try settled, which the pace is made of; None: `done` is.
            completion_tokens: of the rows that the pace is made of.
        """
        settled = done if settled is None else settled
        self._samples.append((now, settled, completion_tokens))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_WINDOW_S:  # noqa: PLR2004 - keep two
            self._samples.popleft()
        then, settled_then, tokens_then = self._samples[0]
        elapsed_s = now - then
        rows_per_s = (settled - settled_then) / elapsed_s if elapsed_s > 0 else 0.0
        tokens_per_s = (completion_tokens - tokens_then) / elapsed_s if elapsed_s > 0 else 0.0
        eta_s = (total - done) / rows_per_s if rows_per_s > 0 else None
        return Pace(done=done, total=total, rows_per_s=rows_per_s, tokens_per_s=tokens_per_s, eta_s=eta_s)


def duration(seconds: float) -> str:
    """A duration as people say it: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:  # noqa: PLR2004 - minutes in an hour
        return f"{minutes} min {rest_s:02d} s"
    hours, rest_min = divmod(minutes, 60)
    return f"{hours} h {rest_min:02d} min"
