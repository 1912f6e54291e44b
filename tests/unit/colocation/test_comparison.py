"""What a command line asks for, and what is wrong with it before anything is started."""

from __future__ import annotations

import pytest

from benchmarks import dedicated
from benchmarks.colocation.comparison import FULL_REQUESTS, asked


def named(comparison):
    return [(policy.name, processes) for policy, processes in comparison.arms]


def test_each_round_has_no_batch_and_batch_alone_before_the_policies():
    comparison = asked("", ["--policies", "fixed-7", "ours", "--processes", "1", "6"])
    assert named(comparison) == [("none", 0), ("alone", 1), ("fixed-7", 1), ("ours", 1), ("ours", 6)]
    assert (comparison.server, comparison.slots) == ("vllm", 8)
    assert [[traffic.name for traffic in rounds] for rounds in comparison.traffics] == [["bursts"], ["ramp"], ["waves"]]


def test_many_slots_in_virtual_time_have_a_day():
    comparison = asked("", ["--server", "virtual"])
    assert comparison.slots == 256
    assert ("fixed-224", 1) in named(comparison)
    assert [traffic.name for rounds in comparison.traffics for traffic in rounds] == ["day"]


def test_full_is_five_rounds_with_all_their_requests():
    comparison = asked("", ["--full", "--shapes", "bursts"])
    (rounds,) = comparison.traffics
    assert len({traffic.arrivals for traffic in rounds}) == 5
    assert sum(len(traffic.arrivals) for traffic in rounds) == pytest.approx(FULL_REQUESTS, rel=0.1)


def test_what_is_named_twice_is_run_once():
    words = ["--policies", "ours", "ours", "--processes", "1", "1", "--shapes", "waves", "waves"]
    comparison = asked("", words)
    assert named(comparison) == [("none", 0), ("alone", 1), ("ours", 1)]
    assert len(comparison.traffics) == 1


def test_a_trace_is_every_round(tmp_path):
    trace = tmp_path / "friday.jsonl"
    trace.write_text('{"at_s": 1, "prompt_tokens": 48, "max_tokens": 2000}')
    comparison = asked("", ["--trace", str(trace), "--rounds", "3"])
    (rounds,) = comparison.traffics
    assert [traffic.name for traffic in rounds] == ["friday"] * 3


def refused(capsys, *words):
    with pytest.raises(SystemExit) as end:
        asked("", words)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--rounds", "-1"], "'-1' is not a whole number of 1 or more"),
        (["--rounds", "0"], "'0' is not"),
        (["--slots", "0"], "'0' is not"),
        (["--slots", "8.5"], "'8.5' is not"),
        (["--processes", "1", "0"], "'0' is not"),
        (["--processes", "-1"], "'-1' is not"),
        (["--seconds", "nan"], "'nan' is no number of seconds"),
        (["--seconds", "inf"], "'inf' is no number"),
        (["--seconds", "-5"], "'-5' is no number"),
        (["--seconds", "0"], "'0' is no number"),
        (["--seconds", "soon"], "'soon' is no number"),
        (["--seconds", "1", "--shapes", "bursts"], "no request in 1 s"),
        (["--policies", "fixed-0"], "'fixed-0' lets batch send nothing"),
        (["--policies", "nonsense"], "'nonsense' is no policy"),
        (["--policies", "none"], "each round has that anyway"),
        (["--policies", "alone"], "each round has that anyway"),
        (["--policies", "ours-floor-1", "--slots", "1"], "leaves batch nothing"),
        (["--policies", "ideal"], "use --server virtual"),
        (["--policies", "ideal", "--server", "sim"], "use --server virtual"),
        (["--slots", "3000", "--server", "virtual", "--shapes", "waves"], "max_num_batched_tokens"),
        (["--shapes", "day"], "more than the 2048 that the server takes"),
        (["--trace", "/nowhere/at/all.jsonl"], "No such file"),
        (["--trace", "/"], "directory"),
        (["--plot", "/dev/null"], "--plot /dev/null: no folder"),
        (["--plot", "/dev/null/pictures"], "no folder"),
        (["--plot", __file__], "no folder"),
    ],
)
def test_what_cannot_be_run_is_told_of_at_the_start(capsys, words, why):
    assert why in refused(capsys, *words)


@pytest.mark.parametrize("server", ["virtual", "sim"])
@pytest.mark.parametrize(("tokens", "taken"), [(4096 - 48, True), (4096 - 47, False)])
def test_a_request_longer_than_the_server_takes_is_told_of_at_the_start(capsys, tmp_path, server, tokens, taken):
    trace = tmp_path / "t.jsonl"
    trace.write_text(f'{{"at_s": 1.5, "prompt_tokens": 48, "max_tokens": {tokens}}}')
    words = ["--server", server, "--slots", "8", "--trace", str(trace)]
    if taken:
        assert asked("", words).traffics
    else:
        assert "the request at 1.5 s has 48 prompt tokens" in refused(capsys, *words)


def test_a_bad_line_of_a_trace_is_told_of_at_the_start(capsys, tmp_path):
    trace = tmp_path / "t.jsonl"
    trace.write_text("{}")
    assert "line 1 is no arrival" in refused(capsys, "--trace", str(trace))


def test_a_folder_for_pictures_is_made(tmp_path):
    folder = tmp_path / "some" / "pictures"
    assert asked("", ["--plot", str(folder)]).plot == folder
    assert not list(folder.iterdir())


@pytest.mark.parametrize("words", [["--pairs", "0"], ["--pairs", "-3"], ["--rows", "0"], ["--rows", "many"]])
def test_a_server_of_batchs_own_is_asked_for_in_whole_numbers_too(capsys, monkeypatch, words):
    for part in ("filled", "shared", "storm"):
        monkeypatch.setattr(dedicated, part, list)  # no minute is spent, should the words be taken
    with pytest.raises(SystemExit):
        dedicated.main(words)
    assert "is not a whole number of 1 or more" in capsys.readouterr().err
