"""Waits between attempts: tenacity's strategies as plain functions of the attempt's number.

Owns which strategy is used where. Does not wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_exponential, wait_random

if TYPE_CHECKING:
    from collections.abc import Callable


def exponential(*, first_s: float, max_s: float) -> Callable[[int], float]:
    """Seconds before the n-th retry, n from 1: ``min(max_s, first_s × 2^(n-1)) + jitter``, jitter up to `first_s`.

    The jitter keeps rows that failed together from coming back together.
    """
    strategy = wait_exponential(multiplier=first_s, max=max_s) + wait_random(0, first_s)

    def wait_s(attempt: int) -> float:
        state = RetryCallState(AsyncRetrying(), None, (), {})
        state.attempt_number = attempt
        return strategy(state)

    return wait_s
