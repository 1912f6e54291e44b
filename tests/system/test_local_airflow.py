"""The Airflow of the demo and the system tests: it runs DAGs, survives a kill, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tools.local_airflow import LocalAirflow
from tools.program import Program, ProgramError, end_leftovers, is_alive

ROOT = Path(__file__).parents[2]


def test_a_run_succeeds_and_can_be_asked_about(trivial_airflow: LocalAirflow) -> None:
    rest = trivial_airflow.rest
    rest.wait_for_dag("trivial")
    run_id = rest.trigger("trivial")
    assert rest.wait_for_run("trivial", run_id) == "success"
    assert rest.dag_run("trivial", run_id)["logical_date"] is None
    assert rest.xcom("trivial", run_id, "first") == {"values": [1, 2.5, "x"]}
    assert rest.xcom("trivial", run_id, "second") == "x"
    assert {task.task_id: (task.state, task.try_number) for task in rest.tasks("trivial", run_id)} == {
        "first": ("success", 1),
        "second": ("success", 1),
    }
    assert "first speaks" in rest.task_log_text("trivial", run_id, "first", try_number=1)


def test_a_killed_task_is_tried_again(trivial_airflow: LocalAirflow) -> None:
    rest = trivial_airflow.rest
    rest.wait_for_dag("trivial")
    run_id = rest.trigger("trivial", conf={"sleep_s": 3})
    deadline = time.monotonic() + 60
    while not (victims := trivial_airflow.task_processes()):
        assert time.monotonic() < deadline, "no task process was seen"
        time.sleep(0.1)
    for victim in victims:
        victim.kill()
    assert rest.wait_for_run("trivial", run_id) == "success"
    assert rest.task("trivial", run_id, "first").try_number == 2


def test_it_listens_on_loopback_only_and_nothing_stays_after_stop(trivial_airflow: LocalAirflow) -> None:
    processes = trivial_airflow.processes()
    assert len(processes) >= 4
    listening = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    trivial_airflow.stop()  # no test after this one uses it
    assert not [process for process in processes if is_alive(process)]
    assert not (trivial_airflow.home / "processes.json").exists()


def test_an_airflow_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = LocalAirflow(tmp_path, tmp_path, env={"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "nonsense"})
    with pytest.raises(ProgramError, match=r"airflow db migrate failed\. Its log, .*migrate\.log, ends with:\n.*"):
        broken.start()


OWNER = """
import os, sys
from pathlib import Path
from tools.program import Program, write_records

home = Path(sys.argv[1])
child = ["/bin/sh", "-c", "sleep 99; true"]
program = Program(name="sleeper", argv=child, cwd=home, log_path=home / "log")
program.start()
write_records(home / "processes.json", [program])
while len(program.processes()) < 2:
    pass
print(program.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_leftovers_of_a_killed_owner_are_found_and_ended(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    leader = psutil.Process(int(result.stdout))
    left = [leader, *leader.children()]
    assert len(left) == 2
    leader.kill()  # its child has no parent left that knows it
    assert end_leftovers(tmp_path / "processes.json") == ["sleeper"]
    psutil.wait_procs(left, timeout=10)
    assert not [process for process in left if is_alive(process)]
    assert end_leftovers(tmp_path / "processes.json") == []


COUNTS = """
import os, time
os.fork()
while True:
    os.write(1, b".")
    time.sleep(0.01)
"""


def test_a_frozen_program_stands_still_and_a_killed_one_is_gone(tmp_path: Path) -> None:
    program = Program(name="counter", argv=[sys.executable, "-c", COUNTS], cwd=tmp_path, log_path=tmp_path / "log")
    program.start()

    def writes() -> bool:
        before = program.log_path.stat().st_size
        time.sleep(0.3)
        return program.log_path.stat().st_size > before

    try:
        deadline = time.monotonic() + 30
        while len(program.processes()) < 2:
            assert time.monotonic() < deadline
        assert writes()
        program.freeze()
        assert not writes()
        program.thaw()
        assert writes()
        members = program.processes()
        program.kill()
        assert not [process for process in members if is_alive(process)]
    finally:
        program.stop(patience_s=5)


def test_a_process_that_only_bears_a_recorded_number_is_left_alone(tmp_path: Path) -> None:
    stranger = Program(
        name="stranger",
        argv=[sys.executable, "-c", "import time; time.sleep(99)"],
        cwd=tmp_path,
        log_path=tmp_path / "log",
    )
    stranger.start()
    try:
        record = {**stranger.record(), "created": time.time() - 3600}
        (tmp_path / "processes.json").write_text(json.dumps([record]))
        assert end_leftovers(tmp_path / "processes.json") == []
        assert stranger.exit_code is None
    finally:
        stranger.stop(patience_s=5)
