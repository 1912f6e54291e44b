"""Whatever bytes the files hold, rows read chunk by chunk are those a naive reader of whole files finds."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.storage import text_lines
from airflow_llm_provider.storage.jsonl import JsonlSource

PIECES = st.sampled_from(
    [b"\n", b"\r\n", b" ", b"\t", b"\xef\xbb\xbf", b"{}", b'{"a":1}', b"x", b"\x00\xff", b"\x0b", b"\x85"]
)
CONTENTS = st.one_of(st.binary(max_size=40), st.lists(PIECES, max_size=25).map(b"".join))


def naive(contents: list[bytes]) -> list[tuple[int, int, bytes]]:
    """(file, line, text) of each line that is not blank."""
    return [
        (number, line_number, line)
        for number, content in enumerate(contents)
        for line_number, line in enumerate(content.split(b"\n"), 1)
        if line.strip(b" \t\n\r\x0b\x0c")
    ]


@settings(max_examples=150, deadline=None)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=4), chunk_rows=st.integers(1, 9), block=st.integers(1, 16))
def test_chunks_hold_what_a_naive_reader_finds(contents: list[bytes], chunk_rows: int, block: int) -> None:
    was, text_lines.BLOCK_BYTES = text_lines.BLOCK_BYTES, block
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.jsonl" for number in range(len(contents))]
            for path, content in zip(paths, contents, strict=True):
                path.write_bytes(content)
            source = JsonlSource([f"{folder}/*.jsonl"])
            scan = source.scan(chunk_rows)
            plan = ChunkPlan.from_dict(json.loads(json.dumps(scan.plan.as_dict())))
            snapshot = json.loads(json.dumps(scan.snapshot))
            chunks = [list(source.rows(snapshot, plan.chunk(number))) for number in range(len(plan))]
            assert source.check(snapshot) == []
    finally:
        text_lines.BLOCK_BYTES = was
    rows = [row for chunk in chunks for row in chunk]
    assert [row.index for row in rows] == list(range(plan.total_rows))
    assert [len(chunk) for chunk in chunks] == [plan.chunk(number).rows for number in range(len(plan))]
    found = [(int(row.position.file[-7]), row.position.line, row.raw) for row in rows]
    assert found == naive(contents)
