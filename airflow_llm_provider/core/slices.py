"""A long row in token slices: each continues the one before by token ids, and the end is what a whole row's would be.

Owns a row's way from its request to the joined answer. Pure: it says what to send and what to ask, and is told what
came of it. Does not know which rows are sliced (`core.slice_rules`), nor who sends, queues or gives up slices.

The first slice is the row's own request with fewer tokens; its answer brings the prompt's token ids and its own. The
next ones are ``/v1/completions`` requests whose prompt is all ids so far: vLLM continues exactly there, and its prefix
cache has most of it computed. A slice's end is a free moment to give way, and to lose a slice is to lose no more.

**Text at a boundary.** vLLM turns ids into text as they come and holds back a character whose last bytes are still to
come. Where a slice ends inside a character its text lacks that one, and the next slice's text is of no use: vLLM 0.32
puts the whole prompt before it, and its slow tokenizers lose the character. The ids are exact even there. So the text
of the last `WINDOW` ids is asked for (``/detokenize``) and compared with the answer's end, unless the last id is known
to end a character wherever it stands. In the middle of a character the row goes on token by token (a *seam*) until it
is whole, and the seam's text is taken from what was asked. What cannot be told so runs whole, from its beginning.

Nothing that was sampled is thrown away at a boundary and drawn again, which would bend an answer's distribution at
temperatures above 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.core.request import Completion, Usage
from airflow_llm_provider.core.slice_rules import CARRIED, COMPLETIONS_PATH, WORTH, asked_tokens, why_whole

if TYPE_CHECKING:
    from airflow_llm_provider.core.request import RowRequest
    from airflow_llm_provider.core.slice_rules import SliceTerms

WINDOW = 8
"""Ids whose text is compared at a boundary. A character is four ids at most; the rest makes a mistake less likely."""

SEAM = 8
"""A seam of more ids is given up: there is no character of so many."""

_HALF = "\ufffd"  # what is put for bytes that are no character, or not yet
_SPECIAL = re.compile(r"<\S+>|\[\S+\]")  # what special tokens look like, which `/detokenize` shows and answers do not


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the server for the text of these ids, and say it to `SlicedRow.told`."""

    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Again:
    """The row has another slice to go; `SlicedRow.request` is it."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The row must run whole, from its beginning.

    Attributes:
        reason: why.
        always: whether other rows had better not be sliced on that server either.
    """

    reason: str
    always: bool = False


@dataclass(frozen=True, slots=True)
class Landed:
    """The row's answer."""

    completion: Completion


Step = Look | Again | Whole | Landed

NO_IDS = Whole("the server's answers hold no token ids", always=True)
PARSED = Whole("the server parses its answers, for reasoning or tools", always=True)
CUT = Whole("the server ended a slice early: it bounds answers by itself", always=True)
REFUSED = Whole("whole, the server would refuse it: its prompt leaves less room than it asks for")
BLURRED = Whole("its text cannot be followed over a boundary")


def begin(request: RowRequest, terms: SliceTerms, ending: set[int]) -> SlicedRow | str:
    """The row in slices, or why it runs whole.

    Args:
        request: the row's.
        terms: the server's.
        ending: ids known to end a character wherever they stand; shared by all rows of one model, and added to.
    """
    body = orjson.loads(request.body)
    return why_whole(request.path, body, terms) or SlicedRow(request, body, terms, ending)


