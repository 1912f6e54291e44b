"""What the log, progress.json and metrics say of the limit: how much is in flight, who bounds it, what others want."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from airflow_llm_provider.batch.reporter import Reporter, _Sample
from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.core.circuit import Circuit
from airflow_llm_provider.core.dispatch import Dispatcher
from airflow_llm_provider.core.ledger import Ledger
from airflow_llm_provider.core.limit import FixedLimit, Learnt, Verdict
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.occupancy import Bound, Occupancy, occupancy_of, together
from airflow_llm_provider.core.request import Usage
from airflow_llm_provider.core.row_queue import RowQueue
from airflow_llm_provider.core.spread import Spread
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from pathlib import Path

LOAD = Load(running=240, waiting=3)


class Says(FixedLimit):
    def __init__(self, limit: int, reason: str) -> None:
        super().__init__(limit)
        self._verdict = Verdict(limit=limit, reason=reason)


def dispatcher(*, limit: int = 261, learned: int | None = None, own: int = 0, load: Load | None = LOAD) -> Dispatcher:
    """One that has looked, where it learns."""
    learnt = None if learned is None else Learnt(Says(learned, "4 kept free"))
    made = Dispatcher(
        limit=limit,
        max_attempts=3,
        wait_s=lambda _: 1.0,
        circuit=Circuit(wait_s=lambda _: 1.0, patience_s=60),
        learnt=learnt,
    )
    made.in_flight = own
    if learnt is not None:
        learnt.look(0.0, load, own)
    return made


class TestOfOneServer:
    def test_nothing_is_learned(self) -> None:
        found = occupancy_of(dispatcher(limit=64, own=60))
        assert found == Occupancy(in_flight=60, limit=64, bound=Bound.RELEASE)
        assert str(found) == "60 in flight"

    def test_what_is_learned_binds(self) -> None:
        one = dispatcher(learned=211, own=208)
        one.yields = 12
        found = occupancy_of(one)
        assert (found.limit, found.bound, found.others, found.waiting) == (211, Bound.LEARNED, 35, 3)
        assert (found.yields, found.reason) == (12, "4 kept free")
        assert str(found) == "208 in flight of 211 (learned), 35 of others, 12 given up"
        assert found.limit == one.most

    def test_what_was_agreed_on_binds(self) -> None:
        found = occupancy_of(dispatcher(limit=32, learned=211, own=32))
        assert (found.limit, found.bound) == (32, Bound.RELEASE)
        assert str(found) == "32 in flight, 211 of others"

    def test_this_servers_share_binds(self) -> None:
        one = dispatcher(limit=64, learned=211)
        one.share = 16
        assert (occupancy_of(one).limit, occupancy_of(one).bound, one.most) == (16, Bound.SHARE, 16)

    def test_what_could_not_be_read_is_not_nothing(self) -> None:
        found = occupancy_of(dispatcher(learned=245, load=None))
        assert (found.others, found.waiting, found.limit) == (None, None, 245)

    def test_on_hold_nothing_may_be_in_flight(self) -> None:
        one = dispatcher(learned=211, own=3)
        one.hold()
        found = occupancy_of(one)
        assert (found.in_flight, found.limit, found.bound) == (3, 0, Bound.RELEASE)


class TestOfAll:
    one = Occupancy(in_flight=2, limit=4, bound=Bound.LEARNED, others=5, waiting=1, yields=3, reason="a")
    blind = Occupancy(in_flight=1, limit=2, bound=Bound.LEARNED, yields=1, reason="b")

    def test_is_added_up(self) -> None:
        assert together([self.one, self.blind], limit=10, told=self.one) == Occupancy(
            in_flight=3, limit=6, bound=Bound.LEARNED, others=5, waiting=1, yields=4, reason="a"
        )

    def test_the_runs_own_limit_binds_them_together(self) -> None:
        found = together([self.one, self.blind], limit=6, told=self.one)
        assert (found.limit, found.bound) == (6, Bound.RELEASE)
        assert together([self.one], limit=3, told=self.one).limit == 3

    def test_none_of_them_was_read(self) -> None:
        found = together([self.blind, self.blind], limit=10, told=self.blind)
        assert (found.others, found.waiting) == (None, None)


class World:
    def __init__(self, tmp_path: Path, *servers: Dispatcher, limit: int = 261) -> None:
        self.told: list[Any] = []
        self.ledger = Ledger(ChunkPlan(5, 10, ((0, 0, 1), (0, 50, 6))), {})
        self.path = tmp_path / "run"
        self.reporter = Reporter(
            RunStore(f"file://{self.path}"),
            self.ledger,
            Spread(servers, RowQueue(), limit=limit),
            [f"http://gpu{number}" for number, _ in enumerate(servers)],
            told=lambda *said: self.told.append(said),
        )

    async def progress(self) -> Any:
        return orjson.loads(await asyncio.to_thread((self.path / "_run" / "progress.json").read_bytes))

    async def numbers(self) -> list[tuple[Any, ...]]:
        """What progress.json says of each server and of all of them."""
        progress = await self.progress()
        names = ("in_flight", "limit", "bound", "others", "waiting", "yields", "limit_reason")
        return [tuple(each[name] for name in names) for each in (*progress["servers"], progress)]


async def test_progress_says_it_of_each_server_and_of_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = dispatcher(learned=211, own=208), dispatcher(learned=9, own=4, load=None)
    first.yields = 12
    world = World(tmp_path, first, second, limit=500)
    await world.reporter._write(world.reporter._pace(0.0), 0.0)
    assert await world.numbers() == [
        (208, 211, "learned", 35, 3, 12, "4 kept free"),
        (4, 9, "learned", None, None, 0, "4 kept free"),
        (212, 220, "learned", 35, 3, 12, "4 kept free"),
    ]
    words = world.reporter._words(world.reporter._pace(1.0))
    assert words.endswith("212 in flight of 220 (learned), 35 of others, 12 given up")
    await world.reporter.finish()
    assert await world.numbers() == [
        (0, 0, "release", 35, 3, 12, None),
        (0, 0, "release", None, None, 0, None),
        (0, 0, "release", 35, 3, 12, None),
    ], "when a try has ended it holds nothing, and may"
    assert caplog.messages[-1].endswith("ETA unknown, 0 in flight, 35 of others, 12 given up")


async def test_the_last_line_of_a_short_run_has_its_own_average_and_no_eta(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    loop = asyncio.get_running_loop()
    started, moment = loop.time(), 0.0
    monkeypatch.setattr(loop, "time", lambda: started + moment)
    world = World(tmp_path, dispatcher(learned=8))
    reporting = asyncio.create_task(world.reporter.run())
    await asyncio.sleep(0)
    world.ledger.settled_here.succeeded = world.ledger.totals.succeeded = world.ledger.plan.total_rows
    world.ledger.settled_here.usage = Usage(completion_tokens=300)
    moment = 4.0  # everything has settled before the first look, or between the last two
    reporting.cancel()
    await world.reporter.finish()
    rows = world.ledger.plan.total_rows
    assert (
        f"{rows}/{rows} rows (100.0 %), {rows / 4:.1f} rows/s, 75 tokens/s, 0 in flight, 243 of others" in caplog.text
    )
    progress = await world.progress()
    rates = ("rows_per_s", "tokens_per_s", "eta_s", "remaining_s")
    assert [progress[name] for name in rates] == [round(rows / 4, 2), 75, 0, 0]


async def test_a_lull_does_not_count_in_the_average_of_the_last_stretch(tmp_path: Path) -> None:
    one = dispatcher(learned=8)
    one.hold()
    world = World(tmp_path, one)
    end = asyncio.get_running_loop().time()
    world.reporter._looked = world.reporter._began = _Sample(end - 40)
    world.reporter._pace(end - 20)
    one.release(limit=8, closes_s=None)
    world.reporter._pace(end - 18)
    world.ledger.settled_here.succeeded = 4
    await world.reporter.finish()
    assert (await world.progress())["rows_per_s"] == pytest.approx(4 / 20, rel=0.1)


async def test_of_a_server_on_hold_another_ones_reason_is_told(tmp_path: Path) -> None:
    first, second = dispatcher(learned=211), dispatcher(limit=7, own=1)
    first.hold()
    world = World(tmp_path, first, second)
    await world.reporter._write(world.reporter._pace(0.0), 0.0)
    progress = await world.progress()
    assert (progress["limit"], progress["bound"], progress["limit_reason"]) == (7, "release", None)


async def test_metrics_are_told_what_this_try_holds_and_at_its_end_that_it_holds_nothing(tmp_path: Path) -> None:
    one = dispatcher(learned=211, own=208)
    one.yields = 12
    world = World(tmp_path, one)
    world.ledger.settled_here.succeeded = 3
    await world.reporter._write(world.reporter._pace(0.0), 0.0)
    world.ledger.settled_here.succeeded = 4
    await world.reporter.finish()
    (holds, settled), (ends, at_last) = world.told
    assert (holds, settled.succeeded) == (occupancy_of(one), 3)
    assert ends == replace(holds, in_flight=0, limit=0, bound=Bound.RELEASE, others=0, waiting=0, reason="")
    assert at_last.succeeded == 4


@pytest.mark.parametrize("how", ["held", "unread"])
async def test_what_was_told_once_is_told_as_nothing_at_the_end_though_it_is_not_known_by_then(
    tmp_path: Path, how: str
) -> None:
    one = dispatcher(learned=211, own=208)
    world = World(tmp_path, one)
    await world.reporter._write(world.reporter._pace(0.0), 0.0)
    assert one.learnt is not None
    if how == "held":
        one.hold()
        one.learnt.rest()
    else:
        one.learnt.look(1.0, None, 208)
    await world.reporter._write(world.reporter._pace(1.0), 1.0)
    await world.reporter.finish()
    assert [holds.others for holds, _ in world.told] == [35, None, 0]


async def test_what_was_never_read_is_not_told_as_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, dispatcher(limit=64))
    await world.reporter.finish()
    assert world.told[0][0].others is None
