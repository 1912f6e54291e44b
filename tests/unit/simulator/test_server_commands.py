"""Both servers' command lines, and what they say of a mistake."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from airflow_llm_provider.simulator import __main__ as simulator
from airflow_llm_provider.testing import __main__ as stub

if TYPE_CHECKING:
    from pathlib import Path

BOTH = [
    (["--port", "99999"], "a port is a whole number of 0 to 65535, not '99999'."),
    (["--port=-1"], "a port is a whole number of 0 to 65535, not '-1'."),
    (["--port", "x"], "a port is a whole number of 0 to 65535, not 'x'."),
]
SIMULATOR = [
    (["--speed", "inf"], "speed is a number above 0 and up to 1,000,000, not inf."),
    (["--speed", "1e308"], "speed is a number above 0"),
    (["--speed", "nan"], "speed is a number above 0"),
    (["--mean-output-tokens", "nan"], "mean_output_tokens is a finite number of 1 or more, or None, not nan."),
    (["--mean-output-tokens", "inf"], "mean_output_tokens is a finite number"),
    (["--shutdown-timeout", "nan"], "--shutdown-timeout: it is a finite number of seconds, 0 or more, not 'nan'."),
    (["--shutdown-timeout=-1"], "--shutdown-timeout: it is a finite number of seconds"),
    (["--shutdown-timeout", "soon"], "--shutdown-timeout: it is a finite number of seconds"),
    (["--served-model-name", ""], "--served-model-name: a name has one character at least."),
    (["--max-num-seqs", "0"], "max_num_seqs is a whole number of 1 or more"),
    (["--step", "/nonexistent"], "--step /nonexistent: [Errno 2] No such file"),
]
STUB = [
    (["--delay-s", "nan"], "--delay-s: it is a finite number of seconds, 0 or more, not 'nan'."),
    (["--delay-s=-1"], "--delay-s: it is a finite number of seconds"),
    (["--max-prompt-chars", "0"], "max_prompt_chars is a whole number of 1 or more, or null, not 0."),
    (["--model", ""], "--model: a name has one character at least."),
    (["--log", "/nonexistent/requests.log"], "No such file or directory: '/nonexistent/requests.log'"),
]
MISTAKES = [(command, *case) for case in BOTH for command in (simulator, stub)]
MISTAKES += [(simulator, *case) for case in SIMULATOR] + [(stub, *case) for case in STUB]


@pytest.mark.parametrize(("command", "flags", "words"), MISTAKES, ids=str)
def test_mistakes(command, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(flags)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert words in told.err.splitlines()[-1]
    assert told.out == ""


@pytest.mark.parametrize("command", [simulator, stub])
def test_a_port_in_use(command, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            command.main(["--port", str(port)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use. Choose another --port" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "it holds [1], and not an object with the fields of StepModel."),
        ("null", "it holds None, and not an object"),
        ("{", "unexpected end of data"),
        (
            '{"base_s": "x", "per_seq_s": 0, "per_prefill_token_s": 0}',
            "base_s is a finite number of 0 or more, not 'x'.",
        ),
        ('{"bse": 1}', "unexpected keyword argument 'bse'"),
    ],
)
def test_a_step_that_is_none(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = tmp_path / "step.json"
    step.write_text(text)
    with pytest.raises(SystemExit):
        simulator.main(["--step", str(step)])
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --step {step}: " in line
    assert words in line
