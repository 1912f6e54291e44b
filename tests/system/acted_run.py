"""A DAG run that people and Airflow act on: acting on it, what it asked the model server for, what lies in storage.

Owns the acts as calls of Airflow's REST API, and looking: storage and the stub's log are read without the package's own
code. Does not know which act comes when, nor what should become of it: that is what the tests say.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from test_operator import ended, log_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tools.airflow_rest import TaskTry
    from tools.local_airflow import LocalAirflow

    Target = str | tuple[str, int]
    """A task, or one of a mapped task's instances."""

BATCH = "batch"
LATE_S = 30.0
"""So late is a late row: time enough for an act on a busy machine, where Airflow takes seconds for a request."""

FLUSH_ROWS = 100
"""So many rows may have settled since the last flush: the provider's default."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, as the stub's log tells of it."""

    at_s: float  # monotonic, when it was seen in the log
    fingerprint: str
    token: str  # the try's
    index: int


class Tail(threading.Thread):
    """Reads the stub's log while it grows, to know when each request came."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.sent: list[Sent] = []
        self._log = log
        self._ended = threading.Event()

    def run(self) -> None:
        with self._log.open() as file:
            while not self._ended.wait(0.02):
                while line := file.readline():
                    fingerprint, token, index, _ = line.split("-")
                    self.sent.append(Sent(time.monotonic(), fingerprint, token, int(index)))

    def close(self) -> None:
        self._ended.set()
        self.join()


class ActedRun:
    """One DAG run.

    Args:
        airflow: runs it.
        tail: of the log of the stub that it asks.
        folder: of its own. Its name is in the prompts, for `late` to know them by.
        dag_id: a DAG that takes ``source`` and ``result_path``.
        rows: so many.
        conf: of the run, beside these.
    """

    def __init__(self, airflow: LocalAirflow, tail: Tail, folder: Path, dag_id: str, *, rows: int, **conf: str) -> None:
        folder.mkdir()
        source = folder / "rows.jsonl"
        text = f"{folder.name} row"
        source.write_text("".join(f'{{"custom_id": "r{n}", "text": "{text} {n}"}}\n' for n in range(rows)))
        self.airflow = airflow
        self.dag_id = dag_id
        self.rows = rows
        self.results = folder / "results"
        self._text = text
        self._tail = tail
        self._rest = airflow.rest
        self._conf = {"source": str(source), "result_path": str(self.results), **conf}
        self._rest.wait_for_dag(dag_id)
        self.run_id = self._rest.trigger(dag_id, conf=self._conf)

    # -- what is done to it

    def clear(self, *targets: Target, downstream: bool = False) -> None:
        """Clear tasks; none named: the batch task."""
        body = {"dag_run_id": self.run_id, "task_ids": [*(targets or (BATCH,))], "include_downstream": downstream}
        path = f"/dags/{self.dag_id}/clearTaskInstances"
        self._rest.call("POST", path, {**body, "dry_run": False, "only_failed": False})

    def mark(self, state: str, target: Target = BATCH) -> None:
        """Mark a task by hand."""
        path = target if isinstance(target, str) else "/".join(map(str, target))
        self._rest.call("PATCH", f"{self._path}/taskInstances/{path}", {"new_state": state})

    def delete(self) -> None:
        """Delete the DAG run, which Airflow allows once it has ended: so it is marked as failed before."""
        self._rest.call("PATCH", self._path, {"state": "failed"})
        self._rest.call("DELETE", self._path)

    def trigger_again(self) -> None:
        """Make a DAG run of the same id."""
        self._rest.trigger(self.dag_id, conf=self._conf, run_id=self.run_id)

    # -- what Airflow says of it

    @property
    def _path(self) -> str:
        return f"/dags/{self.dag_id}/dagRuns/{self.run_id}"

    def task(self, target: Target = BATCH) -> TaskTry:
        task_id, map_index = (target, -1) if isinstance(target, str) else target
        return self._rest.task(self.dag_id, self.run_id, task_id, map_index=map_index)

    def process(self, target: Target = BATCH) -> psutil.Process:
        """The process that works at it."""
        task = self.task(target)
        assert (task.state, task.pid is None) == ("running", False), task
        return psutil.Process(task.pid)

    def xcom(self, target: Target = BATCH) -> Any:
        task_id, map_index = (target, -1) if isinstance(target, str) else target
        return self._rest.xcom(self.dag_id, self.run_id, task_id, map_index=map_index)

    def log(self, target: Target = BATCH, *, try_number: int) -> str:
        task_id, map_index = (target, -1) if isinstance(target, str) else target
        return log_of(self.airflow, self.dag_id, self.run_id, task_id, try_number=try_number, map_index=map_index)

    def reaches(self, state: str, target: Target = BATCH, *, try_number: int | None = None) -> TaskTry:
        """Wait until a task is in that state, in that try."""

        def there() -> TaskTry | None:
            task = self.task(target)
            return task if task.state == state and try_number in (None, task.try_number) else None

        return until(f"{self.dag_id}'s {target} to be {state}", there, every_s=1.0)

    def ends(self, state: str) -> None:
        """Wait for the DAG run's end."""
        ended(self.airflow, self.dag_id, self.run_id, state)

    # -- what it asked for

    @property
    def fingerprint(self) -> str:
        """Of the generation that lies there; empty before there is one."""
        try:
            return str(json.loads((self.results / "_run" / "run.json").read_bytes())["fingerprint"])
        except FileNotFoundError:
            return ""

    def sent(self, fingerprint: str | None = None, *, rows: range | None = None) -> list[Sent]:
        """Its requests so far, of the generation that lies there; of some rows alone."""
        wanted = fingerprint or self.fingerprint
        return [each for each in self._tail.sent if each.fingerprint == wanted and (rows is None or each.index in rows)]

    def asks_for(self, amount: int, *, rows: range | None = None) -> None:
        """Wait until so many requests came."""
        until(f"{amount} requests of {self.dag_id}", lambda: len(self.sent(rows=rows)) >= amount)

    def turns(self, *, rows: range | None = None) -> list[str]:
        """The tries that sent, in order: one that sent, let another one send, and sent again is there twice."""
        return [token for token, _ in groupby(each.token for each in self.sent(rows=rows))]

    # -- what lies there

    def kept(self) -> set[int]:
        """Rows whose outcome lies in a part or a journal of what lies there."""
        found = set()
        for pattern in ("part-*.jsonl", "_run/journal/*/*.jsonl", "_run/shares/*/_run/journal/*/*.jsonl"):
            for path in self.results.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # a chunk was committed meanwhile
                    found |= {json.loads(line)["index"] for line in path.read_bytes().splitlines()}
        return found

    @property
    def finished(self) -> bool:
        return (self.results / "manifest.json").exists()

    @property
    def leased(self) -> bool:
        return (self.results / "_run" / "lease.json").exists()

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.results / "manifest.json").read_bytes())

    def has_landed(self, *, asked_twice: int, manifest_of: str = BATCH, over: str = "") -> None:
        """Every row once, counts as the parts say, nothing left that only a resume needs, and few asked for twice.

        With `over`, the fingerprint of a generation over which a replay carried rows, in both together.
        """
        lines = [line for part in sorted(self.results.glob("part-*.jsonl")) for line in part.read_bytes().splitlines()]
        rows = [json.loads(line) for line in lines]
        assert Counter(row["index"] for row in rows) == Counter(range(self.rows))
        assert all(row["output"].endswith(f"Say {self._text} {row['index']}") for row in rows)
        manifest = self.manifest()
        assert manifest["counts"] == {
            "total": self.rows,
            "succeeded": self.rows,
            "truncated": 0,
            "invalid_output": 0,
            "errored": 0,
        }
        for name in ("prompt_tokens", "completion_tokens"):
            assert manifest["usage"][name] == sum(row["usage"][name] for row in rows)
        for each in manifest["chunks"]:
            assert hashlib.sha256((self.results / each["part"]).read_bytes()).hexdigest() == each["sha256"]
        assert len(manifest["chunks"]) == len(list(self.results.glob("part-*")))
        assert self.xcom(manifest_of) == {name: value for name, value in manifest.items() if name != "chunks"}
        left = {path for path in (self.results / "_run").rglob("*") if path.is_file() and path.parent.name != "tmp"}
        assert {path.name for path in left} <= {"run.json", "progress.json"}, "the lease, or the journal, is left"
        sent = Counter(each.index for each in (*self.sent(), *(self.sent(over) if over else ())))
        assert sent.keys() == set(range(self.rows))
        assert sent.total() - self.rows <= asked_twice


def late(name: str, rows: Iterable[int], *, times: int = 1) -> list[dict[str, Any]]:
    """Rules for a stub by which the run of that name meets late rows at its first sendings of them.

    As many as it has in flight, and it is not through before somebody acts on it.
    """
    fault = {"kind": "slow", "delay_s": LATE_S}
    return [{"fault": fault, "contains": f'{name} row {row}"', "first_of_each": times} for row in rows]


def until(what: str, found: Callable[[], Any], *, timeout_s: float = 120.0, every_s: float = 0.05) -> Any:
    """Ask `found()` until it says something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(every_s)
    pytest.fail(f"waited {timeout_s:.0f} s for {what}")


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def not_again(kept: Iterable[int], later: Iterable[Sent]) -> None:
    """No row that was kept was asked for later."""
    again = set(kept) & {each.index for each in later}
    assert not again, f"rows {sorted(again)[:5]} were kept, and asked for again"
