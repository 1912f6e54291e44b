"""Which rows run in slices, and how a row in slices goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from airflow_llm_provider.core.request import Completion, Position, RowRequest, Usage
from airflow_llm_provider.core.slice_rules import (
    CARRIED,
    CHAT_PATH,
    COMPLETIONS_PATH,
    COUNTED,
    FIRST,
    LEAST_SLICE_TOKENS,
    MOST_SLICE_TOKENS,
    SLICE_S,
    SLICE_TOKENS,
    SliceTerms,
    eased_pace,
    slice_tokens_at,
    why_whole,
)
from airflow_llm_provider.core.slices import (
    CUT,
    NO_IDS,
    PARSED,
    REFUSED,
    Again,
    Landed,
    Look,
    SlicedRow,
    Whole,
    begin,
)
from airflow_llm_provider.exceptions import ConfigurationError

TERMS = SliceTerms(max_model_len=1000, slice_tokens=100)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 400}
PROMPT = [1, 2, 3]


def row_of(path: str = CHAT_PATH, *, terms: SliceTerms = TERMS, **fields: Any) -> SlicedRow:
    body = {name: value for name, value in {**CHAT, **fields}.items() if value is not None}
    row = begin(RowRequest(7, "row-7", path, orjson.dumps(body), Position(file="", line=0)), terms, set())
    assert isinstance(row, SlicedRow), row
    return row


def body_of(row: SlicedRow) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(row.request[1])
    return body


def answer(tokens: int = 100, reason: str = "length", text: str = "", **fields: Any) -> Completion:
    ids = fields.pop("token_ids", list(range(1000, 1000 + tokens)))
    given = {"token_ids": ids, "prompt_token_ids": PROMPT, **fields}
    return Completion(text or "x" * tokens, reason, Usage(3, tokens, 2), **given)


def slice_of(row: SlicedRow, **changes: Any) -> object:
    """One slice, whose text is as long as it should be."""
    step = row.take(answer(body_of(row)["max_tokens"], **changes))
    return row.told("x" * len(step.tokens)) if isinstance(step, Look) else step


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, None),
        ({"max_tokens": 150}, "short"),
        ({"max_tokens": None}, None),
        ({"max_tokens": 100, "max_completion_tokens": 300}, None),
        ({"max_completion_tokens": 100}, "short"),
        ({"max_tokens": "300"}, "its number of tokens"),
        ({"min_tokens": 500}, "min_tokens"),
        ({"temperature": 0.7, "top_p": 0.9, "priority": 3, "ignore_eos": True, "stop_token_ids": [4]}, None),
        ({"n": 1, "stream": False, "seed": None, "stop": [], "presence_penalty": 0.0, "tools": None}, None),
        ({"n": 2}, "^n would"),
        ({"seed": 3}, "^seed would"),
        ({"stop": ["."]}, "^stop would"),
        ({"presence_penalty": 0.1}, "^presence_penalty would"),
        ({"frequency_penalty": -1}, "^frequency_penalty would"),
        ({"logprobs": True}, "^logprobs would"),
        ({"logprobs": False, "top_logprobs": 0, "echo": False, "frequency_penalty": 0}, None),
        ({"logprobs": 0}, "^logprobs would"),
        ({"n": True}, "^n would"),
        ({"n": 1.0}, "^n would"),
        ({"stream": 0}, "^stream would"),
        ({"echo": 0}, "^echo would"),
        ({"presence_penalty": False}, "^presence_penalty would"),
        ({"include_stop_str_in_output": 0}, "^include_stop_str_in_output would"),
        ({"stream": True}, "^stream would"),
        ({"response_format": {"type": "json_object"}}, "^response_format would"),
        ({"tools": [{"type": "function"}]}, "^tools would"),
        ({"skip_special_tokens": False}, "^skip_special_tokens would"),
        ({"return_token_ids": True}, "^return_token_ids would"),
        ({"structured_outputs": {"regex": "a"}}, "^structured_outputs is not known"),
        ({"reasoning_effort": "low"}, "^reasoning_effort is not known"),
        ({"something_new": 1}, "^something_new is not known"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "not one text"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "not one text"),
        ({"messages": []}, "not one text"),
        ({"messages": "hi"}, "not one text"),
    ],
)  # fmt: skip
def test_a_row_is_sliced_where_every_field_is_known_to_allow_it(fields: dict[str, Any], why: str | None) -> None:
    said = why_whole(CHAT_PATH, {**CHAT, **fields}, TERMS)
    assert said is None if why is None else re.search(why, said or "")


@pytest.mark.parametrize(
    ("prompt", "why"),
    [("text", None), ([1, 2], None), ([], "not one"), (["a"], "not one"), ([[1], [2]], "not one"), (None, "not one")],
)
def test_a_completion_is_sliced_where_its_prompt_is_one(prompt: Any, why: str | None) -> None:
    said = why_whole(COMPLETIONS_PATH, {"prompt": prompt, "max_tokens": 400}, TERMS)
    assert said is None if why is None else why in (said or "")


@pytest.mark.parametrize("asked", [0, 1, False, True])
def test_a_completion_that_asks_for_logprobs_of_any_kind_runs_whole(asked: object) -> None:
    body = {"prompt": "x", "max_tokens": 400}
    assert why_whole(COMPLETIONS_PATH, {**body, "logprobs": None}, TERMS) is None
    assert why_whole(COMPLETIONS_PATH, {**body, "logprobs": asked}, TERMS) == "logprobs would change its answer"


def test_a_completion_that_says_nothing_of_its_length_is_short() -> None:
    assert why_whole(COMPLETIONS_PATH, {"prompt": "x"}, TERMS) == "it is short"


@pytest.mark.parametrize(
    ("asked", "most", "why"),
    [(400, 300, "end it after 300"), (300, 300, None), (None, 300, None), (None, 150, "short"), (None, None, None)],
)
def test_what_the_server_bounds_by_itself_is_respected(asked: int | None, most: int | None, why: str | None) -> None:
    terms = SliceTerms(max_model_len=1000, most_tokens=most, slice_tokens=100)
    body = {**CHAT, "max_tokens": asked}
    said = why_whole(CHAT_PATH, body, terms)
    assert said is None if why is None else why in (said or "")


def test_the_docs_name_every_field_of_the_allow_list() -> None:
    page = (Path(__file__).parents[2] / "docs/slices.md").read_text()
    assert [field for field in sorted(CARRIED | FIRST | COUNTED) if f"`{field}`" not in page] == []


def test_terms_that_are_none() -> None:
    for wrong in (
        {"max_model_len": 0},
        {"max_model_len": 9, "most_tokens": 0},
        {"max_model_len": 9, "slice_tokens": 0},
    ):
        with pytest.raises(ConfigurationError, match="no terms"):
            SliceTerms(**wrong)


def test_the_first_slice_is_the_row_with_fewer_tokens() -> None:
    row = row_of(max_completion_tokens=400, max_tokens=None, temperature=0, n=1, chat_template_kwargs={"a": 1})
    assert row.request[0] == CHAT_PATH
    assert body_of(row) == {
        "model": "m", "messages": CHAT["messages"], "temperature": 0, "n": 1, "chat_template_kwargs": {"a": 1},
        "max_tokens": 100, "return_token_ids": True,
    }  # fmt: skip


def test_a_row_of_400_tokens_runs_in_four_slices_and_is_counted_once() -> None:
    row = row_of(temperature=0, priority=5, n=1)
    assert slice_of(row) == Again()
    path, body = row.request
    assert path == COMPLETIONS_PATH
    assert orjson.loads(body) == {
        "model": "m", "priority": 5, "temperature": 0, "prompt": [*PROMPT, *range(1000, 1100)],
        "max_tokens": 100, "return_token_ids": True,
    }  # fmt: skip
    assert slice_of(row, prompt_token_ids=None) == Again()
    assert slice_of(row) == Again()
    landed = slice_of(row, ttft_s=0.5, generation_s=1.5)
    usage = Usage(prompt_tokens=3, completion_tokens=400, cached_tokens=2)
    assert landed == Landed(Completion("x" * 400, "length", usage, ttft_s=0.5, generation_s=1.5))


def test_what_is_left_at_the_end_is_no_slice_of_its_own() -> None:
    row = row_of(max_tokens=250)
    slice_of(row)
    assert body_of(row)["max_tokens"] == 150
    assert isinstance(slice_of(row), Landed)


def test_a_slice_that_stops_is_the_last() -> None:
    row = row_of()
    slice_of(row)
    landed = row.take(answer(20, "stop"))
    assert isinstance(landed, Landed)
    assert landed.completion.finish_reason == "stop"
    assert landed.completion.usage.completion_tokens == 120


def test_a_row_that_names_no_length_has_what_room_there_is() -> None:
    row = row_of(max_tokens=None, terms=SliceTerms(max_model_len=213, slice_tokens=100))
    assert slice_of(row) == Again()
    assert body_of(row)["max_tokens"] == 110  # 213 - 3 - 100


@pytest.mark.parametrize(
    ("pace", "tokens"),
    [(None, SLICE_TOKENS), (1 / 0.0013, 256), (1000, 320), (1100, 384), (400, 128), (1, 128), (1e9, 512)],
)
def test_a_slice_lasts_as_long_at_any_pace(pace: float | None, tokens: int) -> None:
    assert slice_tokens_at(pace) == tokens
    assert LEAST_SLICE_TOKENS <= tokens <= MOST_SLICE_TOKENS
    assert tokens % 64 == 0
    if tokens not in (LEAST_SLICE_TOKENS, MOST_SLICE_TOKENS) and pace:
        assert abs(tokens - pace * SLICE_S) <= 32


def test_the_pace_follows_slices_and_not_their_ends() -> None:
    assert eased_pace(None, tokens=256, seconds=0.5) == 512
    assert eased_pace(None, tokens=1, seconds=0.5) is None
    assert eased_pace(500.0, tokens=63, seconds=0.5) == 500
    assert eased_pace(500.0, tokens=256, seconds=0) == 500
    assert eased_pace(500.0, tokens=300, seconds=0.3) == pytest.approx(600)


def test_the_next_slice_may_have_another_length() -> None:
    row = row_of()
    slice_of(row)
    row.slice_tokens = 150
    assert body_of(row)["max_tokens"] == 150
    assert slice_of(row) == Again()
    assert isinstance(slice_of(row), Landed)


def test_min_tokens_are_shared_out() -> None:
    row = row_of(min_tokens=150)
    assert body_of(row)["min_tokens"] == 100
    slice_of(row)
    assert body_of(row)["min_tokens"] == 50
    slice_of(row)
    assert body_of(row)["min_tokens"] == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"token_ids": None}, NO_IDS),
        ({"prompt_token_ids": None}, NO_IDS),
        ({"reasoning": "hm"}, PARSED),
        ({"tool_calls": [{}]}, PARSED),
        ({"tokens": 40}, CUT),
        ({"prompt_token_ids": list(range(700))}, REFUSED),
    ],
)
def test_an_answer_that_cannot_be_gone_on_from(changes: dict[str, Any], why: Whole) -> None:
    assert row_of().take(answer(**changes)) == why


def test_a_row_whose_output_a_parser_took_runs_whole() -> None:
    assert row_of().take(Completion(None, "length", Usage(), token_ids=[1] * 100, prompt_token_ids=PROMPT)) == PARSED


def test_an_id_that_was_seen_to_end_a_character_is_not_asked_for_again() -> None:
    row = row_of()
    step = row.take(answer(text="a" * 92 + "bcdefghi"))
    assert step == Look(list(range(1092, 1100))) == row.pending
    assert row.told("bcdefghi") == Again()
    assert row.pending is None
    assert row.take(answer(prompt_token_ids=None)) == Again()


def test_an_id_that_ends_a_wide_character_may_be_half_of_one_elsewhere() -> None:
    row = row_of()
    row.take(answer(text="abcdé"))
    assert row.told("bcdé") == Again()
    assert isinstance(row.take(answer(prompt_token_ids=None)), Look)


@pytest.mark.parametrize("window", ["other", "", "\ufffd\ufffd", "abc<|end|>"])
def test_text_that_is_not_the_end_of_the_answer_is_not_gone_on_from(window: str) -> None:
    row = row_of()
    row.take(answer(text="so far abc"))
    assert isinstance(row.told(window), Whole)


def test_inside_a_character_the_row_goes_on_token_by_token() -> None:
    row = row_of()
    row.take(answer(text="so far abc"))
    assert row.told("far abc\ufffd") == Again()
    assert body_of(row)["max_tokens"] == 1
    step = row.take(answer(1, token_ids=[55], text="of no use"))
    assert step == Look([*range(1092, 1100), 55])
    assert row.told("far abc\ufffd") == Again()
    row.take(answer(1, token_ids=[56]))
    assert row.told("far abc中") == Again()
    assert body_of(row)["max_tokens"] == 100
    landed = row.take(answer(3, "stop", text=" end"))
    assert isinstance(landed, Landed)
    assert landed.completion.output == "so far abc中 end"
    assert landed.completion.usage.completion_tokens == 105


def test_a_row_that_ends_inside_a_character_ends_without_it() -> None:
    row = row_of()
    row.take(answer(text="so far abc"))
    row.told("far abc\ufffd")
    step = row.take(answer(1, "stop", token_ids=[4]))
    assert step == Look(list(range(1092, 1100))), "the id that stopped it is in no text"
    landed = row.told("far abc\ufffd")
    assert isinstance(landed, Landed)
    assert landed.completion.output == "so far abc"


def test_a_seam_ends_somewhere() -> None:
    row = row_of()
    row.take(answer(text="so far abc"))
    step: object = row.told("far abc\ufffd")
    seams = 0
    while step == Again():
        seams += 1
        row.take(answer(1, token_ids=[55]))
        step = row.told("far abc" + "\ufffd" * (seams + 1))
    assert isinstance(step, Whole)
    assert seams == 8


@pytest.mark.parametrize("text", ["far abd中", "far abc\ufffd<|im_start|>"])
def test_a_seam_whose_text_is_doubtful_runs_whole(text: str) -> None:
    row = row_of()
    row.take(answer(text="so far abc"))
    row.told("far abc\ufffd")
    row.take(answer(1, token_ids=[55]))
    assert isinstance(row.told(text), Whole)
