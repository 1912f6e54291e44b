"""How many errored rows a run bears.

Owns the rule of ``max_error_rate``. Does not know what an error is (`core.retry`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_llm_provider.exceptions import ConfigurationError

EARLY_ROWS = 200
"""Settled rows after which a run that clearly fails is stopped before it spends the night on it."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The share of rows that may error.

    A run bears `max_error_rate` × rows errors, rounded down; with a rate above 0 it bears one in any case, because a
    bad row is one bad row; and a run in which every row errored has failed whatever the rate, unless the rate is 1.

    Raises:
        ConfigurationError: when the rate is not between 0 and 1.
    """

    max_error_rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.max_error_rate <= 1:
            raise ConfigurationError(f"max_error_rate is a share between 0 and 1, not {self.max_error_rate!r}")

    def borne(self, rows: int) -> int:
        """How many of `rows` may error."""
        if self.max_error_rate == 1:
            return rows
        at_least = 1 if self.max_error_rate > 0 and rows > 1 else 0
        return max(at_least, math.floor(self.max_error_rate * rows))

    def exceeded(self, *, errored: int, rows: int) -> bool:
        """Whether a finished run of `rows` rows failed."""
        return errored > self.borne(rows)

    def hopeless(self, *, errored: int, done: int, rows: int, shared: bool = False) -> bool:
        """Whether to stop early: too many of all rows already, or too large a share of those done.

        Never before `EARLY_ROWS` rows are done: a smaller run is cheap, and is judged at its end.

        Args:
            errored: of those done.
            done: rows, by this task.
            rows: of the whole run.
            shared: others do other rows. Bad rows may lie close together, so that what they are of those done here says
                little, unless they are all of them.
        """
        of_done = errored == done if shared else errored > self.max_error_rate * done
        return done >= EARLY_ROWS and (
            self.exceeded(errored=errored, rows=rows) or (of_done and self.max_error_rate < 1)
        )
