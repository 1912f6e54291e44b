"""Journal, parts, run.json, and what opening a run finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from batch_fakes import IDENTITY, HookedStore

from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.core.ledger import Ledger, OpenChunk, SettledLine
from airflow_llm_provider.core.request import Completion, Outcome, Position, RowError, RowRequest, Status, Usage
from airflow_llm_provider.exceptions import ForeignRunError, RunMissingError, RunStoppedError, StorageError
from airflow_llm_provider.storage import layout, manifest, opening
from airflow_llm_provider.storage.document import RunDocument
from airflow_llm_provider.storage.journal import Journal
from airflow_llm_provider.storage.lines import encode_dead_letter, encode_outcome
from airflow_llm_provider.storage.parts import Parts
from airflow_llm_provider.storage.store import RunStore

OURS, FOREIGN = "0123456789ab", "ba9876543210"
PLAN = ChunkPlan(3, 7, ((0, 0, 1), (0, 30, 4), (0, 60, 7)))
DOCUMENT = RunDocument(
    identity=IDENTITY,
    generation=1,
    state="open",
    fingerprint=OURS,
    shaping={"model": "m", "prompt": "p"},
    served={"model": "m", "root": "r", "version": "1", "is_vllm": True},
    snapshot={"kind": "jsonl", "files": [], "rows": 7},
    plan=PLAN,
    created_at="2026-01-01T00:00:00+00:00",
)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path))


def settled(index: int, *, error: bool = False, says: str = "") -> SettledLine:
    if not error:
        completion = Completion(f"answer {index}{says}", "stop", Usage(1, 2, 0))
        return encode_outcome(Outcome(index, f"doc-{index}", Status.SUCCEEDED, 1, completion=completion))
    outcome = Outcome(index, f"doc-{index}", Status.ERRORED, 1, error=RowError("bad_request", "no", 400))
    made = encode_outcome(outcome)
    row = RowRequest(index, f"doc-{index}", "/v1/chat/completions", b"{}", Position(file="f", line=index))
    made.dead_letter = encode_dead_letter(outcome, row)
    return made


def complete(number: int, *, errors: frozenset[int] = frozenset()) -> OpenChunk:
    chunk = PLAN.chunk(number)
    opened = OpenChunk(chunk)
    for index in reversed(range(chunk.first_index, chunk.first_index + chunk.rows)):  # rows settle in any order
        opened.settled[index] = settled(index, error=index in errors)
    return opened


# -- journal


def journal(store: RunStore, fingerprint: str = OURS, of_try: str = "next") -> Journal:
    return Journal(store, fingerprint, of_try, store.list(layout.JOURNAL))


def test_the_next_try_finds_all_flushes_of_all_tries(store: RunStore) -> None:
    first = journal(store, of_try="one")
    first.write(0, [settled(1)])
    first.write(0, [settled(0, error=True)])
    first.write(1, [settled(4)])
    journal(store, of_try="two").write(0, [settled(2)])
    found = journal(store)
    assert {index: row.status for index, row in found.load(0).items()} == {
        0: Status.ERRORED,
        1: Status.SUCCEEDED,
        2: Status.SUCCEEDED,
    }
    assert found.load(0)[0].dead_letter == settled(0, error=True).dead_letter
    assert list(found.load(1)) == [4]
    assert found.load(2) == {}


def test_dropping_a_chunk_removes_every_trys_flushes_of_it_alone(store: RunStore) -> None:
    journal(store, of_try="one").write(0, [settled(0)])
    ours = journal(store, of_try="two")
    ours.write(0, [settled(1)])
    ours.write(1, [settled(3)])
    ours.drop(0)
    assert journal(store).load(0) == {}
    assert list(journal(store).load(1)) == [3]


def test_a_journal_of_other_answers_is_not_ours(store: RunStore) -> None:
    journal(store, FOREIGN, "zombie").write(0, [settled(0)])
    assert journal(store).load(0) == {}


def test_a_torn_flush_costs_its_last_row_and_is_told(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    journal(store, of_try="one").write(0, [settled(0), settled(1)])
    name = next(iter(store.list(layout.JOURNAL)))
    store.write(name, (store.read(name) or b"")[:-5])
    assert list(journal(store).load(0)) == [0]
    assert name in caplog.text


def test_a_journal_that_cannot_be_read_is_an_error_and_one_that_is_gone_is_not(store: RunStore) -> None:
    journal(store, of_try="one").write(0, [settled(0)])
    found = journal(store)
    store.delete(store.list(layout.JOURNAL))
    assert found.load(0) == {}

    class Unreadable(RunStore):
        def read(self, name: str) -> bytes | None:
            raise StorageError(name)

    journal(store, of_try="two").write(0, [settled(0)])
    with pytest.raises(StorageError):
        journal(Unreadable(store.uri)).load(0)


def test_a_row_of_another_chunk_in_the_journal_is_left_out() -> None:
    ledger = Ledger(PLAN, {})
    opened = ledger.open_chunk(PLAN.chunk(1), {3: settled(3), 9: settled(9), 0: settled(0)})
    assert list(opened.settled) == [3]
    assert ledger.totals.done == 1


# -- parts


def parts(store: RunStore, fingerprint: str = OURS, of_try: str = "try") -> Parts:
    return Parts(store, fingerprint, of_try)


def reloaded(store: RunStore) -> dict[int, Any]:
    return parts(store, of_try="next").load(PLAN, store.list(""))


def test_a_part_holds_its_rows_in_order_and_its_summary_says_so(store: RunStore) -> None:
    made = parts(store)
    summary = made.commit(complete(0, errors=frozenset({1})))
    lines = [json.loads(line) for line in (store.read(layout.part(0, OURS)) or b"").splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert (summary.rows, summary.succeeded, summary.errored, summary.usage) == (3, 2, 1, Usage(2, 4, 0))
    made.record()
    assert reloaded(store) == {0: summary}


def test_commits_are_read_from_records_and_not_from_parts(store: RunStore) -> None:
    made = parts(store)
    summaries = {number: made.commit(complete(number)) for number in (0, 2)}
    made.record()
    made.record()
    assert len(store.list(layout.COMMITS)) == 1

    class NoParts(RunStore):
        def read(self, name: str) -> bytes | None:
            assert not name.startswith("part-"), "a part was read"
            return super().read(name)

    assert reloaded(NoParts(store.uri)) == summaries


@pytest.mark.parametrize("damage", ["missing", "torn", "other size"])
def test_without_a_usable_record_the_part_itself_tells(store: RunStore, damage: str) -> None:
    made = parts(store)
    summary = made.commit(complete(0))
    made.record()
    record = next(iter(store.list(layout.COMMITS)))
    if damage == "missing":
        store.delete([record])
    elif damage == "torn":
        store.write(record, (store.read(record) or b"")[:-9])
    else:
        store.write(record, orjson.dumps({**summary.as_dict(), "bytes": 5, "succeeded": 0}) + b"\n")
    again = parts(store, of_try="next")
    assert again.load(PLAN, store.list("")) == {0: summary}
    store.delete([record])
    again.record()  # what was read is recorded for the next one
    assert list(store.list(layout.COMMITS)) == [layout.commits(OURS, "next", 0)]


def cut(data: bytes) -> bytes:
    return data[:-20]


def without_a_row(data: bytes) -> bytes:
    return b"".join(data.splitlines(keepends=True)[1:])


def with_a_row_twice(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([lines[0], lines[0], lines[2]])


def of_another_chunk(data: bytes) -> bytes:
    return b"".join(settled(index).line for index in (3, 4, 5))


@pytest.mark.parametrize("damage", [cut, without_a_row, with_a_row_twice, of_another_chunk, lambda _: b""])
def test_a_part_that_does_not_hold_its_rows_is_done_again(store: RunStore, damage: Any) -> None:
    parts(store).commit(complete(0))
    name = layout.part(0, OURS)
    store.write(name, damage(store.read(name) or b""))
    assert reloaded(store) == {}


def test_foreign_parts_are_not_ours_and_are_removed_at_the_end(store: RunStore) -> None:
    parts(store, FOREIGN, "zombie").commit(complete(0))
    parts(store, FOREIGN, "zombie").commit(complete(1))
    made = parts(store)
    summary = made.commit(complete(1))
    store.write("part-99999-notes.txt", b"a person's file")
    assert reloaded(store) == {1: summary}
    store.write(layout.dead_letter(FOREIGN), b"{}")
    opening.remove_foreign(store, store.list(""), OURS)
    assert list(store.list("")) == [layout.part(1, OURS), "part-99999-notes.txt"]


def test_a_part_beyond_the_plan_is_not_ours(store: RunStore) -> None:
    store.write(layout.part(len(PLAN), OURS), settled(9).line)
    assert reloaded(store) == {}


def test_a_commit_record_of_a_zombie_is_not_believed(store: RunStore) -> None:
    made = parts(store)
    summary = made.commit(complete(0))
    made.record()
    lie = {**summary.as_dict(), "succeeded": 0, "truncated": 0, "invalid_output": 0, "errored": 3, "sha256": "0"}
    store.write(layout.commits(FOREIGN, "zzz", 0), orjson.dumps(lie) + b"\n")
    assert reloaded(store) == {0: summary}


def test_dead_letters_come_in_input_order_and_only_of_rows_that_errored(store: RunStore) -> None:
    made = parts(store)
    committed = {2: made.commit(complete(2, errors=frozenset({6})))}
    made.commit(complete(1, errors=frozenset({4})))  # killed before the part: the next try's rows succeed
    store.delete([layout.part(1, OURS)])
    again = parts(store, of_try="next")
    committed[1] = again.commit(complete(1))
    committed[0] = again.commit(complete(0, errors=frozenset({2, 0})))
    again.assemble_dead_letters(committed, store.list(""))
    letters = [json.loads(line) for line in (store.read(layout.dead_letter(OURS)) or b"").splitlines()]
    assert [letter["index"] for letter in letters] == [0, 2, 6]


def test_the_letters_lie_there_before_the_part(store: RunStore) -> None:
    order: list[str] = []

    class Noting(HookedStore):
        def before(self, name: str) -> None:
            order.append(name)

    summary = parts(Noting(store.uri)).commit(complete(0, errors=frozenset({1})))
    assert order == [layout.dead(0, OURS, summary.sha256), layout.part(0, OURS)]


def test_a_chunk_that_another_try_has_committed_is_not_committed_again(store: RunStore) -> None:
    """A write that was under way when its try lost the lease: what a manifest says of the part stays true."""
    ours = parts(store, of_try="one").commit(complete(0, errors=frozenset({1})))
    before = store.read(layout.part(0, OURS))
    late = parts(store, of_try="two")
    assert late.commit(complete(0, errors=frozenset({0, 2}))) == ours
    assert store.read(layout.part(0, OURS)) == before
    late.assemble_dead_letters({0: ours}, store.list(""))
    assert [json.loads(line)["index"] for line in (store.read(layout.dead_letter(OURS)) or b"").splitlines()] == [1]


def test_a_damaged_part_is_put_again(store: RunStore) -> None:
    store.write(layout.part(0, OURS), b"{half a li")
    summary = parts(store).commit(complete(0))
    assert len(store.read(layout.part(0, OURS)) or b"") == summary.bytes
    assert reloaded(store) == {0: summary}


# -- names


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("part-00042-0123456789ab.jsonl", (42, OURS)),
        ("part-1234567-0123456789ab.jsonl", (1234567, OURS)),
        ("part-42-0123456789ab.jsonl", None),
        ("part-00042-0123456789AB.jsonl", None),
        ("part-00042-0123456789ab.jsonl.tmp", None),
        ("sub/part-00042-0123456789ab.jsonl", None),
        ("manifest.json", None),
    ],
)
def test_part_names(name: str, parsed: tuple[int, str] | None) -> None:
    assert layout.parse_part(name) == parsed
    if parsed:
        assert layout.part(*parsed) == name


# -- run.json


def test_the_document_comes_back(store: RunStore) -> None:
    assert RunDocument.decode(DOCUMENT.encode(), uri="x") == DOCUMENT


def changed(**fields: Any) -> bytes:
    return orjson.dumps({**orjson.loads(DOCUMENT.encode()), **fields})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (DOCUMENT.encode()[:-30], "damaged"),
        (changed(identity={"dag": "x"}), "damaged"),
        (changed(plan={"chunk_rows": 3, "total_rows": 700, "starts": []}), "damaged"),
        (changed(format_version=2), "format version 2"),
    ],
)
def test_a_damaged_or_newer_document_is_never_taken_for_no_run(store: RunStore, data: bytes, words: str) -> None:
    store.write(layout.RUN, data)
    with pytest.raises(ForeignRunError, match=words):
        opening.find(store, IDENTITY, must_exist=False)


# -- opening


def find(store: RunStore, **changes: Any) -> opening.Found:
    return opening.find(store, changes.pop("identity", IDENTITY), **{"must_exist": False, **changes})


def finished(generation: int = 1) -> dict[str, Any]:
    return {"generation": generation, "finished_at": "now"}


def test_nothing_there_and_nothing_expected(store: RunStore) -> None:
    assert find(store) == opening.Found(None, None)


def test_nothing_there_although_a_try_began_a_run(store: RunStore) -> None:
    with pytest.raises(RunMissingError, match=r"storage that all workers see.*set rerun=True and clear the task"):
        find(store, must_exist=True)


@pytest.mark.parametrize(
    "name", [layout.MANIFEST, layout.dead_letter(OURS), layout.part(0, OURS), layout.journal(0, OURS, "t", 0)]
)
def test_results_that_no_run_explains(store: RunStore, name: str) -> None:
    store.write(name, b"{}")
    with pytest.raises(ForeignRunError, match=name):
        find(store)


def test_other_peoples_files_do_not_matter_nor_a_begin_that_was_killed(store: RunStore, tmp_path: Path) -> None:
    store.write("notes.txt", b"hello")
    (tmp_path / "_run" / "tmp").mkdir(exist_ok=True)
    (tmp_path / "_run" / "tmp" / "run").write_bytes(b"half")
    assert find(store) == opening.Found(None, None)


def test_another_tasks_run(store: RunStore) -> None:
    opening.begin(store, DOCUMENT)
    with pytest.raises(ForeignRunError, match=r"dag\.task of run run.*dag\.other of run run"):
        find(store, identity=replace(IDENTITY, task_id="other"))
    with pytest.raises(ForeignRunError):
        find(store, identity=replace(IDENTITY, map_index=0))


def test_a_run_is_begun_only_where_none_lies(store: RunStore) -> None:
    opening.begin(store, DOCUMENT)
    with pytest.raises(ForeignRunError, match=r"belongs to dag\.task of .*this is dag\.task\[0\] of .*map_index"):
        opening.begin(store, replace(DOCUMENT, identity=replace(IDENTITY, map_index=0)))
    for change in ({"generation": 2}, {"fingerprint": FOREIGN}, {"created_at": "2026-01-01T00:00:01+00:00"}):
        with pytest.raises(RunStoppedError, match="begun by another try of this task"):
            opening.begin(store, replace(DOCUMENT, **change))
    assert find(store).document == DOCUMENT


def test_a_run_whose_document_is_damaged_while_it_ran(store: RunStore) -> None:
    opening.begin(store, DOCUMENT)
    opening.confirm(store, replace(DOCUMENT, state="clearing"))
    store.write(layout.RUN, b"{")
    with pytest.raises(ForeignRunError, match="damaged"):
        opening.confirm(store, DOCUMENT)


def test_a_run_is_found_and_its_manifest_when_it_is_finished(store: RunStore) -> None:
    opening.begin(store, DOCUMENT)
    assert find(store, must_exist=True) == opening.Found(DOCUMENT, None)
    opening.finish(store, finished())
    assert find(store) == opening.Found(DOCUMENT, finished())


def test_a_manifest_of_an_older_generation_is_no_manifest(store: RunStore) -> None:
    opening.begin(store, replace(DOCUMENT, generation=2))
    opening.finish(store, finished(1))
    assert find(store).manifest is None


def test_a_damaged_manifest_is_an_error(store: RunStore) -> None:
    opening.begin(store, DOCUMENT)
    for data in (b'{"generation": 1', b"[1]", b"null"):
        store.write(layout.MANIFEST, data)
        with pytest.raises(ForeignRunError, match="Move it away"):
            find(store)


def fill(store: RunStore) -> None:
    made = parts(store)
    made.commit(complete(0, errors=frozenset({1})))
    made.record()
    journal(store, of_try="one").write(1, [settled(3)])
    share = f"{layout.share(3)}/"
    names = [layout.dead_letter(OURS), layout.PROGRESS, f"{share}{layout.LEASE}", f"{share}{layout.PROGRESS}"]
    for name in (*names, f"{share}{layout.commits(OURS, 'one', 0)}", f"{share}{layout.dead(0, OURS, '0123456789ab')}"):
        store.write(name, b"{}")
    store.write(layout.MANIFEST, b'{"generation": 1}')


def test_a_restart_removes_all_of_the_generation_before_and_nothing_else(store: RunStore) -> None:
    opening.begin(store, DOCUMENT)
    fill(store)
    store.write("notes.txt", b"a person's file")
    document = replace(DOCUMENT, generation=2, fingerprint=FOREIGN, state="clearing")
    opened = opening.restart(store, document)
    assert opened == replace(document, state="open")
    assert list(store.list("")) == [layout.RUN, "notes.txt"]
    assert find(store) == opening.Found(opened, None)
    folders = {each.name for each in Path(store.uri.removeprefix("file://")).rglob("*") if each.is_dir()}
    assert folders <= {"_run", "tmp"}


def test_a_removal_that_comes_late_leaves_what_its_successors_have_done(store: RunStore) -> None:
    """A try may stand still between its look and its removals while others restart the run and finish it."""
    opening.begin(store, DOCUMENT)
    fill(store)
    late = replace(DOCUMENT, generation=2, fingerprint=FOREIGN, state="clearing")
    opened = opening.restart(store, late)
    made = parts(store, FOREIGN)
    made.commit(complete(0, errors=frozenset({1})))
    made.record()
    store.write(layout.dead_letter(FOREIGN), b"{}")
    store.write(layout.MANIFEST, b'{"generation": 2}')
    before = store.list("")
    opening.finish_clearing(store, opened)
    opening.tidy(store, opening.untidy(store, DOCUMENT, keeps_input=False))  # of the generation before
    opening.remove_foreign(store, before, FOREIGN)
    assert store.list("") == {name: size for name, size in before.items() if name != layout.PROGRESS}


def test_a_restart_writes_its_intent_first_and_removes_the_manifest_next(store: RunStore) -> None:
    opening.begin(store, DOCUMENT)
    fill(store)
    changes: list[str] = []

    class Noting(RunStore):
        def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
            changes.append(name)
            super().write(name, data, durable=False)

        def _delete(self, name: str) -> None:
            changes.append(f"-{name}")
            super()._delete(name)

    opening.restart(Noting(store.uri), replace(DOCUMENT, generation=2, fingerprint=FOREIGN, state="clearing"))
    assert changes[:2] == [layout.RUN, f"-{layout.MANIFEST}"]
    assert changes[-1] == layout.RUN


def test_the_end_removes_what_only_a_resume_needs(store: RunStore) -> None:
    opening.begin(store, DOCUMENT)
    fill(store)
    opening.finish(store, finished())
    store.write(layout.part(7, FOREIGN), b"")
    opening.tidy(store, opening.untidy(store, DOCUMENT, keeps_input=False))
    left = [layout.RUN, layout.MANIFEST, layout.dead_letter(OURS), layout.PROGRESS, layout.part(0, OURS)]
    assert sorted(store.list("")) == sorted([*left, layout.part(7, FOREIGN)])
    assert not opening.untidy(store, DOCUMENT, keeps_input=False)


# -- manifest


def test_the_manifest_counts_and_the_xcom_is_small(store: RunStore) -> None:
    made = parts(store)
    committed = {number: made.commit(complete(number, errors=frozenset({6}))) for number in range(3)}
    ledger = Ledger(PLAN, committed)
    assert ledger.finished
    built = manifest.build(DOCUMENT, ledger, uri=store.uri, finished_at="t", duration_s=1.23456, dead_letters=1)
    assert built["counts"] == {"total": 7, "succeeded": 6, "truncated": 0, "invalid_output": 0, "errored": 1}
    assert built["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "cached_tokens": 0}
    assert [chunk["part"] for chunk in built["chunks"]] == [layout.part(number, OURS) for number in range(3)]
    assert built["dead_letter"] == f"{store.uri}/{layout.dead_letter(OURS)}"
    small = manifest.for_xcom(built)
    assert "chunks" not in small
    assert small["counts"] == built["counts"]


# -- listings that are late


class LateListing(RunStore):
    """A store whose listing does not show everything yet."""

    def list(self, prefix: str) -> dict[str, int]:
        return {name: size for name, size in super().list(prefix).items() if layout.parse_part(name) is None}


def test_a_part_that_a_listing_does_not_show_yet_is_found_by_its_record(store: RunStore) -> None:
    first = parts(store)
    summary = first.commit(complete(0))
    first.record()
    late = LateListing(store.uri)
    assert parts(late).load(PLAN, late.list("")) == {0: summary}
    parts(late).check({0: summary}, late.list(""))
    store.delete([layout.part(0, OURS)])
    assert parts(late).load(PLAN, late.list("")) == {}
    with pytest.raises(StorageError, match="is gone now"):
        parts(late).check({0: summary}, late.list(""))
