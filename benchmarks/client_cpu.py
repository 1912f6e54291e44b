"""CPU per request of three ways to send the same requests, measured in turns in one run.

- ``bare``: a loop over aiohttp and orjson with bodies encoded beforehand: post, read, parse, forget.
- ``openai``: `openai.AsyncOpenAI` with its default client.
- ``ours``: `run_job`, from the JSONL file to the manifest: read, render, send, classify, journal, parts, on local disk.

Counted is the CPU time of this process, all threads, user and system; the stub answers from another process. A machine
with other work to do makes every figure larger, but all three alike: the ratios within one round are what counts.

    python -m benchmarks.client_cpu
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import orjson

from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.storage.store import RunStore
from benchmarks.bench import MODEL, PARAMETERS, make_job, prompt, stub_server, write_rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

TARGET = 2.0
"""Ours may cost this many times what the bare loop costs, at 512 in flight (design, promise 8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one measurement sends.

    Attributes:
        url: the stub's base URL.
        rows: how many requests.
        in_flight: how many at once.
        folder: scratch space of this measurement.
    """

    url: str
    rows: int
    in_flight: int
    folder: Path


def bare(load: Load) -> float:
    """CPU seconds of the bare loop."""
    bodies = [_body(index) for index in range(load.rows)]

    async def run() -> None:
        url = f"{load.url}/v1/chat/completions"
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

            async def post(index: int) -> Any:
                async with session.post(url, data=bodies[index]) as response:
                    return orjson.loads(await response.read())

            async def one(index: int) -> None:
                try:
                    answer = await post(index)
                except aiohttp.ServerDisconnectedError:  # lost the keep-alive race, on a very busy machine
                    answer = await post(index)
                if answer["usage"]["completion_tokens"] < 1:
                    raise AssertionError

            await _in_turns(load, one)

    return _cpu_s(lambda: asyncio.run(run()))


def openai_client(load: Load) -> float:
    """CPU seconds of openai's client."""

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{load.url}/v1", api_key="none", timeout=600) as client:

            async def one(index: int) -> None:
                await client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": prompt(index)}],
                    temperature=PARAMETERS["temperature"],
                    max_tokens=int(PARAMETERS["max_tokens"]),
                )

            await _in_turns(load, one)

    return _cpu_s(lambda: asyncio.run(run()))


def ours(load: Load) -> float:
    """CPU seconds of a whole run."""
    rows = load.folder / "rows.jsonl"
    write_rows(rows, load.rows)
    job = make_job(load.url, rows, max_in_flight=load.in_flight)
    store = RunStore(f"file://{load.folder}/out")
    return _cpu_s(lambda: run_job(job, store, StopSwitch()))


async def _in_turns(load: Load, one: Callable[[int], Awaitable[None]]) -> None:
    """Send all of `load`, with one endless sender per request in flight: the cheapest way there is."""
    numbers = count()

    async def sender() -> None:
        while (index := next(numbers)) < load.rows:
            await one(index)

    await asyncio.gather(*(sender() for _ in range(load.in_flight)))


def _body(index: int) -> bytes:
    return orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": prompt(index)}], **PARAMETERS})


def _cpu_s(work: Callable[[], object]) -> float:
    before_s = time.process_time()
    work()
    return time.process_time() - before_s


CONTENDERS: dict[str, Callable[[Load], float]] = {"bare": bare, "openai": openai_client, "ours": ours}


def measure(url: str, in_flight: int, rows: dict[str, int]) -> dict[str, float]:
    """One round: µs of CPU per request of each contender."""
    result = {}
    for name, contender in CONTENDERS.items():
        if not rows[name]:
            continue
        with tempfile.TemporaryDirectory(prefix="llm-bench-") as folder:
            load = Load(url=url, rows=rows[name], in_flight=in_flight, folder=Path(folder))
            result[name] = 1e6 * contender(load) / load.rows
    return result


def report(in_flight: int, rounds: list[dict[str, float]]) -> Iterator[str]:
    """The table of one concurrency."""
    yield f"{in_flight} in flight, {len(rounds)} rounds             min    median       max"
    for name in rounds[0]:
        yield _line(f"{name}, µs CPU per request", [each[name] for each in rounds], 0)
    for name in [name for name in rounds[0] if name != "bare"]:
        yield _line(f"{name} / bare", [each[name] / each["bare"] for each in rounds], 2)


def _line(title: str, values: list[float], digits: int) -> str:
    shown = (min(values), statistics.median(values), max(values))
    return f"  {title:30}" + "".join(f"{value:10.{digits}f}" for value in shown)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_cpu", description=__doc__)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6_000, help="requests per round of bare and of ours")
    parser.add_argument("--openai-rows", type=int, default=1_000, help="the same of openai's client; 0 leaves it out")
    parser.add_argument("--json", action="store_true", help="print the rounds as JSON instead")
    options = parser.parse_args()
    logging.disable(logging.INFO)  # openai's client logs every request; nobody should pay for that here
    rows = {"bare": options.rows, "openai": options.openai_rows, "ours": options.rows}
    with stub_server() as url:
        measure(url, 64, {name: min(each, 500) for name, each in rows.items()})  # imports and caches
        rounds: dict[int, list[dict[str, float]]] = {in_flight: [] for in_flight in options.in_flight}
        for _ in range(options.rounds):
            for in_flight, done in rounds.items():
                done.append(measure(url, in_flight, rows))
    if options.json:
        print(json.dumps(rounds))
        return
    for in_flight, done in rounds.items():
        print("\n".join(report(in_flight, done)))
    if 512 in rounds:
        ratio = statistics.median(each["ours"] / each["bare"] for each in rounds[512])
        verdict = "met" if ratio <= TARGET else "MISSED"
        print(f"target: ours ≤ {TARGET} × bare at 512 in flight: {ratio:.2f}, {verdict}")


if __name__ == "__main__":
    main()
