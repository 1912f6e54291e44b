"""Effective values: what is in force, and who set it.

Owns the value and the order in which candidates count. Does not know what the values are for, nor how provider
configuration is read (`operators.effective`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Effective(Generic[T]):
    """A value in force and who set it."""

    name: str
    value: T
    set_by: str

    def __str__(self) -> str:
        text = repr(self.value)
        shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}… ({len(text):,} characters)"
        return f"  {self.name} = {shown}  [{self.set_by}]"


def from_dag(name: str, value: T, default: T) -> Effective[T]:
    """A value that only the DAG can set."""
    return Effective(name, value, "default" if value == default else "DAG")


def first_set(name: str, candidates: Iterable[tuple[T | None, str]], default: T) -> Effective[T]:
    """The first candidate that is not None, each with who set it; else the default."""
    for value, set_by in candidates:
        if value is not None:
            return Effective(name, value, set_by)
    return Effective(name, default, "default")
