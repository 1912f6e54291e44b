from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import texts, write_rows

from airflow_llm_provider.exceptions import ConfigurationError, DuplicateIdError, SourceError, StorageError
from airflow_llm_provider.storage import text_lines
from airflow_llm_provider.storage.found_files import FoundFiles
from airflow_llm_provider.storage.jsonl import JsonlSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_mock import MockerFixture

    from airflow_llm_provider.storage.source import Scan

BOM = b"\xef\xbb\xbf"


def found(source: JsonlSource, scan: Scan) -> list[tuple[int, str, int, bytes]]:
    """Every row, read chunk by chunk: index, file name, line, text."""
    return [
        (row.index, row.position.file.rsplit("/", 1)[-1], row.position.line, bytes(row.raw))
        for number in range(len(scan.plan))
        for row in source.rows(scan.snapshot, scan.plan.chunk(number))
    ]


def source_of(folder: Path, **files: bytes) -> JsonlSource:
    for name, data in files.items():
        (folder / f"{name}.jsonl").write_bytes(data)
    return JsonlSource([f"{folder}/*.jsonl"])


CONTENTS = {
    "plain": (b'{"a":1}\n{"a":2}\n', [(1, b'{"a":1}'), (2, b'{"a":2}')]),
    "no final newline": (b'{"a":1}\n{"a":2}', [(1, b'{"a":1}'), (2, b'{"a":2}')]),
    "CRLF": (b'{"a":1}\r\n{"a":2}\r\n', [(1, b'{"a":1}\r'), (2, b'{"a":2}\r')]),
    "blank lines count as lines": (b'\n{"a":1}\n  \t\r\n\n{"a":2}\n\n', [(2, b'{"a":1}'), (5, b'{"a":2}')]),
    "byte order mark": (BOM + b'{"a":1}\n', [(1, BOM + b'{"a":1}')]),
    "no JSON is a row too": (b"{no\n\x00\xff\n", [(1, b"{no"), (2, b"\x00\xff")]),
    "other line ends are text": ('{"a":"\u2028\x85\x0b"}\n'.encode(), [(1, '{"a":"\u2028\x85\x0b"}'.encode())]),
    "only blanks": (b"\n \n\n", []),
    "empty": (b"", []),
}


@pytest.mark.parametrize("chunk_rows", [1, 2, 1000])
@pytest.mark.parametrize(("data", "expected"), CONTENTS.values(), ids=CONTENTS)
def test_what_a_row_is(tmp_path: Path, data: bytes, expected: list[tuple[int, bytes]], chunk_rows: int) -> None:
    source = source_of(tmp_path, a=data)
    scan = source.scan(chunk_rows)
    assert found(source, scan) == [(index, "a.jsonl", line, raw) for index, (line, raw) in enumerate(expected)]


def test_many_files_are_one_input_and_a_chunk_may_span_several(tmp_path: Path) -> None:
    source = source_of(tmp_path, c=b"5\n", a=b"1\n2\n", b=b"", b2=b"\n3\n4")
    scan = source.scan(3)
    assert [(name, line) for _, name, line, _ in found(source, scan)] == [
        ("a.jsonl", 1),
        ("a.jsonl", 2),
        ("b2.jsonl", 2),
        ("b2.jsonl", 3),
        ("c.jsonl", 1),
    ]
    assert scan.plan.starts == ((0, 0, 1), (2, 3, 3))
    assert [file["rows"] for file in scan.snapshot["files"]] == [2, 0, 2, 1]


def test_patterns_keep_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    one, two = write_rows(tmp_path / "z.jsonl", [1]), write_rows(tmp_path / "a.jsonl", [2])
    source = JsonlSource([one, two])
    assert [raw for *_, raw in found(source, source.scan(9))] == [b"1", b"2"]


def test_rows_are_found_by_seeking_and_not_by_reading_from_the_beginning(tmp_path: Path) -> None:
    source = source_of(tmp_path, a=b"".join(b'{"n":%d}\n' % number for number in range(100)))
    scan = source.scan(10)
    path, offset = tmp_path / "a.jsonl", scan.plan.chunk(7).offset
    began, rest = path.stat(), path.read_bytes()[offset:]
    path.write_bytes(b"x" * offset + rest)
    os.utime(path, ns=(began.st_atime_ns, began.st_mtime_ns))  # nobody sees that it was changed
    row = next(source.rows(scan.snapshot, scan.plan.chunk(7)))
    assert (row.index, row.position.line, row.raw) == (70, 71, b'{"n":70}')


