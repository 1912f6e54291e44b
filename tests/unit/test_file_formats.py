"""Inputs of every format: what a row is, that chunks are found again, and what is said of files that are none."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_fakes import HookedStore, Try, dead_letter, job_of, kept_indices, part_lines, run
from file_fakes import ENDINGS, ROWS, csv_of, jsonl_of, parquet, rows, write, zstd
from pypdf import PdfWriter

from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.exceptions import ConfigurationError, DuplicateIdError, SourceError, StorageError
from airflow_llm_provider.sources import Files, source_of
from airflow_llm_provider.storage import text_lines
from airflow_llm_provider.storage.file_source import FileSource, parsed
from airflow_llm_provider.storage.formats import format_of
from airflow_llm_provider.storage.parquet import ParquetSource, plain
from airflow_llm_provider.storage.source import MalformedRow
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

    from airflow_llm_provider.testing import StubVLLM


def fields(raw: Any) -> dict[str, Any]:
    found = parsed(raw)
    assert found is not None
    return dict(found)


def read(source: FileSource, chunk_rows: int, *, chunks: list[int] | None = None) -> list[Any]:
    scan = source.scan(chunk_rows)
    numbers = range(len(scan.plan)) if chunks is None else chunks
    return [row.raw for number in numbers for row in source.rows(scan.snapshot, scan.plan.chunk(number))]


@pytest.mark.parametrize("chunk_rows", [1, 4, 7, 1000])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_rows_are_what_was_written_from_any_chunk_on(
    tmp_path: Path, mocker: MockerFixture, *, ending: str, chunk_rows: int, block: int
) -> None:
    mocker.patch.object(text_lines, "BLOCK_BYTES", block)
    pattern = write(tmp_path, ending, rows())
    assert [fields(raw) for raw in read(source_of(pattern), chunk_rows)] == rows()
    source = source_of(pattern)
    scan = source.scan(chunk_rows)
    for number in reversed(range(len(scan.plan))):
        chunk = scan.plan.chunk(number)
        found = list(source.rows(scan.snapshot, chunk))
        assert [row.index for row in found] == list(range(chunk.first_index, chunk.first_index + chunk.rows))
        assert [fields(row.raw) for row in found] == rows()[chunk.first_index : chunk.first_index + chunk.rows]
    assert source.check(scan.snapshot) == []


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "csv.gz"])
def test_a_packed_file_is_unpacked_once_where_its_chunks_are_read_in_turn(
    tmp_path: Path, mocker: MockerFixture, ending: str
) -> None:
    source = source_of(write(tmp_path, ending, rows()))
    scan = source.scan(2)
    opened = mocker.spy(source._files, "open")  # type: ignore[attr-defined]
    for number in range(len(scan.plan)):
        list(source.rows(scan.snapshot, scan.plan.chunk(number)))
    assert opened.call_count == 2, "once for each file"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_try_that_is_killed_goes_on_in_the_middle(stub: StubVLLM, tmp_path: Path, ending: str) -> None:
    (tmp_path / "in").mkdir()
    pattern = write(tmp_path / "in", ending, rows())

    class Killed(HookedStore):
        def before(self, name: str) -> None:
            if name.startswith("part-00002"):
                raise StorageError("killed")

    stub.behaviour.delay_s = 0.01
    first = Try(job_of(stub, source_of(pattern), max_in_flight=2, flush_rows=1), Killed(str(tmp_path / "run")))
    with pytest.raises(StorageError, match="killed"):
        first()
    kept = kept_indices(tmp_path / "run")
    assert set(range(8)) <= kept < set(range(ROWS))
    second = Try(job_of(stub, source_of(pattern)), RunStore(str(tmp_path / "run")))
    assert second()["counts"] == {"total": ROWS, "succeeded": ROWS, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert sorted(second.requested(stub)) == [index for index in range(ROWS) if index not in kept]
    lines = part_lines(tmp_path / "run")
    assert [line["custom_id"] for line in lines] == [f"doc-{n}" for n in range(ROWS)]
    assert all(f"of {n}" in line["output"] for n, line in enumerate(lines))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_changes_is_another_input(tmp_path: Path, ending: str) -> None:
    source = source_of(write(tmp_path, ending, rows()))
    scan = source.scan(4)
    changed = rows()
    changed[20]["text"] = changed[20]["text"].replace("of", "OF")
    write(tmp_path, ending, changed)
    with pytest.raises(SourceError, match=r"b\..* has changed since this run began"):
        source.check(scan.snapshot)
    with pytest.raises(SourceError, match=r"b\..* has changed since this run began"):
        list(source.rows(scan.snapshot, scan.plan.chunk(4)))
    assert source_of(f"{tmp_path}/*.{ending}").scan(4).digest != scan.digest


# -- what is taken of it


@pytest.mark.parametrize("ending", ENDINGS)
def test_columns_a_label_and_the_first_rows_alone(tmp_path: Path, ending: str) -> None:
    pattern = write(tmp_path, ending, rows())
    source = Files(pattern, columns=["text"], custom_id="n", limit=13).open()
    found = read(source, 4)
    assert [fields(raw) for raw in found] == [{"text": row["text"], "custom_id": row["n"]} for row in rows()[:13]]
    scan = source.scan(4)
    assert source.check(scan.snapshot) == []
    few = Files(pattern, limit=3).open()
    assert [each["rows"] for each in few.scan(2).snapshot["files"]] == [3]
    assert few.check(few.scan(2).snapshot) == []
    assert source.spec() != few.spec() != source_of(pattern).spec()
    whole = Files(pattern, columns=["n"]).open()
    assert [fields(raw) for raw in read(whole, 9)] == [{"n": row["n"], "custom_id": row["custom_id"]} for row in rows()]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("asked", [{"columns": ["text", "nowhere"]}, {"custom_id": "nowhere"}])
def test_a_column_that_no_file_has(tmp_path: Path, ending: str, asked: dict[str, Any]) -> None:
    source = Files(write(tmp_path, ending, rows()), **asked).open()
    with pytest.raises(SourceError, match=r"has no column nowhere\. It has: custom_id, text, n"):
        source.scan(9)


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_that_stand_twice(tmp_path: Path, ending: str) -> None:
    pattern = write(tmp_path, ending, [{**row, "n": str(min(n, 20))} for n, row in enumerate(rows())])
    with pytest.raises(DuplicateIdError, match=r"custom_id '20' stands twice in the source: .*b\.\S+, line \d+ and"):
        Files(pattern, custom_id="n").open().scan(4)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"paths": []}, "names no files"),
        ({"paths": " "}, "names no files"),
        ({"paths": [5]}, "names no files"),
        ({"paths": "a.csv", "columns": "text"}, "columns must be a list of names"),
        ({"paths": "a.csv", "columns": []}, "columns must be a list of names"),
        ({"paths": "a.csv", "limit": 0}, "limit must be a whole number of 1 or more"),
        ({"paths": "a.csv", "limit": True}, "limit must be a whole number of 1 or more"),
        ({"paths": "a.csv", "limit": 2.5}, "limit must be a whole number of 1 or more"),
        ({"paths": "a.csv", "limit": "3"}, "limit must be a whole number of 1 or more"),
        ({"paths": "a.csv", "custom_id": 5}, "custom_id must be a field's name"),
        ({"paths": None}, "names no files"),
        ({"paths": "a.csv", "format": "xlsx"}, "format is one of jsonl, csv, parquet, documents, not 'xlsx'"),
        ({"paths": "a.csv", "delimiter": ",,"}, "delimiter must be one character"),
        ({"paths": "a.jsonl", "delimiter": ";"}, "jsonl has no delimiter"),
        ({"paths": ["a.csv", "a.jsonl"]}, r"several formats \(csv, jsonl\)"),
    ],
)
def test_words_that_make_no_sense(words: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        Files(**words).open()


def test_words_are_the_same_where_they_say_the_same() -> None:
    assert repr(Files("a", limit=3)) == "Files(paths='a', limit=3)"
    assert Files("a", limit=3) == Files("a", limit=3) != Files("a")


@pytest.mark.parametrize(
    ("pattern", "format_"),
    [
        ("s3://b/*.JSONL", "jsonl"),
        ("rows", "jsonl"),
        ("in/*", "jsonl"),
        ("a.ndjson.zst", "jsonl"),
        ("a.csv.gz", "csv"),
        ("a.tsv", "csv"),
        ("a.b.parquet", "parquet"),
        ("letters/*.md", "documents"),
        ("a.PDF", "documents"),
    ],
)
def test_names_tell_the_format(pattern: str, format_: str) -> None:
    assert format_of([pattern]) == format_


# -- CSV


def test_records_that_are_none_are_bad_rows_and_no_others(stub: StubVLLM, tmp_path: Path) -> None:
    data = b'id,text\n1,one\n2\n3,three,more\n4,"fo"ur\n\n5,"f\xffve"\n6,"si\n\nx"\n7,"seven'
    (tmp_path / "a.csv").write_bytes(data)
    found = read(source_of(f"{tmp_path}/a.csv"), 3)
    said = [row.message if isinstance(row, MalformedRow) else row for row in found]
    assert said == [
        {"id": "1", "text": "one"},
        "it has 1 fields, and the header names 2",
        "it has 3 fields, and the header names 2",
        "the record is no CSV: ',' expected after '\"'",
        "it is no UTF-8",
        {"id": "6", "text": "si\n\nx"},
        "the record is no CSV: unexpected end of data",
    ]
    job = job_of(stub, source_of(f"{tmp_path}/a.csv"))
    assert run(job, RunStore(str(tmp_path / "run")))["counts"] == {
        "total": 7,
        "succeeded": 2,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 5,
    }
    letters = [json.loads(line) for line in dead_letter(tmp_path / "run").read_bytes().splitlines()]
    assert [(each["index"], each["source"]["line"]) for each in letters] == [(1, 3), (2, 4), (3, 5), (4, 7), (6, 11)]
    assert letters[0]["error"]["message"].endswith("a.csv, line 3: it has 1 fields, and the header names 2")
    assert letters[3]["raw"] == '5,"f\N{REPLACEMENT CHARACTER}ve"\n'


@pytest.mark.parametrize("data", [b"a,a\n1,2\n", b"a,,c\n", b'"a\n', b"a, a \n"])
def test_a_header_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.csv: its first line (must name each column once|is no CSV header)"):
        source_of(f"{tmp_path}/a.csv").scan(9)


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid;text\n")
    assert Files(f"{tmp_path}/a.csv", delimiter=";", columns=["id"]).open().scan(9).plan.total_rows == 0
    (tmp_path / "a.csv").write_bytes(b"\n")
    assert Files(f"{tmp_path}/a.csv", columns=["id"]).open().scan(9).plan.total_rows == 0


# -- Parquet


def test_values_that_json_has_no_word_for(tmp_path: Path) -> None:
    at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    row = {
        "at": at,
        "day": date(2026, 3, 29),
        "clock": time(1, 30),
        "took": timedelta(seconds=90),
        "price": Decimal("1.10"),
        "raw": b"\x00\xff",
        "share": float("nan"),
        "many": [{"a": [1, None, float("inf")]}],
    }
    parquet(tmp_path / "a.parquet", [row])
    assert read(source_of(f"{tmp_path}/a.parquet"), 9) == [
        {
            "at": "2026-03-29T01:30:00+00:00",
            "day": "2026-03-29",
            "clock": "01:30:00",
            "took": 90.0,
            "price": "1.10",
            "raw": "AP8=",
            "share": None,
            "many": [{"a": [1, None, None]}],
        }
    ]
    assert plain((1, "a")) == [1, "a"]


def test_only_the_row_group_that_has_the_chunk_is_read(tmp_path: Path, mocker: MockerFixture) -> None:
    parquet(tmp_path / "a.parquet", rows(1000), group=100)
    source = ParquetSource([f"{tmp_path}/a.parquet"])
    scan = source.scan(100)
    seen = mocker.patch.object(source, "_compare")
    found = source.rows(scan.snapshot, scan.plan.chunk(7))
    assert fields(next(found).raw)["custom_id"] == "doc-700"
    assert seen.call_count == 1


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all, and some more of it"])
def test_a_file_that_is_no_parquet(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.parquet can't be read as Parquet"):
        source_of(f"{tmp_path}/a.parquet").scan(9)


def test_an_empty_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert source_of(f"{tmp_path}/a.parquet").scan(9).plan.total_rows == 0


# -- documents


def test_texts_are_a_row_each(stub: StubVLLM, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffWie geht's?".encode())
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"packed"))
    source = source_of([f"{tmp_path}/*.txt", f"{tmp_path}/*.txt.gz"])
    found = read(source, 2)
    assert found[0] == {"path": f"file://{tmp_path}/a.txt", "name": "a.txt", "text": "Wie geht's?"}
    assert found[1]["text"] == ""
    assert isinstance(found[2], MalformedRow)
    assert found[3]["text"] == "packed"
    job = job_of(stub, source, requests=RequestSpec(prompt="{{ row.name }}: {{ row.text }}"))
    assert run(job, RunStore(str(tmp_path / "run")))["counts"] == {
        "total": 4,
        "succeeded": 3,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 1,
    }
    (letter,) = [json.loads(line) for line in dead_letter(tmp_path / "run").read_bytes().splitlines()]
    assert letter["error"]["message"].endswith("c.txt, line 1: it is no UTF-8: invalid start byte at byte 0")


def test_pdfs_are_read_and_broken_ones_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Hello invoice"))
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4 and no more")
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret")
    with (tmp_path / "c.pdf").open("wb") as file:
        writer.write(file)
    first, broken, locked = read(source_of(f"{tmp_path}/*.pdf"), 9)
    assert first["text"].split() == ["Hello", "invoice"]
    assert isinstance(broken, MalformedRow)
    assert isinstance(locked, MalformedRow)
    assert "its text can't be read" in locked.message


def pdf(text: str) -> bytes:
    """One page that says so."""
    shown = f"BT /F1 24 Tf 20 40 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 99]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(shown), shown),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 6\n0000000000 65535 f \n%strailer<</Root 1 0 R/Size 6>>\n" % table
    return data + head + b"startxref\n%d\n%%%%EOF\n" % len(data)


def test_texts_of_any_length_in_quotes(tmp_path: Path) -> None:
    long = [{"custom_id": "a", "text": "x,\n" * 100_000}, {"custom_id": "b", "text": "y"}]
    (tmp_path / "a.csv").write_bytes(csv_of(long))
    assert read(source_of(f"{tmp_path}/a.csv"), 1) == long


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(text_lines, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,one\n2,"two\n' + b"3,three\n" * 200_000)
    first, bad, *rest = read(source_of(f"{tmp_path}/a.csv"), 70_000)
    assert first == {"id": "1", "text": "one"}
    assert isinstance(bad, MalformedRow)
    assert (bad.message, bad.text) == (
        "the record is no CSV: it is longer than 1 MiB, or a quote is not closed",
        '2,"two\n',
    )
    assert rest == [{"id": "3", "text": "three"}] * 200_000


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 9])
@pytest.mark.parametrize("packed", [False, True])
def test_a_quote_that_is_not_closed_costs_its_line_alone(tmp_path: Path, *, chunk_rows: int, packed: bool) -> None:
    data = b'id,text\n1,one\n2,"two\n3,three\n4,"fo,ur"\n5,"fi\nve"\n6,"six\n7,"se\nven",x\n8,eight\n'
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    source = source_of(str(path))
    scan = source.scan(chunk_rows)
    found = [
        "bad" if isinstance(row.raw, MalformedRow) else dict(fields(row.raw))["id"]
        for number in reversed(range(len(scan.plan)))
        for row in reversed(list(source.rows(scan.snapshot, scan.plan.chunk(number))))
    ]
    # The last but one had a field too many: what is left of it may look like a record, and no line is passed over.
    assert found[::-1] == ["1", "bad", "3", "4", "5", "bad", "bad", 'ven"', "8"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("left", [0, 4])
def test_a_file_that_is_empty_or_shorter_by_now_gives_its_indexes_to_no_other(
    tmp_path: Path, ending: str, left: int
) -> None:
    """It shows no block from the chunk's beginning on, and the next file's rows would follow."""
    source = source_of(write(tmp_path, ending, rows()))
    scan = source.scan(4)
    write(tmp_path, ending, rows()[: 2 * left])
    write_after = tmp_path / f"c.{ending}"
    write_after.write_bytes((tmp_path / f"b.{ending}").read_bytes())
    for number in range(len(scan.plan)):
        with pytest.raises(SourceError, match="has changed since this run began"):
            list(source.rows(scan.snapshot, scan.plan.chunk(number)))


def test_a_packed_table_of_more_than_the_longest_record_is_read_from_its_middle(
    tmp_path: Path, mocker: MockerFixture
) -> None:
    mocker.patch.object(text_lines, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv_of(rows(500))))
    source = source_of(f"{tmp_path}/a.csv.gz")
    scan = source.scan(100)
    assert [fields(row.raw) for row in source.rows(scan.snapshot, scan.plan.chunk(4))] == rows(500)[400:]


def test_labels_whose_name_is_written_in_escapes_are_labels(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"custom_\\u0069d":"x"}\n{"custom_id":"x"}\n')
    with pytest.raises(DuplicateIdError):
        source_of(f"{tmp_path}/a.jsonl").scan(9)
    (tmp_path / "b.jsonl").write_bytes(jsonl_of([{"id\u00e9": "x"}, {"id\u00e9": "x"}]))
    with pytest.raises(DuplicateIdError):
        Files(f"{tmp_path}/b.jsonl", custom_id="id\u00e9").open().scan(9)


def test_values_that_cannot_be_read_are_bad_rows_and_no_others(tmp_path: Path) -> None:
    far = pa.array([0, 300_000_000_000_000_000], pa.timestamp("us"))
    nested = pa.array([[1], [2]], pa.list_(pa.timestamp("ns")))
    pq.write_table(pa.table({"at": far}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"many": nested}), tmp_path / "b.parquet")
    first, bad = read(source_of(f"{tmp_path}/a.parquet"), 9)
    assert first == {"at": "1970-01-01T00:00:00"}
    assert isinstance(bad, MalformedRow)
    assert "a value of it can't be read" in bad.message
    assert all(isinstance(row, MalformedRow) for row in read(source_of(f"{tmp_path}/b.parquet"), 9))


def test_int96_moments_of_spark_do_not_wrap(tmp_path: Path) -> None:
    at = pa.array([datetime(9999, 12, 31, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"at": at}), tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    (row,) = read(source_of(f"{tmp_path}/a.parquet"), 9)
    assert row["at"].startswith("9999-12-31")


def test_a_digest_is_of_the_rows_and_not_of_how_they_are_batched(tmp_path: Path, mocker: MockerFixture) -> None:
    parquet(tmp_path / "a.parquet", rows())
    digest = source_of(f"{tmp_path}/a.parquet").scan(4).digest
    mocker.patch("airflow_llm_provider.storage.parquet._BATCH_ROWS", 2)
    assert source_of(f"{tmp_path}/a.parquet").scan(4).digest == digest


@pytest.mark.parametrize(
    ("name", "words"), [("a.parquet.gz", "Parquet is packed within"), ("a.parquet.zst", "Parquet is packed within")]
)
def test_parquet_in_a_packet(tmp_path: Path, name: str, words: str) -> None:
    parquet(tmp_path / "a.parquet", rows())
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else zstd(data))
    with pytest.raises(SourceError, match=words):
        source_of(f"{tmp_path}/{name}").scan(9)


def test_names_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.TSV").write_bytes(csv_of(rows(), "\t"))
    (tmp_path / "B.JSONL.GZ").write_bytes(gzip.compress(jsonl_of(rows())))
    for name in ("A.TSV", "B.JSONL.GZ"):
        assert [fields(raw) for raw in read(source_of(f"{tmp_path}/{name}"), 4)] == rows()


def test_a_uuid_is_a_label(tmp_path: Path) -> None:
    ids = pa.array([bytes(range(16)), bytes(range(1, 17))], pa.uuid())
    pq.write_table(pa.table({"id": ids}), tmp_path / "a.parquet")
    first, _ = read(Files(f"{tmp_path}/a.parquet", custom_id="id").open(), 9)
    assert first["custom_id"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_documents_have_no_other_fields(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"has no column body\. It has: path, name, text"):
        Files(f"{tmp_path}/a.txt", columns=["body"]).open().scan(9)


def test_moments_to_the_nanosecond_are_cut(tmp_path: Path) -> None:
    nanoseconds = 1_767_225_600_123_456_789
    table = pa.table(
        {
            "at": pa.array([nanoseconds], pa.timestamp("ns", "UTC")),
            "clock": pa.array([1_001], pa.time64("ns")),
            "took": pa.array([1_500_000_001], pa.duration("ns")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = read(source_of(f"{tmp_path}/a.parquet"), 9)
    assert row == {"at": "2026-01-01T00:00:00.123456+00:00", "clock": "00:00:00.000001", "took": 1.5}


def test_a_row_without_the_label_that_is_asked_for_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl_of([{"custom_id": "x", "n": 1}, {"custom_id": "x", "m": 2}]))
    found = read(Files(f"{tmp_path}/a.jsonl", custom_id="n").open(), 9)
    assert found == [{"n": 1, "custom_id": 1}, {"m": 2}]


@pytest.mark.parametrize("words", [{}, {"custom_id": "id"}])
def test_blank_labels_are_none(stub: StubVLLM, tmp_path: Path, words: dict[str, Any]) -> None:
    name = words.get("custom_id", "custom_id")
    (tmp_path / "a.csv").write_text(f"{name},text\n,one\n,two\nx,three\n")
    job = job_of(stub, Files(f"{tmp_path}/a.csv", **words).open())
    assert run(job, RunStore(str(tmp_path / "run")))["counts"]["succeeded"] == 3
    assert [line["custom_id"] for line in part_lines(tmp_path / "run")] == ["row-0", "row-1", "x"]
