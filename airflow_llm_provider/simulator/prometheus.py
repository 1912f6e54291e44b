"""Prometheus' text format: families of samples, rendered as its Python client does.

Owns format, order and the choice by ``name[]``. Pure. Does not know what is measured (`simulator.vllm_metrics`).
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
"""Of a whole page."""

CHOSEN_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of a page with a choice of series."""


class Sample(NamedTuple):
    """A line.

    Attributes:
        name: of the series.
        labels: sorted by name.
        value: what it is.
    """

    name: str
    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    """What stands under one HELP and TYPE.

    Attributes:
        name: with ``_total`` for a counter.
        kind: counter, gauge or histogram.
        help: the text.
        samples: the lines.
    """

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


class Buckets:
    """A histogram that is added to.

    Args:
        bounds: upper bounds, rising, without the infinite one.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Adds a value, or the same value several times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def samples(self, name: str, labels: Mapping[str, str]) -> list[Sample]:
        """Its lines: a bucket counts what is at or below its bound."""
        cumulative = list(accumulate(self._counts))
        lines = [
            Sample(f"{name}_bucket", {**labels, "le": _number(bound)}, count)
            for bound, count in zip((*self._bounds, inf), cumulative, strict=True)
        ]
        return [*lines, Sample(f"{name}_count", labels, cumulative[-1]), Sample(f"{name}_sum", labels, self._sum)]


def page(families: Iterable[Family], names: Collection[str] = ()) -> bytes:
    """The text.

    Args:
        families: in order.
        names: of series; others are left out, and families without any. None given: everything.
    """
    lines: list[str] = []
    for family in families:
        samples = [sample for sample in family.samples if not names or sample.name in names]
        if samples:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            lines += map(_line, samples)
    return "\n".join([*lines, ""]).encode()


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(sample.labels[name])}"' for name in sorted(sample.labels))
    return f"{sample.name}{{{labels}}} {_number(sample.value)}" if labels else f"{sample.name} {_number(sample.value)}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return "+Inf" if value == inf else repr(float(value))
