"""What the command lines of both servers have in common: values that are refused in words, the port, the first line.

Owns how a process begins to serve and learns that it is to end. Does not know what it serves (`simulator.__main__`,
`testing.__main__`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from math import isfinite
from typing import TYPE_CHECKING, Final

from airflow_llm_provider.simulator.thread import listen

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_LAST_PORT: Final = 65535


def add_port(parser: argparse.ArgumentParser) -> None:
    """The flag ``--port``."""
    parser.add_argument("--port", type=_port, default=0, help="0 takes a free one")


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"a port is a whole number of 0 to {_LAST_PORT}, not {text!r}.")
    return port


def seconds(text: str) -> float:
    """A value in seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"it is a finite number of seconds, 0 or more, not {text!r}.")
    return value


def name(text: str) -> str:
    """A value that may not be empty, for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("a name has one character at least.")
    return text


def bound(parser: argparse.ArgumentParser, port: int) -> socket.socket:
    """A socket on the port; where there can be none, the process ends with a line that says why.

    Args:
        parser: of the command line.
        port: as it was asked for.
    """
    try:
        return listen(port)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        told = f"cannot listen on 127.0.0.1:{port}: {why}. Choose another --port; 0 takes a free one."
        parser.exit(2, f"{parser.prog}: error: {told}\n")


def tell_url(listener: socket.socket) -> None:
    """The first line: where it serves."""
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()


def at_the_end(told: Callable[[], None]) -> None:
    """Has it called when the process is told to end: SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
