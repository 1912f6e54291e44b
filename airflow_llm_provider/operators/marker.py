"""A note, kept by Airflow itself, that this task instance began its run, and where.

Owns the note. It tells "nothing was begun yet" from "begun where this worker cannot see it", such as a ``file://`` path
on another machine. Airflow keeps it from 3.3 on (task state store); before, a missing run is only warned about.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.exceptions import RunMissingError

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

_KEY = "llm_batch.run"

IN_AIRFLOW = "xcom://"
"""Begins what stands for the path of a run that is kept in Airflow. Whoever was told that it is too large for that may
begin it anew on storage."""


class RunMarker:
    """The note of one task instance, over all its tries; it lasts as long as the DAG run.

    Args:
        context: Airflow's, of this try.
    """

    def __init__(self, context: Context) -> None:
        self._store: Any = context.get("task_state_store")
        self._try_number = context["ti"].try_number
        self._epoch = context["ti"].max_tries  # another one after a clear

    def expects(self, uri: str, *, rerun: bool) -> bool:
        """Whether a run must lie at `uri`.

        Args:
            uri: where.
            rerun: a clear begins the run anew, wherever it was; a retry does not.

        Raises:
            RunMissingError: when the run was begun at another path, so that this one would do it all again.
        """
        noted = self._store.get(_KEY) if self._store is not None else None
        if noted is None:
            if self._store is None and self._try_number > 1:
                log.info("Airflow before 3.3 keeps no note of a begun run: if none lies at %s, a new one begins", uri)
            return False
        there, epoch = (noted["uri"], noted["epoch"]) if isinstance(noted, dict) else (str(noted), None)
        if there.startswith(IN_AIRFLOW) and not uri.startswith(IN_AIRFLOW):
            log.warning("This task began its run in Airflow, at %s; it begins anew at %s", there, uri)
            return False
        if rerun and epoch != self._epoch:
            return False
        if there != uri:
            raise RunMissingError(
                f"An earlier try of this task began its run at {there}, and result_path is {uri} now. Put it back "
                "(it may not change from try to try), or set rerun=True and clear the task: then it begins there"
            )
        return True

    def set(self, uri: str) -> None:
        """Note that the run at `uri` is begun."""
        note = {"uri": uri, "epoch": self._epoch}
        if self._store is not None and self._store.get(_KEY) != note:
            self._store.set(_KEY, note, retention=never_expire())


def never_expire() -> Any:
    """What has Airflow keep a value as long as the DAG run: one may wait for its window longer than it keeps others."""
    from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined] # noqa: PLC0415 - from 3.3 on, in no stub

    return NEVER_EXPIRE
