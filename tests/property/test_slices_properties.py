"""Any answer, cut into any tokens and any slices, is joined to what a whole row would have been."""

from __future__ import annotations

import orjson
from hypothesis import event, given
from hypothesis import strategies as st

from airflow_llm_provider.core.request import Completion, Position, RowRequest, Usage
from airflow_llm_provider.core.slice_rules import CHAT_PATH, COMPLETIONS_PATH, SliceTerms
from airflow_llm_provider.core.slices import BLURRED, Again, Landed, Look, SlicedRow, Whole, begin

HALF = "\N{REPLACEMENT CHARACTER}"
PROMPT = (b"Say", b" it")
STOP = 10_000


class FakeVLLM:
    """Says one answer, whoever asks, and turns ids into text as vLLM does: held back while a character is unfinished.

    Args:
        answer: its tokens' bytes; None is one without text, that stops it.
        glues: vLLM 0.32's fast tokenizers: where the prompt ends inside a character, all of it comes before the text.
            Otherwise that character is lost, as with slow ones.
    """

    def __init__(self, answer: list[bytes], *, stops: bool, glues: bool) -> None:
        self.pieces = [*PROMPT, *answer]
        self.ids = list(range(len(self.pieces)))
        self.stops = stops
        self.glues = glues
        self.computed = 0

    def text(self, ids: list[int]) -> str:
        return b"".join(self.pieces[one] for one in ids if one != STOP).decode("utf-8", "replace")

    def ask(self, path: str, body: bytes) -> Completion:
        asked = orjson.loads(body)
        prompt = asked["prompt"] if path == COMPLETIONS_PATH else self.ids[: len(PROMPT)]
        assert prompt == self.ids[: len(prompt)], "a slice goes on from what was said"
        most = asked["max_tokens"]
        out = self.ids[len(prompt) : len(prompt) + most]
        ended = len(out) < most
        if ended and self.stops:
            out = [*out, STOP]
        self.computed += len(out)
        whole = not self.stops and len(prompt) + len(out) == len(self.ids)
        usage = Usage(len(prompt), len(out), 0)
        reason = "stop" if ended and self.stops else "length"
        assert whole or ended or len(out) == most
        return Completion(
            self.streamed(prompt, out),
            reason,
            usage,
            token_ids=out,
            prompt_token_ids=prompt if len(prompt) == 2 else None,
        )

    def streamed(self, prompt: list[int], out: list[int]) -> str:
        """Text of `out`, said token by token after `prompt`."""
        before = self.text(prompt)
        said = "" if before.endswith(HALF) and self.glues else before
        begun = said
        for number in range(1, len(out) + 1):
            now = self.text(prompt + out[:number])
            if len(now) > len(said) and not now.endswith(HALF):
                said = now
        return said[len(begun) :]


def sliced(server: FakeVLLM, path: str, most: int, slice_tokens: int) -> Completion | Whole | None:
    """What comes of a row in slices; None where it is short."""
    said = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT_PATH else {"prompt": "x"}
    request = RowRequest(0, "x", path, orjson.dumps({**said, "max_tokens": most}), Position(file="", line=0))
    row = begin(request, SliceTerms(max_model_len=100_000, slice_tokens=slice_tokens), set())
    if not isinstance(row, SlicedRow):
        return None
    while True:
        where, body = row.request
        if path == COMPLETIONS_PATH and not row.slices:
            body = orjson.dumps({**orjson.loads(body), "prompt": server.ids[:2]})
        step = row.take(server.ask(where, body))
        while isinstance(step, Look):
            assert row.pending == step
            step = row.told(server.text(step.tokens))
        if isinstance(step, Landed):
            return step.completion
        if isinstance(step, Whole):
            return step
        assert step == Again()
        assert row.pending is None


@st.composite
def answers(draw: st.DrawFn, characters: st.SearchStrategy[str]) -> list[bytes]:
    """A text's bytes, cut anywhere."""
    data = draw(st.text(characters, min_size=20, max_size=60)).encode()
    pieces, begun = [], 0
    while begun < len(data):
        length = draw(st.integers(1, 4))
        pieces.append(data[begun : begun + length])
        begun += length
    return pieces


PLAIN = st.sampled_from("abcdefgh ,.\n")
WIDE = st.sampled_from("aé中😀 ñж\n")


@given(
    answer=answers(st.one_of(PLAIN, PLAIN, WIDE)),
    stops=st.booleans(),
    glues=st.booleans(),
    chat=st.booleans(),
    tokens=st.integers(1, 20),
)
def test_a_row_in_slices_lands_as_the_whole_row(
    *, answer: list[bytes], stops: bool, glues: bool, chat: bool, tokens: int
) -> None:
    server = FakeVLLM(answer, stops=stops, glues=glues)
    path = CHAT_PATH if chat else COMPLETIONS_PATH
    most = len(answer) + 10 if stops else len(answer)
    whole = server.ask(COMPLETIONS_PATH, orjson.dumps({"prompt": server.ids[:2], "max_tokens": most}))
    server.computed = 0
    landed = sliced(server, path, most, tokens)
    event(type(landed).__name__)
    if landed is None:
        assert most <= 1.5 * tokens
    elif isinstance(landed, Whole):
        assert landed == BLURRED
    else:
        assert (landed.output, landed.finish_reason, landed.usage) == (whole.output, whole.finish_reason, whole.usage)
        assert server.computed == whole.usage.completion_tokens, "nothing is computed twice"


@given(text=st.text(WIDE, min_size=30, max_size=60), tokens=st.integers(8, 12), glues=st.booleans())
def test_no_row_runs_whole_for_a_character_of_several_tokens(*, text: str, tokens: int, glues: bool) -> None:
    answer = [bytes([one]) for character in text for one in character.encode()]
    landed = sliced(FakeVLLM(answer, stops=False, glues=glues), CHAT_PATH, len(answer), tokens)
    assert isinstance(landed, Completion)
    assert landed.output == text
