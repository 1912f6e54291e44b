from __future__ import annotations

import asyncio
import threading

from airflow_llm_provider.batch.stop import StopSwitch


async def said(seen: list[str]) -> list[str]:
    """What was called back, once the loop has had the time to."""
    for _ in range(5):
        await asyncio.sleep(0)
    return seen


async def test_set_before_a_loop_is_attached() -> None:
    stop, seen = StopSwitch(), list[str]()
    stop.set("first")
    stop.attach(asyncio.get_running_loop(), seen.append)
    assert await said(seen) == ["first"]


async def test_set_twice_tells_once_and_the_first_reason_stands() -> None:
    stop, seen = StopSwitch(), list[str]()
    stop.attach(asyncio.get_running_loop(), seen.append)
    stop.set("first")
    stop.set("second")
    assert await said(seen) == ["first"]
    assert stop.reason == "first"


async def test_set_from_another_thread() -> None:
    stop, told = StopSwitch(), asyncio.Event()
    stop.attach(asyncio.get_running_loop(), lambda _: told.set())
    threading.Thread(target=stop.set, args=("from a thread",), daemon=True).start()
    await asyncio.wait_for(told.wait(), 30)


async def test_detached_it_calls_nobody_and_remembers_for_the_next() -> None:
    stop, first, second = StopSwitch(), list[str](), list[str]()
    stop.attach(asyncio.get_running_loop(), first.append)
    stop.detach()
    stop.set("late")
    stop.attach(asyncio.get_running_loop(), second.append)
    assert (await said(first), await said(second)) == ([], ["late"])


def test_set_after_the_loop_is_closed() -> None:
    stop = StopSwitch()
    loop = asyncio.new_event_loop()
    stop.attach(loop, lambda _: None)
    stop.detach()
    loop.close()
    stop.set("late")
    assert stop.reason == "late"
