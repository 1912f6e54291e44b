"""`make demo` and `make airflow`: a real model, a real Airflow, and the nightly summarisation run by its scheduler.

Owns what a person sees. Everything it writes lies below ``.run/demo``:

::

    .run/demo/airflow/      Airflow's home: database, settings, logs
    .run/demo/documents/    what the DAG's first task collects
    .run/demo/results/      what LLMBatchOperator lands: parts, manifest
    .run/demo/model.log     the model server
    .run/demo/lock          held while a demo runs; the kernel lets go of it, however we die

A run that was interrupted is not lost: the next `make demo` starts Airflow on the same database, Airflow retries the
task, and the operator goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tools.airflow_rest import FINAL_RUN_STATES, AirflowRestError
from tools.local_airflow import LocalAirflow
from tools.program import Program, ProgramError, end_leftovers, write_records
from tools.small_model import DEFAULT_SLOTS, MODEL_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.airflow_rest import AirflowRest, TaskTry

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".run" / "demo"
DAG_ID = "nightly_summarisation"
TASK_ID = "summarise"
POOLS = ROOT / "example_dags" / "pools.json"
ALWAYS = "00:00-00:00 Europe/London"  # the nightly DAG waits for the connection's window; `make demo` does not
SHOWN_SUMMARIES = 5
MODEL_PATIENCE_S = 60.0
RUN_PATIENCE_S = 1800.0
POLL_S = 1.0
LINE_EVERY_S = 5.0  # where the output is no terminal
RETRY_DELAY_S = 5
HEARTBEAT_TIMEOUT_S = 30  # how soon Airflow notices that a whole machine went away; its default is 300


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Summarise real documents with a real model on a real Airflow.")
    parser.add_argument("--documents", type=int, default=None, help="how many (the DAG's default if not given)")
    parser.add_argument("--stay", action="store_true", help="run nothing; keep Airflow and the model up until Ctrl-C")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with _only_one(), _model() as model_url, _airflow(model_url) as airflow:
            if arguments.stay:
                _stay(airflow)
            else:
                _run(airflow, arguments.documents)
    except KeyboardInterrupt:
        _say("\nInterrupted, and everything is stopped. `make demo` goes on where this stopped.")
        sys.exit(130)
    except (ProgramError, AirflowRestError) as error:
        _say(f"\n{error}\n\nEverything of the demo lies in {_short(HOME)}; `make clean-demo` starts from nothing.")
        sys.exit(1)


# --- what is started --------------------------------------------------------------------------------


@contextmanager
def _only_one() -> Iterator[None]:
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("Another `make demo` or `make airflow` of this checkout runs; stop it first.") from None
        yield


@contextmanager
def _model() -> Iterator[str]:
    """The model server's base URL. It ends with us: it watches the stdin that we hold."""
    records = HOME / "processes.json"
    end_leftovers(records)
    program = Program(
        name="model",
        argv=[sys.executable, "-m", "tools.small_model", "--slots", str(DEFAULT_SLOTS)],
        cwd=HOME,
        log_path=HOME / "model.log",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    program.start()
    try:
        write_records(records, [program])
        url = _announced_url(program)
        _say(f"Model    {MODEL_NAME} at {url}, {DEFAULT_SLOTS} requests at a time")
        yield url
    finally:
        program.stop(patience_s=2.0)
        records.unlink(missing_ok=True)


def _announced_url(program: Program) -> str:
    deadline = time.monotonic() + MODEL_PATIENCE_S  # noqa: TID251 - a tool that waits for other processes
    while time.monotonic() < deadline:  # noqa: TID251
        program.require_running()
        for line in program.log_path.read_text(errors="replace").splitlines():
            if line.startswith("http://"):
                return line.strip()
        time.sleep(0.1)  # noqa: TID251
    raise ProgramError(f"The model said nothing for {MODEL_PATIENCE_S:.0f} s:\n{program.log_tail()}")


@contextmanager
def _airflow(model_url: str) -> Iterator[LocalAirflow]:
    extra = {"model": MODEL_NAME, "slots": DEFAULT_SLOTS}
    connection = {"conn_type": "vllm", "host": model_url, "extra": extra}
    nightly = {**connection, "extra": {**extra, "window": ALWAYS, "headroom": 0}}
    airflow = LocalAirflow(
        HOME / "airflow",
        ROOT / "example_dags",
        env={
            "PYTHONPATH": str(ROOT),
            "AIRFLOW_CONN_VLLM_DEFAULT": json.dumps(nightly),
            "AIRFLOW_CONN_VLLM_SHARED": json.dumps(connection),
            "AIRFLOW_CONN_VLLM_BATCH": json.dumps(connection),
            "AIRFLOW__LLM_BATCH__RESULTS_BASE": f"file://{HOME / 'results'}",
            "AIRFLOW__LLM_BATCH__POOL_SCHEDULED_BATCH": "llm_scheduled_batch",
            "AIRFLOW__LLM_BATCH__POOL_BURST_BATCH": "llm_burst_batch",
            "AIRFLOW__LLM_BATCH__REQUESTS_PER_SLOT": "16",
            "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": str(RETRY_DELAY_S),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT_S),
            "DOCUMENTS_BASE": f"file://{HOME / 'documents'}",
        },
        note=lambda text: _say(f"Airflow  {text}"),
    )
    with airflow:
        _say(f"Airflow  scheduler, DAG processor, API server and triggerer are healthy: {airflow.url}")
        _make_pools(airflow)
        yield airflow
        _say("Stopping Airflow and the model …")


