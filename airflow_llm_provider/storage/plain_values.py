"""Values that JSON has no word for, in its terms.

Owns what becomes of them: dates and times are ISO 8601 texts, lengths of time seconds, decimals texts, binaries base64,
and what is no number null.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any


def plain(value: Any) -> Any:
    """A value in JSON's terms; see the module."""
    match value:
        case Enum():
            return plain(value.value)
        case Mapping():
            return {str(name): plain(each) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(each) for each in value]
        case float() if not math.isfinite(value):
            return None
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case str() | int() | float() | None:
            return value
        case _:  # a UUID
            return str(value)
