"""A ``/metrics`` page: the few families that are asked for, out of hundreds.

Owns the text format of Prometheus and of OpenMetrics, as far as it takes to read counters, gauges and histograms, and
the choice of the model's series. Pure: bytes in, numbers out. Does not know what the families mean.

A line that is not of a family asked for is never looked into, and one that cannot be read is left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from airflow_llm_provider.core.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Possessive, and from a name's beginning only: whatever stands there is looked at once.
_LABEL = re.compile(rb'(?<![A-Za-z0-9_])([A-Za-z_][A-Za-z0-9_]*+)[ \t]*+=[ \t]*+"((?:[^"\\]|\\.)*+)"')
_ESCAPE = re.compile(r"\\(.)")

LONGEST_KNOWN = 1024
"""Bytes of labels that are remembered at most: a page may have megabytes of them."""


class Series(NamedTuple):
    """One line: labels and a value."""

    labels: Mapping[str, str]
    value: float


class Page:
    """What a page says about some families.

    Args:
        body: the page.
        names: the families, by the names their lines begin with: a histogram's buckets are ``<name>_bucket``.
    """

    def __init__(self, body: bytes, names: Iterable[str]) -> None:
        self._series: dict[str, list[Series]] = {}
        for found in _lines(tuple(names)).finditer(body):
            value = _number(found[3])
            if value is not None:
                self._series.setdefault(found[1].decode(), []).append(Series(_labels(found[2] or b""), value))

    def series(self, name: str) -> list[Series]:
        """All lines of that name."""
        return self._series.get(name, [])

    def models(self) -> list[str]:
        """The models that there are series of."""
        names = (series.labels.get("model_name") for listed in self._series.values() for series in listed)
        return sorted({name for name in names if name is not None})

    def model(self, wanted: str | None) -> str | None:
        """The label under which `wanted` reports; None where that can't be told.

        vLLM reports everything under its first served name, so the only model of a page is meant by any name.
        """
        models = self.models()
        if wanted in models:
            return wanted
        return models[0] if len(models) == 1 else None

    def histogram(self, name: str, model: str) -> Histogram | None:
        """The model's histogram, summed over everything but its buckets; None where there is none.

        Raises:
            ValueError: the lines are there and make no histogram.
        """
        buckets: defaultdict[float, float] = defaultdict(float)
        for series in self._of(f"{name}_bucket", model):
            bound = _number(series.labels.get("le", "").encode())
            if bound is None:
                raise ValueError(f"a bucket of {name} has no bound")
            buckets[bound] += series.value
        return Histogram.of_cumulative(buckets.items()) if buckets else None

    def total(self, name: str, model: str | None = None) -> float | None:
        """The sum of a counter's or gauge's series, of the model where one is given; None where there is none."""
        values = [series.value for series in self._of(name, model)]
        return sum(values) if values else None

    def _of(self, name: str, model: str | None) -> Iterator[Series]:
        for series in self._series.get(name, ()):
            if model is None or series.labels.get("model_name") == model:
                yield series


@cache
def _lines(names: tuple[str, ...]) -> re.Pattern[bytes]:
    """The lines of these families. Cached: a page is read many times a second, for few families."""
    wanted = b"|".join(re.escape(name.encode()) for name in names)
    return re.compile(
        rb'^(%s)(?:[ \t]*\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*+")*+)\})?[ \t]+([^\s#]+)' % wanted, re.MULTILINE
    )


def _labels(text: bytes) -> Mapping[str, str]:
    return _known_labels(text) if len(text) <= LONGEST_KNOWN else _read_labels(text)


@lru_cache(maxsize=256)
def _known_labels(text: bytes) -> Mapping[str, str]:
    """The same again: a page that is read many times a second has the same labels each time."""
    return _read_labels(text)


def _read_labels(text: bytes) -> Mapping[str, str]:
    found = {name.decode(): _unescaped(value.decode("utf-8", "replace")) for name, value in _LABEL.findall(text)}
    return MappingProxyType(found)


def _unescaped(value: str) -> str:
    return _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], value) if "\\" in value else value


def _number(text: bytes) -> float | None:
    """A value or a bound; NaN is none: there is nothing to count."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value else None  # noqa: PLR0124 - NaN is what is not itself
