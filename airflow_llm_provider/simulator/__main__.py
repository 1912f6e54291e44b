"""``python -m airflow_llm_provider.simulator``: a simulated vLLM as a process. Prints its URL on the first line.

Flags are those of ``vllm serve``, where it has them. Faults and state are changed over HTTP: ``PUT /_faults`` takes a
list of rules, ``DELETE /_faults`` clears them, ``PATCH /_state`` sets ``draining`` and ``root``, ``GET /_state`` tells
what was received. SIGTERM ends it as it ends vLLM: requests in flight get the 500 of a dead engine, unless
``--shutdown-timeout`` leaves them time.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from airflow_llm_provider.simulator.command import add_port, at_the_end, bound, name, seconds, tell_url
from airflow_llm_provider.simulator.engine import LARGE_GPU, TINY_ON_CPU, StepModel
from airflow_llm_provider.simulator.server import Handler
from airflow_llm_provider.simulator.server_spec import ServerSpec, with_flags
from airflow_llm_provider.simulator.thread import serve

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_STEPS: Final = {"tiny-on-cpu": TINY_ON_CPU, "large-gpu": LARGE_GPU}
_LOOK_EVERY_S = 0.02


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and serves until SIGTERM or SIGINT."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    port, patience_s = options.pop("port"), options.pop("shutdown_timeout")
    options = {name: value for name, value in options.items() if value is not None}
    options["served_model_name"] = tuple(options["served_model_name"])
    try:
        options["step"] = _step(options["step"])
        if options["mean_output_tokens"] == 0:
            options["mean_output_tokens"] = None
        spec = with_flags(ServerSpec(), **options)
    except ValueError as error:
        parser.error(str(error))
    asyncio.run(_serve(spec, bound(parser, port), patience_s))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_llm_provider.simulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_port(parser)
    add("--served-model-name", nargs="+", type=name, default=["simulated"], help="several are aliases")
    add("--root", help="what the names stand for, in /v1/models")
    add("--api-key")
    add("--max-num-seqs", type=int)
    add("--max-num-batched-tokens", type=int)
    add("--max-model-len", type=int)
    add("--block-size", type=int)
    add("--num-gpu-blocks-override", type=int, dest="num_blocks")
    add("--scheduling-policy", choices=("fcfs", "priority"), dest="policy")
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, dest="prefix_caching")
    add("--async-scheduling", action=argparse.BooleanOptionalAction)
    add("--max-num-queued-reqs", type=int)
    add("--max-num-queued-tokens", type=int)
    add("--enable-prompt-tokens-details", action="store_true")
    add("--enable-per-request-metrics", action="store_true")
    add("--shutdown-timeout", type=seconds, default=0.0, help="seconds for requests in flight to end in after SIGTERM")
    add("--seed", type=int)
    add("--speed", type=float, help="engine seconds per second; 1")
    add(
        "--mean-output-tokens",
        type=float,
        default=64.0,
        help="mean length of an answer that may end by itself; 0: it never does; default %(default)s",
    )
    add(
        "--step",
        default="tiny-on-cpu",
        help=f"how long steps take: {', '.join(_STEPS)}, or a JSON file with the fields of StepModel; %(default)s",
    )
    return parser


def _step(which: str) -> StepModel:
    if which in _STEPS:
        return _STEPS[which]
    try:
        return _step_of(orjson.loads(Path(which).read_bytes()))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"--step {which}: {error}") from error


def _step_of(fields: Any) -> StepModel:
    if not isinstance(fields, dict):
        raise TypeError(f"it holds {fields!r}, and not an object with the fields of StepModel.")
    return StepModel(**fields)


async def _serve(spec: ServerSpec, listener: socket.socket, patience_s: float) -> None:
    handler = Handler(spec)
    told, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    at_the_end(told.set)

    async def drain() -> None:
        await told.wait()
        if patience_s:
            handler.state.draining = True
            until_s = loop.time() + patience_s
            while handler.in_flight and loop.time() < until_s:  # noqa: ASYNC110 - the server counts
                await asyncio.sleep(_LOOK_EVERY_S)
        stop.set()

    draining = asyncio.create_task(drain())
    await serve(handler, handler.lifetime, listener, stop=stop, ready=lambda: tell_url(listener))
    await draining


if __name__ == "__main__":
    main()
