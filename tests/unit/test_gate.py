"""The gate of a running batch, with a clock that is moved by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_llm_provider.batch import gate as gate_module
from airflow_llm_provider.batch.gate import CLOSE_MARGIN_S, DRAIN_S, SHORT_WAIT_S, Gate, RunHeld, await_release
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.batch.switch import HoldSwitch
from airflow_llm_provider.core.circuit import State
from airflow_llm_provider.core.drain import UNMEASURED_S
from airflow_llm_provider.core.objective import Health, Standing
from airflow_llm_provider.core.release import Cause, Terms
from airflow_llm_provider.core.window_text import parse_windows
from airflow_llm_provider.exceptions import ConfigurationError, RunStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSES = datetime(2026, 11, 25, 7, tzinfo=UTC)
OPENS = datetime(2026, 11, 24, 23, tzinfo=UTC)
NIGHTLY = Terms(limit=8, windows=parse_windows("23:00-07:00 Europe/London"))


class World:
    """A gate, what it says to its runner, and a clock."""

    def __init__(self, terms: Terms, now: datetime, *, watch: Any = None, shift: timedelta | None = None) -> None:
        self.now = now
        self.loop_s = 1000.0
        self.said: list[Any] = []
        self.ended: list[BaseException | None] = []
        self.in_flight = 0
        self.begun = False
        self.most = 8
        self.predicted_s = UNMEASURED_S
        self.durations = SimpleNamespace(predicted_s=self.bounded_s, at_most_s=float("inf"))
        self.done = 0
        self.circuit = SimpleNamespace(state=State.UP)
        self.switch = HoldSwitch(lambda: None)
        self.gate = Gate(
            terms,
            switch=self.switch,
            watch=watch,
            runner=self,
            dispatcher=self,  # type: ignore[arg-type] # what the gate asks of one
            ledger=SimpleNamespace(settled_here=self),  # type: ignore[arg-type]
            remaining_s=lambda: 100.0,
            shift=shift,
            now=lambda: self.now,
        )

    @property
    def away(self) -> bool:
        return self.circuit.state is not State.UP

    def bounded_s(self) -> float:
        return min(self.predicted_s, self.durations.at_most_s)

    def hold(self, *, yields: bool) -> None:
        self.said.append("yield" if yields else "hold")
        if yields:
            self.in_flight = 0

    def release(self, *, limit: int, closes_s: float | None) -> None:
        self.said.append((limit, closes_s))

    def drain(self) -> None:
        self.said.append("drain")

    def stay(self) -> None:
        """Nothing to do: there is one server."""

    def end(self, error: BaseException | None) -> None:
        self.ended.append(error)

    def step(self, seconds: float = 0.0) -> Any:
        """Let time pass, ask the gate once, and return what it said to the runner."""
        self.now += timedelta(seconds=seconds)
        self.loop_s += seconds
        self.said.clear()
        self.delay_s = self.gate.step(self.loop_s)
        return self.said[-1]


def test_releases_until_a_moment_before_the_close() -> None:
    world = World(NIGHTLY, CLOSES - timedelta(seconds=100))
    assert world.step() == (8, 1000 + 100 - CLOSE_MARGIN_S)


def test_what_is_in_flight_at_the_close_is_yielded_before_it() -> None:
    world = World(NIGHTLY, CLOSES - timedelta(seconds=CLOSE_MARGIN_S + 0.4))
    world.in_flight = 3
    assert world.step() != "yield"
    assert world.delay_s == pytest.approx(0.4), "the gate looks again at the very moment"
    assert world.step(0.4) == "yield"
    assert isinstance(world.ended[0], RunHeld)
    assert world.ended[0].hold.until == OPENS + timedelta(days=1)


def test_gives_the_worker_back_as_soon_as_nothing_more_fits() -> None:
    world = World(NIGHTLY, CLOSES - timedelta(seconds=60))
    world.predicted_s = 90
    world.in_flight = 1
    world.step()
    assert not world.ended, "what is in flight may end"
    world.in_flight = 0
    world.step(1)
    assert isinstance(world.ended[0], RunHeld)


def test_waits_in_place_for_a_window_that_opens_soon() -> None:
    world = World(NIGHTLY, OPENS - timedelta(seconds=SHORT_WAIT_S))
    assert world.step() == "yield"
    assert not world.ended
    assert world.step(SHORT_WAIT_S) == (8, world.loop_s + 8 * 3600 - CLOSE_MARGIN_S)
    early = World(NIGHTLY, OPENS - timedelta(seconds=SHORT_WAIT_S + 1))
    early.step()
    assert isinstance(early.ended[0], RunHeld)


def test_the_hold_switch_yields_and_after_a_while_gives_the_worker_back() -> None:
    world = World(Terms(limit=8), OPENS)
    assert world.step() == (8, None)
    world.in_flight = 5
    world.switch.reason = "GPU swap"
    assert world.step(1) == "yield"
    world.switch.reason = None
    assert world.step(SHORT_WAIT_S - 1) == (8, None)
    world.switch.reason = "again"
    world.step(1)
    world.step(SHORT_WAIT_S - 1)
    assert not world.ended, "each wait is measured from its own beginning"
    world.step(1)
    held = world.ended[0]
    assert isinstance(held, RunHeld)
    assert (held.hold.cause, held.remaining_s) == (Cause.SWITCH, 100.0)


class Watched:
    """A watch that says what it is told to."""

    def __init__(self) -> None:
        self.standing: Standing | None = None

    def says(self, health: Health, since: datetime) -> None:
        self.standing = Standing(health=health, reason="x", since=since, recovered=True, unknown_since=None)


def test_the_first_look_is_waited_for_in_place_however_long_it_takes() -> None:
    watch = Watched()
    world = World(Terms(limit=8, gated=True), OPENS, watch=watch)
    world.step()
    world.step(10 * SHORT_WAIT_S)
    assert not world.ended
    watch.says(Health.HEALTHY, OPENS)
    assert world.step(1) == (8, None)


def test_an_unknown_latency_lets_requests_end_first_and_gives_them_up_later() -> None:
    watch = Watched()
    watch.says(Health.HEALTHY, OPENS)
    world = World(Terms(limit=8, gated=True, unknown_grace_s=20), OPENS, watch=watch)
    world.step()
    world.in_flight = 2
    watch.says(Health.UNKNOWN, OPENS)
    assert world.step(0) == "hold"
    assert world.step(19) == "hold"
    assert world.step(1) == "yield"
    assert not world.ended
    world.step(SHORT_WAIT_S)
    assert isinstance(world.ended[0], RunHeld)


def test_says_what_is_new_and_not_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(gate_module.log, "info", lines.append)
    world = World(NIGHTLY, CLOSES - timedelta(seconds=60))
    world.predicted_s = 1
    for _ in range(57):
        world.step(1)
    world.in_flight = 3
    world.step(1)
    world.step(1)
    released, held = lines
    assert released.startswith("Released until 2026-11-25 07:00:00 UTC, at most 8 in flight: the window is open")
    assert held.startswith("On hold: the window is closed until 2026-11-25 23:00:00 UTC, for 16 h 00 min; 3 requests")


@pytest.mark.parametrize(("done", "error"), [(0, ConfigurationError), (1, RunHeld)])
def test_a_whole_window_in_which_no_row_ended_is_an_error(done: int, error: type) -> None:
    world = World(replace(NIGHTLY, windows=parse_windows("23:00-23:10 Europe/London")), OPENS)
    world.in_flight = 1
    for _ in range(600):
        world.step(1)
        world.done = done
        if world.ended:
            break
    assert type(world.ended[0]) is error


def test_rows_that_take_longer_than_their_window_are_tried_all_the_same_and_then_it_says_so() -> None:
    """An hour's window, and rows that an earlier night took to need two: what is never sent is never known."""
    hour = replace(NIGHTLY, windows=parse_windows("23:00-00:00 Europe/London"))
    world = World(hour, OPENS)
    world.predicted_s = 7200
    assert world.step() != "yield", "the first half of the window is for trying"
    world.in_flight = 1
    for _ in range(3600):
        world.step(1)
        if world.ended:
            break
    assert isinstance(world.ended[0], ConfigurationError)


