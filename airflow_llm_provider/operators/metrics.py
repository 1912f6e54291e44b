"""A run's metrics, through Airflow's own: where Airflow's go – StatsD, Datadog, OpenTelemetry – these go, too.

Owns their names and tags. Does not know when they are told (`batch.reporter`), nor where they go: `[metrics]` in
Airflow's configuration says that, and its allow and block lists count.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow_llm_provider.core.request import Status
from airflow_llm_provider.hooks.compat import Stats

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.core.ledger import Totals
    from airflow_llm_provider.core.occupancy import Occupancy

log = logging.getLogger(__name__)

GAUGES = ("llm_batch.limit", "llm_batch.in_flight", "llm_batch.others")
COUNTERS = ("llm_batch.yields", *(f"llm_batch.rows_{status}" for status in Status))


class RunMetrics:
    """Tells Airflow's metrics how a try does; called with it.

    A gauge keeps its value when nobody sets it any more, so the last call of a try sets them to 0.

    Args:
        context: Airflow's, of this try.
    """

    def __init__(self, context: Context) -> None:
        ti = context["ti"]
        self._tags = {"dag_id": ti.dag_id, "task_id": ti.task_id, **(getattr(ti, "stats_tags", None) or {})}
        if ti.map_index is not None and ti.map_index >= 0:
            self._tags["map_index"] = str(ti.map_index)
        self._counted = dict.fromkeys(COUNTERS, 0)
        self._broken = False

    def __call__(self, occupancy: Occupancy, settled: Totals) -> None:
        """Tell; a run does not fail for its metrics."""
        if self._broken:
            return
        try:
            for name, value in zip(GAUGES, (occupancy.limit, occupancy.in_flight, occupancy.others), strict=True):
                if value is not None:  # not known is not 0
                    Stats.gauge(name, value, tags=self._tags)
            totals = (occupancy.yields, *(getattr(settled, status) for status in Status))
            for name, total in zip(COUNTERS, totals, strict=True):
                if total > self._counted[name]:
                    Stats.incr(name, total - self._counted[name], tags=self._tags)
                    self._counted[name] = total
        except Exception as error:  # noqa: BLE001 - whatever the platform's metrics client raises
            self._broken = True
            log.warning("Airflow's metrics take none of this try any more: %s: %s", type(error).__name__, error)
