"""What is measured as a look is what a task's look is."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from airflow_llm_provider.endpoint.load import CHOSEN, RUNNING, WAITING
from benchmarks.colocation.look_cost import client_look_cost_s, server_look_cost_s
from benchmarks.colocation.servers import Server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections += 1

    def do_GET(self):
        self.server.paths.append(self.path)
        self.send_response(self.server.status)
        body = f"{RUNNING} 1\n{WAITING} 0\n".encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def http():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.paths, server.connections, server.status = [], 0, 200
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(http):
    url = f"http://127.0.0.1:{http.server_address[1]}"
    return Server(kind="sim", url=url, model="sim", slots=8, pid=os.getpid())


@pytest.mark.parametrize("cost_s", [server_look_cost_s, client_look_cost_s])
def test_a_look_is_what_a_task_asks_for_over_the_connection_it_keeps(http, cost_s):
    assert cost_s(asked(http), looks=20) >= 0
    assert [unquote(path) for path in http.paths] == [CHOSEN] * 21  # once to connect
    assert http.connections == 1


@pytest.mark.parametrize("cost_s", [server_look_cost_s, client_look_cost_s])
def test_a_load_that_cannot_be_read_has_no_cost(http, cost_s):
    http.status = 500
    with pytest.raises(RuntimeError, match="can't be read"):
        cost_s(asked(http), looks=20)
