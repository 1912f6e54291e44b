"""``airflow llm-batch status``, ``replay`` and ``clean`` on runs where they lie; as commands: tests/integration."""

from __future__ import annotations

import json
from argparse import Namespace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import IDENTITY, KilledStore, job_of, run, texts, write_rows

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.cli import clean as clean_module
from airflow_llm_provider.cli.clean import age_of, clean
from airflow_llm_provider.cli.runs import replay, status
from airflow_llm_provider.core.request import Status
from airflow_llm_provider.exceptions import LLMBatchError
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_llm_provider.testing import StubVLLM


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "results"
    monkeypatch.setenv("AIRFLOW__LLM_BATCH__RESULTS_BASE", f"file://{folder}")
    return folder


def finished(stub: StubVLLM, folder: Path, rows: int = 6) -> dict[str, Any]:
    """A run of which one row errored."""
    stub.behaviour.fault = lambda body, _: Fault.bad_request() if "text 3" in json.dumps(body) else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    source = write_rows(folder.parent / f"{folder.name}.jsonl", texts(rows))
    return run(job_of(stub, source), RunStore(str(folder)))


def unfinished(stub: StubVLLM, folder: Path) -> None:
    source = write_rows(folder.parent / f"{folder.name}.jsonl", texts(6))
    with pytest.raises(LLMBatchError):
        run(job_of(stub, source), KilledStore(str(folder), at=7))


def told(capsys: pytest.CaptureFixture[str], *words: str, output: str = "text") -> str:
    status(Namespace(run=list(words), output=output, verbose=False))
    return capsys.readouterr().out


def test_a_finished_run(stub: StubVLLM, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = finished(stub, base / IDENTITY.path())
    for words in ([str(base / IDENTITY.path())], ["dag", "task", "run"]):
        said = told(capsys, *words)
        assert "DAG dag, task task, run run\n" in said
        assert "[##############################] 100.0 %  finished at " in said
        assert "5 succeeded, 1 errored" in said
        assert f"dead letters: {manifest['dead_letter']}" in said
    found = json.loads(told(capsys, "dag", "task", "run", output="json"))
    assert (found["state"], found["total"], found["manifest"]["counts"]["errored"]) == ("finished", 6, 1)


def test_a_run_that_goes_on(stub: StubVLLM, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = base / IDENTITY.path()
    folder.parent.mkdir(parents=True)
    unfinished(stub, folder)
    (folder / "_run" / "progress.json").unlink(missing_ok=True)
    assert "nothing has been told of it yet" in told(capsys, "dag", "task", "run")
    progress = {
        "updated_at": (utc_now() - timedelta(minutes=5)).isoformat(),
        "done": 3,
        "succeeded": 1,
        "truncated": 0,
        "invalid_output": 2,
        "errored": 0,
        "rows_per_s": 0.5,
        "tokens_per_s": 12.5,
        "eta_s": 6.0,
        "in_flight": 0,
        "limit": 0,
        "endpoint": "up",
        "hold_reason": "the window is closed until 23:00",
    }
    (folder / "_run" / "progress.json").write_text(json.dumps(progress))
    said = told(capsys, "dag", "task", "run")
    assert "[###############...............]  50.0 %  3 of 6 rows, 0.5 rows/s, 12.5 tokens/s, 6 s to go at this" in said
    assert "1 succeeded, 2 invalid_output\n" in said
    assert "on hold: the window is closed until 23:00" in said
    assert "That was 5 min 00 s ago: no try works at it now" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/nowhere/at/all"], "No run lies at"),
        (["dag", "task"], "Name the run's path, or its DAG, task and run id"),
        (["dag", "task", "run", "x"], "Name the run's path, or its DAG, task and run id"),
        (["dag", "task", "other", "3"], "other/3: .*|No run lies at .*other/3"),
    ],
)
@pytest.mark.usefixtures("base")
def test_what_is_no_run(words: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        status(Namespace(run=words, output="text", verbose=False))


def test_what_is_damaged(stub: StubVLLM, base: Path) -> None:
    finished(stub, base / IDENTITY.path())
    (base / IDENTITY.path() / "manifest.json").write_text("{")
    with pytest.raises(SystemExit, match=r"manifest\.json is damaged"):
        status(Namespace(run=["dag", "task", "run"], output="text", verbose=False))


def test_a_replay_is_noted_and_done_by_whoever_clears_the_task(
    stub: StubVLLM, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base / IDENTITY.path()
    finished(stub, folder)
    stub.behaviour.fault = None
    replay(Namespace(run=["dag", "task", "run"], status=["errored", "truncated"], verbose=False))
    assert "Noted: 1 errored. They are asked for again when task task of run run of DAG dag is cleared" in (
        capsys.readouterr().out
    )
    source = str(folder.parent / f"{folder.name}.jsonl")
    again = run(job_of(stub, source, epoch=1, try_number=2), RunStore(str(folder)))
    assert (again["counts"]["succeeded"], len(again["replays"])) == (6, 1)
    with pytest.raises(SystemExit, match="no row ended errored"):
        replay(Namespace(run=["dag", "task", "run"], status=[Status.ERRORED], verbose=False))


def test_an_unfinished_run_needs_none(stub: StubVLLM, base: Path) -> None:
    (base / IDENTITY.path()).parent.mkdir(parents=True)
    unfinished(stub, base / IDENTITY.path())
    with pytest.raises(SystemExit, match="an unfinished one is resumed as it is"):
        replay(Namespace(run=["dag", "task", "run"], status=["errored"], verbose=False))


# -- clean


def age(folder: Path, days: float) -> None:
    """Have the run at `folder` been begun, and finished, so long ago."""
    then = (utc_now() - timedelta(days=days)).isoformat()
    for name, key in (("manifest.json", "finished_at"), ("_run/run.json", "created_at")):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**content, key: then}))


