"""What the simulated model says: each token follows from all tokens before it, and from nothing else.

Owns which token comes next, and where an answer ends by itself. Does not know time (`simulator.engine`) or HTTP.

So an answer is the same however it is reached: in one request, or in slices that are continued by token ids. Sampling
with a seed is the exception, as with a real vLLM: it depends on the place in the request, and a continuation differs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from airflow_llm_provider.simulator import tokenizer
from airflow_llm_provider.simulator.tokenizer import EOS, TextStream

if TYPE_CHECKING:
    from collections.abc import Sequence

_MASK = (1 << 61) - 1
_TEXT = (
    "the and her his was one out man sun sea old new two tea oil car did had not its she who our ice red ran saw cat"
    " hen tin hat sat all ten can"
)
_WORDS: Final = tuple(tokenizer.tokens(f"{word} ")[0] for word in _TEXT.split())
"""Three letters and a space are a token."""

_ACCENT, _SUN = "é".encode(), "日".encode()
_GOES_ON: Final = {
    tokenizer.byte(first): tokenizer.byte(second) for char in (_ACCENT, _SUN) for first, second in pairwise(char)
}
"""A character of several bytes is a token each, and once begun it is ended."""

_RARE = 24
"""One token in so many begins a character outside ASCII."""


class Ends(NamedTuple):
    """What ends an answer before its last token.

    Attributes:
        eos: whether the model's own end does.
        tokens: these tokens do, too.
        strings: these texts do, wherever they turn up.
        not_before: none of them does among the first so many tokens.
        keep_string: whether the text that ended it is part of the answer.
    """

    eos: bool = True
    tokens: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    not_before: int = 0
    keep_string: bool = False


class Said(NamedTuple):
    """An answer.

    Attributes:
        ids: its tokens, one that ended it included.
        pieces: the text each of them brings.
        stopped: whether something of `Ends` ended it.
        stop_reason: the token or text that did; None for the model's own end.
    """

    ids: list[int]
    pieces: list[str]
    stopped: bool
    stop_reason: int | str | None


def say(
    prompt: Sequence[int],
    *,
    max_tokens: int,
    ends: Ends,
    mean_tokens: float | None,
    variant: int = 0,
    seed: int | None = None,
) -> Said:
    """The answer to a prompt.

    Args:
        prompt: the ids before it.
        max_tokens: as many tokens at most.
        ends: what ends it sooner.
        mean_tokens: the mean length of an answer that may end by itself; None: it never does.
        variant: tells several answers to one prompt apart.
        seed: as in the request; None for greedy sampling.
    """
    state = variant
    for token in prompt:
        state = _fold(state, token)
    last = prompt[-1] if prompt else EOS
    stream = TextStream(prompt)
    ids: list[int] = []
    pieces: list[str] = []
    told = ""
    for number in range(1, max_tokens + 1):
        drawn = state if seed is None else _fold(_fold(state, seed), number)
        last = _next(drawn, last, mean_tokens)
        state = _fold(state, last)
        ids.append(last)
        if number > ends.not_before:
            if last == EOS and ends.eos:
                return Said(ids, [*pieces, ""], True, None)
            if last in ends.tokens:
                return Said(ids, [*pieces, ""], True, last)
        pieces.append(stream.step(last))
        if ends.strings:
            before, told = len(told), told + pieces[-1]
            if number > ends.not_before and (found := _found(told, before, ends)) is not None:
                string, end = found
                return Said(ids, _cut(pieces, end), True, string)
    return Said(ids, pieces, False, None)


def _fold(state: int, token: int) -> int:
    mixed = (state ^ (token + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9
    return (mixed ^ (mixed >> 29)) & _MASK


def _next(state: int, last: int, mean_tokens: float | None) -> int:
    goes_on = _GOES_ON.get(last)
    if goes_on is not None:
        return goes_on
    if mean_tokens is not None and (state >> 8) % 1_000_003 < 1_000_003 / mean_tokens:
        return EOS
    drawn = (state >> 30) % (len(_WORDS) * _RARE)
    if drawn % _RARE:
        return _WORDS[drawn // _RARE]
    return tokenizer.byte((_ACCENT if drawn // _RARE % 2 else _SUN)[0])


def _found(told: str, before: int, ends: Ends) -> tuple[str, int] | None:
    """The stop string that the newest text completes, and where the answer's text ends; the first in the text wins."""
    best: tuple[int, str] | None = None
    for string in ends.strings:
        at = told.find(string, max(before - len(string) + 1, 0))
        if at >= 0 and (best is None or at < best[0]):
            best = (at, string)
    if best is None:
        return None
    at, string = best
    return string, at + len(string) if ends.keep_string else at


def _cut(pieces: list[str], end: int) -> list[str]:
    """The pieces, of whose text only so many characters remain."""
    kept = []
    for piece in pieces:
        kept.append(piece[: max(end, 0)])
        end -= len(piece)
    return kept
