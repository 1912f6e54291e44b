"""Two tasks that hand a value on; the first sleeps as long as its run's conf says."""

from __future__ import annotations

import time
from datetime import timedelta

from airflow.sdk import DAG, Param, task

with DAG(dag_id="trivial", schedule=None, params={"sleep_s": Param(0.0, type="number")}):

    @task(retries=2, retry_delay=timedelta(seconds=0.1))
    def first(params: dict) -> dict:
        print("first speaks")
        time.sleep(params["sleep_s"])
        return {"values": [1, 2.5, "x"]}

    @task
    def second(answer: dict) -> str:
        return answer["values"][2]

    second(first())