def test_linked_files_are_files_and_what_they_lead_to_is_pinned(tmp_path: Path) -> None:
    """Kubernetes mounts ConfigMaps so, and git-sync its work tree."""
    (tmp_path / "data").mkdir()
    (tmp_path / "in").mkdir()
    target = tmp_path / "data" / "a"
    target.write_bytes(b"1\n2\n")
    (tmp_path / "in" / "a.jsonl").symlink_to(target)
    source = JsonlSource([f"{tmp_path}/in/*.jsonl"])
    scan = source.scan(9)
    assert scan.plan.total_rows == 2
    target.write_bytes(b"1\n3\n")
    os.utime(target, (0, 0))
    with pytest.raises(SourceError, match="has changed"):
        source.check(scan.snapshot)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("none-*.jsonl", "no file matches"),
        ("none.jsonl", "no file matches"),
        ("folder", r"is a folder. Name its files, e\.g\. .*/folder/\*\.jsonl"),
        ("fold*", "is a folder"),
        ("a.jsonl.gz", "can.t be unpacked, or was cut off"),
        ("*.zst", "can.t be unpacked, or was cut off"),
        ("a.bz2", "of packed files, gzip"),
    ],
)
def test_inputs_that_are_none(tmp_path: Path, pattern: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x1f\x8b")
    (tmp_path / "a.bz2").write_bytes(b"")
    with pytest.raises(SourceError, match=words):
        JsonlSource([f"{tmp_path}/{pattern}"]).scan(10)


def test_one_of_several_patterns_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file matches .*b\.jsonl"):
        JsonlSource([write_rows(tmp_path / "a.jsonl", [1]), f"{tmp_path}/b.jsonl"]).scan(10)


def test_no_file_system_for_a_scheme() -> None:
    with pytest.raises(ConfigurationError, match="source: no file system serves 'nosuch://b/a'"):
        JsonlSource(["nosuch://b/a"])


def unreadable_folder(mocker: MockerFixture, _file: Path) -> None:
    mocker.patch("os.scandir", side_effect=PermissionError(errno.EACCES, "denied"))


def unreadable_file(mocker: MockerFixture, _file: Path) -> None:
    mocker.patch.object(FoundFiles, "open", side_effect=PermissionError(errno.EACCES, "denied"))


@pytest.mark.parametrize("fault", [unreadable_folder, unreadable_file])
def test_could_not_be_read_is_not_nothing_there(
    tmp_path: Path, mocker: MockerFixture, fault: Callable[[MockerFixture, Path], None]
) -> None:
    source = source_of(tmp_path, a=b"1\n")
    fault(mocker, tmp_path / "a.jsonl")
    with pytest.raises(StorageError, match="denied"):
        source.scan(10)


# -- a pinned input


def touch(file: Path) -> None:
    os.utime(file, (1, 1))


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"3\n")


def alter(file: Path) -> None:
    """Another content of the same size and, as it happens, of another time."""
    file.write_bytes(b"1\n9\n")
    touch(file)


def remove(file: Path) -> None:
    file.unlink()


def to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("as_glob", [True, False], ids=["glob", "path"])
@pytest.mark.parametrize(
    ("change", "words"),
    [(touch, None), (grow, "has changed"), (alter, "has changed"), (remove, "is gone"), (to_folder, "is gone")],
)
def test_a_pinned_file_must_be_as_it_was(
    tmp_path: Path, change: Callable[[Path], None], words: str | None, *, as_glob: bool
) -> None:
    source = source_of(tmp_path, a=b"1\n2\n")
    if not as_glob:
        source = JsonlSource([f"{tmp_path}/a.jsonl"])
    scan = source.scan(10)
    assert source.check(scan.snapshot) == []
    change(tmp_path / "a.jsonl")
    if words is None:
        assert source.check(scan.snapshot) == []
    else:
        with pytest.raises(SourceError, match=rf"a\.jsonl.*{words}"):
            source.check(scan.snapshot)


