"""Effective values: what is in force, and who set it.

Owns the order in which DAG, connection, provider configuration and default are asked, and the opening lines of the
task's log. Does not know what the values are for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow.configuration import conf

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

SECTION = "llm_batch"
"""The provider's section in Airflow's configuration."""

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


def configured(option: str, kind: type[T]) -> tuple[T | None, str]:
    """The provider configuration's value for `option`, None where nobody set it.

    Raises:
        ConfigurationError: when the value is not of `kind`.
    """
    text: str | None = conf.get(SECTION, option, fallback=None)
    default: str | None = conf.get_default_value(SECTION, option, fallback=None)
    set_by = f"provider configuration [{SECTION}] {option}"
    if text is None or text in ("", default):
        return None, set_by
    convert: Any = kind
    try:
        return convert(text), set_by
    except ValueError as error:
        raise ConfigurationError(f"{set_by} is {text!r}, which is no {kind.__name__}") from error
