"""A server that does not start says why, and leaves nothing behind."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile

import pytest

from benchmarks.colocation import __main__ as command
from benchmarks.colocation import servers
from benchmarks.colocation.fleet import Fleet
from benchmarks.colocation.log_tail import LINES, log_tail


def test_the_end_of_a_log_is_what_is_told(tmp_path):
    log = tmp_path / "server.log"
    log.write_bytes(b"first\n" + b"more\n" * LINES + b"\xff last\n")
    assert log_tail(log).startswith("the last lines of server.log:\nmore\n")
    assert log_tail(log).endswith("\ufffd last")
    assert "can't be read" in log_tail(tmp_path / "none")


def test_a_simulator_that_does_not_start_tells_the_end_of_its_log(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"(?s)did not start.*server\.log.*max_num_seqs"),
        servers.simulator(0, tmp_path / "server.log"),
    ):
        pass


def test_a_vllm_that_does_not_start_tells_the_end_of_its_log(tmp_path, monkeypatch):
    for folder in (".venv-vllm", ".run/tiny-llama", "tools/vllm"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv-vllm" / "installed.lock").touch()
    (tmp_path / "tools" / "vllm" / "serve.sh").write_text('echo "no memory" >"$VLLM_LOG"; exit 1')
    monkeypatch.setattr(servers, "_ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*no memory"), servers.vllm(8, tmp_path / "server.log"):
        pass


def test_a_batch_process_that_is_gone_tells_the_end_of_its_log(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such module >&2; exit 3\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    with (
        pytest.raises(RuntimeError, match=r"(?s)gone, exit code 3.*batch-0\.log.*no such module"),
        Fleet(2, tmp_path, rows=1),
    ):
        pass


def test_nothing_is_left_in_the_folder_for_what_is_temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(logging, "disable", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        command.main(["--server", "sim", "--shapes", "waves"])
    assert not list(tmp_path.iterdir())
