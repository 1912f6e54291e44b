"""Tries killed at their requests to a real S3 server; uploads torn, sent twice or late; and a server that dies.

Owns who is killed when. What must hold is `scene`'s. A proxy before the server kills: the code that is killed talks to
a store as any other, and knows of nothing.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_llm_provider.storage.store import RunStore, open_path
from benchmarks.chaos.scene import Scene, Tally
from benchmarks.chaos.try_process import Order
from tools.s3_servers import S3Proxy, S3Server, Said, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from random import Random

    from airflow_llm_provider.testing import StubVLLM
    from benchmarks.chaos.tries import RunningTry
    from tools.s3_servers import Asked

MOST_CHANGES = 200
PATIENCE_S = 10.0
CHANGES = frozenset({"PUT", "POST", "DELETE"})

HOWS = {
    "before": Said(),
    "after": Said(after=True),
    "torn": Said(half=True),
}


class ObjectStorage:
    """Runs on one S3 server, reached by tries through a proxy, and by this process without.

    Args:
        server: which.
        source: their input.
        stub: the model server.
    """

    def __init__(self, server: S3Server, proxy: S3Proxy, source: str, stub: StubVLLM) -> None:
        self._server = server
        self._proxy = proxy
        self._stub = stub
        self._runs = 0
        self._ours = f"s3://{connect(server.url)}@chaos"
        fs, bucket = open_path(self._ours, what="the bucket")
        fs.mkdir(bucket)
        conn_id, environment = proxied(proxy)
        self._theirs = f"s3://{conn_id}@chaos"
        self._order = Order(uri="", source=source, url=stub.url, environment=environment)

    def at_each_change(self, how: str) -> Tally:
        """A first try, killed at its first PUT or DELETE, its second, and so on.

        Args:
            how: ``before`` the server has it, ``after``, or ``torn``: when it has half of it.
        """
        tally = Tally(f"{self._server.kind}, at each change, {how}")
        for at in range(1, MOST_CHANGES):
            scene, order = self._scene(tally, f"change {at}")
            killed = scene.attempt(order, self._killer(at, HOWS[how])).killed
            self._proxy.fault = lambda _: None
            scene.finish(order)
            if not killed:
                return tally
        raise AssertionError(f"a try made {MOST_CHANGES} changes")

    def again_and_again(self, kills: int, rng: Random) -> Tally:
        """Runs whose tries are killed one after the other, at random."""
        tally = Tally(f"{self._server.kind}, again and again, at random")
        while tally.kills < kills:
            scene, order = self._scene(tally, f"run {tally.runs}")
            for number in range(1, rng.randint(2, 6)):
                said = HOWS[rng.choice([*HOWS])]
                scene.attempt(replace(order, try_number=number), self._killer(rng.randint(1, 20), said))
            self._proxy.fault = lambda _: None
            scene.finish(replace(order, try_number=9))
        return tally

    def uploads_come_late(self, runs: int) -> Tally:
        """A try dies at a PUT that is still under way: it arrives when the next try has finished."""
        tally = Tally(f"{self._server.kind}, an upload arrives late")
        for at in range(1, runs + 1):
            scene, order = self._scene(tally, f"change {at}")
            scene.attempt(order, self._killer(at, Said(kept_back=True)))
            self._proxy.fault = lambda _: None
            if not self._proxy.kept_back:  # it made fewer changes than that
                scene.finish(order)
                return tally
            end = scene.attempt(order)
            self._proxy.deliver()
            if end.manifest is None:
                scene.broken(f"the next try failed: {end.error}")
                continue
            scene.late(order, end.manifest)
        return tally

    def uploads_come_in_between(self, runs: int, rng: Random) -> Tally:
        """The same, but it arrives while the next try works, before one of that one's own changes."""
        tally = Tally(f"{self._server.kind}, an upload arrives during the next try")
        for at in range(1, runs + 1):
            scene, order = self._scene(tally, f"change {at}")
            scene.attempt(order, self._killer(at, Said(kept_back=True)))
            self._proxy.fault = lambda _: None
            if not self._proxy.kept_back:
                scene.finish(order)
                return tally
            arrives, changes = rng.randint(1, 15), iter(range(1, 1000))

            def deliver(asked: Asked, arrives: int = arrives, changes: Iterator[int] = changes) -> Said | None:
                now = asked.method in CHANGES and next(changes) == arrives
                return Said(delivers=True) if now else None

            self._proxy.fault = deliver
            scene.attempt(replace(order, try_number=2))
            self._proxy.fault = lambda _: None
            if self._proxy.kept_back:  # the next one had fewer changes to make
                self._proxy.deliver()
            scene.finish(replace(order, try_number=2))
        return tally

    def uploads_come_twice(self) -> Tally:
        """The server takes each PUT, and its answer is lost, so that the client sends it again."""
        tally = Tally(f"{self._server.kind}, each upload twice")
        scene, order = self._scene(tally, "run")
        seen: set[str] = set()

        def lose(asked: Asked) -> Said | None:
            if asked.method != "PUT" or asked.path in seen:
                return None
            seen.add(asked.path)
            return Said(after=True)

        self._proxy.fault = lose
        scene.attempt(order)
        self._proxy.fault = lambda _: None
        scene.finish(order)
        return tally

    def server_dies(self, times: int, rng: Random) -> Tally:
        """The storage server is killed while a try works, and is back a moment later, or before the next one."""
        tally = Tally(f"{self._server.kind}, the storage server")
        for number in range(times):
            scene, order = self._scene(tally, f"death {number}")
            port, at = self._server.port, rng.randint(1, 20)
            changes = iter(range(1, 1000))

            def strike(asked: Asked, at: int = at, changes: Iterator[int] = changes) -> Said | None:
                if asked.method in CHANGES and next(changes) == at:
                    self._server.kill()
                    tally.kills += 1
                return None

            def restart(_: RunningTry, port: int = port) -> None:
                until = time.monotonic() + PATIENCE_S
                while self._server.alive and time.monotonic() < until:
                    time.sleep(0.02)
                time.sleep(rng.uniform(0.0, 2.0))
                if not self._server.alive:
                    self._server.start(port)

            self._proxy.fault = strike
            scene.attempt(order, restart)
            self._proxy.fault = lambda _: None
            scene.finish(order)
        return tally

    def _killer(self, at: int, said: Said) -> Callable[[RunningTry], None]:
        """Kill the try at its `at`-th change, and do with that request what `said` says."""

        def act(running: RunningTry) -> None:
            changes = iter(range(1, 1000))
            lock = threading.Lock()

            def strike(asked: Asked) -> Said | None:
                with lock:
                    if asked.method not in CHANGES or next(changes) != at:
                        return None
                return replace(said, first=running.kill)

            self._proxy.fault = strike

        return act

    def _scene(self, tally: Tally, label: str) -> tuple[Scene, Order]:
        self._runs += 1
        name = f"{self._runs}/run"
        store = RunStore(f"{self._ours}/{name}")
        scene = Scene(tally, f"{tally.name}, {label}", lambda: self._stub.counts, store)
        return scene, replace(self._order, uri=f"{self._theirs}/{name}")


def proxied(proxy: S3Proxy) -> tuple[str, dict[str, str]]:
    """A connection through the proxy: its id, and the environment that has it, for another process."""
    import os  # noqa: PLC0415

    conn_id = connect(proxy.url)
    name = f"AIRFLOW_CONN_{conn_id.upper()}"
    return conn_id, {name: os.environ[name]}


@contextmanager
def on(kind: str, folder: Path, source: str, stub: StubVLLM) -> Iterator[ObjectStorage]:
    """A server of this kind, and all that goes with it."""
    with S3Server(kind, folder) as server, S3Proxy(server) as proxy:
        yield ObjectStorage(server, proxy, source, stub)
