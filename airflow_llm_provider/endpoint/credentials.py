"""What must be told to nobody: keys, and what headers carry.

Owns which strings these are. Does not blot them out (`endpoint.failure`), nor have Airflow mask them (`hooks`).
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SHORTEST = 8
"""A header's value below this ("1", "true") is no secret, and to blot it out is noise."""


def secrets_in(api_key: str | None, headers: Iterable[str]) -> tuple[str, ...]:
    """The API key, headers' values, and of these the token or password alone, since others may say it alone.

    Args:
        api_key: None where there is none.
        headers: values such as ``Bearer abc`` or ``Basic dXNlcjpwYXNz``.
    """
    found = [api_key] if api_key else []
    for value in headers:
        found += [value, *value.split()[-1:]]
        if value.startswith("Basic "):
            found.append(password_of(value))
    return tuple(dict.fromkeys(found))


def blotted(api_key: str | None, headers: Iterable[str]) -> tuple[str, ...]:
    """Those that are blotted out of what servers say, the longest first: one may hold another."""
    found = (each for each in secrets_in(api_key, headers) if each == api_key or len(each) >= SHORTEST)
    return tuple(sorted(found, key=len, reverse=True))


def password_of(basic: str) -> str:
    """The password in a ``Basic …`` header; the encoded credentials themselves where they hold none."""
    encoded = basic.rsplit(maxsplit=1)[-1]
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2] or encoded
    except ValueError:
        return encoded
