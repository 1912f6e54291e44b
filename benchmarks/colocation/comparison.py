"""What is to be compared: a command line's words, checked before anything is started.

Owns the options and what is wrong with them: an arm that can't be run is told of now, and not after those before it
have run for an hour. Does not know how an arm is run (`arm`, `virtual`) or told of (`report`).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.simulator.engine import EngineSpec
from benchmarks.arguments import count, seconds
from benchmarks.colocation.policies import ALONE, IDEAL, NONE, limit_of, policy_of
from benchmarks.colocation.servers import MAX_MODEL_LEN
from benchmarks.colocation.shapes import SHAPES
from benchmarks.colocation.trace import read_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.colocation.policies import Policy
    from benchmarks.colocation.traffic import Traffic

PEERS = ("saturated", "saturated-priority", "fixed-7", "fixed-2", "aimd-errors")
FULL_ROUNDS = 5
FULL_REQUESTS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """See the module.

    Attributes:
        server: ``vllm``, ``sim`` or ``virtual``.
        slots: its.
        arms: what is run, in this order: a policy, and how many processes of batch.
        traffics: for each shape, its rounds.
        seed: of what is random.
        plot: a folder that can be written to; None: no pictures.
    """

    server: str
    slots: int
    arms: tuple[tuple[Policy, int], ...]
    traffics: tuple[tuple[Traffic, ...], ...]
    seed: int = 1
    plot: Path | None = None


def asked(about: str, arguments: Sequence[str] | None = None) -> Comparison:
    """What a command line asks for; where that can't be had, the process ends with a word about it.

    Args:
        about: said by ``--help``.
        arguments: the words; None: the process's own.
    """
    parser = _parser(about)
    options = parser.parse_args(arguments)
    try:
        return _comparison(options)
    except (ValueError, OSError, ConfigurationError) as error:
        parser.error(str(error))


def _parser(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.colocation", description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--server", choices=["vllm", "sim", "virtual"], default="vllm")
    parser.add_argument("--slots", type=count, default=None, help="of the server (8; virtual: 256)")
    parser.add_argument("--shapes", nargs="+", default=None, choices=sorted(SHAPES), help="bursts ramp waves; or day")
    parser.add_argument("--trace", type=Path, default=None, help="JSONL of at_s, prompt_tokens, max_tokens, instead")
    parser.add_argument("--policies", nargs="+", default=None, help=f"{' '.join(PEERS)} ours; virtual: ideal ours …")
    parser.add_argument("--processes", type=count, nargs="+", default=[1, 2, 6], help="of batch, for ours")
    parser.add_argument("--rounds", type=count, default=None, help="of all arms in turn (1; with --full 5)")
    parser.add_argument("--seconds", type=seconds, default=None, help="of traffic in each arm (60; a day takes 1200)")
    parser.add_argument("--full", action="store_true", help="five rounds and 2,000 requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=None, help="folder for SVG pictures")
    return parser


def _comparison(options: argparse.Namespace) -> Comparison:
    virtual = options.server == "virtual"
    options.slots = options.slots or (256 if virtual else 8)
    options.rounds = options.rounds or (FULL_ROUNDS if options.full else 1)
    options.shapes = options.shapes or (["day"] if virtual and options.slots >= 64 else ["bursts", "ramp", "waves"])
    options.seconds = options.seconds or (1_200.0 if "day" in options.shapes else 60.0)
    large = f"fixed-{max(1, options.slots * 7 // 8)}"
    options.policies = options.policies or (
        ["ideal", "saturated-priority", large, "aimd-errors", "ours"] if virtual else [*PEERS, "ours"]
    )
    arms = _arms(options)
    traffics = _traffics(options)
    longest = MAX_MODEL_LEN if options.server == "vllm" else EngineSpec(max_num_seqs=options.slots).max_model_len
    for rounds in traffics:
        _check(rounds, longest)
    if options.plot is not None:
        _make_writable(options.plot)
    return Comparison(
        server=options.server, slots=options.slots, arms=arms, traffics=traffics, seed=options.seed, plot=options.plot
    )


def _arms(options: argparse.Namespace) -> tuple[tuple[Policy, int], ...]:
    """All of them, each once: no batch, batch alone, then the policies."""
    arms = {(NONE, 0): None, (ALONE, 1): None}
    for name in options.policies:
        policy = policy_of(name)
        if policy in (NONE, ALONE):
            raise ValueError(f"--policies {name}: each round has that anyway; leave it out")
        if policy != IDEAL:
            limit_of(policy, limit=policy.most(options.slots), slots=options.slots, rng=Random(0))  # or it raises
        elif options.server != "virtual":
            raise ValueError(f"--policies {name}: no server tells of a request before it comes; use --server virtual")
        for processes in options.processes if name.startswith("ours") else [1]:
            arms[policy, processes] = None
    return tuple(arms)


def _traffics(options: argparse.Namespace) -> tuple[tuple[Traffic, ...], ...]:
    if options.trace is not None:
        return ((read_trace(options.trace),) * options.rounds,)
    return tuple(
        tuple(_traffic(shape, options, round_) for round_ in range(options.rounds))
        for shape in dict.fromkeys(options.shapes)
    )


def _traffic(shape: str, options: argparse.Namespace, round_: int) -> Traffic:
    """One round's traffic; with `--full`, so long that all rounds together have the requests that are asked for."""
    duration_s = options.seconds
    if options.full:
        per_s = len(SHAPES[shape](3_000.0, Random(0)).arrivals) / 3_000
        duration_s = 1.03 * FULL_REQUESTS / options.rounds / per_s
    return SHAPES[shape](duration_s, Random(options.seed + round_))


def _check(rounds: Sequence[Traffic], most_tokens: int) -> None:
    """Whether it asks for anything, and for nothing that the server refuses."""
    name = rounds[0].name
    arrivals = [arrival for traffic in rounds for arrival in traffic.arrivals]
    if not arrivals:
        raise ValueError(f"{name}: no request in {rounds[0].duration_s:g} s; ask for more --seconds")
    for each in arrivals:
        if each.prompt_tokens + each.max_tokens > most_tokens:
            raise ValueError(
                f"{name}: the request at {each.at_s:g} s has {each.prompt_tokens} prompt tokens and max_tokens "
                f"{each.max_tokens}: together more than the {most_tokens} that the server takes"
            )


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--plot {folder}: no folder that pictures can be written to: {error}") from error
