"""Sends a server's rows, the long ones in slices.

Owns what is known of a server's terms, and the questions between a slice's answer and what follows from it. Does not
know which rows are sliced or how they are joined (`core.slice_rules`, `core.slices`), nor when a row goes again
(`core.dispatch`).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import orjson

from airflow_llm_provider.core.request import Completion
from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.core.slice_rules import (
    CHAT_PATH,
    SHORT,
    SliceTerms,
    eased_pace,
    slice_tokens_at,
    why_whole_anywhere,
)
from airflow_llm_provider.core.slices import PARSED, Again, Landed, Look, Whole, begin
from airflow_llm_provider.endpoint.failure import classify, garbled, read_json
from airflow_llm_provider.endpoint.slice_terms import read_terms

if TYPE_CHECKING:
    from airflow_llm_provider.core.limit import Learnt
    from airflow_llm_provider.core.output_schema import OutputSchema
    from airflow_llm_provider.core.row_queue import Ticket
    from airflow_llm_provider.core.slices import SlicedRow, Step
    from airflow_llm_provider.endpoint.client import EndpointClient

log = logging.getLogger(__name__)

ASK_AGAIN_S = 5.0
"""After its terms could not be read a server is asked for them again no sooner than this; meanwhile rows run whole."""

ASK_WAIT_S = 3.0
"""For its terms, all together; milliseconds are usual. The rows of a run's beginning wait for the first such question,
or they would all run whole; beside a later one, of a server that has failed there, they go whole at once."""

LONG_CHARS = 4_096
"""A longer answer is validated in a thread: what a hostile one costs may be seconds."""

LOOK_WAIT_S = 10.0
"""For the text at a boundary."""

_REFUSALS = frozenset({FailureKind.BAD_REQUEST, FailureKind.ROUTE_NOT_FOUND})
"""Failures of a slice that say nothing about the whole row, which is sent instead."""

_HUNG_UP = frozenset({FailureKind.STALE_CONNECTION, FailureKind.CONNECTION_LOST})
"""Failures of a question that say nothing of the server the first time: its connection may have been a stale one."""


@dataclass(frozen=True, slots=True)
class SliceEnded:
    """A row goes on with its next slice.

    Attributes:
        ttft_s: see `Completion`; of this slice.
        generation_s: the same.
    """

    ttft_s: float | None = None
    generation_s: float | None = None


@dataclass(frozen=True, slots=True)
class BegunAnew:
    """A row cannot go on in slices, and runs whole from its beginning: nothing of it is kept.

    Attributes:
        ended: the slice that was answered before that was found out; None: no request was.
    """

    ended: SliceEnded | None = None


Sent = Completion | Failure | SliceEnded | BegunAnew
"""What becomes of a request for a row."""


class Plain:
    """Sends rows whole.

    Args:
        client: sends; already entered.
    """

    def __init__(self, client: EndpointClient) -> None:
        self._client = client

    async def send(self, ticket: Ticket, request_id: str) -> Sent:
        """Send the row and read its answer."""
        request = ticket.request
        return await self._client.send(request.path, request.body, request_id=request_id)


class Checked(Plain):
    """Sends through another, and looks whether what comes back is what the DAG wants: long texts in a thread.

    Args:
        sender: sends.
        schema: what answers must be.
    """

    def __init__(self, sender: Plain, schema: OutputSchema) -> None:
        self._sender = sender
        self._schema = schema

    async def send(self, ticket: Ticket, request_id: str) -> Sent:
        """Send the row and read its answer."""
        sent = await self._sender.send(ticket, request_id)
        if not isinstance(sent, Completion) or ticket.answered:
            return sent
        long = sent.output is not None and len(sent.output) > LONG_CHARS
        parse = self._schema.parse
        found = await asyncio.to_thread(parse, sent.output) if long else parse(sent.output)
        return replace(sent, checked=found)


class Slicer(Plain):
    """Sends rows in slices, where they are worth it and the server is known to be one for that.

    Args:
        client: sends; already entered.
        model: the model that rows ask for.
        name: the server's, for the log.
        ending: see `core.slices.begin`; one for all servers of a run.
        slice_tokens: tokens of a slice; None: as many as the server's pace says (`core.slice_rules.slice_tokens_at`).
        learnt: says whether real-time is quiet there; None: nobody does, and slices are as short as beside it.

    Some reasoning parsers take nothing from an answer whose end marker is still to come, so that a first slice does not
    show them. So until a long chat row was answered whole, all of them run whole; see `heard`.
    """

    def __init__(
        self,
        client: EndpointClient,
        *,
        model: str,
        name: str,
        ending: set[int],
        slice_tokens: int | None = None,
        learnt: Learnt | None = None,
    ) -> None:
        super().__init__(client)
        self._model = model
        self._name = name
        self._ending = ending
        self._fixed_tokens = slice_tokens
        self._learnt = learnt
        self._pace: float | None = None  # of the slices here, tokens/s
        self._heard = False  # whether a long chat row was answered whole, with nothing parsed
        self._terms: dict[str, SliceTerms | None] = {}  # by path; None: not to be had
        self._ask_from_s = 0.0
        self._asking = asyncio.Lock()
        self._said: set[str] = set()

    async def send(self, ticket: Ticket, request_id: str) -> Sent:
        """Send the row's next slice, or the row, and read its answer."""
        if ticket.sliced is not None and not ticket.sliced.slices and ticket.sliced.home is not self:
            ticket.sliced = None  # nothing of it is there yet: it begins by this server's terms
        trial = ticket.sliced is None and not ticket.whole and not ticket.answered and await self._begin(ticket)
        row = ticket.sliced
        if row is not None and not ticket.answered:
            return await self._go_on(ticket, row, request_id)
        answer = await super().send(ticket, request_id)
        if trial and isinstance(answer, Completion):
            self.heard(answer)
        return answer

    def heard(self, whole: Completion) -> None:
        """A long chat row was answered whole: chat rows run in slices from here on, unless a parser took of it."""
        if whole.reasoning is None and whole.tool_calls is None:
            self._heard = True
            return
        self._terms[CHAT_PATH] = None
        self._say(f"Rows run whole on {self._name} from here on", PARSED.reason)

    async def _go_on(self, ticket: Ticket, row: SlicedRow, request_id: str) -> Sent:
        """Send a slice, and ask what must be known of its answer; first of the one before, if that is still open."""
        step = await self._settled(row, row.pending or Again())
        ended: SliceEnded | None = None
        if isinstance(step, Again):
            if row.slices:  # the first is as it was judged by
                row.slice_tokens = self._tokens
            path, body = row.request
            loop = asyncio.get_running_loop()
            sent_s = loop.time()
            answer = await self._client.send(path, body, request_id=request_id)
            if not isinstance(answer, Failure):
                tokens = answer.usage.completion_tokens
                self._pace = eased_pace(self._pace, tokens=tokens, seconds=loop.time() - sent_s)
                ended = SliceEnded(answer.ttft_s, answer.generation_s)
                step = await self._settled(row, self._here(row, row.take(answer)))
            elif answer.kind in _REFUSALS:
                refused = Whole(f"a slice was refused ({answer.message})", always=path != ticket.request.path)
                step = self._here(row, refused)
            else:
                return answer
        match step:
            case Landed(completion):
                return completion
            case Whole():
                self._run_whole(ticket, step)
                return BegunAnew(ended)
            case _:
                return ended or SliceEnded()

    @property
    def _tokens(self) -> int:
        if self._fixed_tokens is not None:
            return self._fixed_tokens
        return slice_tokens_at(self._pace, calm=self._learnt is not None and self._learnt.calm)

    def _here(self, row: SlicedRow, step: Step) -> Step:
        """What a row that began elsewhere, by other terms, leads to is that row's alone."""
        return replace(step, always=False) if isinstance(step, Whole) and row.home is not self else step

    async def _settled(self, row: SlicedRow, step: Step) -> Step:
        """What a step leads to, once the text it asks for is known."""
        while isinstance(step, Look):
            text = await self._text(step.tokens)
            if isinstance(text, Failure) and text.kind in _HUNG_UP:
                text = await self._text(step.tokens)
            if isinstance(text, Failure):
                return self._cannot_say(text)
            step = row.told(text)
        return step

    def _cannot_say(self, failure: Failure) -> Whole:
        """A question at a boundary failed, which is no row's fault: it runs whole, and so do others until all is well.

        Whether the server itself is lost the row's next request finds out.
        """
        why = f"/detokenize fails ({failure.message})"
        self._terms = {path: terms for path, terms in self._terms.items() if terms is None}
        self._ask_later(why)
        return Whole(why)

    async def _text(self, tokens: list[int]) -> str | Failure:
        body = orjson.dumps({"model": self._model, "tokens": tokens})
        answer = await self._client.ask("/detokenize", body, wait_s=LOOK_WAIT_S)
        if isinstance(answer, Failure):
            return answer
        if answer.status != 200:  # noqa: PLR2004
            return classify(answer)
        match read_json(answer.body):
            case {"prompt": str(text)}:
                return text
            case _:
                return garbled(answer, "the answer has not the shape of /detokenize")

    async def _begin(self, ticket: Ticket) -> bool:
        """Have it run in slices if it can; True where it could, but for what is not known of the server's chats yet."""
        path = ticket.request.path
        if path not in self._terms:
            body = orjson.loads(ticket.request.body)
            if (why := why_whole_anywhere(path, body, slice_tokens=self._tokens)) is not None:
                self._leave_whole(ticket, why)
                return False
            await self._ask(path)
        terms = self._terms.get(path)
        if terms is None:
            ticket.whole = path in self._terms
            return False
        row = begin(ticket.request, replace(terms, slice_tokens=self._tokens), self._ending)
        if isinstance(row, str):
            self._leave_whole(ticket, row)
        elif path == CHAT_PATH and not self._heard:
            return True
        else:
            row.home = self
            ticket.sliced = row
        return False

    def _leave_whole(self, ticket: Ticket, why: str) -> None:
        ticket.whole = why != SHORT  # which depends on how long a slice is
        self._say(f"Rows run whole where {why}", why)

    async def _ask(self, path: str) -> None:
        """Ask for the terms of this route, one row for all."""
        if self._asking.locked() and self._ask_from_s:
            return
        loop = asyncio.get_running_loop()
        async with self._asking:
            if path in self._terms or loop.time() < self._ask_from_s:
                return
            try:
                async with asyncio.timeout(ASK_WAIT_S):
                    terms = await read_terms(self._client, model=self._model, path=path, slice_tokens=self._tokens)
            except TimeoutError:
                terms = Failure(FailureKind.TIMEOUT, f"no answer in {ASK_WAIT_S:g} s")
            self._learn(path, terms)

    def _learn(self, path: str, terms: SliceTerms | Failure | str) -> None:
        if isinstance(terms, Failure):
            self._ask_later(terms.message)
            return
        if isinstance(terms, SliceTerms):
            self._terms[path] = terms
            self._say(f"Long rows run in slices of {terms.slice_tokens} tokens on {self._name}", "")
        else:
            self._terms[path] = None
            self._say(f"Rows run whole on {self._name}", terms)

    def _ask_later(self, why: str) -> None:
        self._ask_from_s = asyncio.get_running_loop().time() + ASK_AGAIN_S
        self._say(f"Rows run whole until it can be told whether {self._name} is one for slices", why)

    def _run_whole(self, ticket: Ticket, why: Whole) -> None:
        ticket.sliced, ticket.whole = None, True
        if why.always:
            self._terms = dict.fromkeys([*self._terms, ticket.request.path])
            self._say(f"Rows run whole on {self._name} from here on", why.reason)
        else:
            self._say(f"Row {ticket.request.index} runs whole, and maybe others", why.reason)

    def _say(self, what: str, why: str) -> None:
        """Once for each reason, which is of a known few or follows a failure."""
        reason = why.partition("(")[0]
        if reason not in self._said:
            self._said.add(reason)
            log.info("%s%s", what, f": {why}" if why else "")
