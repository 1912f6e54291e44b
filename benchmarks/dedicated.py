"""A server of batch's own: whether its slots are busy, and how long the rows take, without anybody naming the slots.

Against the list schedule of the same rows: all of them in the server's queue from the first moment, and each slot that
falls free takes the next (Graham's bound, ``total / slots + (1 - 1/slots) × longest``, holds for it). It knows
everything a client could, so that a makespan of 1.00 of it is all there is; where KV memory is short, less is possible.

In virtual time on the simulated engine: slots found, several tasks, refusals, KV memory, a gateway without metrics.
With ``--vllm``, on a real vLLM of 8 slots through the whole runner, in pairs.

    python -m benchmarks.dedicated [--vllm]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from airflow_llm_provider.core.limit import FixedLimit
from airflow_llm_provider.core.limit_adaptive import AdaptiveLimit
from airflow_llm_provider.simulator.engine import LARGE_GPU, TINY_ON_CPU, Engine, EngineSpec, StepModel
from benchmarks.arguments import count
from benchmarks.colocation.measures import jain
from benchmarks.colocation.policies import AimdOnErrors
from benchmarks.dedicated_loop import ClosedLoop, Row, Simulated, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow_llm_provider.core.limit import Limit

EVERYTHING = 1_000_000
STEPS = {8: TINY_ON_CPU, 64: LARGE_GPU, 256: LARGE_GPU}
STORM = (15.0, 25.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A server and the rows for it.

    Attributes:
        title: for the table.
        spec: the server.
        rows: how many.
        answers: tokens of an answer, from and to.
        prompts: tokens of a prompt, from and to.
        readable: whether the server's load can be read.
    """

    title: str
    spec: EngineSpec
    rows: int
    answers: tuple[int, int] = (20, 400)
    prompts: tuple[int, int] = (50, 400)
    readable: bool = True

    def made(self) -> list[Row]:
        """The rows; the same every time."""
        rng = Random(self.rows)
        return [
            Row(prompt_tokens=rng.randint(*self.prompts), answer_tokens=rng.randint(*self.answers))
            for _ in range(self.rows)
        ]


def play(
    case: Case,
    limit: Callable[[], Limit] = AdaptiveLimit,
    *,
    tasks: int = 1,
    refuses: Callable[[float], bool] = lambda _: False,
    until_s: float = 1e6,
) -> ClosedLoop:
    """Play a case in virtual time."""
    rows = case.made()
    made = [Task(rows[number::tasks], limit(), most=EVERYTHING) for number in range(tasks)]
    loop = ClosedLoop(Simulated(Engine(case.spec, seed=1), readable=case.readable), made, Random(1), refuses)
    loop.run(until_s)
    return loop


def all_at_once() -> Limit:
    """The list schedule."""
    return FixedLimit(EVERYTHING)


def spec_of(slots: int, *, num_blocks: int = 65_536, refuses_from: int | None = None) -> EngineSpec:
    """A server whose steps do not jitter: two schedules of the same rows differ by the schedule only."""
    step = STEPS[slots]
    even = StepModel(
        base_s=step.base_s,
        per_seq_s=step.per_seq_s,
        per_prefill_token_s=step.per_prefill_token_s,
        per_kv_token_s=step.per_kv_token_s,
        request_s=step.request_s,
    )
    return EngineSpec(max_num_seqs=slots, step=even, num_blocks=num_blocks, max_num_queued_reqs=refuses_from)


def filled() -> Iterator[str]:
    """Slots busy and makespan, for servers and rows of many kinds."""
    yield "slots, rows                              all busy after, s   busy, %   makespan, s   / list schedule   looks"
    for slots in STEPS:
        many = slots * (100 if slots == 8 else 20)
        for title, answers in (("20-400 tokens", (20, 400)), ("200 tokens", (200, 200)), ("16 tokens", (16, 16))):
            case = Case(title=f"{slots:4}, {many} of {title}", spec=spec_of(slots), rows=many, answers=answers)
            yield _filled(case, slots)
    for slots, most in ((8, 9), (64, 66), (256, 281), (256, 150)):
        case = Case(
            title=f"{slots:4}, refuses more than {most}",
            spec=spec_of(slots, refuses_from=most),
            rows=slots * (100 if slots == 8 else 20),
        )
        yield _filled(case, min(slots, most))
    for slots in STEPS:
        case = Case(
            title=f"{slots:4}, a gateway without metrics",
            spec=spec_of(slots),
            rows=slots * (100 if slots == 8 else 40),
            readable=False,
        )
        yield _filled(case, slots)
    for title, blocks, answers in (("40,000 tokens of KV", 2500, (20, 400)), ("the same, long rows", 2500, (300, 900))):
        spec = spec_of(256, num_blocks=blocks)
        yield _filled(Case(title=f" 256, {title}", spec=spec, rows=256 * 12, answers=answers), None)


