"""A server that was told to stop, closes its port, and waits for ever for its connections to close, as vLLM may.

And one that only looks like it, because a gateway in front of it has lost sight of it.
"""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from batch_fakes import job_of, part_lines, texts, write_rows

from airflow_llm_provider.batch import server as server_module
from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import StubVLLM
from airflow_llm_provider.testing.server import Handler

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_llm_provider.testing.server import Behaviour

IN_FLIGHT = 4
MODELS = json.dumps({"object": "list", "data": [{"id": "stub", "root": "stub-weights", "owned_by": "vllm"}]}).encode()


class HalfStopped:
    """Answers GETs until it holds so many POSTs; then it closes its port and keeps the connections."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._held: list[socket.socket] = []
        self.given_up = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            while len(self._held) < IN_FLIGHT:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()
                self._wait_if_full()
        for connection in self._held:
            while connection.recv(65536):
                pass
            connection.close()
        self.given_up.set()

    def _wait_if_full(self) -> None:
        """A connection may still be on its way to being held."""
        for _ in range(200):
            if len(self._held) >= IN_FLIGHT:
                return
            threading.Event().wait(0.005)

    def _talk(self, connection: socket.socket) -> None:
        while head := connection.recv(65536):
            if head.startswith(b"POST"):
                self._held.append(connection)
                return
            body = MODELS if b"/v1/models" in head else b'{"version": "0.32.0"}'
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
        connection.close()


def test_requests_that_nobody_will_answer_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDENTITY_INTERVAL_S", 0.05)
    monkeypatch.setattr(server_module, "SECOND_LOOK_S", 0.02)
    server = HalfStopped()
    source = write_rows(tmp_path / "rows.jsonl", texts(20))
    job = job_of(f"http://127.0.0.1:{server.port}", source, max_in_flight=IN_FLIGHT)
    store = RunStore(f"file://{tmp_path}/run")
    restarted = StubVLLM(model="stub", port=server.port)

    def restart() -> None:
        assert server.given_up.wait(30)
        restarted.__enter__()

    restarting = threading.Thread(target=restart)
    restarting.start()
    manifest = run_job(job, store, StopSwitch())
    restarting.join()
    restarted.__exit__(None, None, None)
    assert manifest["counts"] == {"total": 20, "succeeded": 20, "truncated": 0, "invalid_output": 0, "errored": 0}
    lines = part_lines(tmp_path / "run")
    assert sorted(line["attempts"] for line in lines)[-IN_FLIGHT:] == [2] * IN_FLIGHT


class LostFromSight(Handler):
    """While requests are being worked at, the gateway in front of it answers the next few looks in its stead."""

    def __init__(self, behaviour: Behaviour, status: int, page: str) -> None:
        super().__init__(behaviour)
        self.looks_left = 6
        self._answer = (status, page)

    def _get(self, path: str, request: web.BaseRequest) -> web.Response:
        if not self.tally.in_flight or not self.looks_left:
            return super()._get(path, request)
        self.looks_left -= 1
        status, page = self._answer
        return web.Response(status=status, text=page)


@pytest.mark.parametrize(("status", "page"), [(502, "502 Bad Gateway"), (503, "no healthy upstream")])
def test_requests_are_not_given_up_because_a_gateway_lost_sight_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, page: str
) -> None:
    """Only a port that is closed tells of a server that takes nothing any more."""
    monkeypatch.setattr(server_module, "IDENTITY_INTERVAL_S", 0.02)
    monkeypatch.setattr(server_module, "SECOND_LOOK_S", 0.02)
    stub = StubVLLM(model="stub", delay_s=1.0)
    stub._handler = handler = LostFromSight(stub.behaviour, status, page)
    with stub:
        job = job_of(stub, write_rows(tmp_path / "rows.jsonl", texts(IN_FLIGHT)), max_in_flight=IN_FLIGHT)
        run_job(job, RunStore(f"file://{tmp_path}/run"), StopSwitch())
    assert handler.looks_left == 0
    assert stub.received == IN_FLIGHT
