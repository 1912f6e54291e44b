"""The lines of parts, journals and dead letters: encode and decode.

Owns the line formats (`docs/run-format.md`). A row's line in the journal is its line in the part, byte for byte, so
committing a chunk encodes nothing twice. Pure. Does not know where lines are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.core.ledger import SettledLine
from airflow_llm_provider.core.redaction import KEEP
from airflow_llm_provider.core.request import BadRow, Status, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_llm_provider.core.redaction import Redaction
    from airflow_llm_provider.core.request import Outcome, RowRequest

_NEWLINE = orjson.OPT_APPEND_NEWLINE
_RAW_BYTES = 10_000
_DEAD_LETTER_KEY = b'{"dead_letter":'


def encode_outcome(outcome: Outcome) -> SettledLine:
    """A row's line, as it stands in the journal and in the part; every line has every key."""
    completion, error = outcome.completion, outcome.error
    usage = completion.usage if completion else Usage()
    line = orjson.dumps(
        {
            "index": outcome.index,
            "custom_id": outcome.custom_id,
            "status": outcome.status,
            "output": completion.output if completion else None,
            "parsed": outcome.parsed,
            "reasoning": completion.reasoning if completion else None,
            "tool_calls": completion.tool_calls if completion else None,
            "choices": completion.choices if completion else None,
            "finish_reason": completion.finish_reason if completion else None,
            "usage": usage.as_dict(),
            "error": error.as_dict() if error else None,
            "attempts": outcome.attempts,
        },
        option=_NEWLINE,
    )
    return SettledLine(line, outcome.status, usage)


def encode_dead_letter(outcome: Outcome, row: RowRequest | BadRow, redaction: Redaction = KEEP) -> bytes:
    """What a person needs to mend or replay a row: where it stands, what was sent, what went wrong.

    The outcome's error is taken as it is; what was sent is kept as far as `redaction` says.
    """
    letter = {
        "index": outcome.index,
        "custom_id": outcome.custom_id,
        "status": outcome.status,
        "source": {"file": row.position.file, "line": row.position.line},
        "request": None,
        "raw": None,
        "error": outcome.error.as_dict() if outcome.error else None,
        "attempts": outcome.attempts,
    }
    if isinstance(row, BadRow):
        letter["raw"] = _kept(row.raw, redaction)
        return orjson.dumps(letter, option=_NEWLINE)
    try:
        letter["request"] = {"method": "POST", "url": row.path, "body": redaction.value(orjson.loads(row.body))}
        return orjson.dumps(letter, option=_NEWLINE)
    except TypeError:  # nested as deeply as can be written, and here it is two levels deeper
        letter |= {"request": None, "raw": redaction.text(row.body[:_RAW_BYTES].decode("utf-8", "replace"))}
        return orjson.dumps(letter, option=_NEWLINE)


def _kept(raw: str, redaction: Redaction) -> str:
    """What is kept of a row's text. JSON's escapes would hide words from the hook: what can be read is read first."""
    if redaction is KEEP:
        return raw
    try:
        return orjson.dumps(redaction.value(orjson.loads(raw))).decode()
    except (ValueError, TypeError):  # no JSON, or nested too deeply to be written again
        return redaction.text(raw)


def encode_journal(settled: list[SettledLine]) -> bytes:
    """A journal object: each row's line, followed by its dead letter where it has one."""
    pieces: list[bytes] = []
    for row in settled:
        pieces.append(row.line)
        if row.dead_letter is not None:
            pieces.append(_DEAD_LETTER_KEY + row.dead_letter.rstrip(b"\n") + b"}\n")
    return b"".join(pieces)


def decode_journal(data: bytes) -> tuple[dict[int, SettledLine], int]:
    """Rows of a journal object by index, and how many of its lines could not be read.

    A torn object (power loss, a store that stored half of it) loses its last line, which is then requested again;
    it never loses what stands before.
    """
    rows: dict[int, SettledLine] = {}
    torn = 0
    last: SettledLine | None = None
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("torn")  # noqa: TRY301 - the same end as a line that does not parse
            if line.startswith(_DEAD_LETTER_KEY):
                letter = orjson.dumps(orjson.loads(line)["dead_letter"], option=_NEWLINE)
                if last is not None:
                    last.dead_letter = letter
                continue
            index, last = _decode_settled(line)
        except (ValueError, KeyError, TypeError):
            torn += 1
            last = None
            continue
        rows[index] = last
    bare = [index for index, row in rows.items() if row.status is not Status.SUCCEEDED and row.dead_letter is None]
    for index in bare:
        del rows[index]  # its dead letter was torn off: asking again is better than losing it
        torn += 1
    return rows, torn


def decode_part(data: bytes) -> list[tuple[int, Status, Usage]]:
    """Index, status and usage of each line of a part.

    Raises:
        ValueError: when a line is no row's line.
    """
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            index, settled = _decode_settled(line)
        except (KeyError, TypeError) as error:
            raise ValueError(f"line {number} is no row's: {type(error).__name__}, {error}") from error
        rows.append((index, settled.status, settled.usage))
    return rows


def decode_lines(data: bytes) -> Iterator[tuple[int, SettledLine]]:
    """Each row of a part whose lines are known to be whole, by index; without its dead letter."""
    for line in data.splitlines(keepends=True):
        yield _decode_settled(line)


def _decode_settled(line: bytes) -> tuple[int, SettledLine]:
    row: dict[str, Any] = orjson.loads(line)
    usage = row["usage"]
    return int(row["index"]), SettledLine(
        line,
        Status(row["status"]),
        Usage(usage["prompt_tokens"], usage["completion_tokens"], usage["cached_tokens"]),
    )
