"""What a DAG asks for meets what the platform promised: less is granted, more is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from airflow_llm_provider.core.control_law import ControlLaw
from airflow_llm_provider.core.load import Load
from airflow_llm_provider.core.terms import DEFAULT_WINDOWS, Agreement, Asked, Promise, agree
from airflow_llm_provider.core.window_text import format_windows, parse_windows
from airflow_llm_provider.core.workload import POLICIES, Placement, Workload
from airflow_llm_provider.exceptions import ConfigurationError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NIGHT = "23:00-07:00 Europe/London"
SHORT = "00:00-05:00 Europe/London"
WIDE = "20:00-09:00 Europe/London"
LONDON_NIGHT = parse_windows(NIGHT)


def agreed(promise: Promise = Promise(), **asked: Any) -> Agreement:  # noqa: B008 - it is frozen
    return agree(Asked(**asked), promise, connection="gpu", now=NOW)


def value_of(agreement: Agreement, name: str) -> tuple[Any, str]:
    return next((each.value, each.set_by) for each in agreement.values if each.name == name)


def test_where_nobody_says_anything_batch_has_the_gpus_to_itself() -> None:
    agreement = agreed()
    assert value_of(agreement, "placement") == ("dedicated", "default")
    assert (agreement.terms.windows, agreement.terms.gated, agreement.priority) == (None, False, None)
    assert (agreement.terms.limit, agreement.terms.limit_each) == (1024, None)
    assert (agreement.control.kind, agreement.advice) == ("adaptive", None)


class TestWindow:
    @pytest.mark.parametrize(
        ("promise", "asked", "window", "set_by"),
        [
            (Promise(), {"window": SHORT}, SHORT, "DAG"),
            (Promise(windows=LONDON_NIGHT), {}, NIGHT, "connection gpu"),
            (Promise(windows=LONDON_NIGHT), {"window": SHORT}, SHORT, "DAG"),
            (Promise(windows=LONDON_NIGHT), {"window": NIGHT}, NIGHT, "DAG"),
            (Promise(), {"placement": "time-shifted"}, NIGHT, "placement time-shifted"),
            (Promise(), {"placement": "time-shifted", "window": WIDE}, WIDE, "DAG"),
            (Promise(placement=Placement.TIME_SHIFTED), {}, NIGHT, "placement time-shifted"),
            (Promise(placement=Placement.SHARED), {}, None, "default"),
        ],
    )
    def test_who_sets_it(self, promise: Promise, asked: dict[str, Any], window: str | None, set_by: str) -> None:
        agreement = agreed(promise, **asked)
        assert value_of(agreement, "window") == (window, set_by)
        assert agreement.terms.windows == (None if window is None else parse_windows(window))

    @pytest.mark.parametrize("promise", [Promise(windows=LONDON_NIGHT), Promise(placement=Placement.TIME_SHIFTED)])
    @pytest.mark.parametrize(
        "window", [WIDE, "23:00-07:01 Europe/London", "23:00-07:00 Europe/Paris", f"{SHORT}; {WIDE}"]
    )
    def test_a_wider_one_is_refused(self, promise: Promise, window: str) -> None:
        with pytest.raises(ConfigurationError, match=r"window: the DAG asks for .* connection 'gpu' allows"):
            agreed(promise, window=window)

    def test_a_sensor_may_wait_for_the_objective_alone(self) -> None:
        assert agreed(Promise(windows=LONDON_NIGHT), gates=("objective",)).terms.windows is None

    def test_the_default_is_the_uk_night(self) -> None:
        assert format_windows(DEFAULT_WINDOWS) == NIGHT


class TestPlacement:
    @pytest.mark.parametrize("allowed", list(Placement))
    @pytest.mark.parametrize("asked", list(Placement))
    def test_only_the_same_or_a_stricter_one_is_granted(self, allowed: Placement, asked: Placement) -> None:
        if allowed.stricter_than(asked):
            with pytest.raises(ConfigurationError, match="placement: the DAG asks for"):
                agreed(Promise(placement=allowed), placement=str(asked))
        else:
            assert value_of(agreed(Promise(placement=allowed), placement=str(asked)), "placement") == (asked, "DAG")

    def test_follows_from_what_the_connection_says(self) -> None:
        assert value_of(agreed(Promise(windows=LONDON_NIGHT)), "placement")[0] == "time-shifted"
        assert value_of(agreed(Promise(objective="ttft p95 < 2 s")), "placement")[0] == "shared"

    def test_dedicated_gpus_with_a_promise_to_real_time_contradict_each_other(self) -> None:
        with pytest.raises(ConfigurationError, match="placement dedicated"):
            agreed(Promise(placement=Placement.DEDICATED, objective="ttft p95 < 2 s"))


class TestObjective:
    promise = Promise(objective="ttft p95 < 2 s", on_unknown="cap", unknown_limit=3, sampling_period_s=12)

    def test_is_obeyed(self) -> None:
        terms = agreed(self.promise).terms
        assert (terms.gated, terms.on_unknown, terms.unknown_limit, terms.unknown_grace_s) == (True, "cap", 3, 12)

    def test_a_sensor_may_wait_for_the_window_alone(self) -> None:
        assert not agreed(self.promise, gates=("window",)).terms.gated

    def test_none_is_no_gate(self) -> None:
        assert value_of(agreed(Promise(placement=Placement.SHARED)), "objective")[0] is None


class TestPriorityAndHeadroom:
    def test_follow_from_workload_and_placement(self) -> None:
        for workload in ("scheduled-batch", "burst-batch"):
            policy = POLICIES[Workload(workload), Placement.SHARED]
            agreement = agreed(Promise(placement=Placement.SHARED), workload=workload)
            assert agreement.priority == policy.priority

    @pytest.mark.parametrize(
        ("floor", "asked", "priority"), [(None, 200, 200), (120, None, 120), (20, None, 100), (20, 30, 30)]
    )
    def test_a_later_priority_is_granted(self, floor: int | None, asked: int | None, priority: int) -> None:
        assert agreed(Promise(placement=Placement.SHARED, priority=floor), priority=asked).priority == priority

    @pytest.mark.parametrize(("floor", "asked"), [(None, 0), (None, 99), (20, 19)])
    def test_an_earlier_one_is_refused(self, floor: int | None, asked: int) -> None:
        with pytest.raises(ConfigurationError, match="priority: the DAG asks for"):
            agreed(Promise(placement=Placement.SHARED, priority=floor), priority=asked)

    def test_more_headroom_is_granted_and_less_refused(self) -> None:
        for placement in (Placement.SHARED, Placement.DEDICATED):
            promise = Promise(slots=32, headroom=8, placement=placement)
            assert (agreed(promise, headroom=10).terms.limit, agreed(promise, headroom=10).terms.limit_each) == (22, 22)
            assert agreed(promise).terms.limit == 24
            with pytest.raises(ConfigurationError, match="headroom: the DAG asks for 7"):
                agreed(promise, headroom=7)
        with pytest.raises(ConfigurationError, match="0 or more"):
            agreed(headroom=-1)

    @pytest.mark.parametrize("placement", [Placement.SHARED, Placement.TIME_SHIFTED])
    def test_headroom_that_leaves_nothing_is_refused(self, placement: Placement) -> None:
        with pytest.raises(ConfigurationError, match="Nothing is left for batch: connection 'gpu' says slots 8"):
            agreed(Promise(slots=8, headroom=8, placement=placement))


class TestControl:
    """What is learned from the servers' load."""

    @pytest.mark.parametrize(("placement", "headroom_unread"), [(Placement.SHARED, 16), (Placement.TIME_SHIFTED, 4)])
    def test_beside_real_time_nothing_is_reserved_that_can_be_learned(
        self, placement: Placement, headroom_unread: int
    ) -> None:
        agreement = agreed(Promise(slots=256, placement=placement))
        assert agreement.control == ControlLaw(kind="headroom", slots=256, floor=0, blind=headroom_unread)
        assert value_of(agreement, "headroom") == (0, "default")
        assert value_of(agreement, "headroom_unread") == (headroom_unread, "workload and placement")
        assert value_of(agreement, "limit_law") == ("headroom", "placement")
        assert (agreement.terms.limit, agreement.terms.limit_each, agreement.advice) == (256, 256, None)

    @pytest.mark.parametrize(
        ("headroom", "asked", "floor", "set_by"),
        [(8, None, 8, "connection gpu"), (8, 10, 10, "DAG"), (None, 10, 10, "DAG"), (0, None, 0, "connection gpu")],
    )
    def test_whoever_says_a_headroom_has_it_kept_even_while_the_load_is_unread(
        self, headroom: int | None, asked: int | None, floor: int, set_by: str
    ) -> None:
        agreement = agreed(Promise(slots=256, headroom=headroom, placement=Placement.SHARED), headroom=asked)
        assert (agreement.control.floor, agreement.control.blind) == (floor, floor)
        assert value_of(agreement, "headroom") == value_of(agreement, "headroom_unread") == (floor, set_by)

    @pytest.mark.parametrize("placement", [Placement.SHARED, Placement.TIME_SHIFTED])
    def test_without_slots_the_limit_is_fixed_and_it_is_said_what_to_set(self, placement: Placement) -> None:
        agreement = agreed(Promise(placement=placement))
        assert (agreement.control, agreement.terms.limit) == (ControlLaw(kind="fixed"), 64)
        assert value_of(agreement, "limit_law") == ("fixed", "connection gpu")
        assert agreement.advice is not None
        assert "at most 64 in flight" in agreement.advice
        assert "Set slots on the connection" in agreement.advice

    def test_a_dag_that_asks_for_a_stricter_placement_gets_its_law(self) -> None:
        assert agreed(Promise(slots=8), placement="shared").control.kind == "headroom"

    def test_gpus_of_batchs_own_are_filled_without_being_told_the_slots(self) -> None:
        for slots in (None, 256):
            assert agreed(Promise(slots=slots, placement=Placement.DEDICATED)).control == ControlLaw(kind="adaptive")
        assert value_of(agreed(), "headroom_unread") == (None, "default")

    def test_a_law_that_cannot_be_made_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="must be told the server's slots"):
            ControlLaw(kind="headroom")
        for floor in (-1, 8):
            with pytest.raises(ConfigurationError, match=f"headroom keeps {floor} free"):
                ControlLaw(kind="headroom", slots=8, floor=floor)

    @pytest.mark.parametrize(
        ("law", "most", "wants"),
        [
            (ControlLaw(kind="headroom", slots=8), 9, 9),
            (ControlLaw(kind="headroom", slots=8, floor=1), 7, 7),
            (ControlLaw(kind="headroom", slots=256), 256, 252),
            (ControlLaw(kind="headroom", slots=256, floor=3), 253, 252),
            (ControlLaw(kind="headroom", slots=256, floor=16), 240, 240),
            (ControlLaw(kind="adaptive"), None, None),
            (ControlLaw(), None, None),
        ],
    )
    def test_what_may_be_in_flight_is_never_less_than_what_it_learns(
        self, law: ControlLaw, most: int | None, wants: int | None
    ) -> None:
        assert law.most == most
        learnt = law.learnt(1024, Random(1))
        if most is None or learnt is None:
            return
        now = 0.0
        for _ in range(400):  # nobody else is there: it is a calm soon
            verdict = learnt.look(now, Load(running=min(learnt.limit, law.slots or 0), waiting=0), learnt.limit)
            now += verdict.look_in_s
        assert learnt.limit == wants

    def test_nothing_is_sent_before_the_first_look_nor_by_one_that_is_stale(self) -> None:
        learnt = ControlLaw(kind="headroom", slots=8).learnt(9, Random(1))
        assert learnt is not None
        assert learnt.limit == 0
        learnt.look(0.0, Load(running=2, waiting=1), 0)
        assert (learnt.limit, learnt.others) == (0, 3)  # somebody else may be about to take the room that is there
        learnt.look(1.5, Load(running=2, waiting=1), 0)
        assert (learnt.limit, learnt.others) == (1, 3)
        learnt.rest()
        assert (learnt.limit, learnt.others, learnt.load) == (0, 0, None)


