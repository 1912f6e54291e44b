"""What every test gets: a detector of calls that block the event loop, and a stub of vLLM on request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from airflow_llm_provider.testing import StubVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator

# A busy machine is slow, which says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


_NAMED = ("vllm", "prometheus", "object_storage", "distributed")
"""Folders whose tests need more than `make env` installs."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What takes more than `make env` runs where it is named (``make test-vllm``), and is not there otherwise."""
    if collection_path.parent != Path(__file__).parent or collection_path.name not in _NAMED:
        return None
    named = (Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args)
    return None if any(collection_path in (path, *path.parents) for path in named) else True


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """An async test fails with `BlockingError` where a call would hold up the event loop."""
    if request.node.get_closest_marker("asyncio") is None:
        yield
        return
    detector = BlockBuster()
    # The stub lives in a thread with a loop of its own, which the detector watches too. Its log is written
    # synchronously on purpose: the line must be on its way to the disk before the answer is on its way to the client.
    detector.functions["os.write"].can_block_in("airflow_llm_provider/testing/server.py", {"_note"})
    # Entering and leaving a server starts and joins its thread: milliseconds of set-up, in a test's own words.
    detector.functions["threading.Lock.acquire"].can_block_in(
        "airflow_llm_provider/simulator/thread.py", {"__enter__", "__exit__"}
    )
    detector.activate()
    try:
        yield
    finally:
        detector.deactivate()


@pytest.fixture
def stub() -> Iterator[StubVLLM]:
    """An instant vLLM-shaped server that serves the model ``stub``; its `behaviour` may be changed."""
    with StubVLLM() as running:
        yield running
