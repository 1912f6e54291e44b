"""The wall clock, read here and nowhere else; monotonic time is the event loop's own (`loop.time()`).

Wall-clock times are stored and shown; monotonic ones never leave the process.
"""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one place