class SlicedRow:
    """A row on its way. Use `begin`.

    One `request` at a time is sent; its answer goes to `take`, and what that says is done. A slice that is given up or
    fails is sent again from where it began, with as many tokens as `slice_tokens` says by then.
    """

    def __init__(self, request: RowRequest, body: dict[str, Any], terms: SliceTerms, ending: set[int]) -> None:
        self.path = request.path
        self.pending: Look | None = None
        """What must be asked before anything else is sent: a flight may end between an answer and what follows."""
        self.slices = 0
        """Slices that have ended."""
        self.slice_tokens = terms.slice_tokens
        """Tokens of the next slice, or of one that goes again; not to be changed between a request and its answer."""
        self.home: object = None
        """Whoever began it: on another server, other terms may hold."""
        self.usage = Usage()
        """Tokens so far, as a whole row would count them."""
        self._body = body
        self._terms = terms
        self._ending = ending
        self._asked = asked_tokens(request.path, body)
        self._total = self._asked or 0  # known once the prompt is
        self._carried = {name: value for name, value in body.items() if name in CARRIED} | {"return_token_ids": True}
        self._prompt: list[int] = []
        self._answer: list[int] = []
        self._texts: list[str] = []
        self._tail = ""  # the end of the text, to compare
        self._seam: tuple[int, str] | None = None  # where its window begins, and the text of it that is there already
        self._finish_reason: str | None = None
        self._last: Completion | None = None

    @property
    def request(self) -> tuple[str, bytes]:
        """The next slice: route and body."""
        tokens = self._next_tokens()
        if not self.slices:
            body = {name: value for name, value in self._body.items() if name != "max_completion_tokens"}
            body |= {"max_tokens": tokens, "return_token_ids": True}
            path = self.path
        else:
            body = self._carried | {"prompt": self._prompt + self._answer, "max_tokens": tokens}
            path = COMPLETIONS_PATH
        if least := self._body.get("min_tokens"):
            body["min_tokens"] = min(max(0, least - len(self._answer)), tokens)
        return path, orjson.dumps(body)

    def take(self, completion: Completion) -> Step:
        """The slice was answered."""
        step = self._taken(completion)
        self.pending = step if isinstance(step, Look) else None
        return step

    def told(self, text: str) -> Step:
        """The text of the ids that `take` asked for."""
        self.pending = None
        return self._joined(text) if self._seam is not None else self._compared(text)

    def _taken(self, completion: Completion) -> Step:
        ids = completion.token_ids
        if ids is None or (not self.slices and completion.prompt_token_ids is None):
            return NO_IDS
        if completion.output is None or completion.reasoning is not None or completion.tool_calls is not None:
            return PARSED
        if not self.slices and not self._begun(completion):
            return REFUSED
        cut = len(ids) < self._next_tokens()
        self.slices += 1
        self._last = completion
        self._answer += ids
        self.usage += Usage(completion_tokens=completion.usage.completion_tokens)
        if completion.finish_reason != "length" or len(self._answer) >= self._total:
            self._finish_reason = completion.finish_reason
        elif cut:
            return CUT
        if self._seam is not None:
            end = len(self._answer) - (self._finish_reason == "stop")  # the id that stopped it is in no text
            return Look(self._answer[self._seam[0] : end])
        self._extend(completion.output)
        if self._finish_reason is not None:
            return self._landed()
        return Again() if self._answer[-1] in self._ending else Look(self._answer[-WINDOW:])

    def _begun(self, first: Completion) -> bool:
        """Take in what only the first answer says; False where the whole row would be refused."""
        self._prompt = first.prompt_token_ids or []
        self.usage = Usage(prompt_tokens=first.usage.prompt_tokens, cached_tokens=first.usage.cached_tokens)
        room = self._terms.max_model_len - len(self._prompt)
        if self._asked is not None:
            return self._asked <= room
        self._total = room if self._terms.most_tokens is None else min(room, self._terms.most_tokens)
        return bool(self._body.get("min_tokens", 0) <= self._total)

    def _next_tokens(self) -> int:
        if not self.slices:
            return self.slice_tokens
        if self._seam is not None:
            return 1
        left = self._total - len(self._answer)
        return left if left <= WORTH * self.slice_tokens else self.slice_tokens

    def _compared(self, text: str) -> Step:
        """At an ordinary boundary: whether the answer's text ends where its ids do."""
        there = text.rstrip(_HALF)
        seen = there.lstrip(_HALF)  # the window may begin inside a character
        if not seen or not self._tail.endswith(seen):
            return BLURRED
        if there != text:
            self._seam = len(self._answer) - WINDOW, there
        elif text[-1].isascii():
            self._ending.add(self._answer[-1])
        return Again()

    def _joined(self, text: str) -> Step:
        """In a seam: whether the character is whole now."""
        begin, there = self._seam or (0, "")
        if not text.startswith(there):
            return BLURRED
        added = text[len(there) :]
        if added and not added.endswith(_HALF):
            if _SPECIAL.search(added):
                return BLURRED
            self._extend(added)
            self._seam = None
        if self._finish_reason is not None:
            return self._landed()  # an unfinished character is in no answer
        if self._seam is not None and len(self._answer) - begin >= WINDOW + SEAM:
            return BLURRED
        return Again()

    def _extend(self, text: str) -> None:
        self._texts.append(text)
        self._tail = (self._tail + text)[-256:]

    def _landed(self) -> Landed:
        """The timing is the last slice's: whoever notes it knows of that request only."""
        last = self._last
        ttft_s, generation_s = (last.ttft_s, last.generation_s) if last else (None, None)
        text = "".join(self._texts)
        return Landed(Completion(text, self._finish_reason, self.usage, ttft_s=ttft_s, generation_s=generation_s))
