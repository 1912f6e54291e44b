"""The operator beside real-time on one simulated vLLM: what it takes in the quiet, gives up in a burst, and tells."""

from __future__ import annotations

import json
import logging
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import part_lines

from airflow_llm_provider.operators import llm_batch
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.testing import SimulatedVLLM, StubVLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_llm_provider.core.ledger import Totals
    from airflow_llm_provider.core.occupancy import Occupancy

SLOTS = 8
CONTEXT: Any = {
    "ti": SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1, max_tries=3),
    "dag_run": SimpleNamespace(run_after=None),
    "params": {},
}


@pytest.fixture
def server() -> Iterator[SimulatedVLLM]:
    with SimulatedVLLM("tiny", max_num_seqs=SLOTS, policy="priority") as running:
        yield running


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Occupancy]:
    """What the metrics are told, all along."""
    told: list[Occupancy] = []

    class Metrics:
        def __init__(self, _context: Any) -> None:
            pass

        def __call__(self, occupancy: Occupancy, _settled: Totals) -> None:
            told.append(occupancy)

    monkeypatch.setattr(llm_batch, "RunMetrics", Metrics)
    monkeypatch.setattr("airflow_llm_provider.batch.reporter.PROGRESS_INTERVAL_S", 0.1)
    monkeypatch.setattr("airflow_llm_provider.batch.reporter.FIRST_S", 0.05)
    return told


def run(
    url: str, monkeypatch: pytest.MonkeyPatch, folder: Path, *, rows: int, max_tokens: int = 400, **extra: Any
) -> dict[str, Any]:
    connection = {"conn_type": "vllm", "host": url, "extra": {"placement": "shared", **extra}}
    monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", json.dumps(connection))
    source = [{"text": f"text {number}"} for number in range(rows)]
    task = LLMBatchOperator(
        task_id="t",
        source=source,
        prompt="Say {{ row.text }}",
        max_tokens=max_tokens,
        extra_body={"ignore_eos": True},
        on_truncated="accept",
        result_path=f"file://{folder}",
    )
    return task.execute(CONTEXT)


def chat(url: str, *, tokens: int) -> None:
    """Somebody who waits for an answer, at the priority of whoever names none."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "ignore_eos": True}
    request = urllib.request.Request(  # noqa: S310 - on loopback
        f"{url}/v1/chat/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        assert answer.status == 200


def when(done: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Does `then` in a thread of its own, once `done`."""

    def wait() -> None:
        pause = threading.Event()
        while not done():
            pause.wait(0.02)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_it_fills_a_quiet_server_gives_way_to_a_burst_and_comes_back(
    server: SimulatedVLLM, seen: list[Occupancy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def burst() -> None:
        with ThreadPoolExecutor(SLOTS) as people:
            list(people.map(lambda _: chat(server.url, tokens=300), range(SLOTS)))

    full = when(lambda: bool(seen) and seen[-1].in_flight >= SLOTS, burst)
    manifest = run(server.url, monkeypatch, tmp_path, rows=60, slots=SLOTS)
    full.join()
    assert manifest["counts"] == {"total": 60, "succeeded": 60, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert manifest["release"]["limit_law"] == "headroom"
    assert max(each.in_flight for each in seen) == SLOTS + 1, "in a calm one waits in the server"
    assert seen[-1].yields > 0
    given_way = next(number for number, each in enumerate(seen) if each.yields)
    assert min(each.in_flight for each in seen[given_way:-1]) < SLOTS
    assert max(each.others or 0 for each in seen) >= SLOTS / 2
    assert "learned" in {str(each.bound) for each in seen[given_way:-1]}
    progress = json.loads((tmp_path / "_run" / "progress.json").read_bytes())
    assert progress["yields"] == progress["servers"][0]["yields"] == seen[-1].yields
    assert {line["usage"]["completion_tokens"] for line in part_lines(tmp_path)} == {400}, "what lands is counted once"


def test_where_the_load_is_hidden_some_slots_stay_free_and_the_log_says_why(
    stub: StubVLLM,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stub.behaviour.delay_s = 1.0  # and it has no /metrics, like many a gateway
    with caplog.at_level(logging.WARNING):
        manifest = run(stub.url, monkeypatch, tmp_path, rows=30, slots=SLOTS)
    assert manifest["counts"]["succeeded"] == 30
    assert stub.peak_in_flight == SLOTS - 2
    warnings = [line for line in caplog.messages if "can't be read" in line]
    assert len(warnings) == 1
    assert f"so at most {SLOTS - 2} are in flight there" in warnings[0]


def test_without_slots_the_log_says_what_to_set(
    server: SimulatedVLLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(server.url, monkeypatch, tmp_path, rows=2, max_tokens=4)
    assert [line for line in caplog.messages if "Set slots on the connection" in line]


def test_gpus_of_its_own_are_filled_without_a_number(
    server: SimulatedVLLM, seen: list[Occupancy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = run(server.url, monkeypatch, tmp_path, rows=60, placement="dedicated")
    assert manifest["release"]["limit_law"] == "adaptive"
    assert manifest["release"]["max_in_flight"] == 1024
    assert max(each.in_flight for each in seen) > SLOTS
