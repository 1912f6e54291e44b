"""The group that is run, here and in `tests/distributed`: its DAG, and what that is told by the environment.

Does not know what it runs on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.bench import MODEL

DAGS = Path(__file__).parent / "dags"
DAG_ID = "rows_in_shares"
ONE_BY_ONE = "rows_in_shares_one_by_one"
"""The same with ``tasks_at_once=1``."""


def environment(url: str, *, shares: int, chunk_rows: int, in_flight: int) -> dict[str, str]:
    """What all of Airflow is started with.

    Args:
        url: the endpoint's.
        shares: how many.
        chunk_rows: rows of a part.
        in_flight: requests of a share at most.
    """
    connection = {"conn_type": "vllm", "host": url, "extra": {"model": MODEL}}
    root = str(Path(__file__).parents[2])
    return {
        "AIRFLOW_CONN_VLLM_DEFAULT": json.dumps(connection),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "SCALE_OUT_SHARES": str(shares),
        "SCALE_OUT_CHUNK_ROWS": str(chunk_rows),
        "SCALE_OUT_IN_FLIGHT": str(in_flight),
    }