def _make_pools(airflow: LocalAirflow) -> None:
    """As docs/how-to/pools.md has it; a task in a pool that is not there would never start."""
    known = {pool["name"] for pool in airflow.rest.call("GET", "/pools?limit=100")["pools"]}
    if json.loads(POOLS.read_text()).keys() <= known:
        return
    command = ["airflow", "pools", "import", str(POOLS)]
    done = subprocess.run(command, env=airflow.environment(), capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise ProgramError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    _say(f"Pools    airflow pools import {_short(POOLS)}")


# --- the run ----------------------------------------------------------------------------------------


def _run(airflow: LocalAirflow, documents: int | None) -> None:
    rest = airflow.rest
    rest.wait_for_dag(DAG_ID)
    run_id = _unfinished_run(rest)
    if run_id is None:
        run_id = rest.trigger(DAG_ID, conf={} if documents is None else {"documents": documents})
        _say(f"Run      {run_id} of {DAG_ID}")
    else:
        _say(f"Run      {run_id} of {DAG_ID} was interrupted; it goes on as soon as Airflow misses its worker")
    watch = _Watch(airflow, run_id)
    state = rest.wait_for_run(DAG_ID, run_id, timeout_s=RUN_PATIENCE_S, on_poll=watch.look)
    watch.finish()
    if state != "success":
        _say_why_it_failed(airflow, run_id)
        sys.exit(1)
    _say_results(airflow, run_id)


def _unfinished_run(rest: AirflowRest) -> str | None:
    """A run that an earlier demo left, or that the schedule has just started."""
    runs = rest.call("GET", f"/dags/{DAG_ID}/dagRuns?order_by=-run_after&limit=20")["dag_runs"]
    return next((str(run["dag_run_id"]) for run in runs if run["state"] not in FINAL_RUN_STATES), None)


class _Watch:
    """Says what changes while a run works."""

    def __init__(self, airflow: LocalAirflow, run_id: str) -> None:
        self._airflow = airflow
        self._run_id = run_id
        self._states: dict[str, tuple[str | None, int]] = {}
        self._last = ""
        self._next_line_at = 0.0

    def look(self) -> None:
        """One look, as often as the run is polled."""
        self._airflow.require_running()
        for task in self._airflow.rest.tasks(DAG_ID, self._run_id):
            self._say_change(task)
        self._say_progress()
        time.sleep(POLL_S)  # noqa: TID251 - leave the two cores to the model

    def finish(self) -> None:
        """End the line that progress was drawn on."""
        if sys.stdout.isatty() and self._last:
            print()

    def _say_change(self, task: TaskTry) -> None:
        now = (task.state, task.try_number)
        if task.state in (None, "scheduled", "queued") or self._states.get(task.task_id) == now:
            return
        self._states[task.task_id] = now
        nth = f", try {task.try_number}" if task.try_number > 1 else ""
        self.finish()
        self._last = ""
        _say(f"Task     {task.task_id}: {task.state}{nth}")
        if task.task_id == TASK_ID and task.state == "running" and task.pid and task.try_number == 1:
            _say(
                f"         (try `kill -9 {task.pid}` in another terminal: the next try goes on where this one stopped)"
            )

    def _say_progress(self) -> None:
        if self._states.get(TASK_ID, ("", 0))[0] != "running":
            return
        with suppress(FileNotFoundError):
            text = _progress_line(json.loads((_results_folder(self._run_id) / "_run" / "progress.json").read_text()))
            if text == self._last:
                return
            if sys.stdout.isatty():
                print(f"\r\033[K{text}", end="", flush=True)
            elif time.monotonic() >= self._next_line_at:  # noqa: TID251
                _say(text)
                self._next_line_at = time.monotonic() + LINE_EVERY_S  # noqa: TID251
            self._last = text


def _progress_line(progress: dict[str, Any]) -> str:
    eta = "" if progress["eta_s"] is None else f", {progress['eta_s']:.0f} s to go"
    hold = f" – {progress['hold_reason']}" if progress["hold_reason"] else ""
    return (
        f"         {progress['done']}/{progress['total']} documents, {progress['in_flight']} in flight, "
        f"{progress['tokens_per_s']:.0f} tokens/s{eta}{hold}"
    )


# --- afterwards -------------------------------------------------------------------------------------


def _results_folder(run_id: str) -> Path:
    """Where the DAG lets the run's results lie: in the folder of its night."""
    nights = HOME / "results" / DAG_ID
    return next(nights.glob(f"*/{run_id}"), nights / "night" / run_id)


def _say_results(airflow: LocalAirflow, run_id: str) -> None:
    manifest = airflow.rest.xcom(DAG_ID, run_id, TASK_ID)
    folder = _results_folder(run_id)
    parts = sorted(folder.glob("part-*.jsonl"))
    rows = [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]
    _say("\nSummaries (a model this small writes readable and often wrong ones)")
    for row in [row for row in rows if row["status"] == "succeeded"][:SHOWN_SUMMARIES]:
        _say(f"  {row['custom_id']}: {' '.join(row['output'].split())}")
    _say("\nManifest, which is also the task's XCom")
    _say(json.dumps({key: manifest[key] for key in ("counts", "usage", "duration_s")}, indent=2))
    _say(f"\n{len(rows)} result lines in {len(parts)} part(s), one per document:")
    for name, path in [
        ("documents", HOME / "documents" / run_id / "documents.jsonl"),
        ("results", folder),
        ("task logs", airflow.home / "logs"),
        ("DAG", ROOT / "example_dags" / f"{DAG_ID}.py"),
    ]:
        _say(f"  {name:<10} {_short(path)}")
    _say("\n`make airflow` keeps Airflow and the model running, and says where to look at this run in the browser.")


def _say_why_it_failed(airflow: LocalAirflow, run_id: str) -> None:
    for task in airflow.rest.tasks(DAG_ID, run_id):
        if task.state == "failed":
            log = airflow.rest.task_log_text(DAG_ID, run_id, task.task_id, try_number=task.try_number)
            _say(f"\nTask {task.task_id} failed in try {task.try_number}. Its log ends with:")
            _say("\n".join(log.splitlines()[-25:]))
    _say(f"\nThe run {run_id} failed. All logs: {_short(airflow.home / 'logs')}")


def _stay(airflow: LocalAirflow) -> None:
    airflow.rest.wait_for_dag(DAG_ID)
    _say(f"\nOpen     {airflow.url}/dags/{quote(DAG_ID)}   (no login; only this machine can reach it)")
    _say(f"Results  {_short(HOME / 'results')}")
    _say("Trigger the DAG there, or wait for 23:00 in London. Ctrl-C stops everything.")
    with suppress(KeyboardInterrupt):
        while True:
            airflow.require_running()
            time.sleep(POLL_S)  # noqa: TID251


def _short(path: Path) -> str:
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _say(text: str) -> None:
    print(text, flush=True)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # stopping takes some seconds; a second Ctrl-C must not cut it short
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
