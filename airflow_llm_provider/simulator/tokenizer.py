"""A tokenizer without a vocabulary file: pieces of one to four bytes, whose ids are arithmetic.

Owns ids and text, the chat template, and how text comes out of a stream of tokens. Does not know which tokens a model
says (`simulator.model`).

English comes to two or three characters a token. Every id has one text; every text comes back from its ids. Ids begin
with the special tokens, then the 256 bytes, then pieces of two printable characters, and of three and four small
letters and spaces.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BOS: Final = 0
EOS: Final = 1
"""``<|im_end|>``, which ends an answer."""
TURN: Final = 2
"""``<|im_start|>``, before each message's role."""
_SPECIAL = ("<|bos|>", "<|im_end|>", "<|im_start|>")

_BYTES_FROM = len(_SPECIAL)
_PRINTABLE = bytes(range(32, 127))
_LOWER = b" abcdefghijklmnopqrstuvwxyz"
_ALPHABETS = ((2, _PRINTABLE), (3, _LOWER), (4, _LOWER))
_FROM: dict[int, int] = {}
_end = _BYTES_FROM + 256
for _length, _alphabet in _ALPHABETS:
    _FROM[_length] = _end
    _end += len(_alphabet) ** _length
VOCABULARY: Final = _end
_PIECE = re.compile(rb"[a-z ]{4}|[a-z ]{3}|[ -~]{2}|.", re.DOTALL)
_UNDECIDED = "\N{REPLACEMENT CHARACTER}"


def byte(value: int) -> int:
    """The id of a single byte."""
    return _BYTES_FROM + value


@cache
def _id(piece: bytes) -> int:
    if len(piece) == 1:
        return byte(piece[0])
    alphabet = dict(_ALPHABETS)[len(piece)]
    number = 0
    for letter in piece:
        number = number * len(alphabet) + alphabet.index(letter)
    return _FROM[len(piece)] + number


@cache
def piece(token: int) -> bytes:
    """The bytes of a token; none of a special one.

    Raises:
        ValueError: there is no such token.
    """
    if not 0 <= token < VOCABULARY:
        raise ValueError(f"Token id {token} is out of vocabulary")
    if token < _BYTES_FROM:
        return b""
    if token < _FROM[2]:
        return bytes((token - _BYTES_FROM,))
    length, alphabet = next((length, alphabet) for length, alphabet in reversed(_ALPHABETS) if token >= _FROM[length])
    number, letters = token - _FROM[length], []
    for _ in range(length):
        number, letter = divmod(number, len(alphabet))
        letters.append(alphabet[letter])
    return bytes(reversed(letters))


@cache
def _plain(token: int) -> str | None:
    """The text of a token that has one of its own."""
    told = piece(token)
    return told.decode() if told.isascii() else None


def name(token: int) -> str:
    """The token as people read it."""
    return _SPECIAL[token] if token < _BYTES_FROM else piece(token).decode("utf-8", "replace")


def tokens(text: str) -> list[int]:
    """Text as ids."""
    return [_id(found) for found in _PIECE.findall(text.encode("utf-8", "surrogatepass"))]


def text(ids: Iterable[int]) -> str:
    """Ids as text. Special tokens have none, nor have those that do not exist, as with a real vLLM 0.32."""
    return b"".join(piece(token) for token in ids if 0 <= token < VOCABULARY).decode("utf-8", "replace")


def chat(messages: Sequence[Any], *, generate: bool, unfinished: bool) -> list[int]:
    r"""A conversation as ids, in the template ``<|im_start|>role\n…<|im_end|>\n``.

    Args:
        messages: with ``role`` and ``content``, which is text or text parts.
        generate: whether the answer's beginning follows.
        unfinished: whether the last message goes on, and so has no end.
    """
    ids: list[int] = []
    for message in messages:
        ids += [TURN, *tokens(f"{message.get('role')}\n{content(message)}"), EOS, *tokens("\n")]
    if unfinished:
        return ids[:-2]
    return [*ids, TURN, *tokens("assistant\n")] if generate else ids


def content(message: Any) -> str:
    """A message's text."""
    told = message.get("content") or ""
    if isinstance(told, str):
        return told
    return "".join(str(part.get("text", "")) for part in told if isinstance(part, dict))


class TextStream:
    """Text out of tokens, one by one, as vLLM's detokenizer gives it.

    Bytes that make no whole character yet wait; what waits at the end of an answer is never told. Where the prompt ends
    in the middle of a character, all of it waits: the answer's text then begins with **the whole prompt's text**, as a
    real vLLM 0.32's does.

    Args:
        prompt: the ids before the answer.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        tail = b"".join(map(piece, prompt[-4:]))  # a character has four bytes at most
        self._waiting = b"".join(map(piece, prompt)) if tail.decode("utf-8", "replace").endswith(_UNDECIDED) else b""

    def step(self, token: int) -> str:
        """The text that a token brings, which may be none."""
        if not self._waiting and (plain := _plain(token)) is not None:
            return plain
        self._waiting += piece(token)
        told = self._waiting.decode("utf-8", "replace")
        if told.endswith(_UNDECIDED):
            return ""
        self._waiting = b""
        return told
