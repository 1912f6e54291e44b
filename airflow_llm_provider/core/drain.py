"""How long a row takes, so that none is started that would not end inside the window.

Owns the prediction. Does not know the window: `core.dispatch` compares.
"""

from __future__ import annotations

import math
from collections import deque

SAMPLES = 500
"""Rows the prediction looks back on."""

REFRESH = 25
"""Answered rows after which the prediction is made anew; before there are so many, after each."""

QUANTILE = 0.95
MARGIN = 1.25

UNMEASURED_S = 30.0
"""What a row is taken to need before any has been measured."""


class RowDurations:
    """Durations of the last `SAMPLES` answered rows, in seconds, from sending to the whole answer.

    The prediction is ``MARGIN × q``, where q is the nearest-rank `QUANTILE` of the samples. A row that takes longer
    all the same is yielded at the close.

    Args:
        predicted_s: what an earlier stretch of the run predicted; None where none did.
    """

    def __init__(self, predicted_s: float | None = None) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._new = 0
        self.at_most_s = math.inf
        """Bounds the prediction: where rows take longer than their window, some are tried from its beginning."""
        self._predicted_s = UNMEASURED_S if predicted_s is None else predicted_s
        self.known = predicted_s is not None

    def note(self, duration_s: float) -> None:
        """A row was answered after `duration_s`."""
        self._samples.append(duration_s)
        self.known = True
        self._new += 1

    def predicted_s(self) -> float:
        """Seconds that a row sent now is taken to need."""
        if self._new >= (REFRESH if len(self._samples) >= REFRESH else 1):
            ranked = sorted(self._samples)
            self._predicted_s = MARGIN * ranked[math.ceil(QUANTILE * len(ranked)) - 1]
            self._new = 0
        return min(self._predicted_s, self.at_most_s)
