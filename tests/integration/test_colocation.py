"""The comparison of policies over HTTP: real-time and real batch processes on a simulated server. Nothing is timed."""

import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.colocation.arm import measure
from benchmarks.colocation.fleet import Fleet
from benchmarks.colocation.look_cost import client_look_cost_s, server_look_cost_s
from benchmarks.colocation.policies import NONE, policy_of
from benchmarks.colocation.report import Row, table
from benchmarks.colocation.servers import simulator
from benchmarks.colocation.shapes import herd

pytestmark = pytest.mark.timeout(600)

TRAFFIC = herd(6.0, Random(1), per_s=2.0, every_s=3.0)


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colocation")
    cases = [(NONE, 0), (policy_of("saturated-priority"), 1), (policy_of("ours"), 2)]
    with simulator(8, folder / "server.log") as server, Fleet(2, folder, rows=2_000) as fleet:
        assert server_look_cost_s(server, 20) >= 0
        assert client_look_cost_s(server, 20) > 0
        return [measure(server, fleet, TRAFFIC, policy, processes=count, warm_s=1.5) for policy, count in cases]


def test_every_request_of_realtime_is_answered(arms):
    for arm in arms:
        assert len(arm.samples) == len(TRAFFIC.arrivals)
        assert not arm.failed


def test_batch_works_beside_it_and_its_tokens_are_the_servers(arms):
    none, saturated, ours = arms
    assert (none.batch_tokens, none.looks) == (0, [])
    for arm in (saturated, ours):
        assert arm.batch_tokens > 0
        assert set(arm.endings) <= {"ok", "given-up"}
        generated = arm.gauges[-1][3] - arm.gauges[0][3]
        assert arm.batch_tokens < generated


def test_only_who_learns_looks_at_the_load(arms):
    _, saturated, ours = arms
    assert not any(saturated.looks)
    assert all(ours.looks)


def test_it_makes_a_table(arms):
    rows = [Row(name=arm.policy.name, arms=(arm,), saturation_per_s=(1_000.0,), look_cost_s=0.001) for arm in arms]
    assert len(list(table(rows))) == 5
