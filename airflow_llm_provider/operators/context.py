"""What of Airflow's context a prompt may use: plain values, so that they can be fingerprinted.

Owns the list. Does not render.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.core.identity import RunIdentity

DATES = ("run_after", "logical_date", "data_interval_start", "data_interval_end")
TEXTS = ("ds", "ts")
ALWAYS = ("params", "run_id", "dag_id", "task_id", "map_index", "run_after")
NAMES = frozenset((*DATES, *TEXTS, *ALWAYS))


def prompt_context(context: Context, identity: RunIdentity) -> dict[str, Any]:
    """The values of this run; a date that the run does not have is left out, so that using it is an error."""
    dag_run = context["dag_run"]
    values: dict[str, Any] = {
        "params": json.loads(json.dumps(dict(context["params"]), default=str)),
        "run_id": identity.run_id,
        "dag_id": identity.dag_id,
        "task_id": identity.task_id,
        "map_index": identity.map_index,
    }
    for name in DATES:
        date = getattr(dag_run, name, None)
        if date is not None:
            values[name] = date.isoformat()
    for name in TEXTS:
        text = context.get(name)
        if text is not None:
            values[name] = text
    return values
