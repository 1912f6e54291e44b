"""What people do to the tasks of a group on a real scheduler, and what becomes of the run: docs/acts.md has the table.

Two DAG runs side by side: of one a share, the plan and the assembly are cleared, of the other a share is marked. Two
rows of each share are late, which is all that it has in flight: the acts find it at work.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from acted_run import ActedRun, Tail, is_gone, late, not_again, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llm_fixtures import StubProcess

    from tools.local_airflow import LocalAirflow

ROWS = 240
SHARES = 4
IN_FLIGHT = 2
LATE = [share * ROWS // SHARES + row for share in range(SHARES) for row in (20, 21)]
PLAN, WORK, ASSEMBLE, AFTER = "batch.plan", "batch.work", "batch.assemble", "after"


def rows_of(share: int) -> range:
    each = ROWS // SHARES
    return range(share * each, (share + 1) * each)


def others_of(share: int, run: ActedRun) -> list[int]:
    return [each.index for each in run.sent() if each.index not in rows_of(share)]


@pytest.fixture
def tail(llm_stub: StubProcess) -> Iterator[Tail]:
    reading = Tail(llm_stub.log)
    reading.start()
    yield reading
    reading.close()


def clears(run: ActedRun) -> None:
    """A share while it runs, the same when it is through, the plan meanwhile; then, after the end, all kinds."""
    ours = rows_of(0)
    run.asks_for(10, rows=ours)
    first = run.process((WORK, 0))
    run.clear((WORK, 0))
    run.reaches("running", (WORK, 0), try_number=2)
    assert is_gone(first)
    run.reaches("success", (WORK, 0))
    assert "Stopped from outside" in run.log((WORK, 0), try_number=1)
    assert len(run.turns(rows=ours)) == 2
    asked = len(run.sent(rows=ours))
    assert asked - len(ours) <= IN_FLIGHT, "what was kept of the share was asked for again"

    assert run.task(ASSEMBLE).state is None, "the group was through too soon to tell"
    run.clear((WORK, 0))
    run.clear(PLAN)
    run.reaches("success", (WORK, 0), try_number=3)
    run.ends("success")
    assert run.task(PLAN).try_number == 2
    assert len(run.sent(rows=ours)) == asked, "a share that was through was asked for again"
    assert len(others_of(0, run)) == ROWS - len(ours), "shares that nobody touched were asked for again"
    run.has_landed(asked_twice=IN_FLIGHT, manifest_of=ASSEMBLE)
    assert run.xcom(AFTER) == ROWS

    manifest, sent = run.manifest(), run.sent()
    run.clear(ASSEMBLE)
    run.clear((WORK, 1))
    run.ends("success")
    assert (run.task(ASSEMBLE).try_number, run.task((WORK, 1)).try_number) == (2, 2)
    run.clear(PLAN, downstream=True)
    run.ends("success")
    assert {run.task(each).try_number for each in (PLAN, ASSEMBLE)} == {3}
    assert run.sent() == sent, "a finished run was asked for again"
    assert run.manifest() == manifest
    run.has_landed(asked_twice=IN_FLIGHT, manifest_of=ASSEMBLE)
    assert run.xcom(AFTER) == ROWS


def marks(run: ActedRun) -> None:
    """A share as succeeded while it runs: the others go on, and the assembly says what is missing."""
    ours = rows_of(1)
    run.asks_for(10, rows=ours)
    first = run.process((WORK, 1))
    run.mark("success", (WORK, 1))
    until("the process to end", lambda: is_gone(first), timeout_s=15)
    asked, kept = len(run.sent(rows=ours)), run.kept() & set(ours)
    assert len(kept) >= asked - IN_FLIGHT
    run.ends("failed")
    assert len(run.sent(rows=ours)) == asked, "it went on sending"
    assert sorted(others_of(1, run)) == [row for row in range(ROWS) if row not in ours]
    assert (run.task(ASSEMBLE).state, run.task(ASSEMBLE).try_number) == ("failed", 1), "no retry mends it"
    log = run.log(ASSEMBLE, try_number=1)
    assert "UnfinishedSharesError" in log
    assert "Missing are rows of the shares 1: clear their tasks" in log
    assert not run.finished
    run.clear((WORK, 1), downstream=True)
    run.ends("success")
    not_again(kept, run.sent(rows=ours)[asked:])
    assert len(others_of(1, run)) == ROWS - len(ours)
    run.has_landed(asked_twice=IN_FLIGHT, manifest_of=ASSEMBLE)
    assert run.xcom(AFTER) == ROWS


@pytest.mark.timeout(420)
def test_shares_plan_and_assembly_are_cleared_and_a_share_is_marked(
    llm_airflow: LocalAirflow, llm_stub: StubProcess, tail: Tail, tmp_path: Path
) -> None:
    llm_stub.state(delay_s=0.25)
    llm_stub.faults(*(rule for act in (clears, marks) for rule in late(act.__name__, LATE)))
    began_s = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        acts = [
            threads.submit(act, ActedRun(llm_airflow, tail, tmp_path / act.__name__, "acted_group", rows=ROWS))
            for act in (clears, marks)
        ]
        for act in acts:
            act.result(400)
    llm_stub.faults()
    llm_stub.state(delay_s=0.0)
    print(f"{time.monotonic() - began_s:.0f} s")
