"""Single values of a connection's extra, in whichever form they were written.

Owns what counts as a number, a flag or a header, and what the error for one that cannot be meant says of it. Does not
know which fields there are (`hooks.connection`, `hooks.latency_fields`, `hooks.promise_fields`).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.hooks.base_url import Complaint

HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?")
NOT_SHOWN: Final = "a value (not shown: it may be a secret)"

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def filled(value: Any) -> bool:
    """Tell whether there is a value: forms leave None, blanks or empty objects where nobody wrote anything."""
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != {}


def number(value: Any) -> float | None:
    """Return a number, written as one or as text; None where it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def kind(value: Any) -> str:
    """Return what a JSON value is, for errors that do not show it."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return a scalar as JSON and anything else by its kind, so that a misplaced secret is not echoed whole."""
    return json.dumps(value) if isinstance(value, str | int | float) else kind(value)


def above_zero(field: str, value: Any, bad: Complaint) -> float | None:
    """Return seconds above 0; None where there is no value.

    Raises:
        ConfigurationError: made by `bad`.
    """
    if value is None:
        return None
    found = number(value)
    if found is None or found <= 0:
        raise bad(field, shown(value), "write seconds above 0, e.g. 30")
    return found


def flag(field: str, value: Any, bad: Complaint) -> bool | None:
    """Return true or false, written as one or as text; None where there is no value.

    Raises:
        ConfigurationError: made by `bad`.
    """
    word = value.strip().lower() if isinstance(value, str) else value
    if word is None or isinstance(word, bool):
        return word
    if word in ("true", "false"):
        return bool(word == "true")
    raise bad(field, shown(value), "write true or false")


def verify(field: str, value: Any, bad: Complaint) -> bool | str | None:
    """Return whether certificates are checked, or the path of a CA bundle; None where there is no value.

    Raises:
        ConfigurationError: made by `bad`.
    """
    if isinstance(value, str) and PurePosixPath(value.strip()).is_absolute():
        return value.strip()
    try:
        return flag(field, value, bad)
    except ConfigurationError:
        advice = "write true, false, or the absolute path of a CA bundle, e.g. /etc/ssl/our-ca.pem"
        raise bad(field, shown(value), advice) from None


def headers(field: str, value: Mapping[str, Any], bad: Complaint) -> Mapping[str, str]:
    """Return HTTP headers; no error shows a value.

    Raises:
        ConfigurationError: made by `bad`.
    """
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name):
            raise bad(field, f"an object with the name {name!r}", "that is no HTTP header name")
        if not isinstance(text, str):
            raise bad(f"{field}[{name!r}]", kind(text), "write the header's value as a string")
        if not HEADER_VALUE.fullmatch(text):
            advice = "it is empty, or has a line break, a space at an end or a non-ASCII character"
            raise bad(f"{field}[{name!r}]", NOT_SHOWN, advice)
    if len({name.lower() for name in value}) < len(value):
        raise bad(field, "an object that names a header twice", "header names ignore case; keep one")
    return MappingProxyType(dict(value))
