"""The table of a comparison, and whether the promises are kept.

Owns the words. Arms of one policy are put together: quantiles are of all their samples, rates are means. What is
compared is always of the same round, since machines change their pace from minute to minute: each round has a run
without batch and one with batch alone, and the table shows the median of the rounds' ratios beside the plain figures.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.colocation.measures import QUANTILES, jain, quantile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.colocation.arm import Arm

P95_BOUND = (1.25, 0.010)
P99_BOUND = (1.5, 0.025)
DAY_P99_BOUND = (1.1, 0.0)
LEAST_OF_ORACLE = 0.85
LEAST_OF_ORACLE_DAY = 0.90
LEAST_OF_QUIET = 0.90
LEAST_FAIR = 0.90
MOST_SERVER_CPU = 0.05
MOST_CLIENT_CPU = 0.02
MOST_REACTION_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy's figures, over all rounds.

    Attributes:
        name: policy and number of processes.
        arms: one of each round.
        saturation_per_s: tokens/s of batch alone, one of each round; None where that was not measured.
        look_cost_s: CPU seconds of the server for one look.
        client_look_cost_s: the same of the client; 0 where that was not measured.
    """

    name: str
    arms: tuple[Arm, ...]
    saturation_per_s: tuple[float, ...] | None
    look_cost_s: float
    client_look_cost_s: float = 0.0

    def ttft_s(self, share: float, phase: str | None = None) -> float:
        """A quantile of all samples."""
        return quantile([each for arm in self.arms for each in arm.ttft_s(phase)], share)

    @property
    def found_full(self) -> float:
        """The share of real-time's requests that came when real-time itself held all slots."""
        return sum(full for arm in self.arms for full in arm.found_full()) / max(1, self.requests)

    @property
    def else_p99_s(self) -> float:
        """The 99th percentile of all others: these would have found a slot if batch had held none."""
        waits = [
            sample.ttft_s
            for arm in self.arms
            for sample, full in zip(arm.samples, arm.found_full(), strict=True)
            if sample.ttft_s is not None and not full
        ]
        return quantile(waits, 0.99)

    @property
    def requests(self) -> int:
        """Of real-time."""
        return sum(len(arm.samples) for arm in self.arms)

    @property
    def batch_per_s(self) -> float:
        """Batch tokens/s."""
        return statistics.mean(arm.batch_per_s for arm in self.arms)

    @property
    def of_oracle(self) -> float | None:
        """Share of the oracle, median of the rounds."""
        if self.saturation_per_s is None or not self.arms[0].processes:
            return None
        pairs = zip(self.arms, self.saturation_per_s, strict=True)
        return statistics.median(arm.batch_per_s / arm.oracle_per_s(each) for arm, each in pairs)

    def of_saturation(self, phase: str) -> float | None:
        """Share of saturation in a phase, median of the rounds."""
        if self.saturation_per_s is None or not self.arms[0].processes:
            return None
        pairs = zip(self.arms, self.saturation_per_s, strict=True)
        return statistics.median(arm.batch_per_s_in(phase) / each for arm, each in pairs)

    @property
    def thrown_away(self) -> float:
        """Tokens thrown away, as a share of what batch generated."""
        thrown = sum(arm.thrown_away_tokens for arm in self.arms)
        kept = sum(arm.batch_tokens for arm in self.arms)
        return thrown / (thrown + kept) if thrown + kept else 0.0

    def ended(self, how: str) -> int:
        """How many batch requests ended so."""
        return sum(arm.endings.get(how, 0) for arm in self.arms)

    @property
    def fairness(self) -> float:
        """Jain's index of what the processes got over all rounds: tasks take turns, so that a minute is uneven."""
        return jain([sum(shares) for shares in zip(*(arm.shares for arm in self.arms), strict=True)])

    @property
    def server_cpu(self) -> float:
        """Share of a core of the server that control costs."""
        return statistics.mean(arm.looks_per_s for arm in self.arms) * self.look_cost_s

    @property
    def client_cpu(self) -> float:
        """Share of a core that control costs each process."""
        looks_per_s = statistics.mean(arm.looks_per_s / max(1, arm.processes) for arm in self.arms)
        return looks_per_s * self.client_look_cost_s

    @property
    def reactions_s(self) -> list[float]:
        """See `Arm.reactions_s`."""
        return [each for arm in self.arms for each in arm.reactions_s()]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """All of it, as Markdown."""
    phases = rows[0].arms[0].traffic.names
    inside = [f"{phase} p95" for phase in phases] if len(phases) > 1 else []
    rates = [f"{phase} of sat." for phase in phases] if len(phases) > 1 else []
    heads = [
        "policy",
        "p50",
        "p95",
        "p99",
        "found full",
        "else p99",
        *inside,
        "tok/s",
        "of oracle",
        *rates,
        "yields",
        "thrown",
        "fair",
        "ctl CPU",
        "client CPU",
    ]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        cells = [row.name, *(_ms(row.ttft_s(share)) for share in QUANTILES)]
        cells += [_percent(row.found_full), _ms(row.else_p99_s)] if row.requests else ["–", "–"]
        cells += [_ms(row.ttft_s(0.95, phase)) for phase in phases] if inside else []
        batch = bool(row.arms[0].processes)
        cells += [f"{row.batch_per_s:.0f}" if batch else "–", _percent(row.of_oracle)]
        cells += [_percent(row.of_saturation(phase)) for phase in phases] if rates else []
        cells += [str(row.ended("given-up")), _percent(row.thrown_away)] if batch else ["–", "–"]
        cells += [f"{row.fairness:.2f}" if row.arms[0].processes > 1 else "–"]
        cells += [_percent(share) if share else "–" for share in (row.server_cpu, row.client_cpu)]
        yield "| " + " | ".join(cells) + " |"


