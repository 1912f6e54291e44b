"""Rows of a finished run that are asked for again, in place: all others stay, and the manifest tells the truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import KilledStore, Try, dead_letter, job_of, part_lines, run, texts, write_rows

from airflow_llm_provider.batch.replay import asked_for, note, statuses_of
from airflow_llm_provider.batch.shares import assemble, plan_shares, work_share
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.answers import AnswerRules
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.request import Status
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError, ReplayError, SourceError, StaleRunError
from airflow_llm_provider.storage import opening
from airflow_llm_provider.storage.sink_openai import OpenAISink
from airflow_llm_provider.storage.spool import SpooledSource
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_llm_provider.batch.job import BatchJob

ROWS = 14
REFUSED = {1, 2, 9}
CUT = {2 * 4 + 3, 13}
ERRORED = (Status.ERRORED,)
ALL = (Status.TRUNCATED, Status.ERRORED)


class Server:
    """Refuses some rows and cuts others off, until it is mended."""

    def __init__(self) -> None:
        self.mended: set[int] = set()

    def __call__(self, body: dict[str, Any], _: int) -> Fault | None:
        index = int(body["messages"][0]["content"].rpartition(" ")[2])
        if index in self.mended:
            return None
        if index in REFUSED:
            return Fault.bad_request(f"row {index} is refused")
        if index in CUT:
            choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "cut"}}
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            return Fault.answer(200, {"choices": [choice], "usage": usage})
        return None


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def made(server: Server, tmp_path: Path) -> Callable[..., BatchJob]:
    source = write_rows(tmp_path / "rows.jsonl", texts(ROWS))
    with StubVLLM(fault=server) as stub:

        def make(**changes: Any) -> BatchJob:
            return job_of(stub, source, **changes)

        make.stub = stub  # type: ignore[attr-defined]
        yield make


def store_at(folder: Path) -> RunStore:
    return RunStore(str(folder))


def letters(folder: Path) -> dict[int, str]:
    path = dead_letter(folder)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    assert [line["index"] for line in lines] == sorted(line["index"] for line in lines)
    return {line["index"]: line["status"] for line in lines}


def check(folder: Path, manifest: dict[str, Any]) -> dict[str, list[int]]:
    """What every finished run is like; rows by status."""
    lines = part_lines(folder)
    assert [line["index"] for line in lines] == list(range(ROWS))
    for chunk in manifest["chunks"]:
        data = (folder / chunk["part"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (chunk["sha256"], chunk["bytes"])
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    by_status: dict[str, list[int]] = {}
    for line in lines:
        by_status.setdefault(line["status"], []).append(line["index"])
    for status in Status:
        assert manifest["counts"][status] == len(by_status.get(status, []))
    assert manifest["usage"]["completion_tokens"] == sum(line["usage"]["completion_tokens"] for line in lines)
    assert letters(folder) == {line["index"]: line["status"] for line in lines if line["status"] != "succeeded"}
    left = {path.name for path in (folder / "_run").rglob("*") if path.is_file() and path.parent.name != "tmp"}
    assert left <= {"run.json", "progress.json"}
    return by_status


def test_rows_that_ended_so_are_asked_for_again_and_no_others(
    made: Callable[..., BatchJob], server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = run(made(), store_at(folder))
    assert check(folder, first) == {
        "succeeded": sorted(set(range(ROWS)) - REFUSED - CUT),
        "errored": sorted(REFUSED),
        "truncated": sorted(CUT),
    }
    before = {line["index"]: line for line in part_lines(folder)}
    server.mended = {1, 9, 13}
    again = Try(made(replay=ERRORED, epoch=1, try_number=2), store_at(folder))
    second = again()
    assert again.requested(made.stub) == sorted(REFUSED)  # type: ignore[attr-defined]
    assert check(folder, second)["errored"] == [2]
    assert check(folder, second)["truncated"] == sorted(CUT), "nobody asked for these"
    after = {line["index"]: line for line in part_lines(folder)}
    assert {index for index in before if before[index] != after[index]} == {1, 9}
    assert (first["generation"], second["generation"]) == (1, 2)
    assert second["fingerprint"] != first["fingerprint"], "what a try of before does late is not this one's"
    assert not list(folder.glob(f"*{first['fingerprint']}*"))
    (told,) = second["replays"]
    assert (told["statuses"], told["rows"], told["of"]) == (["errored"], 3, first["fingerprint"])
    assert told["changed"] == []
    assert first["replays"] == []


def test_once_per_clear(made: Callable[..., BatchJob], server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(made(replay=ERRORED), store_at(folder))
    received = made.stub.received  # type: ignore[attr-defined]
    run(made(replay=ERRORED, try_number=2), store_at(folder))
    assert made.stub.received == received, "a retry is no clear"  # type: ignore[attr-defined]
    run(made(replay=ERRORED, epoch=1, try_number=3), store_at(folder))
    run(made(replay=ERRORED, epoch=1, try_number=4), store_at(folder))
    assert made.stub.received == received + len(REFUSED)  # type: ignore[attr-defined]
    server.mended = REFUSED
    third = run(made(replay=ERRORED, epoch=2, try_number=5), store_at(folder))
    assert (third["counts"]["errored"], len(third["replays"])) == (0, 2)
    fourth = run(made(replay=ERRORED, epoch=3, try_number=6), store_at(folder))
    assert fourth == third, "there is nothing left to ask for"
    check(folder, third)


def test_when_all_succeed_no_dead_letters_are_left(
    made: Callable[..., BatchJob], server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = run(made(sinks=(OpenAISink(),)), store_at(folder))
    assert first["sinks"]["openai_batch"]["errors"] is not None
    server.mended = REFUSED | CUT
    second = run(made(replay=ALL, epoch=1, try_number=2, sinks=(OpenAISink(),)), store_at(folder))
    assert check(folder, second) == {"succeeded": list(range(ROWS))}
    assert second["dead_letter"] is None
    assert not dead_letter(folder).exists()
    assert second["sinks"]["openai_batch"]["errors"] is None
    assert not list(folder.glob("errors-*"))


def test_with_other_words_and_the_run_is_told_by_them_then(
    made: Callable[..., BatchJob], server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(made(), store_at(folder))
    server.mended = REFUSED
    other = {"requests": RequestSpec(prompt="Please say: {{ row.text }}"), "replay": ERRORED}
    second = run(made(**other, epoch=1, try_number=2), store_at(folder))
    assert second["replays"][0]["changed"] == [
        "prompt was 'Say: {{ row.text }}' and is 'Please say: {{ row.text }}' now"
    ]
    said = {line["index"]: line["output"] for line in part_lines(folder) if line["status"] == "succeeded"}
    assert {index for index, text in said.items() if text.startswith("echo: Please")} == REFUSED
    assert run(made(**other, epoch=1, try_number=3), store_at(folder)) == second
    with pytest.raises(StaleRunError, match="prompt was 'Please say"):
        run(made(epoch=1, try_number=4), store_at(folder))


@pytest.mark.parametrize("how", ["before", "after", "half"])
@pytest.mark.parametrize("statuses", [ERRORED, ALL], ids=["some", "all"])
def test_killed_at_each_change_it_goes_on(
    made: Callable[..., BatchJob], server: Server, tmp_path: Path, how: str, statuses: tuple[Status, ...]
) -> None:
    at = 0
    while True:
        at += 1
        server.mended = set()
        folder = tmp_path / f"{at}"
        first = run(made(), store_at(folder))
        stays = {line["index"]: line for line in part_lines(folder) if line["status"] not in statuses}
        server.mended = {1, 9, 13}
        dying = KilledStore(str(folder), at=at, how=how)
        doomed = Try(made(replay=statuses, epoch=1, try_number=2), dying)
        try:
            doomed()
        except LLMBatchError:
            pass
        else:
            assert at > 15
            break
        after = Try(made(replay=statuses, epoch=1, try_number=3), store_at(folder))
        manifest = after()
        by_status = check(folder, manifest)
        assert by_status["errored"] == [2]
        landed = {line["index"]: line for line in part_lines(folder)}
        assert all(landed[index] == line for index, line in stays.items()), "what should have stayed was changed"
        asked = set(after.requested(made.stub)) | set(doomed.requested(made.stub))  # type: ignore[attr-defined]
        assert asked <= {index for index in range(ROWS) if index not in stays}, "what should have stayed was asked for"
        assert len(manifest["replays"]) == 1
        assert (first["generation"], manifest["generation"]) == (1, 2)


def test_a_replay_that_was_overtaken_ends(made: Callable[..., BatchJob], tmp_path: Path) -> None:
    """Another clear comes while the try is getting ready: the newer one has the lease."""
    folder = tmp_path / "run"
    run(made(), store_at(folder))

    class Overtaken(RunStore):
        overtaken = False

        def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
            super().write(name, data, durable=durable)
            if name == "_run/run.json" and not self.overtaken:
                Overtaken.overtaken = True
                run(made(replay=ERRORED, epoch=2, try_number=3), store_at(folder))

    with pytest.raises(LLMBatchError):
        run(made(replay=ERRORED, epoch=1, try_number=2), Overtaken(str(folder)))
    manifest = json.loads((folder / "manifest.json").read_text())
    check(folder, manifest)
    assert manifest["epoch"] == 2


def test_a_note_beside_the_run_asks_for_it_too(made: Callable[..., BatchJob], server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(made(), store_at(folder))
    note(store_at(folder), (Status.TRUNCATED,))
    server.mended = CUT
    second = run(made(epoch=1, try_number=2), store_at(folder))
    assert (second["counts"]["truncated"], second["counts"]["errored"]) == (0, len(REFUSED))
    assert run(made(epoch=2, try_number=3), store_at(folder)) == second
    check(folder, second)
    (folder / "_run" / "replay.json").write_text('{"statuses": ["nonsense"]}')
    assert run(made(epoch=3, try_number=4), store_at(folder)) == second


def test_rows_that_could_be_had_once_are_kept_for_it(stub: StubVLLM, tmp_path: Path) -> None:
    folder, calls = tmp_path / "run", []

    def rows() -> list[dict[str, Any]]:
        calls.append(1)
        return [{"text": f"{len(calls)} {number}"} for number in range(6)]

    def job(**changes: Any) -> BatchJob:
        return job_of(stub, SpooledSource(rows, name="rows", spec="rows"), **changes)

    stub.behaviour.fault = lambda body, _: Fault.bad_request() if " 3" in json.dumps(body) else None
    assert run(job(), store_at(folder))["counts"]["errored"] == 1
    assert len(list((folder / "_run" / "input").iterdir())) == 1
    stub.behaviour.fault = None
    second = run(job(replay=ERRORED, epoch=1, try_number=2), store_at(folder))
    assert (second["counts"]["succeeded"], len(calls)) == (6, 1)
    assert not (folder / "_run" / "input").exists()


def test_another_input_is_no_replay(made: Callable[..., BatchJob], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(made(), store_at(folder))
    other = write_rows(tmp_path / "other.jsonl", texts(3))
    job = job_of(made.stub, other, replay=ERRORED, epoch=1, try_number=2)  # type: ignore[attr-defined]
    with pytest.raises(StaleRunError, match="names another source now"):
        run(job, store_at(folder))
    write_rows(tmp_path / "rows.jsonl", texts(3))
    with pytest.raises(SourceError, match="has changed since this run began"):
        run(made(replay=ERRORED, epoch=1, try_number=3, on_stale="restart"), store_at(folder))
    assert check(folder, first)["errored"] == sorted(REFUSED)


@pytest.mark.parametrize("damage", ["part", "no part", "letters", "no letters"])
def test_what_is_not_as_the_manifest_says_is_not_carried_over(
    made: Callable[..., BatchJob], tmp_path: Path, damage: str
) -> None:
    """What lies there stays, and whoever means it can do all rows again."""
    folder = tmp_path / "run"
    first = run(made(), store_at(folder))
    path = dead_letter(folder) if "letters" in damage else next(folder.glob("part-00000-*"))
    data = path.read_bytes()
    if damage.startswith("no"):
        path.unlink()
    else:
        path.write_bytes(data.replace(b"echo", b"ECHO") if damage == "part" else data.partition(b"\n")[2])
    for try_number in (2, 3):
        with pytest.raises(ReplayError, match="rerun=True"):
            run(made(replay=ERRORED, epoch=1, try_number=try_number, on_stale="restart"), store_at(folder))
    assert json.loads((folder / "manifest.json").read_text()) == first
    again = run(made(rerun=True, epoch=2, try_number=4), store_at(folder))
    check(folder, again)


def test_a_manifest_that_goes_meanwhile_is_told_of(made: Callable[..., BatchJob], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(made(), store_at(folder))
    with pytest.raises(LLMBatchError):
        run(made(replay=ERRORED, epoch=1, try_number=2), KilledStore(str(folder), at=4))
    assert json.loads((folder / "_run" / "run.json").read_text())["state"] == "carrying"
    (folder / "manifest.json").unlink()
    with pytest.raises(ReplayError, match="nobody knows which of its parts are whole"):
        run(made(replay=ERRORED, epoch=1, try_number=3), store_at(folder))
    check(folder, run(made(rerun=True, epoch=2, try_number=4), store_at(folder)))


def test_an_interrupted_replay_is_not_begun_anew_because_something_changed(
    made: Callable[..., BatchJob], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(made(), store_at(folder))
    received = made.stub.received  # type: ignore[attr-defined]
    with pytest.raises(LLMBatchError):
        run(made(replay=ERRORED, epoch=1, try_number=2), KilledStore(str(folder), at=4))
    other = {"requests": RequestSpec(prompt="Another: {{ row.text }}"), "on_stale": "restart"}
    with pytest.raises(StaleRunError):
        run(made(replay=ERRORED, epoch=1, try_number=3, **other), store_at(folder))
    assert made.stub.received == received  # type: ignore[attr-defined]
    check(folder, run(made(replay=ERRORED, epoch=1, try_number=4), store_at(folder)))


def test_what_an_end_before_left_untidied_is_none_of_its(made: Callable[..., BatchJob], tmp_path: Path) -> None:
    """A journal that a kill left lying, with the row's outcome of then."""
    folder = tmp_path / "run"
    first = run(made(), store_at(folder))
    line = (folder / first["chunks"][0]["part"]).read_bytes().splitlines()[1]
    letter = dead_letter(folder).read_bytes().splitlines()[0]
    left = folder / "_run" / "journal" / "00000" / f"{first['fingerprint']}-0badf00d-00000.jsonl"
    left.parent.mkdir(parents=True)
    left.write_bytes(line + b'\n{"dead_letter":' + letter + b"}\n")
    again = Try(made(replay=ERRORED, epoch=1, try_number=2), store_at(folder))
    check(folder, again())
    assert again.requested(made.stub) == sorted(REFUSED)  # type: ignore[attr-defined]


