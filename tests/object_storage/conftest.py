"""What the tests on real S3 servers share: the servers, a bucket, and connections as a DAG author names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_llm_provider.storage.store import RunStore, open_path
from tools.s3_servers import S3Proxy, S3Server, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module", params=["rclone", "moto"])
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, of each kind in turn."""
    with S3Server(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    """A bucket there, as a URI with a connection: ``s3://conn@bucket``."""
    uri = f"s3://{connect(s3.url)}@rows"
    fs, path = open_path(uri, what="the test's bucket")
    fs.mkdir(path)
    return uri


@pytest.fixture
def store(bucket: str, request: pytest.FixtureRequest) -> RunStore:
    """The path of a run of this test's own."""
    return RunStore(f"{bucket}/{request.node.name.replace('[', '-').strip(']')}/run")


@pytest.fixture
def proxy(s3: S3Server, bucket: str) -> Iterator[S3Proxy]:
    """Stands before the server."""
    with S3Proxy(s3) as standing:
        yield standing


@pytest.fixture(autouse=True)
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a test is marked so that the client libraries do not try again for a quarter of a minute."""
    marked = request.node.get_closest_marker("impatient") is not None
    if marked:
        monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 2)
    return marked


@pytest.fixture
def through(proxy: S3Proxy, *, impatient: bool) -> Callable[[str], RunStore]:
    """The path of a run, reached through the proxy."""
    conn_id = connect(proxy.url, **({"retries": {"max_attempts": 0}} if impatient else {}))
    return lambda name: RunStore(f"s3://{conn_id}@rows/{name}/run")
