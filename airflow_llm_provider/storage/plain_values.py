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
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from numbers import Integral, Real
from typing import Any
from uuid import UUID

_AS_TEXT = (Decimal, UUID, IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface)


def plain(value: Any) -> Any:
    """A value in JSON's terms; see the module.

    Raises:
        TypeError: it has none.
    """
    match value:
        case Enum():
            return plain(value.value)
        case str() | bool() | int() | None:
            return value
        case Mapping():
            return {str(name): plain(each) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(each) for each in value]
        case Real():
            return _number(value)
        case _:
            return _scalar(value)


def _number(value: Real) -> float | None:
    """NumPy's, too."""
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _scalar(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, _AS_TEXT):
        return str(value)
    raise TypeError(f"JSON has no word for a {type(value).__name__}")
