"""The operator on a real scheduler: values through XCom, mapping, mistakes, a changed prompt, and being stopped."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import time
from pathlib import Path

import pytest


def run(airflow, dag_id: str, expected: str, *, conf: dict | None = None) -> str:
    airflow.rest.wait_for_dag(dag_id)
    run_id = airflow.rest.trigger(dag_id, conf=conf)
    ended(airflow, dag_id, run_id, expected)
    return run_id


def ended(airflow, dag_id: str, run_id: str, expected: str) -> None:
    """Wait for the run's end; where it is another than expected, show the logs that say why."""
    state = airflow.rest.wait_for_run(dag_id, run_id)
    if state != expected:
        logs = "\n".join(
            f"--- {each.task_id} [{each.map_index}] {each.state}, try {each.try_number}\n"
            + log_of(airflow, dag_id, run_id, each.task_id, try_number=each.try_number, map_index=each.map_index)
            for each in airflow.rest.tasks(dag_id, run_id)
            if each.try_number
        )
        pytest.fail(f"{dag_id} {run_id} is {state}, not {expected}:\n{logs}")


def log_of(airflow, dag_id: str, run_id: str, task_id: str, *, try_number: int = 1, map_index: int = -1) -> str:
    """Everything the log says, the details of an error included."""
    events = airflow.rest.task_log(dag_id, run_id, task_id, try_number=try_number, map_index=map_index)
    return "\n".join(json.dumps(event, ensure_ascii=False).replace('\\"', '"').replace("\\n", "\n") for event in events)


