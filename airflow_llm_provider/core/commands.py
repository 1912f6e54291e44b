"""What the dispatcher tells the runner to do.

Owns the four commands. Does not know why one is given (`core.dispatch`), nor how it is carried out (`batch.runner`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.exceptions import LLMBatchError


@dataclass(frozen=True, slots=True)
class Send:
    """Send these now."""

    tickets: list[Ticket]


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the endpoint who it is and report with `probed`."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to send before `until` (monotonic seconds; None: before something is reported)."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Stop:
    """End the run with this error."""

    error: LLMBatchError


Command = Send | Probe | Wait | Stop
