"""What people and Airflow do to a task on a real scheduler, and what becomes of the run: the table of docs/acts.md.

The acts run side by side, each on a DAG run of its own, in a thread that reads from top to bottom; the scheduler is
killed when they are through. Of `LLMBatchGroup`: `test_acts_on_groups.py`.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from acted_run import BATCH, FLUSH_ROWS, ActedRun, Tail, is_gone, late, not_again, until
from test_release import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llm_fixtures import StubProcess

    from tools.local_airflow import LocalAirflow

IN_FLIGHT = 8
IN_FLIGHT_HELD = 4
NOTICED_S = 8.0
"""A task's process hears of an act with the answer to its next heartbeat: one a second here, on a busy machine."""

REFUSED = 7
"""The row that errors before a replay."""

NOTHING = -1
"""What the task downstream returns where it finds no manifest."""


@dataclass(frozen=True)
class Acting:
    """What an act needs."""

    airflow: LocalAirflow
    stub: StubProcess
    tail: Tail
    folder: Path

    def begin(self, name: str, dag_id: str, *, rows: int, asked: int = 0, **conf: str) -> ActedRun:
        """Begin a run, and wait until it has asked for so many rows."""
        run = ActedRun(self.airflow, self.tail, self.folder / name, dag_id, rows=rows, **conf)
        run.asks_for(asked)
        return run

    def hold(self, name: str, reason: str | None) -> None:
        """Set, or take back, the hold switch of the connection of that name."""
        connect(self.airflow, f"acts_{name}", self.stub, **({"hold": reason} if reason else {}))

    def begin_and_hold(self, name: str) -> ActedRun:
        """Begin a run and hold it until it waits in the triggerer."""
        self.hold(name, None)
        run = self.begin(name, "acted_held", rows=300, asked=40, vllm_conn_id=f"acts_{name}")
        self.hold(name, "somebody needs the GPUs")
        run.reaches("deferred", try_number=1)
        assert run.leased
        assert not run.finished
        return run


# -- while it runs, and after


def cleared_while_running(acting: Acting) -> None:
    run = acting.begin("cleared_while_running", "acted", rows=300, asked=60)
    first = run.process()
    run.clear()
    run.reaches("running", try_number=2)
    assert is_gone(first), "the next try was begun beside the one before"
    run.ends("success")
    assert "Stopped from outside" in run.log(try_number=1)
    assert len(run.turns()) == 2, "a try sent again after its successor"
    run.has_landed(asked_twice=IN_FLIGHT)
    assert run.xcom("after") == 300


def marked_while_running(acting: Acting, state: str) -> None:
    run = acting.begin(f"marked_{state}_while_running", "acted", rows=300, asked=60)
    first = run.process()
    run.mark(state)
    marked_s = time.monotonic()
    until("the process to end", lambda: is_gone(first), timeout_s=NOTICED_S + 5)
    sent = run.sent()
    assert sent[-1].at_s - marked_s <= NOTICED_S
    assert len(sent) < 300, "it was marked too late to tell"
    run.ends(state)
    kept = run.kept()
    assert len(kept) >= len(sent) - IN_FLIGHT, "what had settled was not kept"
    assert run.leased
    assert not run.finished
    if state == "success":
        assert run.xcom("after") == NOTHING, "what is downstream goes on without a manifest"
    assert run.sent() == sent, "it went on sending"
    assert run.task().try_number == 1
    run.clear(BATCH, downstream=True)
    run.ends("success")
    not_again(kept, run.sent()[len(sent) :])
    run.has_landed(asked_twice=IN_FLIGHT)
    assert run.xcom("after") == 300


def marked_failed_while_running(acting: Acting) -> None:
    marked_while_running(acting, "failed")


def marked_success_while_running(acting: Acting) -> None:
    marked_while_running(acting, "success")


def cleared_after_success(acting: Acting) -> None:
    run = acting.begin("cleared_after_success", "acted", rows=60)
    run.ends("success")
    manifest = run.manifest()
    run.clear(BATCH, downstream=True)
    run.ends("success")
    assert run.task().try_number == 2
    assert run.manifest() == manifest
    run.has_landed(asked_twice=0)
    assert run.xcom("after") == 60


def cleared_after_success_with_rerun(acting: Acting) -> None:
    """Once per clear: the second one comes while the rerun works, which goes on."""
    run = acting.begin("cleared_after_success_with_rerun", "acted_rerun", rows=240)
    run.ends("success")
    before = run.fingerprint
    parts = set(run.results.glob("part-*"))
    run.clear()
    until("the run to be begun anew", lambda: run.fingerprint != before)
    run.asks_for(60)
    assert not run.finished
    assert not parts & set(run.results.glob("part-*")), "results of before lie beside those of the rerun"
    run.clear()
    run.ends("success")
    assert run.task().try_number == 3
    assert run.manifest()["generation"] == 2
    assert len(run.sent(before)) == 240
    assert len(run.turns()) == 2
    run.has_landed(asked_twice=IN_FLIGHT)


