"""Promise 8, flat: memory does not grow with rows, and a resume reads what it needs and not what is done.

`benchmarks.flat_memory` with fewer rows: `make bench-memory` does the 200,000 of the promise, in minutes on a busy
machine. Nothing here is timed: of the resume, what it read and sent is counted.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.flat_memory import Input, measure

ROWS = 62_000
KILL_AT = 60_000
IN_FLIGHT = 64
EARLY_ROW = 20_000
MOST_MB = 20 * (KILL_AT - EARLY_ROW) / 180_000  # of 20 MB from row 20,000 to row 200,000, these rows' share

pytestmark = pytest.mark.timeout(900)  # a minute; ten times that where others use the machine


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("flat"), Input(rows=ROWS), kill_at=KILL_AT, in_flight=IN_FLIGHT)


def test_memory_does_not_grow_with_rows(flat):
    early_mb, late_mb = flat.rss_mb[str(EARLY_ROW)], flat.rss_mb[str(KILL_AT)]
    assert late_mb - early_mb < MOST_MB, flat.rss_mb


def test_a_resume_asks_for_what_was_not_kept_and_nothing_else(flat):
    missing = ROWS - flat.kept
    assert 0 < missing <= ROWS - KILL_AT
    assert missing <= flat.resent <= missing + IN_FLIGHT  # more only where connections died under load


def test_a_resume_reads_records_and_the_journal_of_open_chunks_not_parts(flat):
    reads = flat.reads
    chunks, part_bytes = ROWS // 1000, 400_000
    assert reads["_run/run.json"][0] == 3  # found, looked at again under the lease, and before the end
    assert reads["_run/commits"][0] <= chunks
    assert reads["_run/commits"][1] <= chunks * 300
    assert reads.get("_run/journal", [0, 0])[1] <= 4 * part_bytes  # as many chunks as may be open
    assert reads.get("part", [0, 0])[0] <= 2  # those whose commit record the kill forestalled
