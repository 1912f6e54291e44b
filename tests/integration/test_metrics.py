"""A run's metrics reach a StatsD through Airflow's own client, as its datagrams."""

from __future__ import annotations

import json
import logging
import re
import socket
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils

from airflow_llm_provider.core.ledger import Totals
from airflow_llm_provider.core.occupancy import Bound, Occupancy
from airflow_llm_provider.operators import metrics
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.operators.metrics import RunMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_llm_provider.testing import StubVLLM

HELD = Occupancy(in_flight=208, limit=211, bound=Bound.LEARNED, others=35, waiting=3, yields=12)
LINE = re.compile(r"airflow\.(?P<name>[\w.]+)(?P<tags>(,\w+=[^,:]+)*):(?P<value>[-\d.]+)\|(?P<kind>[gc])")


def context_of(**ti: Any) -> Any:
    values = {"dag_id": "d", "task_id": "t", "run_id": "r", "map_index": -1, "try_number": 1, "max_tries": 3, **ti}
    return {"ti": SimpleNamespace(**values), "dag_run": SimpleNamespace(run_after=None), "params": {}}


@contextmanager
def airflows_metrics(monkeypatch: pytest.MonkeyPatch, **options: str) -> Iterator[Callable[[], list[Any]]]:
    """Airflow's metrics go to a socket here, as a task's process sets them up; yields what has come, oldest first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(0.2)  # on loopback a datagram that was sent is there
        port = listening.getsockname()[1]
        for name, value in {
            "on": "True",
            "host": "127.0.0.1",
            "port": str(port),
            "prefix": "airflow",
            **options,
        }.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__STATSD_{name.upper()}", value)
        backend = stats_utils.get_stats_factory()()
        stats.initialize(factory=lambda: backend, export_legacy_names=False)

        def received() -> list[Any]:
            lines = []
            while True:
                try:
                    lines.append(listening.recv(65536).decode())
                except TimeoutError:
                    found = [LINE.fullmatch(line) for line in lines if "llm_batch" in line]  # Airflow tells things, too
                    assert all(found), lines
                    return [match.groupdict() for match in found if match is not None]

        try:
            yield received
        finally:
            backend.statsd.close()
            stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def said(lines: list[Any]) -> list[tuple[str, float, str]]:
    return [(each["name"], float(each["value"]), each["kind"]) for each in lines]


def test_gauges_are_set_and_counters_count_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with airflows_metrics(monkeypatch) as received:
        tell = RunMetrics(context_of())
        tell(HELD, Totals(succeeded=3, errored=1))
        tell(HELD, Totals(succeeded=5, errored=1))
        lines = said(received())
    gauges = [("llm_batch.limit", 211, "g"), ("llm_batch.in_flight", 208, "g"), ("llm_batch.others", 35, "g")]
    counts = [("llm_batch.yields", 12, "c"), ("llm_batch.rows_succeeded", 3, "c"), ("llm_batch.rows_errored", 1, "c")]
    assert lines == [*gauges, *counts, *gauges, ("llm_batch.rows_succeeded", 2, "c")]


def test_what_could_not_be_read_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with airflows_metrics(monkeypatch) as received:
        RunMetrics(context_of())(Occupancy(in_flight=0, limit=9, bound=Bound.RELEASE), Totals())
        assert [name for name, _, _ in said(received())] == ["llm_batch.limit", "llm_batch.in_flight"]


@pytest.mark.parametrize(
    ("ti", "tags"),
    [
        ({}, ",dag_id=d,task_id=t"),
        ({"map_index": 7}, ",dag_id=d,task_id=t,map_index=7"),
        ({"stats_tags": {"dag_id": "d", "task_id": "t", "team_name": "x"}}, ",dag_id=d,task_id=t,team_name=x"),
    ],
)
def test_tags_tell_tasks_apart(monkeypatch: pytest.MonkeyPatch, ti: Any, tags: str) -> None:
    with airflows_metrics(monkeypatch, influxdb_enabled="True") as received:
        RunMetrics(context_of(**ti))(HELD, Totals())
        assert {each["tags"] for each in received()} == {tags}


def test_a_whole_run_tells_them_and_leaves_no_gauge_standing(
    monkeypatch: pytest.MonkeyPatch, stub: StubVLLM, tmp_path: Path
) -> None:
    connection = {"conn_type": "vllm", "host": stub.url, "extra": {"slots": 8, "placement": "shared"}}
    monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", json.dumps(connection))
    with airflows_metrics(monkeypatch) as received:
        rows = [{"text": str(number)} for number in range(20)]
        LLMBatchOperator(
            task_id="t", source=rows, prompt="Say {{ row.text }}", result_path=f"file://{tmp_path}"
        ).execute(context_of())
        lines = said(received())
    last = {name: value for name, value, _ in lines}
    assert (last["llm_batch.limit"], last["llm_batch.in_flight"]) == (0, 0)
    assert sum(value for name, value, _ in lines if name == "llm_batch.rows_succeeded") == 20
    assert "llm_batch.others" not in last, "the stub has no /metrics"


def test_a_run_does_not_fail_for_its_metrics(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        calls = 0

        def gauge(self, *_: Any, **__: Any) -> None:
            Broken.calls += 1
            raise OSError("no route to host")

    monkeypatch.setattr(metrics, "Stats", Broken())
    tell = RunMetrics(context_of())
    with caplog.at_level(logging.WARNING):
        tell(HELD, Totals())
        tell(HELD, Totals())
    assert caplog.messages == ["Airflow's metrics take none of this try any more: OSError: no route to host"]
    assert Broken.calls == 1