def doubts(rows: Sequence[Row]) -> Iterator[str]:
    """What makes the figures doubtful: lateness of the generator, requests that failed."""
    for row in rows:
        late_s = max((arm.late_s for arm in row.arms if arm.samples), default=0.0)
        if late_s > 0.005:
            yield f"{row.name}: the machine was busy, requests were sent up to {1000 * late_s:.0f} ms late (p99)"
        if failed := [error for arm in row.arms for error in arm.failed]:
            yield f"{row.name}: {len(failed)} of {row.requests} real-time requests failed, first: {failed[0][:200]}"
        for arm in row.arms:
            if others := {how: many for how, many in arm.endings.items() if how not in ("ok", "given-up", "stopped")}:
                yield f"{row.name}: batch requests failed: {others}"


def verdicts(none: Row, row: Row, ideal: Row | None) -> Iterator[tuple[str, float, float, bool]]:
    """The promises: name, figure, bound, kept; for `row` beside `none`, the run without batch.

    A day has bounds of its own. Where there is an `ideal`, real-time's p99 is held against it, too: what a batch costs
    by lengthening the server's steps no control can avoid.
    """
    day = row.arms[0].traffic.name == "day"
    bounds = [("no batch's", none, 0.99, DAY_P99_BOUND)]
    if not day:
        bounds = [("no batch's", none, 0.95, P95_BOUND), ("no batch's", none, 0.99, P99_BOUND)]
    if ideal is not None:
        bounds.append(("ideal control's", ideal, 0.99, DAY_P99_BOUND))
    for whose, base, share, (factor, more_s) in bounds:
        base_s, value_s = base.ttft_s(share), row.ttft_s(share)
        bound_s = max(factor * base_s, base_s + more_s)
        name = f"real-time p{100 * share:.0f} against {whose} {1000 * base_s:.1f} ms"
        yield name, 1000 * value_s, 1000 * bound_s, value_s <= bound_s
    least = LEAST_OF_ORACLE_DAY if day else LEAST_OF_ORACLE
    if (share_of := row.of_oracle) is not None:
        yield "batch, share of the oracle", share_of, least, share_of >= least
    if "quiet" in row.arms[0].traffic.names and (quiet := row.of_saturation("quiet")) is not None:
        yield "batch in quiet phases, share of saturation", quiet, LEAST_OF_QUIET, quiet >= LEAST_OF_QUIET
    if row.arms[0].processes > 1:
        yield "fairness, Jain's index", row.fairness, LEAST_FAIR, row.fairness >= LEAST_FAIR
    if row.server_cpu:
        yield "control, share of a server's core", row.server_cpu, MOST_SERVER_CPU, row.server_cpu <= MOST_SERVER_CPU
    if row.client_cpu:
        yield "control, share of a client's core", row.client_cpu, MOST_CLIENT_CPU, row.client_cpu <= MOST_CLIENT_CPU
    if reactions := row.reactions_s:
        slowest_s = quantile(reactions, 0.95)
        yield "reaction to a burst, p95, ms", 1000 * slowest_s, 1000 * MOST_REACTION_S, slowest_s <= MOST_REACTION_S


def _ms(value_s: float) -> str:
    return "–" if value_s != value_s else f"{1000 * value_s:.0f}"  # noqa: PLR0124 - NaN


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