def cleaned(
    capsys: pytest.CaptureFixture[str], *, what: str = "runs", yes: bool = True, base: str | None = None
) -> str:
    clean(Namespace(base=base, older_than="30d", what=what, yes=yes, verbose=False))
    return capsys.readouterr().out


@pytest.fixture
def runs(stub: StubVLLM, base: Path) -> dict[str, Path]:
    folders = {name: base / "dag" / name for name in ("old", "young", "half", "old/inner")}
    for name in ("old", "young", "old/inner"):
        finished(stub, folders[name])
        age(folders[name], 40 if name == "old" else 3)
    unfinished(stub, folders["half"])
    age(folders["half"], 40)
    return folders


def test_only_finished_runs_that_are_old_enough_go(
    runs: dict[str, Path], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in base.rglob("*") if path.is_file()}
    said = cleaned(capsys, yes=False)
    assert "dag/old  finished " in said
    assert "dag/half  is not finished, and stays" in said
    assert "1 runs, " in said
    assert "would be removed: say --yes" in said
    assert {path for path in base.rglob("*") if path.is_file()} == before
    said = cleaned(capsys)
    assert said.endswith(" bytes removed\n")
    assert not (runs["old"] / "manifest.json").exists()
    assert [*runs["old"].glob("part-*"), *runs["old"].glob("_run/*")] == []
    for name in ("young", "old/inner"):
        assert (runs[name] / "manifest.json").exists()
        assert list(runs[name].glob("part-*"))
    assert (runs["half"] / "_run" / "run.json").exists()
    assert "0 runs, 0 bytes removed" in cleaned(capsys)


