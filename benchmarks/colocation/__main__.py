"""Real-time beside batch, under one policy after the other, in turns.

    python -m benchmarks.colocation --server vllm --shapes bursts ramp waves --policies saturated fixed-7 ours
    python -m benchmarks.colocation --server sim --full
    python -m benchmarks.colocation --server virtual          # 256 slots and a day, no sockets

Each round runs every arm once: no batch, batch alone, then the policies; ours with each number of processes. The table
puts the rounds together. `--full` is five rounds with 2,000 real-time requests in each arm, over all rounds.

A machine's pace drifts by a tenth and more within minutes. So batch alone is measured before and after each policy's
arm, too, for some seconds, and the arm is compared with the mean of both; in virtual time there is no need for that.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from airflow_llm_provider.core.load import CHOSEN_COST_S
from benchmarks.colocation.arm import Arm, measure
from benchmarks.colocation.fleet import Fleet
from benchmarks.colocation.look_cost import client_look_cost_s, server_look_cost_s
from benchmarks.colocation.measures import quantile
from benchmarks.colocation.plot import scatter, timeline
from benchmarks.colocation.policies import ALONE, NONE, policy_of
from benchmarks.colocation.report import Row, doubts, table, verdicts
from benchmarks.colocation.servers import simulator, vllm
from benchmarks.colocation.shapes import SHAPES
from benchmarks.colocation.traffic import Phase, Traffic, read_trace
from benchmarks.colocation.virtual import World, engine_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.colocation.policies import Policy

PEERS = ("saturated", "saturated-priority", "fixed-7", "fixed-2", "aimd-errors")
REFERENCE_S = 12.0
REFERENCE_WARM_S = 4.0
FULL_ROUNDS = 5
FULL_REQUESTS = 2_000


def main() -> None:
    """Run from the command line."""
    options = _options()
    logging.disable(logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    arms = [(NONE, 0), (ALONE, 1), *((policy_of(name), count) for name, count in _arms(options))]
    if options.server == "virtual":
        spec = engine_spec(options.slots)
        _say(f"virtual time, {options.slots} slots, steps as {spec.step}")

        def play(traffic: Traffic, policy: Policy, processes: int) -> Arm:
            return World(spec, traffic, policy, processes=processes, seed=options.seed).run()

        _compare_all(options, arms, play, look_cost_s=CHOSEN_COST_S)
        return
    folder = Path(tempfile.mkdtemp(prefix="llm-colocation-"))
    start = vllm if options.server == "vllm" else simulator
    most = max(count for _, count in arms)
    with start(options.slots, folder / "server.log") as server, Fleet(most, folder) as fleet:
        look_cost_s = server_look_cost_s(server)
        client_cost_s = client_look_cost_s(server)
        costs = f"{1000 * look_cost_s:.2f} ms of CPU, and the client {1000 * client_cost_s:.2f} ms"
        _say(f"{server.kind} with {server.slots} slots; a look at its load costs it {costs}")

        def play(traffic: Traffic, policy: Policy, processes: int) -> Arm:
            if not processes or policy == ALONE:
                return measure(server, fleet, traffic, policy, processes=processes)
            before_per_s = alone_per_s()
            arm = measure(server, fleet, traffic, policy, processes=processes)
            return replace(arm, saturation_per_s=(before_per_s + alone_per_s()) / 2)

        def alone_per_s() -> float:
            whole = Phase(name="", from_s=0.0, to_s=REFERENCE_S)
            nothing = Traffic(name="", duration_s=REFERENCE_S, arrivals=(), phases=(whole,))
            return measure(server, fleet, nothing, ALONE, processes=1, warm_s=REFERENCE_WARM_S).batch_per_s

        _compare_all(options, arms, play, look_cost_s=look_cost_s, client_look_cost_s=client_cost_s)


def _compare_all(
    options: argparse.Namespace,
    arms: list[tuple[Policy, int]],
    play: Callable[[Traffic, Policy, int], Arm],
    *,
    look_cost_s: float,
    client_look_cost_s: float = 0.0,
) -> None:
    """Each shape, and what came of it."""
    for traffics in _traffics(options):
        rows = _compare(traffics, arms, play, look_cost_s=look_cost_s, client_look_cost_s=client_look_cost_s)
        _tell(rows)
        if options.plot is not None:
            options.plot.mkdir(parents=True, exist_ok=True)
            stem = f"colocation-{options.server}-{traffics[0].name}"
            (options.plot / f"{stem}.svg").write_text(scatter(rows))
            ours = next((row for row in rows if row.name == "ours"), None)
            if ours is not None:
                (options.plot / f"{stem}-time.svg").write_text(timeline(ours.arms[0]))


def _compare(
    traffics: list[Traffic],
    arms: list[tuple[Policy, int]],
    play: Callable[[Traffic, Policy, int], Arm],
    *,
    look_cost_s: float,
    client_look_cost_s: float,
) -> list[Row]:
    """All arms, once for each of `traffics`, which are the rounds."""
    done: dict[tuple[str, int], list[Arm]] = {}
    for number, traffic in enumerate(traffics, 1):
        for policy, processes in arms:
            arm = play(traffic, policy, processes)
            done.setdefault((policy.name, processes), []).append(arm)
            _say(
                f"  {traffic.name} {number}/{len(traffics)} {policy.name} x{processes}: {len(arm.samples)} requests, "
                f"p99 {1000 * quantile(arm.ttft_s(), 0.99):.0f} ms, batch {arm.batch_per_s:.0f} tok/s"
            )
    alone = tuple(arm.batch_per_s for arm in done[ALONE.name, 1])
    return [
        Row(
            name=name if processes < 2 else f"{name}, {processes} processes",
            arms=tuple(each),
            saturation_per_s=tuple(
                own if arm.saturation_per_s is None else arm.saturation_per_s
                for arm, own in zip(each, alone, strict=True)
            ),
            look_cost_s=look_cost_s,
            client_look_cost_s=client_look_cost_s,
        )
        for (name, processes), each in done.items()
    ]


def _tell(rows: list[Row]) -> None:
    traffic = rows[0].arms[0].traffic
    _say(f"\n{traffic.name}: {rows[0].requests} real-time requests per arm, TTFT in ms")
    for line in table(rows):
        _say(line)
    for line in doubts(rows):
        _say(f"doubtful: {line}")
    ideal = next((row for row in rows if row.name == "ideal"), None)
    for row in rows:
        if not row.name.startswith("ours"):
            continue
        for what, figure, bound, kept in verdicts(rows[0], row, ideal):
            _say(f"{row.name}: {what}: {figure:.3g}, promised {bound:.3g}: {'kept' if kept else 'MISSED'}")


def _arms(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    for name in options.policies:
        for count in options.processes if name.startswith("ours") else [1]:
            yield name, count


def _traffics(options: argparse.Namespace) -> Iterator[list[Traffic]]:
    """For each shape, its rounds."""
    if options.trace is not None:
        yield [read_trace(options.trace)] * options.rounds
        return
    for shape in options.shapes:
        yield [_traffic(shape, options, round_) for round_ in range(options.rounds)]


def _traffic(shape: str, options: argparse.Namespace, round_: int) -> Traffic:
    """One round's traffic; with `--full`, so long that all rounds together have the requests that are asked for."""
    duration_s = options.seconds
    if options.full:
        per_s = len(SHAPES[shape](3_000.0, Random(0)).arrivals) / 3_000
        duration_s = 1.03 * FULL_REQUESTS / options.rounds / per_s
    return SHAPES[shape](duration_s, Random(options.seed + round_))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.colocation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--server", choices=["vllm", "sim", "virtual"], default="vllm")
    parser.add_argument("--slots", type=int, default=None, help="of the server (8; virtual: 256)")
    parser.add_argument("--shapes", nargs="+", default=None, choices=sorted(SHAPES), help="bursts ramp waves; or day")
    parser.add_argument("--trace", type=Path, default=None, help="JSONL of at_s, prompt_tokens, max_tokens, instead")
    parser.add_argument("--policies", nargs="+", default=None, help=f"{' '.join(PEERS)} ours; virtual: ideal ours …")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 6], help="of batch, for ours")
    parser.add_argument("--rounds", type=int, default=None, help="of all arms in turn (1; with --full 5)")
    parser.add_argument("--seconds", type=float, default=None, help="of traffic in each arm (60; a day takes 1200)")
    parser.add_argument("--full", action="store_true", help="five rounds and 2,000 requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=None, help="folder for SVG pictures")
    options = parser.parse_args()
    options.rounds = options.rounds or (FULL_ROUNDS if options.full else 1)
    options.slots = options.slots or (256 if options.server == "virtual" else 8)
    virtual = options.server == "virtual"
    options.shapes = options.shapes or (["day"] if virtual and options.slots >= 64 else ["bursts", "ramp", "waves"])
    large = f"fixed-{options.slots * 7 // 8}"
    options.policies = options.policies or (
        ["ideal", "saturated-priority", large, "aimd-errors", "ours"] if virtual else [*PEERS, "ours"]
    )
    options.seconds = options.seconds or (1_200.0 if "day" in options.shapes else 60.0)
    for name in options.policies:
        try:
            policy_of(name)
        except ValueError as error:
            parser.error(str(error))
    return options


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    main()
