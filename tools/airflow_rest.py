"""Airflow's public REST API (``/api/v2``), as far as the demo and the system tests need it.

Owns URLs, the token and the shapes of answers. Starts and stops nothing: that is ``local_airflow``.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FINAL_RUN_STATES = frozenset({"success", "failed"})
REQUEST_TIMEOUT_S = 60.0  # one API worker shares two cores with everything else
POLL_S = 0.5
DATABASE_TRIES = 6
"""SQLite is locked now and then while the scheduler writes, and Airflow answers with a 500 that changed nothing."""

# no proxy from the environment: everything here is on 127.0.0.1
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AirflowRestError(RuntimeError):
    """Airflow answered with an error, or with something else than was waited for."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTry:
    """A task instance as it stands: its state, and which try that is (1 for the first, 0 before it)."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    max_tries: int
    pid: int | None
    note: Mapping[str, Any]  # the whole answer, for what has no field here

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> TaskTry:
        """From a ``TaskInstanceResponse``."""
        return cls(
            task_id=answer["task_id"],
            map_index=answer["map_index"],
            state=answer["state"],
            try_number=answer["try_number"],
            max_tries=answer["max_tries"],
            pid=answer["pid"],
            note=answer,
        )


class AirflowRest:
    """The API at ``url``, with the token that a local Airflow hands to everybody (all admins)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._token: str | None = None
        self._one_at_a_time = threading.Lock()

    def health(self) -> dict[str, Any]:
        """``/monitor/health``; needs no token. ``OSError`` while nobody listens."""
        answer: dict[str, Any] = _send(_request("GET", f"{self.url}/api/v2/monitor/health", None, {}))
        return answer

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call below ``/api/v2``; the decoded JSON, or None for an empty answer.

        Threads take turns: calls that write side by side keep SQLite from the scheduler, which dies of that.
        """
        with self._one_at_a_time:
            return self._call(method, path, body)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        if self._token is None:
            self._token = _send(_request("GET", f"{self.url}/auth/token", None, {}))["access_token"]
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        for _ in range(DATABASE_TRIES - 1):
            try:
                return _send(_request(method, f"{self.url}/api/v2{path}", body, headers))
            except AirflowRestError as error:
                if error.status != HTTPStatus.INTERNAL_SERVER_ERROR or "Database error" not in str(error):
                    raise
                time.sleep(POLL_S)  # noqa: TID251
        return _send(_request(method, f"{self.url}/api/v2{path}", body, headers))

    # --- DAGs and runs ------------------------------------------------------------------------------

    def wait_for_dag(self, dag_id: str, *, timeout_s: float = 90.0) -> None:
        """Wait until the DAG processor has read the DAG; says which files failed to import if it has not."""
        deadline = time.monotonic() + timeout_s  # noqa: TID251 - a tool that waits for another process
        while True:
            try:
                self.call("GET", f"/dags/{_quoted(dag_id)}")
            except AirflowRestError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
            else:
                return
            if time.monotonic() > deadline:  # noqa: TID251
                errors = self.call("GET", "/importErrors")["import_errors"]
                raise AirflowRestError(
                    f"Airflow has not found the DAG {dag_id!r} after {timeout_s:.0f} s. Import errors: "
                    + ("\n".join(f"{each['filename']}:\n{each['stack_trace']}" for each in errors) or "none")
                )
            time.sleep(POLL_S)  # noqa: TID251

    def trigger(self, dag_id: str, *, conf: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run without a logical date, as the button in the UI does; returns its id."""
        body: dict[str, Any] = {"logical_date": None, "conf": dict(conf or {})}
        if run_id is not None:
            body["dag_run_id"] = run_id
        answer = self.call("POST", f"/dags/{_quoted(dag_id)}/dagRuns", body)
        return str(answer["dag_run_id"])

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """The run; ``state`` is one of queued, running, success, failed."""
        answer: dict[str, Any] = self.call("GET", _run_path(dag_id, run_id))
        return answer

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout_s: float = 180.0,
        on_poll: Callable[[], None] | None = None,
    ) -> str:
        """Wait until the run has ended; returns its state, ``success`` or ``failed``."""
        deadline = time.monotonic() + timeout_s  # noqa: TID251
        while True:
            state = str(self.dag_run(dag_id, run_id)["state"])
            if on_poll is not None:
                on_poll()
            if state in FINAL_RUN_STATES:
                return state
            if time.monotonic() > deadline:  # noqa: TID251
                tasks = ", ".join(f"{task.task_id} {task.state}" for task in self.tasks(dag_id, run_id))
                raise AirflowRestError(f"run {run_id} of {dag_id} is still {state} after {timeout_s:.0f} s ({tasks})")
            time.sleep(POLL_S)  # noqa: TID251

    # --- task instances -----------------------------------------------------------------------------

    def tasks(self, dag_id: str, run_id: str) -> list[TaskTry]:
        """Every task instance of a run, mapped ones included."""
        answer = self.call("GET", f"{_run_path(dag_id, run_id)}/taskInstances?limit=1000")
        return [TaskTry.from_json(each) for each in answer["task_instances"]]

    def task(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> TaskTry:
        """One task instance."""
        for task in self.tasks(dag_id, run_id):
            if (task.task_id, task.map_index) == (task_id, map_index):
                return task
        raise AirflowRestError(f"run {run_id} of {dag_id} has no task {task_id!r} with map index {map_index}")

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """A task's XCom, decoded."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{_quoted(task_id)}/xcomEntries/{_quoted(key)}"
        query = urlencode({"map_index": map_index, "deserialize": "false", "stringify": "false"})
        return self.call("GET", f"{path}?{query}")["value"]

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, *, try_number: int, map_index: int = -1
    ) -> list[dict[str, Any]]:
        """The log of one try: one mapping per event, with at least ``event``; ``[]`` before it has one."""
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{_quoted(task_id)}/logs/{try_number}"
        answer = self.call("GET", f"{path}?{urlencode({'map_index': map_index, 'full_content': 'true'})}")
        return [each if isinstance(each, dict) else {"event": str(each)} for each in answer["content"]]

    def task_log_text(self, dag_id: str, run_id: str, task_id: str, *, try_number: int, map_index: int = -1) -> str:
        """The events of :meth:`task_log`, one a line."""
        events = self.task_log(dag_id, run_id, task_id, try_number=try_number, map_index=map_index)
        return "\n".join(str(each.get("event", "")) for each in events)


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/dags/{_quoted(dag_id)}/dagRuns/{_quoted(run_id)}"


def _request(
    method: str, url: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
) -> urllib.request.Request:
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(  # noqa: S310 - 127.0.0.1
        url, data=data, method=method, headers={"Content-Type": "application/json", **headers}
    )


def _send(request: urllib.request.Request) -> Any:
    try:
        with _OPENER.open(request, timeout=REQUEST_TIMEOUT_S) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        raise AirflowRestError(
            f"{request.get_method()} {request.full_url} answered {error.code}: {text[:2000]}", status=error.code
        ) from error
    return json.loads(content) if content else None
