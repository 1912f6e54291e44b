"""``python -m airflow_llm_provider.testing``: the stub as a process. Prints its URL on the first line.

Faults and state are changed over HTTP: ``PUT /_faults`` takes a list of rules, ``DELETE /_faults`` clears them,
``PATCH /_state`` sets fields of `Behaviour`, ``GET /_state`` tells what was received.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.command import add_port, at_the_end, bound, name, seconds, tell_url
from airflow_llm_provider.simulator.thread import serve
from airflow_llm_provider.testing.server import Behaviour, Handler

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m airflow_llm_provider.testing", description=__doc__)
    add_port(parser)
    parser.add_argument("--model", action="append", type=name, help="served name; several are aliases")
    parser.add_argument("--log", help="file that gets one request id per line, before the request is answered")
    parser.add_argument("--root", default="stub-weights")
    parser.add_argument("--api-key")
    parser.add_argument("--delay-s", type=seconds, default=0.0)
    parser.add_argument("--max-prompt-chars", type=int)
    options = vars(parser.parse_args(arguments))
    port, log, models = options.pop("port"), options.pop("log"), options.pop("model")
    try:
        behaviour = Behaviour(models=tuple(models or ["stub"]), **options)
        if log is not None:
            Path(log).open("ab").close()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    asyncio.run(_serve(behaviour, bound(parser, port), log))


async def _serve(behaviour: Behaviour, listener: socket.socket, log: str | None) -> None:
    stop = asyncio.Event()
    at_the_end(stop.set)
    handler = Handler(behaviour)
    await serve(handler, lambda: handler.logging(log), listener, stop=stop, ready=lambda: tell_url(listener))


if __name__ == "__main__":
    main()
