"""The main job on a real scheduler against a real vLLM that is stopped and started again in the middle of it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from conftest import API_KEY, RealVLLM
from pace import token_s, tokens_for

from tools.local_airflow import LocalAirflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

ROWS = 800
SLOTS = 8
ROW_S = 0.3  # and so half a minute for all of them, in which the server is stopped after a tenth
FLAGS = ("--served-model-name", "tiny", "--max-num-seqs", str(SLOTS))
DAG = """
from airflow.sdk import DAG
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator

with DAG("real", schedule=None):
    LLMBatchOperator(
        task_id="batch",
        source={source!r},
        prompt="Say {{{{ row.text }}}}",
        temperature=0.0,
        max_tokens={tokens},
        extra_body={{"ignore_eos": True}},
        on_truncated="accept",
        result_path={results!r},
        chunk_rows=50,
        retries=0,
    )
"""


@pytest.fixture
def airflow_for(tmp_path: Path) -> Iterator[Callable[[RealVLLM, int], LocalAirflow]]:
    started: list[LocalAirflow] = []

    def start(server: RealVLLM, tokens: int) -> LocalAirflow:
        source = tmp_path / "rows.jsonl"
        source.write_text("".join(f'{{"text": "row number {n}"}}\n' for n in range(ROWS)))
        dags = tmp_path / "dags"
        dags.mkdir()
        dag = DAG.format(source=str(source), results=str(tmp_path / "results"), tokens=tokens)
        (dags / "real.py").write_text(dag)
        connection = {
            "conn_type": "vllm",
            "host": server.url,
            "password": API_KEY,
            "extra": {"model": "tiny", "slots": SLOTS},
        }
        airflow = LocalAirflow(tmp_path / "home", dags, env={"AIRFLOW_CONN_VLLM_DEFAULT": json.dumps(connection)})
        started.append(airflow.start())
        return airflow

    yield start
    for airflow in started:
        airflow.stop()


@pytest.mark.timeout(1200)
def test_a_server_stopped_in_the_middle_costs_no_row_and_no_try(
    start: Callable[..., AbstractContextManager[RealVLLM]],
    airflow_for: Callable[[RealVLLM, int], LocalAirflow],
    tmp_path: Path,
) -> None:
    results = tmp_path / "results"
    with start(*FLAGS) as server:
        tokens = tokens_for(ROW_S, asyncio.run(token_s(server, at_once=SLOTS)))
        airflow = airflow_for(server, tokens)
        airflow.rest.wait_for_dag("real")
        run_id = airflow.rest.trigger("real")
        done = wait_for(lambda: progress(results).get("done", 0) >= ROWS // 10 and progress(results)["done"])
        assert done < ROWS, "the run was over before the server could be stopped: raise ROW_S"
        server.terminate()
        wait_for(lambda: progress(results).get("endpoint") != "up")
        assert progress(results)["hold_reason"]
    with start(*FLAGS, port=urlsplit(server.url).port):
        assert airflow.rest.wait_for_run("real", run_id, timeout_s=600) == "success"
    manifest = airflow.rest.xcom("real", run_id, "batch")
    assert manifest["counts"] == {"total": ROWS, "succeeded": ROWS, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert manifest["served"]["is_vllm"] is True
    lines = [json.loads(line) for part in sorted(results.glob("part-*")) for line in part.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(ROWS))
    assert {line["finish_reason"] for line in lines} == {"length"}, "what a dying server cut off did not land"
    assert manifest["usage"]["completion_tokens"] == tokens * ROWS
    assert any(line["attempts"] > 1 for line in lines), "no row was in flight when the server died"


def progress(results: Path) -> dict[str, Any]:
    path = results / "_run" / "progress.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 180.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.1)
    pytest.fail("what was waited for did not happen")
