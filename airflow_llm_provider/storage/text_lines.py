"""Lines of a stream of bytes, with where each begins.

Owns reading by blocks and the longest line. Lines end at LF alone: JSON has other line ends in its texts, and CSV in
its quotes.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from airflow_llm_provider.exceptions import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 64 << 20


def split(
    stream: IO[bytes], offset: int, line_number: int, *, uri: str, see: Callable[[bytes], object] | None = None
) -> Iterator[tuple[int, int, bytes]]:
    """(byte offset, 1-based line number, line without its LF) of each line, blank ones too.

    Args:
        stream: stands at `offset`.
        offset: of the first line.
        line_number: of the first line.
        uri: names it in an error.
        see: gets every block as it is read, before its lines are handed on.

    Raises:
        SourceError: a line is longer than any row may be.
    """
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        if see is not None:
            see(block)
        *lines, rest = (rest + block if rest else block).split(b"\n")
        for line in lines:
            yield offset, line_number, line
            offset += len(line) + 1
            line_number += 1
        if len(rest) > MAX_LINE_BYTES:
            raise SourceError(
                f"{uri}, line {line_number} is longer than {MAX_LINE_BYTES >> 20} MiB. Is it text, one row a line?"
            )
    if rest:
        yield offset, line_number, rest