def test_rows_of_before_do_not_stop_it_early(stub: StubVLLM, tmp_path: Path) -> None:
    """All that errored lie close together, and are what is done when the rest begins."""
    folder = tmp_path / "run"
    source = write_rows(tmp_path / "rows.jsonl", texts(1000))
    cut = {"choices": [{"index": 0, "finish_reason": "length", "message": {"content": "cut"}}], "usage": {}}

    def fault(body: dict[str, Any], _: int) -> Fault | None:
        index = int(body["messages"][0]["content"].rpartition(" ")[2])
        if index < 200 and index % 4 == 0:
            return Fault.bad_request()
        return Fault.answer(200, cut) if index >= 200 and index % 100 == 7 else None

    stub.behaviour.fault = fault
    job = {"tolerance": Tolerance(0.1), "chunk_rows": 100, "max_in_flight": 64}
    first = run(job_of(stub, source, **{**job, "tolerance": Tolerance(1.0)}), store_at(folder))
    assert (first["counts"]["errored"], first["counts"]["truncated"]) == (50, 8)
    stub.behaviour.fault = None
    again = job_of(stub, source, **job, replay=(Status.TRUNCATED,), epoch=1, try_number=2)
    assert run(again, store_at(folder))["counts"]["truncated"] == 0


def test_a_prompt_that_no_row_fits_is_found_out_before_anything_is_changed(
    made: Callable[..., BatchJob], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = run(made(), store_at(folder))
    wrong = made(replay=ALL, epoch=1, try_number=2, requests=RequestSpec(prompt="Say: {{ row.txet }}"))
    with pytest.raises(ConfigurationError, match="None of the first"):
        run(wrong, store_at(folder))
    check(folder, first)


def test_another_model_is_told_of(made: Callable[..., BatchJob], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(made(), store_at(folder))
    made.stub.swap_model("better-weights")  # type: ignore[attr-defined]
    second = run(made(replay=ERRORED, epoch=1, try_number=2), store_at(folder))
    assert second["replays"][0]["changed"] == ["served.root was 'stub-weights' and is 'better-weights' now"]


def test_a_run_that_tasks_share_is_left_alone(stub: StubVLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    source = write_rows(tmp_path / "rows.jsonl", texts(8))
    stub.behaviour.fault = lambda body, _: Fault.bad_request() if " 3" in json.dumps(body) else None
    job, stop = job_of(stub, source), StopSwitch()
    shares = plan_shares(job, store_at(folder), stop, shares=2, begun=lambda: None)
    for share in shares:
        work_share(job, store_at(folder), stop, share=share, begun=lambda: None)
    first = assemble(job, store_at(folder), stop)
    note(store_at(folder), ERRORED)
    plan_shares(replace(job, epoch=1, try_number=2), store_at(folder), stop, shares=2, begun=lambda: None)
    assert json.loads((folder / "manifest.json").read_text()) == first
    assert "is not looked at: tasks share this run" in caplog.text


def test_what_may_be_said() -> None:
    assert statuses_of(None) == ()
    assert statuses_of("errored") == (Status.ERRORED,)
    assert statuses_of(["errored", "truncated"]) == (Status.TRUNCATED, Status.ERRORED)
    with pytest.raises(
        ConfigurationError, match="replay: 'succeeded': give some of truncated, invalid_output, errored"
    ):
        statuses_of(["succeeded"])


def test_a_run_that_goes_on_is_no_finished_one(made: Callable[..., BatchJob], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(LLMBatchError):
        run(made(), KilledStore(str(folder), at=6))
    job = made(replay=ALL, epoch=1, try_number=2)
    found = opening.find(store_at(folder), job.identity, must_exist=True)
    assert asked_for(job, store_at(folder), found) == ()
    assert run(job, store_at(folder))["replays"] == []


def test_answers_that_were_invalid(tmp_path: Path) -> None:
    """With more repairs, say."""
    folder = tmp_path / "run"
    source = write_rows(tmp_path / "rows.jsonl", texts(3))
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "Once upon"}}
    with StubVLLM(fault=lambda *_: Fault.answer(200, {"choices": [choice], "usage": {}})) as stub:
        run(job_of(stub, source), store_at(folder))
        rules = AnswerRules(accept_truncated=True)
        job = job_of(stub, source, answers=rules, replay=(Status.TRUNCATED,), epoch=1, try_number=2)
        assert run(job, store_at(folder))["counts"]["succeeded"] == 3