def test_late_files_are_left_for_the_next_run_and_told(tmp_path: Path) -> None:
    source = source_of(tmp_path, b=b"1\n")
    scan = source.scan(10)
    (tmp_path / "c.jsonl").write_bytes(b"3\n")
    (tmp_path / "a.jsonl").write_bytes(b"0\n")
    warnings = source.check(scan.snapshot)
    assert [name in warning for name, warning in zip(("a.jsonl", "c.jsonl"), warnings, strict=True)] == [True, True]
    assert [raw for *_, raw in found(source, scan)] == [b"1"]


def test_a_file_that_shrinks_or_vanishes_while_the_run_reads_it(tmp_path: Path) -> None:
    source = source_of(tmp_path, a=b"1\n2\n3\n")
    scan = source.scan(10)
    (tmp_path / "a.jsonl").write_bytes(b"1\n")
    with pytest.raises(SourceError, match="has changed"):
        list(source.rows(scan.snapshot, scan.plan.chunk(0)))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(SourceError, match="is gone"):
        list(source.rows(scan.snapshot, scan.plan.chunk(0)))


def test_a_snapshot_with_more_rows_than_the_file(tmp_path: Path) -> None:
    source = source_of(tmp_path, a=b"1\n2\n3\n")
    plan = source.scan(10).plan
    (tmp_path / "a.jsonl").write_bytes(b"1\n")
    with pytest.raises(SourceError, match="ended before row 1"):
        list(source.rows(source.scan(10).snapshot, plan.chunk(0)))


def test_a_file_that_is_replaced_while_the_run_reads_it(tmp_path: Path) -> None:
    """By as many rows of as many bytes: its offsets would fit."""
    source = source_of(tmp_path, a=b"1\n2\n3\n4\n")
    scan = source.scan(2)
    path = tmp_path / "a.jsonl"
    os.utime(path, (0, 0))  # touched, and the same: read on
    assert [row.raw for row in source.rows(scan.snapshot, scan.plan.chunk(0))] == [b"1", b"2"]
    path.write_bytes(b"5\n6\n7\n8\n")
    with pytest.raises(SourceError, match="has changed since this run began"):
        list(source.rows(scan.snapshot, scan.plan.chunk(1)))


def test_equal_content_has_an_equal_digest_wherever_it_lies(tmp_path: Path) -> None:
    digests = []
    for name, data in {"x": b"1\n2\n", "y": b"1\n2\n", "z": b"1\n3\n"}.items():
        (tmp_path / name).mkdir()
        digests.append(source_of(tmp_path / name, a=data).scan(10).digest)
    assert digests[0] == digests[1] != digests[2]


# -- long lines


def test_lines_longer_than_a_block(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(text_lines, "BLOCK_BYTES", 7)
    rows = [b'{"t":"' + b"x" * length + b'"}' for length in (0, 3, 50, 1, 6, 7, 8)]
    source = source_of(tmp_path, a=b"\n".join(rows))
    assert [raw for *_, raw in found(source, source.scan(2))] == rows


def test_a_row_of_five_megabytes_is_a_row(tmp_path: Path) -> None:
    long = b'{"text":"' + b"x" * (5 << 20) + b'"}'
    source = source_of(tmp_path, a=b"1\n" + long + b"\n2\n")
    assert [raw for *_, raw in found(source, source.scan(2))] == [b"1", long, b"2"]


def test_a_line_without_an_end_is_no_jsonl(tmp_path: Path, mocker: MockerFixture) -> None:
    assert text_lines.MAX_LINE_BYTES == 64 << 20
    mocker.patch.object(text_lines, "MAX_LINE_BYTES", 4 << 20)
    (tmp_path / "a.jsonl").write_bytes(b"1\n")
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.truncate((5 << 20) + 10)  # a hole: nothing is written
    with pytest.raises(SourceError, match=r"a\.jsonl, line 2 is longer than 4 MiB"):
        JsonlSource([f"{tmp_path}/a.jsonl"]).scan(10)


# -- repeated ids


@pytest.mark.parametrize("in_memory", [1, 7, 10_000])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 29), (12, 13)])
def test_a_repeated_id_is_named_with_both_places(
    tmp_path: Path, mocker: MockerFixture, first: int, second: int, in_memory: int
) -> None:
    mocker.patch("airflow_llm_provider.storage.duplicates.IN_MEMORY_ROWS", in_memory)
    rows = texts(30)
    rows[second]["custom_id"] = rows[first]["custom_id"]
    source = JsonlSource([write_rows(tmp_path / "a.jsonl", rows[:13]), write_rows(tmp_path / "b.jsonl", rows[13:])])

    def place(index: int) -> str:
        return f"a.jsonl, line {index + 1}" if index < 13 else f"b.jsonl, line {index - 12}"

    words = f"'doc-{first}' stands twice in the source: .*{place(first)} and .*{place(second)}"
    with pytest.raises(DuplicateIdError, match=words):
        source.scan(4)


