"""What the routes answer that generate nothing: vectors, labels, scores.

Owns their shapes, as vLLM's pooling models have them. Pure, as `endpoint.wire`, whose part it is.
"""

from __future__ import annotations

import base64
import struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.core.texts import texts_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EMBEDDINGS_PATH = "/v1/embeddings"
CLASSIFY_PATH = "/classify"
SCORE_PATH = "/v1/score"


def value_in(path: str, parsed: dict[str, Any], asked: bytes | None = None) -> Any:
    """What a request's text is to the model: a value, or a list of them where it had several texts.

    Args:
        path: the route.
        parsed: the answer's body.
        asked: the request's; where it is given, the answer must have an item for each of its texts.

    Returns:
        None where the answer has none that is usable.
    """
    data = parsed.get("data")
    if type(data) is not list or not data or not all(type(each) is dict for each in data):
        return None
    if asked is not None and len(data) != texts_in(path, orjson.loads(asked)):
        return None
    indexes = [each.get("index") for each in data]
    if any(index is not None for index in indexes):
        if not all(type(index) is int for index in indexes) or sorted(indexes) != list(range(len(data))):
            return None
        data = sorted(data, key=lambda each: each["index"])
    values = [READERS[path](each) for each in data]
    if any(value is None for value in values):
        return None
    return values[0] if len(values) == 1 else values


def _vector(item: dict[str, Any]) -> list[float] | None:
    """A list of numbers, or base64 of single precision, as the request asked."""
    embedding = item.get("embedding")
    if type(embedding) is str:
        try:
            packed = base64.b64decode(embedding, validate=True)
            embedding = list(struct.unpack(f"<{len(packed) // 4}f", packed))
        except (ValueError, struct.error):
            return None
    return _numbers(embedding)


def _label(item: dict[str, Any]) -> dict[str, Any] | None:
    """``{"label": …, "probs": […]}``; a model that names no labels has null there."""
    label, probs = item.get("label"), _numbers(item.get("probs"))
    return None if probs is None or not isinstance(label, str | None) else {"label": label, "probs": probs}


def _score(item: dict[str, Any]) -> float | None:
    score = item.get("score")
    return score if type(score) in (float, int) else None


def _numbers(value: Any) -> list[float] | None:
    if type(value) is not list or not value:
        return None
    return value if all(type(each) in (float, int) for each in value) else None


READERS: Mapping[str, Callable[[dict[str, Any]], Any]] = MappingProxyType(
    {EMBEDDINGS_PATH: _vector, CLASSIFY_PATH: _label, SCORE_PATH: _score}
)
"""By route, how one item of its answer is read."""