def test_rows_come_from_a_task_and_results_go_to_the_next(llm_airflow) -> None:
    run_id = run(llm_airflow, "values", "success")
    manifest = llm_airflow.rest.xcom("values", run_id, "batch")
    assert manifest["counts"] == {"total": 7, "succeeded": 7, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert llm_airflow.rest.xcom("values", run_id, "read") == 7
    assert manifest["result_path"].startswith(f"file://{llm_airflow.home}/results/values/batch/manual__")
    part = next(Path(manifest["result_path"].removeprefix("file://")).glob("part-00000-*.jsonl"))
    first = json.loads(part.read_text().splitlines()[0])
    assert (first["index"], first["custom_id"], first["output"]) == (0, "v0", "echo: Say value 0 for me")
    assert llm_airflow.rest.xcom("values", run_id, "batch", key="_link_ResultsLink") == manifest["result_path"]


def test_the_log_says_what_is_in_force_and_who_set_it_and_no_secret(llm_airflow) -> None:
    run_id = run(llm_airflow, "values", "success")
    log = log_of(llm_airflow, "values", run_id, "batch")
    assert "model = 'stub'  [connection vllm_default]" in log
    assert "max_in_flight = 16  [pool_slots]" in log
    assert "results_base" in log
    everything = "".join(path.read_text() for path in (llm_airflow.home / "logs").rglob("*.log"))
    assert "sk-very-secret-key" not in everything
    results = "".join(path.read_text() for path in (llm_airflow.home / "results").rglob("*.json*"))
    assert "sk-very-secret-key" not in results


def test_files_with_what_is_taken_of_them(llm_airflow, tmp_path: Path) -> None:
    """Their words are rendered, and are the same whenever the DAG is parsed."""
    rows = [{"id": f"t{number}", "text": f"row, {number}"} for number in range(20)]
    lines = [f'{row["id"]},"{row["text"]}",x\n' for row in rows]
    (tmp_path / "a.csv").write_text("".join(["id,text,other\n", *lines]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    run_id = run(llm_airflow, "from_files", "success", conf={"folder": str(tmp_path)})
    for task_id, amount in (("table", 5), ("packed.assemble", 20)):
        manifest = llm_airflow.rest.xcom("from_files", run_id, task_id)
        assert manifest["counts"] == {
            "total": amount,
            "succeeded": amount,
            "truncated": 0,
            "invalid_output": 0,
            "errored": 0,
        }
        parts = sorted(Path(manifest["result_path"].removeprefix("file://")).glob("part-*.jsonl"))
        landed = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
        assert [line["custom_id"] for line in landed] == [row["id"] for row in rows[:amount]]
        assert [line["output"] for line in landed] == [f"echo: Say {row['text']}" for row in rows[:amount]]
    versions = llm_airflow.rest.call("GET", "/dags/from_files/dagVersions")
    assert versions["total_entries"] == 1, "the DAG looks new at each parse"


def test_mapped_tasks_have_runs_and_retries_of_their_own(llm_airflow) -> None:
    run_id = run(llm_airflow, "mapped", "success")
    tasks = llm_airflow.rest.tasks("mapped", run_id)
    assert {each.max_tries for each in tasks} == {3}
    totals = {
        each.map_index: llm_airflow.rest.xcom("mapped", run_id, "batch", map_index=each.map_index)["counts"]["total"]
        for each in tasks
    }
    assert totals == {0: 2, 1: 1}


MISTAKES = {
    "wrong_model": ["EndpointRefusedError", "'gpt-9'", "it serves 'stub'"],
    "absent_field": ["ConfigurationError", "txt", "the row's fields are: custom_id, text", "good.jsonl, line 1"],
    "empty_source": ["SourceError", "no rows", "on_empty='fail'"],
    "no_file": ["SourceError", "no file matches", "none-*.jsonl"],
    "duplicate_ids": ["DuplicateIdError", "'g7'", "duplicates.jsonl, line 8", "duplicates.jsonl, line 41"],
    "foreign": ["ForeignRunError", "mistaken.owner", "mistaken.foreign", "result_path"],
}


@pytest.fixture(scope="module")
def mistaken(llm_airflow, llm_stub):
    before = len(llm_stub.requested())
    run_id = run(llm_airflow, "mistaken", "failed")
    return run_id, {each.task_id: each for each in llm_airflow.rest.tasks("mistaken", run_id)}, before


@pytest.mark.parametrize("task_id", MISTAKES)
def test_a_mistake_fails_at_once_and_says_what_to_do(llm_airflow, mistaken, task_id: str) -> None:
    run_id, tasks, _ = mistaken
    assert (tasks[task_id].state, tasks[task_id].try_number) == ("failed", 1), "no retry mends it"
    log = log_of(llm_airflow, "mistaken", run_id, task_id)
    for words in MISTAKES[task_id]:
        assert words in log


def test_a_missing_connection_is_looked_for_again(llm_airflow, mistaken) -> None:
    """Airflow says the same of a secrets backend that is away for a moment."""
    run_id, tasks, _ = mistaken
    task = tasks["missing_connection"]
    assert (task.state, task.try_number) == ("failed", task.max_tries + 1)
    log = log_of(llm_airflow, "mistaken", run_id, "missing_connection")
    for words in ("ConnectionMissingError", "nowhere", "airflow connections add"):
        assert words in log


def test_a_malformed_line_is_a_dead_letter_and_the_run_goes_on(llm_airflow, mistaken) -> None:
    run_id, tasks, _ = mistaken
    assert tasks["malformed_line"].state == "success"
    manifest = llm_airflow.rest.xcom("mistaken", run_id, "malformed_line")
    assert manifest["counts"] == {"total": 42, "succeeded": 41, "truncated": 0, "invalid_output": 0, "errored": 1}
    letter = json.loads(Path(manifest["dead_letter"].removeprefix("file://")).read_text())
    assert (letter["index"], letter["source"]["line"]) == (40, 41)
    assert letter["source"]["file"].endswith("malformed.jsonl")
    assert letter["raw"] == '{"text": "broken"'


def test_an_empty_source_may_skip(mistaken) -> None:
    _, tasks, _ = mistaken
    assert tasks["skipped_source"].state == "skipped"


def test_a_prompt_changed_after_the_run_is_refused_and_named(llm_airflow, llm_work: Path, llm_stub) -> None:
    prompt = llm_work / "prompt.txt"
    prompt.write_text("One {{ row.text }}")
    run_id = run(llm_airflow, "changing", "success")
    sent = len(llm_stub.requested())
    clear(llm_airflow, "changing", run_id)
    ended(llm_airflow, "changing", run_id, "success")
    assert len(llm_stub.requested()) == sent, "a finished, unchanged run sends nothing"
    prompt.write_text("Two {{ row.text }}")
    clear(llm_airflow, "changing", run_id)
    ended(llm_airflow, "changing", run_id, "failed")
    task = llm_airflow.rest.task("changing", run_id, "batch")
    log = log_of(llm_airflow, "changing", run_id, "batch", try_number=task.try_number)
    assert "prompt was 'One {{ row.text }}' and is 'Two {{ row.text }}' now" in log
    assert "on_stale='restart'" in log
    assert len(llm_stub.requested()) == sent


def clear(airflow, dag_id: str, run_id: str) -> None:
    airflow.rest.call(
        "POST", f"/dags/{dag_id}/clearTaskInstances", {"dag_run_id": run_id, "dry_run": False, "only_failed": False}
    )


def mark_failed(airflow, dag_id: str, run_id: str, task_id: str) -> None:
    airflow.rest.call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}", {"new_state": "failed"})


def terminate(airflow, dag_id: str, run_id: str, task_id: str) -> None:
    for process in airflow.task_processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


@pytest.mark.parametrize("stop", [terminate, mark_failed])
def test_a_stopped_task_journals_what_it_has_before_it_dies(llm_airflow, llm_stub, tmp_path: Path, stop) -> None:
    llm_stub.state(delay_s=0.2)
    source, results = tmp_path / "rows.jsonl", tmp_path / "results"
    source.write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(2000)))
    llm_airflow.rest.wait_for_dag("killed")
    begun = len(llm_stub.requested())
    run_id = llm_airflow.rest.trigger("killed", conf={"source": str(source), "result_path": str(results)})
    deadline = time.monotonic() + 90
    while len(llm_stub.requested()) < begun + 40 and time.monotonic() < deadline:
        time.sleep(0.02)
    stop(llm_airflow, "killed", run_id, "batch")
    for process in llm_airflow.task_processes():
        process.wait(30)
    first, *_ = tries = llm_stub.tries()[begun:]  # the next try may have begun to ask by now
    answered = tries.count(first) - 16  # at most so many were in flight
    kept = sum(
        len(path.read_text().splitlines())
        for path in (*results.glob("part-*.jsonl"), *results.glob("_run/journal/*/*.jsonl"))
    )
    assert kept >= answered - 16
    assert kept > 0
    llm_stub.state(delay_s=0.0)
    if stop is mark_failed:
        ended(llm_airflow, "killed", run_id, "failed")
        clear(llm_airflow, "killed", run_id)
    ended(llm_airflow, "killed", run_id, "success")
    landed = [
        json.loads(line)["index"] for part in sorted(results.glob("part-*")) for line in part.read_text().splitlines()
    ]
    assert landed == list(range(2000))
    assert len(llm_stub.requested()) - begun <= 2000 + 16 + 16


def test_an_execution_timeout_keeps_what_it_has(llm_airflow, llm_stub, tmp_path: Path) -> None:
    llm_stub.state(delay_s=0.2)
    source, results = tmp_path / "rows.jsonl", tmp_path / "results"
    source.write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(900)))  # 900 / (16 / 0.2 s) = 11 s at best
    llm_airflow.rest.wait_for_dag("timed")
    begun = len(llm_stub.requested())
    run_id = llm_airflow.rest.trigger("timed", conf={"source": str(source), "result_path": str(results)})
    ended(llm_airflow, "timed", run_id, "success")
    llm_stub.state(delay_s=0.0)
    tries = llm_airflow.rest.task("timed", run_id, "batch").try_number
    assert tries >= 2
    landed = [json.loads(line)["index"] for part in results.glob("part-*") for line in part.read_text().splitlines()]
    assert landed == list(range(900))
    assert len(llm_stub.requested()) - begun <= 900 + (tries - 1) * 2 * 16, "each time-out costs what was in flight"
