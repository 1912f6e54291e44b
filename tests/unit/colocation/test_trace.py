"""Traffic from a file: what it says is replayed, and what it can't mean is refused, by line."""

from __future__ import annotations

import pytest

from benchmarks.colocation.trace import read_trace
from benchmarks.colocation.traffic import Arrival


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_trace_is_replayed_in_the_order_of_its_moments(tmp_path):
    traffic = read_trace(
        write(
            tmp_path / "friday.jsonl",
            '{"at_s": 2.0, "prompt_tokens": 40, "max_tokens": 128, "phase": "rush"}',
            "",
            '{"at_s": 0.5, "prompt_tokens": 10, "max_tokens": 7}',
        )
    )
    assert traffic.name == "friday"
    assert traffic.arrivals[0] == Arrival(at_s=0.5, prompt_tokens=10, max_tokens=7)
    assert traffic.duration_s == 3.0
    assert [traffic.phase_at(at_s) for at_s in (0.0, 1.9, 2.0, 99)] == ["all", "all", "rush", "rush"]


def test_a_trace_whose_first_line_names_a_phase_has_no_other_before_it(tmp_path):
    traffic = read_trace(write(tmp_path / "t", '{"at_s": 0, "prompt_tokens": 1, "max_tokens": 1, "phase": "rush"}'))
    assert traffic.names == ["rush"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"at_s": 1}',
        '{"at_s": -1, "prompt_tokens": 1, "max_tokens": 1}',
        '{"at_s": "x", "prompt_tokens": 1, "max_tokens": 1}',
        '{"at_s": true, "prompt_tokens": 1, "max_tokens": 1}',
        '{"at_s": 1e999, "prompt_tokens": 1, "max_tokens": 1}',
        '{"at_s": 1, "prompt_tokens": 4.5, "max_tokens": 1}',
        '{"at_s": 1, "prompt_tokens": true, "max_tokens": 1}',
        '{"at_s": 1, "prompt_tokens": 1, "max_tokens": 2.0}',
        '{"at_s": 1, "prompt_tokens": 0, "max_tokens": 1}',
        '{"at_s": 1, "prompt_tokens": 1, "max_tokens": 1, "phase": 7}',
        '{"at_s": 1, "prompt_tokens": 1, "max_tokens": 1, "phase": ""}',
    ],
)
def test_a_trace_with_a_bad_line_says_which(tmp_path, line):
    good = '{"at_s": 2.0, "prompt_tokens": 40, "max_tokens": 128}'
    with pytest.raises(ValueError, match="line 2 is no arrival"):
        read_trace(write(tmp_path / "t", good, line))


def test_an_empty_trace_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no arrival"):
        read_trace(write(tmp_path / "t", ""))


def line(at_s, phase=None):
    named = "" if phase is None else f', "phase": "{phase}"'
    return f'{{"at_s": {at_s}, "prompt_tokens": 1, "max_tokens": 1{named}}}'


def test_two_phases_at_one_moment_are_refused(tmp_path):
    path = write(tmp_path / "t", line(0, "calm"), line(2, "rush"), line(1), line(2.0, "calm"))
    with pytest.raises(ValueError, match=r"line 4: the phase at 2\.0 s can't be 'calm' and, as line 2 has it, 'rush'"):
        read_trace(path)


def test_a_phase_begins_at_its_moment_whichever_line_of_it_says_so(tmp_path):
    traffic = read_trace(write(tmp_path / "t", line(0), line(0, "calm"), line(2), line(2, "rush"), line(3, "rush")))
    assert [(each.name, each.from_s, each.to_s) for each in traffic.phases] == [("calm", 0, 2), ("rush", 2, 4)]
    assert all(traffic.share_s(name) > 0 for name in traffic.names)