def _filled(case: Case, slots: int | None) -> str:
    loop = play(case)
    bound = play(Case(title="", spec=bare(case.spec), rows=case.rows, answers=case.answers), all_at_once)
    all_ran = slots is not None and loop.ramp_s(slots) < loop.now
    busy = f"{100 * loop.busy(slots):.2f}" if slots and all_ran else "-"
    ramp = f"{loop.ramp_s(slots):.2f}" if slots and all_ran else "-"
    looks = len(loop.tasks[0].looks)
    return f"{case.title:42}{ramp:>16}{busy:>10}{loop.now:>14.1f}{loop.now / bound.now:>18.3f}{looks:>8}"


def bare(spec: EngineSpec) -> EngineSpec:
    """The same server, if it refused nothing."""
    slots = min(spec.max_num_seqs, spec.max_num_queued_reqs or spec.max_num_seqs)
    return EngineSpec(max_num_seqs=slots, num_blocks=spec.num_blocks, step=spec.step)


def shared() -> Iterator[str]:
    """Several tasks of batch on one server of batch's own."""
    yield "slots, tasks       busy, %   / list schedule   answered by each in the middle half   Jain"
    for slots in STEPS:
        for tasks in (1, 2, 6):
            case = Case(title="", spec=spec_of(slots), rows=slots * (240 if slots == 8 else 30))
            bound = play(case, all_at_once)
            loop = play(case, tasks=tasks, until_s=bound.now / 4)
            before = [task.answered for task in loop.tasks]
            loop.run(0.75 * bound.now)
            answered = [task.answered - then for task, then in zip(loop.tasks, before, strict=True)]
            loop.run()
            ratio = loop.now / bound.now
            shown = " ".join(map(str, answered))
            yield f"{slots:4}, {tasks:4}{100 * loop.busy(slots):17.2f}{ratio:18.3f}   {shown:38}{jain(answered):.3f}"


def storm() -> Iterator[str]:
    """Ten seconds of 503 for every request, on 128 slots."""
    yield f"128 slots, 503 for all that is sent from {STORM[0]:.0f} to {STORM[1]:.0f} s"
    yield "limit of           before   lowest   looks to 95 % of it, from when it is all in flight again   makespan, s"
    spec = EngineSpec(max_num_seqs=128, step=LARGE_GPU)
    case = Case(title="", spec=spec, rows=128 * 40)
    laws: dict[str, Callable[[], Limit]] = {
        "ours": AdaptiveLimit,
        "AIMD on errors": lambda: AimdOnErrors(144, first=144),
    }
    for name, law in laws.items():
        loop = play(case, law, refuses=lambda now: STORM[0] <= now < STORM[1])
        looks = loop.tasks[0].looks
        before = max(limit for at, _, limit, _ in looks if 10 <= at < STORM[0])
        lowest = min(limit for at, _, limit, _ in looks if at >= STORM[0])
        taken = next(number for number, (at, own, most, _) in enumerate(looks) if at > STORM[1] and own >= 0.9 * most)
        back = next((n for n, (_, _, most, _) in enumerate(looks[taken:]) if most >= 0.95 * before), None)
        after = "never" if back is None else f"{back} ({looks[taken + back][0] - looks[taken][0]:.1f} s)"
        yield f"{name:16}{before:9}{lowest:9}   {after:56}{loop.now:12.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dedicated", description=__doc__)
    parser.add_argument("--vllm", action="store_true", help="on a real vLLM instead, with 8 slots")
    parser.add_argument("--pairs", type=count, default=3)
    parser.add_argument("--rows", type=count, default=600, help="of each run on the real vLLM")
    options = parser.parse_args(arguments)
    if options.vllm:
        from benchmarks.dedicated_real import pairs  # noqa: PLC0415 - imports Airflow

        for line in pairs(options.pairs, options.rows):
            print(line, flush=True)
        return
    for part in (filled, shared, storm):
        for line in part():
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