def test_slots_are_each_servers() -> None:
    promise = Promise(servers=2, slots=100, headroom=16, placement=Placement.SHARED)
    terms = agreed(promise).terms
    assert (terms.limit, terms.limit_each, terms.limit_here) == (168, 84, 84)
    assert agreed(promise, max_in_flight=150).terms.limit == 150
    with pytest.raises(ConfigurationError, match="max_in_flight"):
        agreed(promise, max_in_flight=169)


class TestDeadline:
    promise = Promise(windows=LONDON_NIGHT, early_for_deadline=True)

    def test_opens_where_workload_and_platform_both_say_so(self) -> None:
        deadline = {"deadline": "2026-11-24T18:00:00+01:00"}
        terms = agreed(self.promise, workload="burst-batch", **deadline).terms
        assert (terms.deadline, terms.deadline_opens) == (datetime(2026, 11, 24, 17, tzinfo=UTC), True)
        assert not agreed(Promise(windows=LONDON_NIGHT), workload="burst-batch", **deadline).terms.deadline_opens

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ({"deadline": "2026-11-24T18:00:00+00:00"}, "deadline is for workload 'burst-batch'"),
            ({"workload": "burst-batch", "deadline": "2026-11-24T18:00"}, "has no time zone"),
            ({"workload": "burst-batch", "deadline": "tomorrow"}, "ISO 8601"),
        ],
    )
    def test_what_is_none(self, asked: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            agreed(self.promise, **asked)


def test_a_trigger_keeps_what_was_asked_for() -> None:
    asked = Asked(workload=Workload.BURST_BATCH, window=NIGHT, deadline="2026-11-24T18:00:00+00:00", gates=("window",))
    kept = asked.as_dict()
    assert Asked.from_dict(kept) == asked
    assert type(kept["workload"]) is str
    assert Asked.from_dict({**kept, "of_a_newer_version": 1}) == asked
