"""One batch process: runs of ours, one after the other, as its parent says on standard input.

Owns the child's side of `fleet`. What runs is `batch.execution.run_job`, as Airflow's worker would run it, Airflow
itself left out. One process serves many measurements, since importing Airflow takes longer than some of them.

Read are lines of JSON: ``{"do": "run", …}`` (see `Order`), ``{"do": "stop"}`` ends the run that is under way, and the
end of the input ends the process. Written are ``{"event": "ready"}`` once, and for each run ``{"event": "begun"}``
before its first request and ``{"event": "ended"}`` with what it noted, on the machine's monotonic clock:

- ``requests``: ``[sent_s, ended_s, generation_s, tokens, ending]`` of each request, of which a long row may make
  several; the ending is ``ok``, ``given-up``, ``stopped``, or the kind of the failure.
- ``looks``: the fields of each `Look`.
- ``cpu_s``: the process's CPU time over the run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.batch import work
from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.job import BatchJob
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.batch.switch import HoldSwitch
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.release import Terms
from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import RunStoppedError
from airflow_llm_provider.operators.reading import CHUNK_ROWS, FLUSH_INTERVAL_S, FLUSH_ROWS, MAX_ATTEMPTS
from airflow_llm_provider.storage.jsonl import JsonlSource
from airflow_llm_provider.storage.store import RunStore
from benchmarks.colocation.policies import Policy, WatchedLaw

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_llm_provider.core.retry import Failure
    from benchmarks.colocation.look import Look

_WORDS = (
    "the",
    "of",
    "a",
    "to",
    "and",
    "in",
    "that",
    "is",
    "it",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a run is told.

    Attributes:
        url: the server's root.
        api_key: the server's.
        rows: a JSONL file of batch lines.
        out: a folder that does not exist yet, for the results.
        policy: what it may do.
        slots: the server's.
    """

    url: str
    api_key: str | None
    rows: str
    out: str
    policy: Policy
    slots: int


def write_rows(path: Path, rows: int, *, seed: int, tokens: tuple[int, int] = (160, 640)) -> None:
    """Write OpenAI batch lines with a prompt of about 60 tokens of their own, and an answer of a length of its own."""
    rng = Random(seed)
    with path.open("wb") as file:
        for index in range(rows):
            words = " ".join(rng.choices(_WORDS, k=40))
            body = {
                "messages": [{"role": "user", "content": f"Summarise document {seed}.{index}: {words}"}],
                "max_tokens": rng.randint(*tokens),
                "temperature": 0,
                "ignore_eos": True,
            }
            line = {"custom_id": f"doc-{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


class _Notes:
    """What a run notes."""

    def __init__(self) -> None:
        self.requests: list[tuple[float, float, float | None, int, str]] = []
        self.looks: list[Look] = []
        self.stopping = False


def _watched(notes: _Notes) -> type[EndpointClient]:
    """A client that keeps note of what it sends. The run has no seam for that, and needs none for anything else."""

    class WatchedClient(EndpointClient):
        async def send(self, path: str, body: bytes, **more: Any) -> Completion | Failure:
            sent_s = _now_s()
            try:
                answer = await super().send(path, body, **more)
            except asyncio.CancelledError:
                notes.requests.append((sent_s, _now_s(), None, 0, "stopped" if notes.stopping else "given-up"))
                raise
            if isinstance(answer, Completion):
                tokens = answer.usage.completion_tokens
                notes.requests.append((sent_s, _now_s(), answer.generation_s, tokens, "ok"))
            else:
                notes.requests.append((sent_s, _now_s(), None, 0, str(answer.kind)))
            return answer

    return WatchedClient


def _job(order: Order, notes: _Notes) -> BatchJob:
    """The operator's defaults, and what `order` says."""
    policy = order.policy
    return BatchJob(
        identity=RunIdentity(dag_id="colocation", task_id=policy.name, run_id=order.out),
        endpoint=EndpointSettings(base_urls=(order.url,), api_key=order.api_key, slots=order.slots),
        requests=RequestSpec(),
        model=None,
        source=JsonlSource([order.rows]),
        chunk_rows=CHUNK_ROWS,
        terms=Terms(limit=policy.most(order.slots)),
        control=WatchedLaw.of(policy, slots=order.slots, looks=notes.looks),
        tolerance=Tolerance(0.0),
        epoch=1,
        try_number=1,
        agreed={},
        switch=HoldSwitch(lambda: None),
        priority=policy.priority,
        max_attempts=MAX_ATTEMPTS,
        on_stale="fail",
        rerun=False,
        on_empty="fail",
        must_exist=False,
        flush_rows=FLUSH_ROWS,
        flush_interval_s=FLUSH_INTERVAL_S,
        outage_patience_s=600,
    )


class _Parent:
    """Who reads standard output. Airflow's log writes there, too, and is sent to standard error from here on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def hear(self, event: str, **more: Any) -> None:
        """Tell it."""
        self._out.write(orjson.dumps({"event": event, **more}, option=orjson.OPT_APPEND_NEWLINE))
        self._out.flush()


class _Run(threading.Thread):
    """One run, told of at its end."""

    def __init__(self, order: Order, parent: _Parent) -> None:
        super().__init__()
        self._order = order
        self._parent = parent
        self._notes = _Notes()
        self._stop_switch = StopSwitch()

    def stop(self) -> None:
        """End it; what is in flight is given up."""
        self._notes.stopping = True
        self._stop_switch.set("the measurement is over")
        self.join()

    def run(self) -> None:
        cpu_s, error = time.process_time(), None
        setattr(work, "EndpointClient", _watched(self._notes))  # noqa: B010 - mypy would not have it otherwise
        try:
            job, store = _job(self._order, self._notes), RunStore(f"file://{self._order.out}")
            run_job(job, store, self._stop_switch, begun=lambda: self._parent.hear("begun"))
            error = "the rows have run out before the measurement was over"
        except RunStoppedError:
            pass
        except Exception as problem:  # noqa: BLE001 - the parent is told, and says so
            error = repr(problem)
        self._parent.hear(
            "ended",
            requests=self._notes.requests,
            looks=[[*look] for look in self._notes.looks],
            cpu_s=time.process_time() - cpu_s,
            error=error,
        )


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - the parent's clock, too


def main() -> None:
    """Serve the parent."""
    parent = _Parent()
    logging.disable(logging.INFO)
    parent.hear("ready")
    run: _Run | None = None
    for line in sys.stdin.buffer:
        order = orjson.loads(line)
        match order.pop("do"):
            case "run":
                run = _Run(Order(**{**order, "policy": Policy(**order["policy"])}), parent)
                run.start()
            case "stop" if run is not None:
                run.stop()
                run = None
    if run is not None:
        run.stop()


if __name__ == "__main__":
    main()