@pytest.mark.parametrize(
    ("rows", "repeated"),
    [
        ([{"custom_id": "1"}, {"custom_id": 1}], True),
        ([{"custom_id": None}, {"custom_id": None}], False),
        ([{"a": 1}, {"a": 1}], False),
        ([b'{"custom_id": "x"', b'{"custom_id": "x"'], False),
        ([b'["custom_id"]', b'["custom_id"]'], False),
        ([{"text": 'about "custom_id"'}, {"text": 'about "custom_id"'}], False),
        ([{"custom_id": "ä"}, b'{"custom_id": "\\u00e4"}'], True),
    ],
)
def test_what_a_repetition_is(tmp_path: Path, rows: list[Any], *, repeated: bool) -> None:
    source = JsonlSource([write_rows(tmp_path / "a.jsonl", rows)])
    if repeated:
        with pytest.raises(DuplicateIdError):
            source.scan(10)
    else:
        assert source.scan(10).plan.total_rows == 2


def test_a_link_that_leads_nowhere_beside_the_input(tmp_path: Path) -> None:
    """It may lead to a disk that is not there: an input without it would be another one."""
    source = source_of(tmp_path, a=b"1\n")
    scan = source.scan(9)
    glob = JsonlSource([f"{tmp_path}/*.jsonl"])
    whole = glob.scan(9)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"b\.jsonl is a link, and what it leads to is not there"):
        glob.scan(9)
    assert glob.check(whole.snapshot) == []
    assert source.check(scan.snapshot) == []


def test_a_file_that_grows_while_it_is_scanned_is_pinned_as_read(tmp_path: Path, mocker: MockerFixture) -> None:
    source = source_of(tmp_path, a=b"1\n2\n")
    whole = source._files.find

    def late(**pinned: Any) -> Any:
        found = whole(**pinned)
        if not pinned:
            with (tmp_path / "a.jsonl").open("ab") as file:
                file.write(b"3\n")
        return found

    mocker.patch.object(source._files, "find", late)
    scan = source.scan(9)
    assert (scan.plan.total_rows, scan.snapshot["files"][0]["bytes"]) == (3, 6)
    mocker.stopall()
    assert source.check(scan.snapshot) == []
    assert len(list(source.rows(scan.snapshot, scan.plan.chunk(0)))) == 3


def test_a_file_named_twice(tmp_path: Path) -> None:
    source_of(tmp_path, a=b"1\n")
    with pytest.raises(SourceError, match=r"a\.jsonl is named twice"):
        JsonlSource([f"{tmp_path}/a.jsonl", f"{tmp_path}/*.jsonl"]).scan(9)


def test_a_file_that_changes_between_two_blocks(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(text_lines, "BLOCK_BYTES", 4)
    source = source_of(tmp_path, a=b"1\n2\n3\n4\n")
    scan = source.scan(9)
    rows = source.rows(scan.snapshot, scan.plan.chunk(0))
    assert next(rows).raw == b"1"
    (tmp_path / "a.jsonl").write_bytes(b"5\n6\n7\n8\n")
    assert next(rows).raw == b"2", "it was read before"
    with pytest.raises(SourceError, match="has changed"):
        next(rows)


def test_ids_that_are_none_repeat_nothing(tmp_path: Path) -> None:
    """Each makes a bad row."""
    assert source_of(tmp_path, a=b'{"custom_id":true}\n{"custom_id":true}\n').scan(9).plan.total_rows == 2
