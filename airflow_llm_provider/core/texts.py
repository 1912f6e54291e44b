"""How many texts a request's body has, each of which the server runs by itself.

Owns the fields that hold them, by route. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_llm_provider.core.prompt import PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

SCORED = ("text_1", "text_2", "data_1", "data_2", "queries", "documents", "items")
"""The names that vLLM takes what is scored by; one text beside many is many."""


def texts_in(path: str, body: Mapping[str, Any]) -> int:
    """1 or more; what the server will refuse anyway counts as one."""
    names = SCORED if path == PATHS["score"] else ("prompt", "input")
    return max(1, *(_texts(body.get(name)) for name in names))


def _texts(value: Any) -> int:
    """A list of numbers is one text, in token ids."""
    return len(value) if isinstance(value, list) and value and isinstance(value[0], str | list | dict) else 1