def test_dead_letters_alone(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    cleaned(capsys, what="dead-letters")
    assert not list(runs["old"].glob("dead-letter-*"))
    assert list(runs["old"].glob("part-*"))
    assert (runs["old"] / "manifest.json").exists()
    assert list(runs["young"].glob("dead-letter-*"))


def test_the_base_may_be_a_run(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    cleaned(capsys, base=str(runs["old"]))
    assert not list(runs["old"].glob("part-*"))
    assert (runs["old/inner"] / "manifest.json").exists()


def test_nothing_goes_that_no_run_wrote(stub: StubVLLM, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run may lie in a folder with other things, and other runs below it that have not begun yet."""
    folder = base / "project"
    finished(stub, folder)
    age(folder, 40)
    others = [folder / "input" / "rows.jsonl", folder / "report.csv", folder / "nested" / "_run" / "input" / "x.jsonl"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    cleaned(capsys)
    assert not list(folder.glob("part-*"))
    assert all(path.read_text() == "theirs" for path in others)


@pytest.mark.parametrize("how", ["generation", "carrying", "lease"])
def test_a_run_that_is_worked_at_stays(runs: dict[str, Path], capsys: pytest.CaptureFixture[str], how: str) -> None:
    document = json.loads((runs["old"] / "_run" / "run.json").read_text())
    changed = {"generation": {"generation": 2}, "carrying": {"state": "carrying"}, "lease": {}}[how]
    (runs["old"] / "_run" / "run.json").write_text(json.dumps({**document, **changed}))
    if how == "lease":
        (runs["old"] / "_run" / "lease.json").write_text(json.dumps({"taken_at": utc_now().isoformat()}))
    said = cleaned(capsys)
    assert f"dag/old  is {'being worked at' if how == 'lease' else 'not finished'}, and stays" in said
    assert list(runs["old"].glob("part-*"))
    assert "0 runs, 0 bytes removed" in said


def test_a_lease_that_a_kill_left_is_as_old_as_its_run(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    taken_at = (utc_now() - timedelta(days=39)).isoformat()
    (runs["old"] / "_run" / "lease.json").write_text(json.dumps({"taken_at": taken_at}))
    assert "1 runs, " in cleaned(capsys)


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', "null", "{", '{"finished_at": "2020-01-01", "generation": 1}'])
def test_one_odd_object_stops_nothing(runs: dict[str, Path], capsys: pytest.CaptureFixture[str], content: str) -> None:
    (runs["young"] / "manifest.json").write_text(content)
    said = cleaned(capsys)
    assert "1 runs, " in said
    assert (runs["young"] / "manifest.json").read_text() == content


@pytest.mark.parametrize(
    ("name", "content"), [("_run/progress.json", "[1]"), ("_run/progress.json", "{}"), ("_run/run.json", "{}")]
)
def test_the_status_of_what_is_no_runs(stub: StubVLLM, base: Path, name: str, content: str) -> None:
    folder = base / IDENTITY.path()
    folder.parent.mkdir(parents=True)
    unfinished(stub, folder)
    (folder / name).write_text(content)
    with pytest.raises(SystemExit, match=r"not what a run writes|is damaged"):
        status(Namespace(run=["dag", "task", "run"], output="text", verbose=False))


def test_paths_that_nothing_serves() -> None:
    for command in (status, replay, clean):
        words = Namespace(
            run=["nope://x/y"],
            base="nope://x/y",
            output="text",
            status=["errored"],
            older_than="1d",
            what="runs",
            yes=False,
            verbose=False,
        )
        with pytest.raises(SystemExit, match="no file system serves"):
            command(words)


def test_killed_in_the_middle_it_leaves_no_run_that_seems_whole(
    runs: dict[str, Path], base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = KilledStore(str(base), at=3)
    monkeypatch.setattr(clean_module, "RunStore", lambda _: killed)
    with pytest.raises(SystemExit):
        cleaned(capsys)
    monkeypatch.undo()
    assert not (runs["old"] / "manifest.json").exists()
    assert (runs["old"] / "_run" / "run.json").exists()


@pytest.mark.parametrize("words", ["30", "d", "0d", "-1d", "2w", "", "900000d"])
def test_ages_that_are_none(words: str) -> None:
    with pytest.raises(SystemExit, match="--older-than is a number of days or hours"):
        age_of(words)
    assert age_of("12h") == timedelta(hours=12)
