from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_llm_provider.simulator import tokenizer
from airflow_llm_provider.simulator.model import Ends, say
from airflow_llm_provider.simulator.tokenizer import EOS, TextStream

FOREVER = Ends(eos=False)
WORLD = tokenizer.tokens("the wörld 日本")


@settings(deadline=None, max_examples=40)
@given(st.text())
def test_text_comes_back_from_its_ids(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert tokenizer.text(tokenizer.tokens(text)) == text


def test_every_id_has_one_text() -> None:
    ids = [*range(3, 2000), *range(2000, tokenizer.VOCABULARY, 997), tokenizer.VOCABULARY - 1]
    assert [tokenizer._id(tokenizer.piece(token)) for token in ids] == ids
    with pytest.raises(ValueError, match="out of vocabulary"):
        tokenizer.piece(tokenizer.VOCABULARY)


def test_the_chat_template() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]
    whole = tokenizer.chat(messages, generate=True, unfinished=False)
    names = "".join(map(tokenizer.name, whole))
    assert names == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n"
    unfinished = "".join(map(tokenizer.name, tokenizer.chat(messages, generate=False, unfinished=True)))
    assert unfinished == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"


@pytest.mark.parametrize("mean_tokens", [None, 40.0])
@settings(deadline=None, max_examples=40)
@given(prompt=st.text(min_size=1).map(tokenizer.tokens).filter(bool), size=st.integers(1, 50))
def test_slices_continued_by_ids_say_what_a_whole_request_says(
    mean_tokens: float | None, prompt: list[int], size: int
) -> None:
    whole = say(prompt, max_tokens=120, ends=Ends(), mean_tokens=mean_tokens)
    ids: list[int] = []
    stopped = False
    while len(ids) < 120 and not stopped:
        part = say([*prompt, *ids], max_tokens=min(size, 120 - len(ids)), ends=Ends(), mean_tokens=mean_tokens)
        ids += part.ids
        stopped = part.stopped
    assert (ids, stopped) == (whole.ids, whole.stopped)


def test_some_characters_take_several_tokens() -> None:
    said = say(WORLD, max_tokens=400, ends=FOREVER, mean_tokens=None)
    text = "".join(said.pieces)
    assert {"é", "日"} <= set(text)
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert len(text.encode()) > len(text)
    assert "" in said.pieces


def test_an_answer_that_begins_within_a_character_brings_the_prompt_along() -> None:
    """As a real vLLM 0.32's does: tests/vllm/test_simulator.py holds it to that."""
    first, second, third = (tokenizer.byte(byte) for byte in "日".encode())
    prompt = tokenizer.tokens("hello ")
    stream = TextStream([*prompt, first, second])
    assert stream.step(third) == "hello 日"
    stream = TextStream([*prompt, first])
    assert (stream.step(second), stream.step(third)) == ("", "hello 日")
    assert TextStream(prompt).step(third) == ""


def test_a_seed_tells_answers_apart_and_depends_on_the_place() -> None:
    whole = say(WORLD, max_tokens=20, ends=FOREVER, mean_tokens=None, seed=1)
    assert whole == say(WORLD, max_tokens=20, ends=FOREVER, mean_tokens=None, seed=1)
    assert whole.ids != say(WORLD, max_tokens=20, ends=FOREVER, mean_tokens=None, seed=2).ids
    rest = say([*WORLD, *whole.ids[:10]], max_tokens=10, ends=FOREVER, mean_tokens=None, seed=1)
    assert rest.ids != whole.ids[10:]
    assert say(WORLD, max_tokens=9, ends=FOREVER, mean_tokens=None, variant=1).ids != whole.ids[:9]


def test_answers_have_the_mean_length_that_is_asked_for() -> None:
    lengths = [len(say([token], max_tokens=9999, ends=Ends(), mean_tokens=50).ids) for token in range(3, 1003)]
    assert 40 < sum(lengths) / 1000 < 60


def test_what_ends_an_answer() -> None:
    free = say(WORLD, max_tokens=30, ends=FOREVER, mean_tokens=None)
    third = free.ids[2]
    ended = say(WORLD, max_tokens=30, ends=Ends(tokens=frozenset({third})), mean_tokens=None)
    assert (ended.ids, ended.stopped, ended.stop_reason) == (free.ids[:3], True, third)
    assert "".join(ended.pieces) == "".join(free.pieces[:2])
    later = say(WORLD, max_tokens=30, ends=Ends(tokens=frozenset({third}), not_before=3), mean_tokens=None)
    assert len(later.ids) > 3
    word = free.pieces[3][1:3]
    cut = say(WORLD, max_tokens=30, ends=Ends(strings=("nothing", word)), mean_tokens=None)
    text = "".join(free.pieces)
    assert (cut.stop_reason, "".join(cut.pieces)) == (word, text[: text.index(word)])
    kept = say(WORLD, max_tokens=30, ends=Ends(strings=(word,), keep_string=True), mean_tokens=None)
    assert "".join(kept.pieces) == text[: text.index(word) + len(word)]
    always = say(WORLD, max_tokens=30, ends=Ends(), mean_tokens=1)
    assert (always.ids[-1], always.pieces[-1], always.stop_reason) == (EOS, "", None)
    ignored = say(WORLD, max_tokens=30, ends=FOREVER, mean_tokens=1)
    assert (len(ignored.ids), ignored.stopped, ignored.ids.count(EOS) > 20) == (30, False, True)
