"""Release on a real scheduler with a real triggerer: windows, the hold switch, pools."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from llm_fixtures import StubProcess

    from tools.local_airflow import LocalAirflow

LONDON = ZoneInfo("Europe/London")
REQUESTS_PER_SLOT = 16


def connect(airflow: LocalAirflow, conn_id: str, stub: StubProcess, **extra: Any) -> None:
    """Make or change a connection in Airflow's database, as a platform engineer does in the UI."""
    body = {
        "connection_id": conn_id,
        "conn_type": "vllm",
        "host": stub.url,
        "extra": json.dumps({"model": "stub", **extra}),
    }
    known = airflow.rest.call("GET", "/connections?limit=1000")["connections"]
    if conn_id in {each["connection_id"] for each in known}:
        airflow.rest.call("PATCH", f"/connections/{conn_id}", body)
    else:
        airflow.rest.call("POST", "/connections", body)


def make_pool(airflow: LocalAirflow, name: str, slots: int) -> None:
    known = airflow.rest.call("GET", "/pools?limit=1000")["pools"]
    if name not in {each["name"] for each in known}:
        airflow.rest.call("POST", "/pools", {"name": name, "slots": slots, "include_deferred": False})


def write_rows(path: Path, amount: int) -> str:
    path.write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(amount)))
    return str(path)


def landed(folder: Path) -> list[int]:
    return [
        json.loads(line)["index"] for part in sorted(folder.glob("part-*")) for line in part.read_bytes().splitlines()
    ]


