"""``python -m airflow_llm_provider.testing``: the stub as a process. Prints its URL on the first line.

Faults and state are changed over HTTP: ``PUT /_faults`` takes a list of rules, ``DELETE /_faults`` clears them,
``PATCH /_state`` sets fields of `Behaviour`, ``GET /_state`` tells what was received.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING

from airflow_llm_provider.simulator.thread import listen, serve
from airflow_llm_provider.testing.server import Behaviour, Handler

if TYPE_CHECKING:
    import socket


def main() -> None:
    """Parses the command line and serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m airflow_llm_provider.testing", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--model", action="append", help="served name; several are aliases")
    parser.add_argument("--log", help="file that gets one request id per line, before the request is answered")
    parser.add_argument("--root", default="stub-weights")
    parser.add_argument("--api-key")
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--max-queued", type=int)
    parser.add_argument("--max-prompt-chars", type=int)
    options = vars(parser.parse_args())
    port, log, models = options.pop("port"), options.pop("log"), options.pop("model")
    behaviour = Behaviour(models=tuple(models or ["stub"]), **options)
    asyncio.run(_serve(behaviour, listen(port), log))


async def _serve(behaviour: Behaviour, listener: socket.socket, log: str | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def tell() -> None:
        sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()

    handler = Handler(behaviour)
    await serve(handler, lambda: handler.logging(log), listener, stop=stop, ready=tell)


if __name__ == "__main__":
    main()