def test_a_server_that_was_down_for_a_whole_window_says_nothing_about_the_rows() -> None:
    world = World(replace(NIGHTLY, windows=parse_windows("23:00-23:10 Europe/London")), OPENS)
    world.circuit.state = State.DOWN
    for _ in range(600):
        world.step(1)
        if world.ended:
            break
    assert type(world.ended[0]) is RunHeld


@pytest.mark.parametrize(("in_flight", "error"), [(0, RunHeld), (1, ConfigurationError)])
def test_a_server_without_room_for_a_whole_window_says_nothing_about_the_rows(in_flight: int, error: type) -> None:
    world = World(replace(NIGHTLY, windows=parse_windows("23:00-23:10 Europe/London")), OPENS)
    world.most, world.in_flight = 0, in_flight
    for _ in range(600):
        world.step(1)
        if world.ended:
            break
    assert type(world.ended[0]) is error


@pytest.mark.parametrize("released", [True, False])
def test_whoever_leaves_before_the_close_says_until_when_the_open_window_is_of_no_use(*, released: bool) -> None:
    world = World(NIGHTLY, CLOSES - timedelta(seconds=60))
    world.predicted_s = 1 if released else 90
    world.step()
    world.predicted_s = 90
    world.step(1)
    held = world.ended[0]
    assert isinstance(held, RunHeld)
    assert (held.drained_until, held.released) == (CLOSES, released)
    assert held.hold.until == OPENS + timedelta(days=1)


