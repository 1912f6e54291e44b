"""Functions whose rows are the batch, answers that are data, and sinks, on a real scheduler."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_kills import wait_for
from test_operator import log_of


@pytest.mark.timeout(300)
def test_functions_schemas_and_sinks(llm_airflow, llm_stub, tmp_path: Path) -> None:
    """The batch is killed in its middle; the function is not called again."""
    rest = llm_airflow.rest
    llm_stub.state(delay_s=0.3)
    seen = len(llm_stub.requested())
    rest.wait_for_dag("answers")
    run_id = rest.trigger("answers", conf={"folder": str(tmp_path)})

    def its_process() -> int | None:
        task = next(each for each in rest.tasks("answers", run_id) if each.task_id == "structured")
        return task.pid if task.state == "running" else None

    wait_for("rows of the function", lambda: (tmp_path / "calls").exists() and len(llm_stub.requested()) > seen + 10)
    victim = wait_for("its process", its_process)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    llm_stub.state(delay_s=0.0)
    assert rest.wait_for_run("answers", run_id, timeout_s=240) == "failed", "one of its tasks has no files to read"

    states = {(each.task_id, each.map_index): each for each in rest.tasks("answers", run_id)}
    assert states.pop(("an_asset", -1)).state == "failed"
    assert {each.state for each in states.values()} == {"success"}
    assert "no file matches" in log_of(llm_airflow, "answers", run_id, "an_asset", try_number=1)

    assert states["structured", -1].try_number == 2
    assert (tmp_path / "calls").read_text() == "x", "the function was called again"
    manifest = rest.xcom("answers", run_id, "structured")
    assert manifest["counts"]["succeeded"] == 40
    assert rest.xcom("answers", run_id, "typed") == [40, 0]
    folder = Path(manifest["result_path"].removeprefix("file://"))
    rows = [row for path in sorted(folder.glob("results-*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["custom_id"] for row in rows] == [f"c1-{number}" for number in range(40)]
    assert {row["parsed"]["severity"] for row in rows} == {"low"}
    assert all(row["text"].endswith(f" {row['index']}") for row in rows)
    (output,) = folder.glob("output-*.jsonl")
    said = [
        json.loads(line)["response"]["body"]["choices"][0]["message"]["content"]
        for line in output.read_text().splitlines()
    ]
    assert said == ['{"severity":"low","words":0}'] * 40
    assert not (folder / "_run" / "input").exists()

    for index, word in enumerate(("one", "two")):
        mapped = rest.xcom("answers", run_id, "mapped", map_index=index)
        (part,) = Path(mapped["result_path"].removeprefix("file://")).glob("part-*.jsonl")
        assert [json.loads(line)["output"] for line in part.read_text().splitlines()] == [
            f"echo: Say {word}",
            f"echo: Say {word} again",
        ]

    group = rest.xcom("answers", run_id, "group.assemble")
    parts = sorted(Path(group["result_path"].removeprefix("file://")).glob("results-*.parquet"))
    assert [row["text"] for path in parts for row in pq.read_table(path).to_pylist()] == [str(n) for n in range(20)]
