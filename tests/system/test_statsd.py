"""Airflow's own metrics carry a run's: from a task's process on a real scheduler to a StatsD socket."""

from __future__ import annotations

import re


def test_a_task_tells_airflows_statsd_how_it_does(llm_airflow, statsd) -> None:
    llm_airflow.rest.wait_for_dag("values")
    before = len(statsd.lines)
    run_id = llm_airflow.rest.trigger("values")
    assert llm_airflow.rest.wait_for_run("values", run_id) == "success"
    tags = ",dag_id=values,task_id=batch"
    told = {}
    for line in statsd.lines[before:]:
        found = re.fullmatch(r"airflow\.(llm_batch\.\w+)((?:,\w+=\w+)*):([\d.]+)\|([gc])", line)
        assert found, line
        assert found[2] == tags
        told[found[1]] = (float(found[3]), found[4])  # the last word
    assert told["llm_batch.rows_succeeded"] == (7, "c")
    assert told["llm_batch.in_flight"] == told["llm_batch.limit"] == (0, "g"), "nothing is held when the try has ended"
