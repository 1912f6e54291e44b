"""Fits the simulator's step model to a real vLLM, then plays other traffic against both, and prints them side by side.

    python -m benchmarks.simulator_fit    # starts a vLLM of 8 slots with the tiny model
    python -m benchmarks.simulator_fit --url http://gpu-3:8000 --model llama --slots 256    # one that is idle

Each round calibrates, fits, and compares. A server that shares its machine with other work is another server a second
later, so what was measured while others had more than `--others` of the machine's CPU is measured again, and each line
tells their share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.engine import EngineSpec, StepModel
from airflow_llm_provider.simulator.fit import fit
from benchmarks.colocation.servers import vllm
from benchmarks.simulator_fit.asking import asker
from benchmarks.simulator_fit.calibrate import calibration, turn
from benchmarks.simulator_fit.play import Played, play_real, play_simulated
from benchmarks.simulator_fit.quiet import Quiet
from benchmarks.simulator_fit.traffic import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SIMULATED = 5
"""Seeds the simulator is played with; a real server is not played the same traffic twice in a round."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator_fit", description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="the root of a vLLM that is idle; without it, one is started")
    parser.add_argument("--model", default="tiny", help="the name it serves")
    parser.add_argument("--api-key", help="if it asks for one")
    parser.add_argument("--slots", type=int, default=8, help="its max_num_seqs")
    parser.add_argument("--async-scheduling", action="store_true", help="it is on a GPU, where vLLM plans ahead")
    parser.add_argument("--rounds", type=int, default=3, help="calibrations and comparisons")
    parser.add_argument("--turns", type=int, default=5, help="of each calibration load, in a round")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each kind of traffic, in a round")
    parser.add_argument("--others", type=float, default=0.1, help="share of this machine's CPU others may have")
    parser.add_argument("--tries", type=int, default=5, help="of each measurement, until others have no more")
    parser.add_argument("--log", type=Path, default=Path(".run/simulator-fit-vllm.log"), help="of a vLLM started here")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        pid = None
        if options.url is None:
            server = stack.enter_context(vllm(options.slots, options.log))
            options.url, options.model, options.api_key = server.url, server.model, server.api_key
            pid = server.pid
        asyncio.run(_rounds(options, Quiet(pid=pid, others_at_most=options.others, tries=options.tries)))


async def _rounds(options: argparse.Namespace, quiet: Quiet) -> None:
    spec = EngineSpec(
        max_num_seqs=options.slots, max_model_len=8192, policy="priority", async_scheduling=options.async_scheduling
    )
    models: list[StepModel] = []
    ratios: dict[tuple[str, str], list[float]] = {}
    for number in range(options.rounds):
        async with asker(options.url, options.model, options.api_key, seed=number) as client:
            await turn(client, options.slots)  # the first requests of each kind are slow
            turns = [await quiet.measured(lambda: turn(client, options.slots)) for _ in range(options.turns)]
            found = calibration([one for one, _ in turns], options.slots)
            models.append(fit(found, spec))
            speeds = ", ".join(f"{loop.tokens_per_s:.0f}" for loop in found.loops)
            others = ", ".join(f"{share:.0%}" for _, share in turns)
            print(
                f"round {number + 1}: loops of {speeds} tokens/s; others had {others}; {_written(models[-1])}",
                flush=True,
            )
            for shape in SHAPES:
                traffic = shape(number, options.seconds)
                played, share = await quiet.measured(partial(play_real, traffic, client))
                real = _figures([played])
                own = replace(spec, step=models[-1])
                simulated = _figures([play_simulated(traffic, own, seed=seed) for seed in range(SIMULATED)])
                for name, value in real.items():
                    ratios.setdefault((traffic.name, name), []).append(simulated[name] / value)
                    print(f"  {traffic.name:20} {name:14} real {value:9.1f}  simulated {simulated[name]:9.1f}")
                print(f"  {'':20} others had {share:.0%} of the machine", flush=True)
    print("\nsimulated / real, median of the rounds (and each)")
    for (traffic_name, name), values in ratios.items():
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"  {traffic_name:20} {name:14} {statistics.median(values):5.2f}   ({each})")
    print(f"\nmedian of the rounds:\n{_written(_median(models))}")


def _figures(played: Iterable[Played]) -> dict[str, float]:
    """Milliseconds and tokens per second; of several plays, the mean of each."""
    plays = list(played)
    ttfts_s = [sorted(play.ttfts_s) for play in plays]
    return {
        "TTFT p50 ms": 1e3 * statistics.mean(_quantile(each, 0.5) for each in ttfts_s),
        "TTFT p95 ms": 1e3 * statistics.mean(_quantile(each, 0.95) for each in ttfts_s),
        "tokens/s": statistics.mean(play.tokens_per_s for play in plays),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def _median(models: Sequence[StepModel]) -> StepModel:
    return StepModel(**{name: statistics.median(getattr(m, name) for m in models) for name in StepModel.__slots__})


def _written(model: StepModel) -> str:
    """As JSON, for the simulated server's `--step`."""
    return json.dumps({name: float(f"{getattr(model, name):.3g}") for name in model.__slots__})


if __name__ == "__main__":
    main()
