"""Runs the event loop in a thread of its own, out of reach of signal handlers.

Owns that thread. Airflow's execution time-out is a signal handler that raises in the main thread, wherever that is:
inside a loop it would hit the selector or a stranger's callback, and asyncio would then cancel everything at once, the
last flush included. Here it hits a thread that only waits, which asks the loop to stop and lets it end in order.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from airflow_llm_provider.batch.stop import StopSwitch

T = TypeVar("T")


def run_apart(work: Coroutine[Any, Any, T], stop: StopSwitch) -> T:
    """Run `work` to its end in a loop of its own, and hand out what it returns or raises.

    Whatever is raised in this thread meanwhile sets `stop`, and is raised again once `work` has ended.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="llm-batch-loop") as thread:
        running = thread.submit(copy_context().run, asyncio.run, work)
        try:
            return running.result()
        except BaseException as error:
            if not running.done():
                stop.set(f"Interrupted by {type(error).__name__}")
                wait([running])
            raise