def wait_for(what: str, found: Any, *, timeout_s: float, every_s: float = 0.5) -> Any:
    """Ask `found()` until it says something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (value := found()) is not None:
            return value
        time.sleep(every_s)
    pytest.fail(f"waited {timeout_s:.0f} s for {what}")


def at(moment: datetime) -> None:
    """Sleep until then."""
    time.sleep(max(0.0, (moment - datetime.now(LONDON)).total_seconds()))


def window_text(*windows: tuple[datetime, datetime]) -> str:
    """As manifests have it: a time on the minute has no seconds."""
    times = (
        (f"{opens:%H:%M:%S}".removesuffix(":00"), f"{closes:%H:%M:%S}".removesuffix(":00")) for opens, closes in windows
    )
    return "; ".join(f"{opens}-{closes} Europe/London" for opens, closes in times)


def test_a_run_that_needs_three_nights_takes_three(
    llm_airflow: LocalAirflow, llm_stub: StubProcess, tmp_path: Path
) -> None:
    """It holds neither worker nor pool slot between them, spends no retry, and sends nothing outside them.

    Between the first two, the triggerer is killed and started again.
    """
    llm_stub.state(delay_s=0.5)
    make_pool(llm_airflow, "nights", 1)
    source, results = write_rows(tmp_path / "rows.jsonl", 600), tmp_path / "results"
    begin = datetime.now(LONDON).replace(microsecond=0) + timedelta(seconds=8)
    # 600 rows take 75 s, the first two nights have 70. The first one is longer than the 30 s that a row is taken to
    # need before one has been measured.
    opens = [begin, begin + timedelta(seconds=90), begin + timedelta(seconds=160)]
    closes = [begin + timedelta(seconds=45), begin + timedelta(seconds=115), begin + timedelta(minutes=10)]
    nights = list(zip(opens, closes, strict=True))
    connect(llm_airflow, "vllm_nights", llm_stub, window=window_text(*nights))
    llm_airflow.rest.wait_for_dag("nights")
    before = llm_stub.tally()["received"]
    run_id = llm_airflow.rest.trigger("nights", conf={"source": source, "result_path": str(results)})
    at(nights[0][0])
    assert llm_stub.tally()["received"] == before, "sent before the window opened"
    settled = 0
    for number, (_, close) in enumerate(nights[:-1]):
        at(close)
        tally = llm_stub.tally()
        assert tally["in_flight"] == 0, "something is in flight after the close"
        assert tally["received"] > before + settled, "nothing was sent while the window was open"
        settled = tally["received"] - before
        state = wait_for("the deferral", lambda: deferred(llm_airflow, "nights", run_id), timeout_s=20)
        assert state.try_number == 1
        pool = llm_airflow.rest.call("GET", "/pools/nights")
        assert (pool["occupied_slots"], pool["running_slots"], pool["deferred_slots"]) == (0, 0, 1)
        assert not llm_airflow.task_processes(), "a worker waits"
        if number == 0:
            for process in llm_airflow.component("triggerer").processes():
                process.kill()
            llm_airflow.start_component("triggerer")
        at(nights[number + 1][0])
        assert llm_stub.tally()["received"] == before + settled, "sent outside the window"
    assert llm_airflow.rest.wait_for_run("nights", run_id, timeout_s=120) == "success"
    task = llm_airflow.rest.task("nights", run_id, "batch")
    assert task.try_number == 1, "a night that ended spent a retry"
    assert landed(results) == list(range(600))
    assert llm_stub.tally()["received"] - before <= 600 + 2 * 4, "a close costs at most what was in flight"
    log = llm_airflow.rest.task_log_text("nights", run_id, "batch", try_number=1)
    assert "On hold: the window is closed until" in log
    assert "Waiting in the triggerer" in log
    manifest = json.loads((results / "manifest.json").read_text())
    assert manifest["release"]["window"] == window_text(*nights)


def deferred(airflow: LocalAirflow, dag_id: str, run_id: str) -> Any:
    task = airflow.rest.task(dag_id, run_id, "batch")
    assert task.state in (None, "scheduled", "queued", "running", "deferred"), task
    return task if task.state == "deferred" else None


def test_the_hold_switch_stops_what_runs_and_keeps_what_waits(
    llm_airflow: LocalAirflow, llm_stub: StubProcess, tmp_path: Path
) -> None:
    llm_stub.state(delay_s=0.5)
    make_pool(llm_airflow, "nights", 1)
    source, results = write_rows(tmp_path / "rows.jsonl", 200), tmp_path / "results"
    connect(llm_airflow, "vllm_held", llm_stub)
    llm_airflow.rest.wait_for_dag("held")
    before = llm_stub.tally()["received"]
    run_id = llm_airflow.rest.trigger("held", conf={"source": source, "result_path": str(results)})
    wait_for("the first requests", lambda: llm_stub.tally()["received"] > before or None, timeout_s=90)
    connect(llm_airflow, "vllm_held", llm_stub, hold="new GPUs are put in")
    switched = time.monotonic()
    wait_for(
        "nothing in flight", lambda: True if llm_stub.tally()["in_flight"] == 0 else None, timeout_s=20, every_s=0.1
    )
    wait_for("the server to stay idle", lambda: quiet(llm_stub), timeout_s=20)
    stopped_s = time.monotonic() - switched
    assert stopped_s < 10 + 2, "a running task obeys within 10 s (and we looked for 2 s)"
    wait_for("the deferral", lambda: deferred(llm_airflow, "held", run_id), timeout_s=60)
    sent = llm_stub.tally()["received"]
    time.sleep(8)
    assert llm_stub.tally()["received"] == sent
    assert deferred(llm_airflow, "held", run_id) is not None
    connect(llm_airflow, "vllm_held", llm_stub)
    assert llm_airflow.rest.wait_for_run("held", run_id, timeout_s=180) == "success"
    assert landed(results) == list(range(200))
    log = llm_airflow.rest.task_log_text("held", run_id, "batch", try_number=1)
    assert "the connection's hold switch is set: new GPUs are put in" in log


def test_the_hold_switch_sends_the_shares_of_a_group_to_the_triggerer(
    llm_airflow: LocalAirflow, llm_stub: StubProcess, tmp_path: Path
) -> None:
    """They come back when it is off again, each to its own rows, and spend no retry."""
    rest, shares, each = llm_airflow.rest, range(4), 60
    llm_stub.state(delay_s=0.5)
    source, results = write_rows(tmp_path / "rows.jsonl", len(shares) * each), tmp_path / "results"
    connect(llm_airflow, "vllm_held_group", llm_stub)
    rest.wait_for_dag("held_group")
    before = llm_stub.tally()["received"]
    run_id = rest.trigger("held_group", conf={"source": source, "result_path": str(results)})
    wait_for("the first requests", lambda: llm_stub.tally()["received"] > before + 8 or None, timeout_s=90)
    connect(llm_airflow, "vllm_held_group", llm_stub, hold="new GPUs are put in")

    def tasks() -> list[Any]:
        return [rest.task("held_group", run_id, "batch.work", map_index=share) for share in shares]

    def all_deferred() -> bool | None:
        return True if {task.state for task in tasks()} == {"deferred"} else None

    wait_for("all shares to wait", all_deferred, timeout_s=90)
    sent = llm_stub.tally()["received"] - before
    assert not llm_airflow.task_processes(), "a worker waits"
    time.sleep(8)  # that nothing is sent can only be waited for; a trigger looks every 5 s
    assert all_deferred()
    assert llm_stub.tally()["received"] - before == sent < len(shares) * each
    connect(llm_airflow, "vllm_held_group", llm_stub)
    assert rest.wait_for_run("held_group", run_id, timeout_s=180) == "success"
    assert landed(results) == list(range(len(shares) * each))
    assert {task.try_number for task in tasks()} == {1}
    again = llm_stub.tally()["received"] - before - len(shares) * each
    assert 0 <= again <= 2 * len(shares), "more was asked twice than was in flight"
    log = rest.task_log_text("held_group", run_id, "batch.work", map_index=0, try_number=1)
    assert "the connection's hold switch is set: new GPUs are put in" in log


def quiet(stub: StubProcess) -> bool | None:
    """Whether nothing comes for two seconds."""
    first = stub.tally()
    time.sleep(2)
    return True if stub.tally() == first else None


def test_a_pools_size_caps_what_is_in_flight_over_all_its_tasks(
    llm_airflow: LocalAirflow, llm_stub: StubProcess, tmp_path: Path
) -> None:
    make_pool(llm_airflow, "gpu", 2)
    connect(llm_airflow, "vllm_pooled", llm_stub)
    source = write_rows(tmp_path / "rows.jsonl", 300)
    llm_airflow.rest.wait_for_dag("pooled")
    llm_stub.state(delay_s=0.2)
    before = llm_stub.tally()["received"]
    run_id = llm_airflow.rest.trigger("pooled", conf={"source": source})
    peak, running = 0, 0

    def ended() -> Any:
        nonlocal peak, running
        peak = max(peak, llm_stub.tally()["in_flight"])
        running = max(running, llm_airflow.rest.call("GET", "/pools/gpu")["running_slots"])
        run = llm_airflow.rest.dag_run("pooled", run_id)
        return run if run["state"] in ("success", "failed") else None

    assert wait_for("six tasks", ended, timeout_s=240, every_s=0.1)["state"] == "success"
    assert llm_stub.tally()["received"] - before == 6 * 300
    assert REQUESTS_PER_SLOT < peak <= 2 * REQUESTS_PER_SLOT, "two tasks at a time, and no third beside them"
    assert running == 2


def test_sensors_wait_for_the_window(llm_airflow: LocalAirflow, llm_stub: StubProcess) -> None:
    opens = datetime.now(LONDON).replace(microsecond=0) + timedelta(seconds=45)
    connect(llm_airflow, "vllm_nights", llm_stub, window=window_text((opens, opens + timedelta(minutes=5))))
    llm_airflow.rest.wait_for_dag("sensed")
    run_id = llm_airflow.rest.trigger("sensed")
    assert llm_airflow.rest.wait_for_run("sensed", run_id, timeout_s=120) == "success"
    for task_id in ("by_connection", "poking"):
        task = llm_airflow.rest.task("sensed", run_id, task_id)
        assert datetime.fromisoformat(task.note["end_date"]) >= opens, task_id


def closed_for(airflow: LocalAirflow, stub: StubProcess, wait: timedelta, **extra: Any) -> datetime:
    """Let the window of `vllm_closed` open after `wait`; returns when."""
    opens = datetime.now(LONDON).replace(microsecond=0) + wait
    connect(airflow, "vllm_closed", stub, window=window_text((opens, opens + timedelta(hours=1))), **extra)
    return opens


def test_a_dag_run_that_times_out_skips_what_waits_and_a_clear_goes_on(
    llm_airflow: LocalAirflow, llm_stub: StubProcess, tmp_path: Path
) -> None:
    closed_for(llm_airflow, llm_stub, timedelta(hours=5))
    source = write_rows(tmp_path / "rows.jsonl", 10)
    conf = {"source": source, "result_path": str(tmp_path / "results")}
    llm_airflow.rest.wait_for_dag("impatient")
    run_id = llm_airflow.rest.trigger("impatient", conf=conf)
    assert llm_airflow.rest.wait_for_run("impatient", run_id, timeout_s=120) == "failed"
    assert llm_airflow.rest.task("impatient", run_id, "batch").state == "skipped"
    connect(llm_airflow, "vllm_closed", llm_stub)
    clear = {"dag_run_id": run_id, "task_ids": ["batch"], "dry_run": False, "only_failed": False}
    llm_airflow.rest.call("POST", "/dags/impatient/clearTaskInstances", clear)
    assert llm_airflow.rest.wait_for_run("impatient", run_id, timeout_s=120) == "success"
    assert landed(tmp_path / "results") == list(range(10))


def test_a_waiting_task_counts_among_the_active_ones(
    llm_airflow: LocalAirflow, llm_stub: StubProcess, tmp_path: Path
) -> None:
    closed_for(llm_airflow, llm_stub, timedelta(hours=5))
    source = write_rows(tmp_path / "rows.jsonl", 10)
    llm_airflow.rest.wait_for_dag("one_at_a_time")
    first = llm_airflow.rest.trigger("one_at_a_time", conf={"source": source})
    wait_for("the deferral", lambda: deferred(llm_airflow, "one_at_a_time", first), timeout_s=60)
    second = llm_airflow.rest.trigger("one_at_a_time", conf={"source": source})
    time.sleep(10)
    assert llm_airflow.rest.task("one_at_a_time", second, "batch").state in (None, "scheduled")
    connect(llm_airflow, "vllm_closed", llm_stub)
    for run_id in (first, second):
        assert llm_airflow.rest.wait_for_run("one_at_a_time", run_id, timeout_s=120) == "success"


def test_runs_of_long_ago_wait_for_the_next_window_and_their_deadlines_open_nothing(
    llm_airflow: LocalAirflow, llm_stub: StubProcess
) -> None:
    opens = closed_for(llm_airflow, llm_stub, timedelta(seconds=50), early_for_deadline=True)
    before = llm_stub.tally()["received"]
    llm_airflow.rest.wait_for_dag("caught_up")
    llm_airflow.rest.call("PATCH", "/dags/caught_up", {"is_paused": False})

    def runs() -> Any:
        found = llm_airflow.rest.call("GET", "/dags/caught_up/dagRuns?limit=10")["dag_runs"]
        return found if len(found) == 3 else None

    names = [run["dag_run_id"] for run in wait_for("three runs", runs, timeout_s=60)]
    at(opens)
    assert llm_stub.tally()["received"] == before
    for run_id in names:
        assert llm_airflow.rest.wait_for_run("caught_up", run_id, timeout_s=120) == "success"
    assert llm_stub.tally()["received"] == before + 3
