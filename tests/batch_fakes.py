"""What the tests of runs share: jobs against a stub, a store that is killed at a chosen write, and what lies there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.batch.execution import JobRun
from airflow_llm_provider.batch.job import BatchJob
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.batch.switch import HoldSwitch
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.release import Terms
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage.jsonl import JsonlSource
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_llm_provider.testing import StubVLLM

IDENTITY = RunIdentity(dag_id="dag", task_id="task", run_id="run")


def write_rows(path: Path, rows: Iterable[Any]) -> str:
    """A JSONL file; a `bytes` row is written as it is. Returns the path as a source."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def texts(amount: int) -> list[dict[str, Any]]:
    """So many rows, each with a text and an id of its own."""
    return [{"custom_id": f"doc-{number}", "text": f"text {number}"} for number in range(amount)]


def job_of(stub: StubVLLM | str, source: str | JsonlSource | Any, **changes: Any) -> BatchJob:
    """A job with small numbers, so that little rows make many chunks and flushes."""
    url = stub if isinstance(stub, str) else stub.url
    spec = changes.pop("requests", None) or RequestSpec(prompt=changes.pop("prompt", "Say: {{ row.text }}"))
    job = BatchJob(
        identity=IDENTITY,
        endpoint=EndpointSettings(base_urls=(url,), connect_timeout_s=5, request_timeout_s=30),
        requests=spec,
        model=None,
        source=JsonlSource([source]) if isinstance(source, str) else source,
        chunk_rows=4,
        terms=Terms(limit=changes.pop("max_in_flight", 4)),
        tolerance=Tolerance(1.0),
        epoch=0,
        try_number=1,
        agreed={},
        switch=HoldSwitch(lambda: None),
        priority=None,
        max_attempts=5,
        on_stale="fail",
        rerun=False,
        on_empty="succeed",
        must_exist=False,
        flush_rows=2,
        flush_interval_s=0.02,
        outage_patience_s=600,
    )
    return replace(job, **changes)


class Try:
    """One try of a job; call it to run it."""

    def __init__(self, job: BatchJob, store: RunStore, stop: StopSwitch | None = None) -> None:
        self._run = JobRun(job, store, stop or StopSwitch(), lambda: None)

    def __call__(self) -> dict[str, Any]:
        return self._run.run()

    def requested(self, stub: StubVLLM) -> list[int]:
        """The rows it asked `stub` for, once per request."""
        names = [(name.split("-"), amount) for name, amount in stub.counts.items()]
        token = self._run._try_token
        return sorted(int(index) for (_, its, index, _), amount in names for _ in range(amount) if its == token)


def run(job: BatchJob, store: RunStore, stop: StopSwitch | None = None) -> dict[str, Any]:
    """One try."""
    return Try(job, store, stop)()


def dead_letter(folder: Path) -> Path:
    """Where the run's dead letters lie, once it is finished: `missing` where there are none."""
    found = [*folder.glob("dead-letter*")]
    assert len(found) <= 1
    return found[0] if found else folder / "missing"


def part_lines(folder: Path, pattern: str = "part-*.jsonl") -> list[dict[str, Any]]:
    """Every line of every part, in the parts' order."""
    return [json.loads(line) for part in sorted(folder.glob(pattern)) for line in part.read_bytes().splitlines()]


def kept_indices(folder: Path) -> set[int]:
    """Rows whose outcome lies in a part or in the journal."""
    found = {line["index"] for line in part_lines(folder)}
    for entry in (folder / "_run" / "journal").rglob("*.jsonl"):
        found |= {line["index"] for line in map(json.loads, entry.read_bytes().splitlines()) if "index" in line}
    return found


class HookedStore(RunStore):
    """Storage of which a test says what happens before, and after, an object is put in place."""

    def before(self, name: str) -> None:
        """It is about to be."""

    def after(self, name: str) -> None:
        """It was."""

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        self.before(name)
        super().write(name, data, durable=durable)
        self.after(name)

    def put_new(self, name: str, data: bytes) -> bool:
        self.before(name)
        put = super().put_new(name, data)
        self.after(name)
        return put


class KilledStore(RunStore):
    """Storage of a process that is killed at its n-th change (from 1), and changes nothing ever after.

    Args:
        uri: the run's path.
        at: which change is the last one; 0 for none.
        how: whether it is killed ``before`` that change takes effect, ``after`` it, or ``half``-way, which leaves a
            scratch file, or some of the objects that were to be deleted.
        with_rows: in place of `at`: it is killed after the change with which it has taken in so many rows. How many
            changes come before is a matter of how fast storage and rows are.
    """

    def __init__(self, uri: str, *, at: int = 0, how: str = "before", with_rows: int = 0) -> None:
        super().__init__(uri)
        self.at = at
        self.with_rows = with_rows
        self.how = how
        self.changes = 0
        self.kept: set[int] = set()
        """Rows whose outcome it ever took in, whether or not it lies there still."""

    @property
    def dead(self) -> bool:
        return self.at > 0 and self.changes >= self.at

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        if self._killed_here() and self.how != "after":
            self._leave_scratch(data)
            raise StorageError(f"killed {self.how} writing {name}")
        super().write(name, data, durable=False)
        self._keep(name, data)
        self._die_after()

    def put_new(self, name: str, data: bytes) -> bool:
        if self._killed_here() and self.how != "after":
            self._leave_scratch(data)
            raise StorageError(f"killed {self.how} creating {name}")
        put = super().put_new(name, data)
        self._keep(name, data)
        self._die_after()
        return put

    def write_from(self, name: str, pieces: Iterable[bytes]) -> None:
        if self._killed_here() and self.how != "after":
            raise StorageError(f"killed {self.how} writing {name}")
        super().write_from(name, pieces)
        self._die_after()

    def _delete(self, name: str) -> None:
        if self._killed_here() and self.how != "after":
            raise StorageError(f"killed {self.how} deleting {name}")
        super()._delete(name)
        self._die_after()

    def _keep(self, name: str, data: bytes) -> None:
        if name.startswith(("part-", "_run/journal/")):
            self.kept |= {line["index"] for line in map(json.loads, data.splitlines()) if "index" in line}
            if self.with_rows and len(self.kept) >= self.with_rows:
                self.at = self.at or self.changes

    def _killed_here(self) -> bool:
        if self.dead:
            raise StorageError("killed")
        self.changes += 1
        return self.dead

    def _die_after(self) -> None:
        if self.dead:
            raise StorageError("killed after it took effect")

    def _leave_scratch(self, data: bytes) -> None:
        if self.how == "half":
            scratch = Path(self._root) / "_run" / "tmp" / "left-over"
            scratch.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(data[: len(data) // 2])
