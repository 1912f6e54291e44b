"""Real-time beside batch, under one policy after the other, in turns.

    python -m benchmarks.colocation --server vllm --shapes bursts ramp waves --policies saturated fixed-7 ours
    python -m benchmarks.colocation --server sim --full
    python -m benchmarks.colocation --server virtual          # 256 slots and a day, no sockets

Each round runs every arm once: no batch, batch alone, then the policies; ours with each number of processes. The table
puts the rounds together. `--full` is five rounds with 2,000 real-time requests in each arm, over all rounds.

A machine's pace drifts by a tenth and more within minutes. So batch alone is measured before and after each policy's
arm for some seconds, and the arm is compared with the mean of both; in virtual time there is no need for that, and
batch alone runs as long as the others.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_llm_provider.core.load import CHOSEN_COST_S
from benchmarks.colocation.arm import Arm, measure
from benchmarks.colocation.comparison import asked
from benchmarks.colocation.fleet import Fleet
from benchmarks.colocation.look_cost import client_look_cost_s, server_look_cost_s
from benchmarks.colocation.measures import quantile
from benchmarks.colocation.plot import scatter, timeline
from benchmarks.colocation.policies import ALONE
from benchmarks.colocation.report import Row, doubts, table, verdicts
from benchmarks.colocation.servers import simulator, vllm
from benchmarks.colocation.traffic import Phase, Traffic
from benchmarks.colocation.virtual import World
from benchmarks.colocation.virtual_task import engine_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.colocation.comparison import Comparison
    from benchmarks.colocation.policies import Policy

REFERENCE_S = 12.0
REFERENCE_WARM_S = 4.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    asked_for = asked(__doc__ or "", arguments)
    logging.disable(logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    if asked_for.server == "virtual":
        spec = engine_spec(asked_for.slots)
        _say(f"virtual time, {asked_for.slots} slots, steps as {spec.step}")

        def play(traffic: Traffic, policy: Policy, processes: int) -> Arm:
            return World(spec, traffic, policy, processes=processes, seed=asked_for.seed).run()

        _compare_all(asked_for, play, look_cost_s=CHOSEN_COST_S)
        return
    start = vllm if asked_for.server == "vllm" else simulator
    most = max(processes for _, processes in asked_for.arms)
    with (
        tempfile.TemporaryDirectory(prefix="llm-colocation-") as folder,
        start(asked_for.slots, Path(folder) / "server.log") as server,
        Fleet(most, Path(folder)) as fleet,
    ):
        look_cost_s = server_look_cost_s(server)
        client_cost_s = client_look_cost_s(server)
        costs = f"{1000 * look_cost_s:.2f} ms of CPU, and the client {1000 * client_cost_s:.2f} ms"
        _say(f"{server.kind} with {server.slots} slots; a look at its load costs it {costs}")

        before_per_s: float | None = None  # batch alone, where it ran last of all

        def play(traffic: Traffic, policy: Policy, processes: int) -> Arm:
            nonlocal before_per_s
            if not processes:
                before_per_s = None
                return measure(server, fleet, traffic, policy, processes=processes)
            if policy == ALONE:
                arm = alone(traffic)
                before_per_s = arm.batch_per_s
                return arm
            begun_per_s = alone(traffic).batch_per_s if before_per_s is None else before_per_s
            arm = measure(server, fleet, traffic, policy, processes=processes)
            before_per_s = alone(traffic).batch_per_s
            return replace(arm, saturation_per_s=(begun_per_s + before_per_s) / 2)

        def alone(traffic: Traffic) -> Arm:
            each_s = REFERENCE_S / len(traffic.names)
            phases = tuple(
                Phase(name=name, from_s=number * each_s, to_s=(number + 1) * each_s)
                for number, name in enumerate(traffic.names)
            )
            nothing = Traffic(name=traffic.name, duration_s=REFERENCE_S, arrivals=(), phases=phases)
            return measure(server, fleet, nothing, ALONE, processes=1, warm_s=REFERENCE_WARM_S)

        _compare_all(asked_for, play, look_cost_s=look_cost_s, client_look_cost_s=client_cost_s)


def _compare_all(
    asked_for: Comparison,
    play: Callable[[Traffic, Policy, int], Arm],
    *,
    look_cost_s: float,
    client_look_cost_s: float = 0.0,
) -> None:
    """Each shape, and what came of it."""
    for traffics in asked_for.traffics:
        rows = _compare(traffics, asked_for.arms, play, look_cost_s=look_cost_s, client_look_cost_s=client_look_cost_s)
        _tell(rows)
        if asked_for.plot is not None:
            stem = f"colocation-{asked_for.server}-{traffics[0].name}"
            (asked_for.plot / f"{stem}.svg").write_text(scatter(rows))
            ours = next((row for row in rows if row.name == "ours"), None)
            if ours is not None:
                (asked_for.plot / f"{stem}-time.svg").write_text(timeline(ours.arms[0]))


def _compare(
    traffics: Sequence[Traffic],
    arms: Sequence[tuple[Policy, int]],
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


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    main()