def cleared_after_success_with_replay(acting: Acting) -> None:
    """One row errored at its first sending: it is asked for again, and nothing else is."""
    run = acting.begin("cleared_after_success_with_replay", "acted_replay", rows=60)
    run.ends("success")
    assert run.manifest()["counts"]["errored"] == 1
    before = run.fingerprint
    assert run.kept() == set(range(60))
    run.clear(BATCH, downstream=True)
    run.ends("success")
    assert run.fingerprint != before, "a replay is the run's next generation"
    assert len(run.sent(before)) == 60
    assert [each.index for each in run.sent()] == [REFUSED]
    (told,) = run.manifest()["replays"]
    assert (told["statuses"], told["rows"]) == (["errored"], 1)
    run.has_landed(asked_twice=1, over=before)
    assert run.xcom("after") == 60


def cleared_after_failure(acting: Acting) -> None:
    """Its tries are used up: killed, with retries=0."""
    run = acting.begin("cleared_after_failure", "acted_once", rows=300, asked=60)
    victim = run.process()
    victim.kill()
    until("the death", lambda: is_gone(victim))
    run.ends("failed")
    kept, asked = run.kept(), len(run.sent())
    assert run.leased
    run.clear(BATCH, downstream=True)
    run.ends("success")
    not_again(kept, run.sent()[asked:])
    run.has_landed(asked_twice=IN_FLIGHT + FLUSH_ROWS + IN_FLIGHT)


def dag_run_deleted(acting: Acting) -> None:
    """While its task runs, and one of the same id is made again: the run lies where it lay, and goes on."""
    run = acting.begin("dag_run_deleted", "acted", rows=300, asked=60)
    first = run.process()
    run.delete()
    until("the process to end", lambda: is_gone(first), timeout_s=NOTICED_S + 5)
    sent, kept = run.sent(), run.kept()
    assert len(kept) >= len(sent) - IN_FLIGHT
    assert run.leased
    time.sleep(
        7
    )  # the executor tells of the end 5 s late, by a name that the new task bears, too, and would cost its try
    run.trigger_again()
    run.ends("success")
    assert run.task().try_number == 1
    not_again(kept, run.sent()[len(sent) :])
    assert len(run.turns()) == 2
    run.has_landed(asked_twice=IN_FLIGHT)


# -- while it waits


def marked_while_deferred(acting: Acting, state: str) -> None:
    name = f"marked_{state}_while_deferred"
    run = acting.begin_and_hold(name)
    sent, kept = run.sent(), run.kept()
    run.mark(state)
    run.ends(state)
    acting.hold(name, None)
    until("the trigger to go", lambda: run.task().note["trigger"] is None, every_s=0.5)
    assert run.task().state == state
    if state == "success":
        assert run.xcom("after") == NOTHING
    assert run.sent() == sent
    assert run.kept() == kept
    assert run.leased
    assert not run.finished
    run.clear(BATCH, downstream=True)
    run.ends("success")
    not_again(kept, run.sent()[len(sent) :])
    run.has_landed(asked_twice=IN_FLIGHT_HELD)


def marked_failed_while_deferred(acting: Acting) -> None:
    marked_while_deferred(acting, "failed")


def marked_success_while_deferred(acting: Acting) -> None:
    marked_while_deferred(acting, "success")


def cleared_while_deferred(acting: Acting) -> None:
    """What held it still does: the next try waits as this one did."""
    run = acting.begin_and_hold("cleared_while_deferred")
    sent, kept = run.sent(), run.kept()
    run.clear()
    run.reaches("deferred", try_number=2)
    assert run.sent() == sent
    acting.hold("cleared_while_deferred", None)
    run.ends("success")
    assert run.task().try_number == 2
    not_again(kept, run.sent()[len(sent) :])
    assert len(run.turns()) == 2
    run.has_landed(asked_twice=IN_FLIGHT_HELD)


LATE = {
    cleared_while_running: 1,
    marked_failed_while_running: 1,
    marked_success_while_running: 1,
    cleared_after_success_with_rerun: 2,
    cleared_after_failure: 1,
    dag_run_deleted: 1,
}
"""Acts that must come while the run works, and the times that its rows are late: a rerun's are, too."""

ACTS: list[Callable[[Acting], None]] = [
    cleared_while_running,
    marked_failed_while_running,
    marked_success_while_running,
    cleared_after_success,
    cleared_after_success_with_rerun,
    cleared_after_success_with_replay,
    cleared_after_failure,
    dag_run_deleted,
    marked_failed_while_deferred,
    marked_success_while_deferred,
    cleared_while_deferred,
]
LONG = [marked_failed_while_deferred, marked_success_while_deferred, cleared_while_deferred]
"""A hold takes half a minute to become a deferral; others run meanwhile."""

