from __future__ import annotations

import json

import orjson
import pytest

from airflow_llm_provider.core.request import (
    BadRow,
    Completion,
    Outcome,
    Position,
    RowError,
    RowRequest,
    Status,
    Usage,
)
from airflow_llm_provider.storage.lines import (
    SettledLine,
    decode_journal,
    decode_part,
    encode_dead_letter,
    encode_journal,
    encode_outcome,
)

KEYS = [
    "index", "custom_id", "status", "output", "parsed", "reasoning", "tool_calls", "choices", "finish_reason", "usage",
    "error", "attempts",
]  # fmt: skip
WHERE = Position(file="s3://docs/a.jsonl", line=8)
REQUEST = RowRequest(7, "doc-7", "/v1/chat/completions", b'{"model":"m","messages":[]}', WHERE)


def succeeded(index: int = 7, output: str = "fine\r\n  ok") -> SettledLine:
    completion = Completion(output, "stop", Usage(3, 2, 1))
    return encode_outcome(Outcome(index, f"doc-{index}", Status.SUCCEEDED, 2, completion=completion))


def errored(index: int = 7, row: RowRequest | BadRow = REQUEST) -> SettledLine:
    outcome = Outcome(index, f"doc-{index}", Status.ERRORED, 1, error=RowError("bad_request", "top_p", 400))
    settled = encode_outcome(outcome)
    settled.dead_letter = encode_dead_letter(outcome, row)
    return settled


def test_a_line_has_every_key_whatever_became_of_the_row() -> None:
    good, bad = json.loads(succeeded().line), json.loads(errored().line)
    assert list(good) == list(bad) == KEYS
    assert good["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1}
    assert bad["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}
    assert bad["error"] == {"kind": "bad_request", "message": "top_p", "http_status": 400}


def test_one_line_is_one_line_whatever_the_text_holds() -> None:
    assert succeeded(output="a\nb\r\x0b\x0c\x1c\x85\u2028c").line.count(b"\n") == 1
    journal = encode_journal([succeeded(1, "a\r\n\x0b\x0c\x1c\x85\u2028b"), succeeded(2)])
    assert sorted(decode_journal(journal)[0]) == [1, 2]


def test_a_dead_letter_can_be_replayed() -> None:
    letter = json.loads(errored().dead_letter or b"")
    assert letter["request"] == {
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": []},
    }
    assert letter["status"] == "errored"
    assert letter["source"] == {"file": "s3://docs/a.jsonl", "line": 8}
    assert letter["raw"] is None
    raw = BadRow(7, "row-7", WHERE, "the line is no JSON", "{" * 10_000)
    letter = json.loads(errored(row=raw).dead_letter or b"")
    assert letter["request"] is None
    assert letter["raw"] == "{" * 10_000


@pytest.mark.parametrize("status", [Status.TRUNCATED, Status.INVALID_OUTPUT, Status.ERRORED])
def test_a_row_whose_dead_letter_was_torn_off_is_asked_for_again(status: Status) -> None:
    error = RowError(status, "why")
    outcome = Outcome(7, "doc-7", status, 1, completion=Completion("x", "length", Usage()), error=error)
    settled = encode_outcome(outcome)
    settled.dead_letter = encode_dead_letter(outcome, REQUEST)
    whole = encode_journal([settled])
    assert list(decode_journal(whole)[0]) == [7]
    assert decode_journal(whole[: len(settled.line)]) == ({}, 1)


def test_a_journal_comes_back_byte_for_byte() -> None:
    settled = [succeeded(1), errored(2), succeeded(3)]
    rows, torn = decode_journal(encode_journal(settled))
    assert torn == 0
    assert [rows[index] for index in (1, 2, 3)] == settled


def test_a_journal_torn_at_any_byte_keeps_what_stands_before_it() -> None:
    settled = [succeeded(1), errored(2), succeeded(3)]
    data = encode_journal(settled)
    ends = [len(encode_journal(settled[:amount])) for amount in range(4)]
    for cut in range(len(data) + 1):
        rows, torn = decode_journal(data[:cut])
        whole = sum(end <= cut for end in ends) - 1
        assert sorted(rows) == [1, 2, 3][:whole]
        assert all(rows[index] == settled[index - 1] for index in rows)
        assert (torn > 0) == (cut not in ends)


@pytest.mark.parametrize(
    "junk",
    [b"\n", b"[]\n", b"null\n", b"5\n", b"{}\n", b'{"index": 1}\n', b"\x00\xff\n", b'{"index":"x","usage":null}\n'],
)
def test_a_damaged_line_costs_itself_only(junk: bytes) -> None:
    rows, torn = decode_journal(succeeded(1).line + junk + succeeded(2).line)
    assert (sorted(rows), torn) == ([1, 2], 1)


def test_a_dead_letter_whose_row_is_damaged_belongs_to_nobody() -> None:
    letter = encode_journal([errored(2)]).splitlines(keepends=True)[1]
    rows, torn = decode_journal(succeeded(1).line + b"junk\n" + letter)
    assert (sorted(rows), torn) == ([1], 1)
    assert rows[1].dead_letter is None


def test_a_parts_lines() -> None:
    assert decode_part(succeeded(1).line + errored(2).line) == [
        (1, Status.SUCCEEDED, Usage(3, 2, 1)),
        (2, Status.ERRORED, Usage()),
    ]
    for junk in (b"{}\n", b"[]\n", b"half", orjson.dumps({"index": 1})):
        with pytest.raises(ValueError):
            decode_part(succeeded(1).line + junk)
