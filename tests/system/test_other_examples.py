"""The example DAGs that no other test runs, as they are, on a real scheduler."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_rows(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"custom_id": text, "text": text}) + "\n" for text in texts))


def run(airflow, dag_id: str, conf: dict[str, str]) -> str:
    airflow.rest.wait_for_dag(dag_id)
    run_id = airflow.rest.trigger(dag_id, conf=conf)
    assert airflow.rest.wait_for_run(dag_id, run_id) == "success"
    return run_id


def test_a_burst_answers_one_question_about_every_document(examples_airflow, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", "one", "two")
    write_rows(tmp_path / "b.jsonl", "three")
    deadline = datetime.now(UTC) + timedelta(hours=1)
    conf = {"source": f"{tmp_path}/*.jsonl", "question": "Who {{ signed }}?", "deadline": deadline.isoformat()}
    run_id = run(examples_airflow, "burst_documents", conf)
    answers = examples_airflow.rest.xcom("burst_documents", run_id, "answers")
    assert Path(answers.removeprefix("file://")).read_text() == "\n".join(
        f"{text}\necho: {text}\n\nWho {{{{ signed }}}}?\n" for text in ("one", "two", "three")
    )


def test_dedicated_gpus_are_filled_without_a_number(examples_airflow, tmp_path: Path) -> None:
    write_rows(tmp_path / "archive.jsonl", *map(str, range(20)))
    run_id = run(examples_airflow, "dedicated_gpu", {"archive": f"{tmp_path}/*.jsonl"})
    assert examples_airflow.rest.xcom("dedicated_gpu", run_id, "keywords")["counts"]["succeeded"] == 20
    log = examples_airflow.rest.task_log_text("dedicated_gpu", run_id, "keywords", try_number=1)
    assert "max_in_flight = 512  [connection vllm_batch (2 × slots 256)]" in log
    assert "limit_law = 'adaptive'" in log
    assert "window = None" in log


def test_shared_gpus_get_one_task_for_each_teams_tickets(examples_airflow, tmp_path: Path) -> None:
    hour = datetime.now(UTC) - timedelta(hours=1)
    for at in (hour, hour + timedelta(hours=1)):  # the clock may strike between here and there
        for team in ("north", "south"):
            write_rows(tmp_path / f"{at:%Y-%m-%dT%H}" / f"{team}.jsonl", f"{team} ticket")
    run_id = run(examples_airflow, "shared_gpu_priority", {"tickets": f"file://{tmp_path}"})
    tasks = [task for task in examples_airflow.rest.tasks("shared_gpu_priority", run_id) if task.task_id == "label"]
    assert {(task.map_index, task.state) for task in tasks} == {(0, "success"), (1, "success")}
    log = examples_airflow.rest.task_log_text("shared_gpu_priority", run_id, "label", try_number=1, map_index=1)
    assert "priority = 100" in log
    assert "limit_law = 'headroom'" in log
    assert "headroom_unread = 2" in log


def test_an_archive_is_shared_out_to_workers(examples_airflow, tmp_path: Path) -> None:
    write_rows(tmp_path / "archive.jsonl", *map(str, range(2500)))
    run_id = run(examples_airflow, "archive_on_workers", {"archive": f"{tmp_path}/*.jsonl"})
    assert examples_airflow.rest.xcom("archive_on_workers", run_id, "count") == 2500
    shares = [
        task for task in examples_airflow.rest.tasks("archive_on_workers", run_id) if task.task_id.endswith("work")
    ]
    assert {(task.map_index, task.state) for task in shares} == {(0, "success"), (1, "success"), (2, "success")}


def test_tickets_of_a_parquet_export_are_sorted(examples_airflow, tmp_path: Path) -> None:
    tickets = [
        {
            "ticket_id": 700 + number,
            "subject": f"subject {number}",
            "body": f"body {number}",
            "agent": "nobody's business",
        }
        for number in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(tickets), tmp_path / "export.parquet")
    run_id = run(examples_airflow, "triage_tickets", {"export": f"file://{tmp_path}/*.parquet"})
    said = examples_airflow.rest.xcom("triage_tickets", run_id, "report")
    assert said.startswith("30 tickets at file://")
    parts = Path(said.removeprefix("30 tickets at file://"))
    landed = [json.loads(line) for part in parts.parent.glob(parts.name) for line in part.read_text().splitlines()]
    assert [line["custom_id"] for line in landed] == [str(700 + number) for number in range(30)]
    assert {line["output"] for line in landed} == {"echo: One of billing,"}  # after four tokens


def test_complaints_are_extracted_as_data(examples_airflow, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.eml").write_text(f"Subject: broken\n\nThe lamp {number} does not light.\n")
    run_id = run(examples_airflow, "extract_complaints", {"mails": f"file://{tmp_path}"})
    assert examples_airflow.rest.xcom("extract_complaints", run_id, "extract")["counts"]["succeeded"] == 3
    assert examples_airflow.rest.xcom("extract_complaints", run_id, "count") == {"x": 3, "refunds": 0}