def test_a_capped_release_does_not_count_as_running() -> None:
    watch = Watched()
    watch.says(Health.UNKNOWN, OPENS)
    terms = Terms(limit=8, gated=True, on_unknown="cap", unknown_limit=2)
    world = World(terms, OPENS, watch=watch)
    assert world.step() == (2, None)
    watch.says(Health.AT_RISK, OPENS)
    assert world.step(1) == "yield", "what is at risk is not started, and a cap is no start"
    watch.says(Health.HEALTHY, OPENS)
    assert world.step(1) == (8, None)
    watch.says(Health.AT_RISK, OPENS)
    assert world.step(1) == (8, None)


def test_a_window_without_an_end_in_sight_is_not_drained() -> None:
    always = replace(NIGHTLY, windows=parse_windows("00:00-24:00 Europe/London"))
    assert World(always, OPENS).step()[1] != "yield"


class TestBeforeTheStart:
    async def wait(self, terms: Terms, times: list[datetime], switch: str | None = None) -> None:
        clock: Callable[[], datetime] = iter(times).__next__
        await await_release(terms, HoldSwitch(lambda: switch), self.stop, now=clock)

    def setup_method(self) -> None:
        self.stop = StopSwitch()

    async def test_goes_on_at_once_where_it_may(self) -> None:
        await self.wait(NIGHTLY, [OPENS])

    async def test_does_not_ask_for_latency(self) -> None:
        await self.wait(replace(NIGHTLY, gated=True), [OPENS])

    async def test_waits_a_little(self) -> None:
        just_before = OPENS - timedelta(milliseconds=20)
        await self.wait(NIGHTLY, [just_before, just_before, OPENS])

    @pytest.mark.parametrize("switch", [None, "GPU swap"])
    async def test_does_not_wait_long(self, switch: str | None) -> None:
        moment = OPENS - timedelta(seconds=SHORT_WAIT_S + 1) if switch is None else OPENS
        with pytest.raises(RunHeld):
            await self.wait(NIGHTLY, [moment, moment], switch)

    async def test_what_is_left_and_the_deadline_open_it_again(self) -> None:
        noon = OPENS - timedelta(hours=11)
        burst = replace(NIGHTLY, deadline=OPENS + timedelta(hours=1), deadline_opens=True)
        switch = HoldSwitch(lambda: None)
        await await_release(burst, switch, self.stop, remaining_s=5 * 3600, now=lambda: noon)
        with pytest.raises(RunHeld) as raised:
            await await_release(burst, switch, self.stop, remaining_s=60, now=lambda: noon)
        assert raised.value.remaining_s == 60

    async def test_reads_the_switch_itself(self) -> None:
        with pytest.raises(RunHeld):
            await await_release(NIGHTLY, HoldSwitch(lambda: "set just now"), self.stop, now=lambda: OPENS)

    async def test_stops_when_told_to(self) -> None:
        self.stop.set("SIGTERM")
        with pytest.raises(RunStoppedError):
            await self.wait(NIGHTLY, [OPENS - timedelta(seconds=1)] * 3)