SCHEDULER = "scheduler"
AT_ONCE = 5
"""More of them, and SQLite keeps Airflow waiting."""


@pytest.fixture(scope="module")
def acting(acts_airflow: LocalAirflow, acts_stub: StubProcess, tmp_path_factory: pytest.TempPathFactory):
    tail = Tail(acts_stub.log)
    tail.start()
    rows = range(150, 150 + IN_FLIGHT)
    refused = {"kind": "answer", "status": 400, "body": '{"error": {"message": "no"}}'}
    text = f'{cleared_after_success_with_replay.__name__} row {REFUSED}"'
    acts_stub.faults(
        *(rule for act, times in LATE.items() for rule in late(act.__name__, rows, times=times)),
        {"fault": refused, "contains": text, "first_of_each": 1},
    )
    yield Acting(acts_airflow, acts_stub, tail, tmp_path_factory.mktemp("acts"))
    tail.close()


@pytest.fixture(scope="module")
def under_way(acting: Acting, request: pytest.FixtureRequest):
    """Every act that was chosen, begun; what the scheduler's death needs waits in the triggerer meanwhile."""
    chosen = [item for item in request.session.items if item.path == request.path]
    acts = [item.callspec.params["act"] for item in chosen if hasattr(item, "callspec")]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        futures: dict[str, Future[Any]] = {}
        if len(acts) < len(chosen):
            futures[SCHEDULER] = threads.submit(acting.begin_and_hold, SCHEDULER)
        for act in sorted(acts, key=lambda act: act not in LONG):
            futures[act.__name__] = threads.submit(act, acting)
        yield futures


@pytest.mark.timeout(420)
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_act(under_way: dict[str, Future[Any]], act: Callable[[Acting], None]) -> None:
    under_way[act.__name__].result(400)


@pytest.mark.timeout(420)
def test_the_scheduler_is_killed_and_started_again(acting: Acting, under_way: dict[str, Future[Any]]) -> None:
    """Four runs: one waits, one ends before anybody misses its scheduler, one does not, and of one the task dies."""
    waiting: ActedRun = under_way[SCHEDULER].result(400)
    held = len(waiting.sent())
    long = acting.begin("long", "acted", rows=2400, asked=30)
    dies = acting.begin("dies", "acted", rows=400, asked=30)
    short = acting.begin("short", "acted", rows=200, asked=16)
    alive, victim = long.process(), dies.process()
    cut_off = alive.parent()
    cut_off.suspend()  # its supervisor: no heartbeat tells it of anything, as where a network is away
    acting.airflow.kill_component("scheduler")
    for process in (victim.parent(), victim):
        process.kill()
    until("the death", lambda: is_gone(victim))
    kept, asked = dies.kept(), len(dies.sent())
    assert not is_gone(alive), "the tasks of a scheduler that died live on"

    acting.hold(SCHEDULER, None)
    waiting.reaches("scheduled")  # by the triggerer; nobody begins it
    assert len(waiting.sent()) == held
    acting.airflow.start_component("scheduler")

    short.ends("success")
    assert short.task().try_number == 1
    short.has_landed(asked_twice=0)

    dies.ends("success")
    assert dies.task().try_number == 2
    not_again(kept, dies.sent()[asked:])
    dies.has_landed(asked_twice=IN_FLIGHT + FLUSH_ROWS + IN_FLIGHT)

    first = long.sent()[0].token
    until("a try beside the orphan", lambda: len({each.token for each in long.sent()}) > 1)
    time.sleep(NOTICED_S)
    ours = long.sent()
    began_s = min(each.at_s for each in ours if each.token != first)
    silent_s = max(each.at_s for each in ours if each.token == first)
    assert silent_s - began_s <= 4, "the orphan went on beside its successor"
    assert len(ours) < 2400, "it was through too soon to tell"
    acting.stub.state(delay_s=0.02)
    long.ends("success")
    assert long.task().try_number == 2
    assert len({each.token for each in long.sent()}) == 2
    overlap = sum(each.token == first and each.at_s >= began_s for each in ours)
    long.has_landed(asked_twice=overlap + 2 * IN_FLIGHT + FLUSH_ROWS)
    cut_off.resume()
    until("the orphan to end", lambda: is_gone(alive))
    assert "Try 2 has taken the run at" in long.log(try_number=1)

    waiting.ends("success")
    assert waiting.task().try_number == 1
    assert len(waiting.turns()) == 2
    waiting.has_landed(asked_twice=IN_FLIGHT_HELD)
