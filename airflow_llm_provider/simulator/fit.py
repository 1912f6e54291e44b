"""Finds a step model from what a real server showed under loads made for it.

Owns the equations. Does not know how the loads are made and measured (`benchmarks.simulator_fit`).

Every figure of a calibration says one sum of the model's terms, so that all of them are found by least squares, of
relative errors, with no term below 0. Engine and API server are two systems of equations: the engine's times come from
histograms the engine fills, the API server's from the CPU time it used.

CPU time is what the API server would take on a core of its own. Where it has none it takes longer, and that shows in
how long a burst waits and how slow closed loops are: its times are stretched until the simulated ones are as slow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from math import exp, log
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.closed_loop import burst_ttft_s, throughput
from airflow_llm_provider.simulator.spec import StepModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_llm_provider.simulator.closed_loop import Burst, Loop
    from airflow_llm_provider.simulator.spec import EngineSpec

_UPPER = 0.9
_UPPER_IN_DEVIATIONS = 1.2816
"""The normal distribution's 90th percentile: far enough out to see the spread, and not the machine's rare pauses."""

_STRETCH_AT_MOST = 64.0
_HALVINGS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Requests that were sent at once and decoded side by side to the end.

    Attributes:
        size: how many.
        context_tokens: prompt, and half of the answer, of each.
        inter_token_s: between two tokens of a sequence, on average: a step.
    """

    size: int
    context_tokens: float
    inter_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """A request alone.

    Attributes:
        prompt_tokens: its prompt's, none of them cached.
        steps: in which they are computed.
        prefill_s: from its first step to its first token, on average.
    """

    prompt_tokens: int
    steps: int
    prefill_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """More clients than slots, with short answers: all slots are busy, and sequences start beside those that decode.

    Attributes:
        decoding: tokens generated in a step, on average.
        prefill_tokens: prompt tokens computed in a step, on average.
        context_tokens: of the sequences in a step together, on average.
        starts: sequences started in a step, on average: below 1, about the share of steps in which one is.
        inter_token_s: between two tokens of a sequence, on average: a step.
    """

    decoding: float
    prefill_tokens: float
    context_tokens: float
    starts: float
    inter_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiWork:
    """What the API server did for some requests.

    Attributes:
        requests: how many.
        tokens: generated for them.
        chunks: sent to the clients: tokens of streams, and whole answers.
        cpu_s: CPU time used.
    """

    requests: int
    tokens: int
    chunks: int
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All that was measured.

    Attributes:
        waves: of several sizes, and of short and long context.
        prefills: of several lengths.
        churn: of short answers.
        api: whole answers, streams, and answers of one token.
        lone_ttft_s: from sending a request to its first token, as the client sees it, on an idle server: the median.
        lone_prompt_tokens: those requests' prompt.
        lone_prefills_s: how long each of them took in the engine: a step.
        burst: as many requests at once as there are slots.
        loops: closed loops, one of whole answers and one of streams, with as many clients as there are slots.
    """

    waves: tuple[Wave, ...]
    prefills: tuple[Prefill, ...]
    churn: Churn
    api: tuple[ApiWork, ...]
    lone_ttft_s: float
    lone_prompt_tokens: int
    lone_prefills_s: tuple[float, ...]
    burst: Burst
    loops: tuple[Loop, Loop]


def fit(calibration: Calibration, spec: EngineSpec) -> StepModel:
    """The step model that explains it best.

    Args:
        calibration: what was measured.
        spec: the server it was measured on; its own step model does not matter.

    Raises:
        ValueError: the calibration does not determine one: too few kinds of load.
    """
    churn = calibration.churn
    rows: list[tuple[float, ...]] = [
        (1.0, wave.size, 0.0, wave.size * wave.context_tokens, 0.0) for wave in calibration.waves
    ]
    rows += [(float(one.steps), 0.0, one.prompt_tokens, 0.0, 0.0) for one in calibration.prefills]
    rows += [(1.0, churn.decoding, churn.prefill_tokens, churn.context_tokens, min(1.0, churn.starts))]
    times = [wave.inter_token_s for wave in calibration.waves] + [one.prefill_s for one in calibration.prefills]
    base_s, per_seq_s, per_prefill_token_s, per_kv_token_s, mixed_s = least_squares(rows, [*times, churn.inter_token_s])
    request_s, token_s, chunk_s = least_squares(
        [(float(work.requests), float(work.tokens), float(work.chunks)) for work in calibration.api],
        [work.cpu_s for work in calibration.api],
    )
    engine = StepModel(
        base_s=base_s,
        per_seq_s=per_seq_s,
        per_prefill_token_s=per_prefill_token_s,
        per_kv_token_s=per_kv_token_s,
        mixed_s=mixed_s,
        jitter=spread(calibration.lone_prefills_s),
    )
    step_s = engine.mean_s(decoding=0, prefill_tokens=calibration.lone_prompt_tokens, context_tokens=0)

    def model(request: float, token: float, chunk: float) -> StepModel:
        """With the API server's times, and what is left of a lone request's."""
        delay_s = max(0.0, calibration.lone_ttft_s - step_s - request - token - chunk)
        return replace(engine, request_s=request, token_s=token, chunk_s=chunk, delay_s=delay_s)

    burst, (answers, streams) = calibration.burst, calibration.loops
    request_s *= _stretch(
        lambda factor: (
            burst_ttft_s(replace(spec, step=model(factor * request_s, token_s, chunk_s)), burst) < burst.ttft_s
        )
    )
    token_s *= _stretch(
        lambda factor: (
            throughput(replace(spec, step=model(request_s, factor * token_s, chunk_s)), answers) > answers.tokens_per_s
        )
    )
    chunk_s *= _stretch(
        lambda factor: (
            throughput(replace(spec, step=model(request_s, token_s, factor * chunk_s)), streams) > streams.tokens_per_s
        )
    )
    return model(request_s, token_s, chunk_s)


def _stretch(too_fast: Callable[[float], bool]) -> float:
    """The factor, 1 at least, from which on the simulated server is not faster than the real one."""
    if not too_fast(1.0):
        return 1.0
    low, high = 0.0, log(_STRETCH_AT_MOST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_fast(exp(middle)) else (low, middle)
    return exp(high)


def spread(samples: Sequence[float]) -> float:
    """Standard deviation of the samples' logarithm, as median and 90th percentile tell it.

    Raises:
        ValueError: there are none above 0.
    """
    ordered = sorted(sample for sample in samples if sample > 0)
    if not ordered:
        raise ValueError("There is no step to learn the jitter from. Let there be more requests alone.")
    upper, median = ordered[int(_UPPER * (len(ordered) - 1))], ordered[(len(ordered) - 1) // 2]
    return log(upper / median) / _UPPER_IN_DEVIATIONS


def least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[float, ...]:
    """The x, none of them negative, that makes Σ (row·x / value - 1)² least.

    There are few unknowns, so each set of them that may be above 0 is tried: the least among the solutions without a
    negative one is the solution (Lawson and Hanson, 1974, chapter 23, without the search).

    Args:
        rows: the equations' left sides.
        values: their right sides, above 0.

    Raises:
        ValueError: the equations determine no solution.
    """
    width = len(rows[0]) if rows else 0
    scaled = [[entry / value for entry in row] for row, value in zip(rows, values, strict=True)]
    scales = [max(abs(row[column]) for row in scaled) or 1.0 for column in range(width)]
    scaled = [[entry / scale for entry, scale in zip(row, scales, strict=True)] for row in scaled]
    if width == 0 or _solved(scaled, range(width)) is None:
        raise ValueError(
            f"{len(rows)} measurements of this kind do not tell {width} terms apart. Measure loads that differ more."
        )
    best: tuple[float, tuple[float, ...]] | None = None
    for size in range(width, 0, -1):
        for columns in combinations(range(width), size):
            found = _solved(scaled, columns)
            if found is None or min(found) < 0:
                continue
            x = [0.0] * width
            for column, value in zip(columns, found, strict=True):
                x[column] = value
            error = sum((sum(a * b for a, b in zip(row, x, strict=True)) - 1) ** 2 for row in scaled)
            if best is None or error < best[0]:
                best = error, tuple(value / scale for value, scale in zip(x, scales, strict=True))
    if best is None:
        raise ValueError("No term explains these measurements: are they all above 0?")
    return best[1]


def _solved(rows: Sequence[Sequence[float]], columns: Sequence[int]) -> list[float] | None:
    """The solution with these columns alone, by the normal equations; None if they do not determine it."""
    matrix = [[sum(row[i] * row[j] for row in rows) for j in columns] for i in columns]
    right = [sum(row[i] for row in rows) for i in columns]
    size = len(columns)
    for pivot in range(size):
        largest = max(range(pivot, size), key=lambda line: abs(matrix[line][pivot]))
        if abs(matrix[largest][pivot]) < 1e-9:  # noqa: PLR2004 - entries are of the order of 1
            return None
        matrix[pivot], matrix[largest] = matrix[largest], matrix[pivot]
        right[pivot], right[largest] = right[largest], right[pivot]
        for line in range(pivot + 1, size):
            factor = matrix[line][pivot] / matrix[pivot][pivot]
            matrix[line] = [a - factor * b for a, b in zip(matrix[line], matrix[pivot], strict=True)]
            right[line] -= factor * right[pivot]
    x = [0.0] * size
    for line in reversed(range(size)):
        known = sum(matrix[line][other] * x[other] for other in range(line + 1, size))
        x[line] = (right[line] - known) / matrix[line][line]
    return x