class TestShifts:
    HALF_AN_HOUR = timedelta(minutes=30)

    def test_what_is_begun_may_end_and_then_the_worker_is_given_back(self) -> None:
        world = World(Terms(limit=8), OPENS, shift=self.HALF_AN_HOUR)
        world.done, world.in_flight = 5, 3
        world.step()
        assert world.step(30 * 60 - 1) == (8, None)
        assert world.step(1) == "drain"
        assert not world.ended
        world.in_flight = 0
        world.step(1)
        held = world.ended[0]
        assert isinstance(held, RunHeld)
        assert (held.hold.cause, held.hold.until, held.drained_until, held.released) == (Cause.SHIFT, None, None, True)
        assert "the shift was over at 2026-11-24 23:30:00 UTC" in held.hold.reason

    def test_where_no_row_has_settled_it_is_twice_as_long(self) -> None:
        world = World(Terms(limit=8), OPENS, shift=self.HALF_AN_HOUR)
        world.step()
        for _ in range(59):
            assert world.step(60) == (8, None)
        assert world.step(60) == "drain"

    def test_in_an_outage_none_ends(self) -> None:
        world = World(Terms(limit=8), OPENS, shift=self.HALF_AN_HOUR)
        world.done, world.circuit.state = 5, State.DOWN
        world.step()
        assert world.step(3600) == (8, None)
        world.circuit.state = State.UP
        assert world.step(1) == "drain"

    def test_rows_of_which_slices_are_kept_are_waited_for_a_while(self) -> None:
        world = World(Terms(limit=8), OPENS, shift=self.HALF_AN_HOUR)
        world.done, world.begun = 5, True
        world.step()
        assert world.step(30 * 60) == "drain"
        world.step(DRAIN_S - 1)
        assert not world.ended
        world.step(1)
        assert isinstance(world.ended[0], RunHeld)

    def test_a_clock_that_is_set_neither_ends_nor_lengthens_one(self) -> None:
        world = World(Terms(limit=8), OPENS, shift=self.HALF_AN_HOUR)
        world.done = 5
        world.step()
        world.now += timedelta(days=1)
        assert world.step(60) == (8, None)
        world.now -= timedelta(days=2)
        assert world.step(29 * 60) == "drain"

    def test_a_window_in_which_no_row_ended_is_one_though_most_of_it_was_drained(self) -> None:
        world = World(NIGHTLY, OPENS, shift=self.HALF_AN_HOUR)
        world.in_flight = 1
        for _ in range(8 * 60):
            world.step(60)
        error = world.ended[-1]
        assert isinstance(error, ConfigurationError)
        assert "A whole window of 8 h 00 min went by" in str(error)

    def test_the_window_closes_on_what_drains_as_on_any_other(self) -> None:
        world = World(NIGHTLY, CLOSES - timedelta(seconds=CLOSE_MARGIN_S + 1.4), shift=timedelta(seconds=0))
        world.done, world.in_flight = 5, 3
        assert world.step() == "drain"
        assert world.delay_s == 1.0
        assert world.step(1) == "drain"
        assert world.delay_s == pytest.approx(0.4)
        assert world.step(0.4) == "yield"
        assert isinstance(world.ended[-1], RunHeld)
        assert world.ended[-1].hold.cause is Cause.WINDOW
