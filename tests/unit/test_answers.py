"""Answers that are not what the DAG wants: shown to the model with what is wrong, asked for with more tokens, landed.

Whole runs against the stub, whose answers a test scripts: `Script`.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import orjson
import pytest
from batch_fakes import dead_letter, job_of, part_lines, run, texts, write_rows
from pydantic import BaseModel

from airflow_llm_provider.batch import attempts
from airflow_llm_provider.batch.slicer import LONG_CHARS
from airflow_llm_provider.core.answers import AnswerRules, Asked
from airflow_llm_provider.core.output_schema import OutputSchema
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.request import Position, RowRequest
from airflow_llm_provider.core.row_queue import RowQueue, Spent
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.exceptions import ConfigurationError, TooManyErrorsError
from airflow_llm_provider.results import read_results
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from pathlib import Path


class Ticket(BaseModel):
    urgency: Literal["low", "high"]
    words: int


GOOD = '{"urgency": "low", "words": 3}'
BAD = '{"urgency": "never", "words": 3}'
RULES = AnswerRules(schema=OutputSchema(Ticket))
Said = tuple[str, str]


def answer(text: str | None, finish_reason: str = "stop", *, chat: bool = True, **more: Any) -> Fault:
    """The stub's answer with that text, of 10 tokens for a prompt of 5."""
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choice = {"index": 0, "finish_reason": finish_reason, **said, **more}
    usage = {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
    return Fault.answer(200, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


class Script:
    """What the stub says to each row, one answer after another, the last again and again; a stub's `fault`.

    Args:
        answers: of a row, by the text in its prompt; ``""`` of all others.
    """

    def __init__(self, answers: dict[str, list[Fault]]) -> None:
        self._answers = {text: list(its) for text, its in answers.items()}
        self.asked: dict[str, list[dict[str, Any]]] = {text: [] for text in answers}

    def __call__(self, body: dict[str, Any], _: int) -> Fault | None:
        first = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        text = next((text for text in self._answers if text and text in first), "")
        self.asked[text].append(body)
        its = self._answers[text]
        return its.pop(0) if len(its) > 1 else its[0]


def land(script: Script, tmp_path: Path, rows: int = 1, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's manifest and lines."""
    source = write_rows(tmp_path / "rows.jsonl", texts(rows))
    with StubVLLM(fault=script) as stub:
        job = job_of(stub, source, **{"answers": RULES, **changes})
        manifest = run(job, RunStore(str(tmp_path / "run")))
    return manifest, part_lines(tmp_path / "run")


def letters(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dead_letter(tmp_path / "run").read_bytes().splitlines()]


def test_a_valid_answer_lands_with_its_value(tmp_path: Path) -> None:
    script = Script({"": [answer(f"```json\n{GOOD}\n```")]})
    manifest, (line,) = land(script, tmp_path)
    assert manifest["counts"]["succeeded"] == 1
    assert line["parsed"] == {"urgency": "low", "words": 3}
    assert line["output"] == f"```json\n{GOOD}\n```", "the text lands as it is"
    assert (line["status"], line["error"], line["attempts"]) == ("succeeded", None, 1)
    assert not dead_letter(tmp_path / "run").exists()


def test_an_invalid_one_is_shown_to_the_model_with_what_is_wrong(tmp_path: Path) -> None:
    script = Script({"text 0": [answer(BAD), answer("Sorry!"), answer(GOOD)], "": [answer(GOOD)]})
    manifest, lines = land(script, tmp_path, rows=6)
    assert manifest["counts"] == {"total": 6, "succeeded": 6, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert (lines[0]["parsed"], lines[0]["attempts"]) == ({"urgency": "low", "words": 3}, 3)
    assert lines[0]["usage"] == {"prompt_tokens": 15, "completion_tokens": 30, "cached_tokens": 0}, "of all answers"
    assert manifest["usage"]["completion_tokens"] == 80
    first, second, third = (each["messages"] for each in script.asked["text 0"])
    assert second[:1] == third[:1] == first
    assert second[1] == {"role": "assistant", "content": BAD}
    assert "urgency: Input should be 'low' or 'high'" in second[2]["content"]
    assert '"enum":["low","high"]' in second[2]["content"], "the schema is shown"
    assert [len(second), len(third)] == [3, 3], "only the last answer is shown: prompts do not grow"
    assert third[1]["content"] == "Sorry!"


@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_it_lands_as_invalid_output_when_the_budget_is_spent(tmp_path: Path, attempts: int) -> None:
    script = Script({"text 0": [answer(BAD)], "": [answer(GOOD)]})
    rules = AnswerRules(schema=RULES.schema, repair_attempts=attempts)
    manifest, lines = land(script, tmp_path, rows=2, answers=rules, requests=RequestSpec(prompt="Say: {{ row.text }}"))
    assert manifest["counts"] == {"total": 2, "succeeded": 1, "truncated": 0, "invalid_output": 1, "errored": 0}
    assert len(script.asked["text 0"]) == 1 + attempts
    line = lines[0]
    assert (line["status"], line["output"], line["parsed"]) == ("invalid_output", BAD, None)
    assert line["error"]["kind"] == "invalid_output"
    assert "urgency: Input should be" in line["error"]["message"]
    assert line["attempts"] == 1 + attempts
    (letter,) = letters(tmp_path)
    assert (letter["status"], letter["custom_id"]) == ("invalid_output", "doc-0")
    assert len(letter["request"]["body"]["messages"]) == 1, "what is replayed is the row's own request"
    assert manifest["dead_letter"].endswith(dead_letter(tmp_path / "run").name)


def test_a_row_whose_next_request_fails_lands_with_the_answer_that_it_has(tmp_path: Path) -> None:
    """As where the longer prompt does not fit into the model's context."""
    script = Script({"": [answer(BAD), Fault.bad_request("This model's maximum context length is 64 tokens")]})
    manifest, (line,) = land(script, tmp_path)
    assert manifest["counts"]["invalid_output"] == 1
    assert (line["status"], line["output"], line["error"]["http_status"]) == ("invalid_output", BAD, 400)
    assert "urgency: Input should be" in line["error"]["message"]
    assert "Asking again failed: " in line["error"]["message"]
    assert line["usage"]["completion_tokens"] == 10


def test_failures_on_the_way_spend_nothing_of_it(tmp_path: Path) -> None:
    script = Script({"": [answer(BAD), Fault.busy(), answer(BAD), Fault.gateway(500), answer(GOOD)]})
    _, (line,) = land(script, tmp_path)
    assert (line["status"], line["attempts"]) == ("succeeded", 5)


def test_completions_are_shown_theirs_too_and_what_has_no_text_is_only_told(tmp_path: Path) -> None:
    script = Script({"": [answer(BAD, chat=False), answer(GOOD, chat=False)]})
    _, (line,) = land(script, tmp_path, requests=RequestSpec(endpoint="completions", prompt="P {{ row.text }}"))
    assert line["status"] == "succeeded"
    assert script.asked[""][1]["prompt"].startswith(f"P text 0{BAD}\n\nThat answer is not valid.")
    other = Script({"": [answer(None), answer(GOOD)]})
    (tmp_path / "other").mkdir()
    land(other, tmp_path / "other")
    assert [each["role"] for each in other.asked[""][1]["messages"]] == ["user", "user"]


def test_prompts_of_token_ids_cannot_be_shown_anything(tmp_path: Path) -> None:
    body = {"prompt": [1, 2, 3]}
    source = write_rows(tmp_path / "rows.jsonl", [{"custom_id": "a", "url": "/v1/completions", "body": body}])
    with StubVLLM(fault=lambda *_: answer(BAD, chat=False)) as stub:
        job = job_of(stub, source, requests=RequestSpec(), answers=RULES)
        assert run(job, RunStore(str(tmp_path / "run")))["counts"]["invalid_output"] == 1


def test_a_long_answer_is_shown_cut(tmp_path: Path) -> None:
    script = Script({"": [answer("x" * 100_000), answer(GOOD)]})
    land(script, tmp_path)
    assert len(orjson.dumps(script.asked[""][1])) < 10_000


def test_too_many_invalid_rows_fail_the_run_as_errored_ones_do(tmp_path: Path) -> None:
    script = Script({"text 0": [answer(GOOD)], "": [answer(BAD)]})
    with pytest.raises(TooManyErrorsError, match=r"3 of 4 rows errored \(3 of them: their answers are not valid\)"):
        land(script, tmp_path, rows=4, tolerance=Tolerance(0.5))
    assert len(letters(tmp_path)) == 3


def test_a_run_that_clearly_fails_is_stopped_early(tmp_path: Path) -> None:
    script = Script({"": [answer(BAD)]})
    with pytest.raises(TooManyErrorsError, match=r"Stopped early: .* the last: urgency: Input should be"):
        land(script, tmp_path, rows=400, tolerance=Tolerance(0.1))


# -- cut off

LIMITED = RequestSpec(prompt="Say: {{ row.text }}", parameters={"max_tokens": 10})
PLAIN = AnswerRules()


def test_a_text_that_was_cut_off_is_no_success(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = Script({"text 0": [answer("Once upon a", "length")], "": [answer("Fin.")]})
    with caplog.at_level("INFO"):
        manifest, lines = land(script, tmp_path, rows=3, answers=PLAIN, tolerance=Tolerance(0.0))
    assert manifest["counts"] == {"total": 3, "succeeded": 2, "truncated": 1, "invalid_output": 0, "errored": 0}
    line = lines[0]
    assert (line["status"], line["output"], line["finish_reason"]) == ("truncated", "Once upon a", "length")
    assert line["error"]["kind"] == "truncated"
    assert [letter["status"] for letter in letters(tmp_path)] == ["truncated"]
    assert "2 of 3 rows succeeded; 1 truncated, their dead letters are at" in caplog.text
    assert "1 answers were cut off at the limit of their tokens" in caplog.text


def test_unless_the_dag_says_that_it_is(tmp_path: Path) -> None:
    script = Script({"": [answer("A", "length")]})
    manifest, (line,) = land(script, tmp_path, answers=AnswerRules(accept_truncated=True))
    assert manifest["counts"]["succeeded"] == 1
    assert (line["status"], line["error"]) == ("succeeded", None)


@pytest.mark.parametrize("second", ["stop", "length"])
@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_it_is_asked_for_once_more_with_more_tokens(tmp_path: Path, second: str, limit: str) -> None:
    script = Script({"": [answer("Once", "length"), answer("Once upon a time.", second)]})
    spec = RequestSpec(prompt="Say: {{ row.text }}", parameters={limit: 10})
    _, (line,) = land(script, tmp_path, answers=AnswerRules(retry_max_tokens=99), requests=spec)
    assert [each[limit] for each in script.asked[""]] == [10, 99]
    assert script.asked[""][0]["messages"] == script.asked[""][1]["messages"]
    assert line["status"] == ("succeeded" if second == "stop" else "truncated")
    assert (line["output"], line["attempts"]) == ("Once upon a time.", 2)
    assert line["usage"]["completion_tokens"] == 20


def test_a_row_that_asked_for_more_than_that_itself_is_not(tmp_path: Path) -> None:
    rows = [
        {"url": "/v1/chat/completions", "body": {"max_tokens": 500, "messages": [{"role": "user", "content": "x"}]}}
    ]
    rows.append({"url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "no limit"}]}})
    script = Script({"": [answer("Once", "length")]})
    with StubVLLM(fault=script) as stub:
        source = write_rows(tmp_path / "rows.jsonl", rows)
        job = job_of(stub, source, requests=RequestSpec(), answers=AnswerRules(retry_max_tokens=99))
        assert run(job, RunStore(str(tmp_path / "run")))["counts"]["truncated"] == 2
    assert len(script.asked[""]) == 2


def test_json_that_was_cut_off_is_repaired_with_more_tokens(tmp_path: Path) -> None:
    script = Script({"": [answer(GOOD[:-5], "length"), answer(BAD), answer(GOOD)]})
    rules = AnswerRules(schema=RULES.schema, retry_max_tokens=99)
    _, (line,) = land(script, tmp_path, answers=rules, requests=LIMITED)
    assert [each["max_tokens"] for each in script.asked[""]] == [10, 99, 99]
    assert "cut off at the limit of its tokens" in script.asked[""][1]["messages"][2]["content"]
    assert (line["status"], line["attempts"]) == ("succeeded", 3)


def test_json_that_stays_cut_off_is_invalid_output(tmp_path: Path) -> None:
    script = Script({"": [answer(GOOD[:-5], "length")]})
    _, (line,) = land(script, tmp_path, requests=LIMITED)
    assert (line["status"], line["finish_reason"]) == ("invalid_output", "length")
    assert line["error"]["message"].startswith("It was cut off at the limit of its tokens. The answer is no JSON")


def test_a_number_that_was_cut_off_is_none(tmp_path: Path) -> None:
    """Nobody can say how many digits would have followed."""
    script = Script({"": [answer("12", "length"), answer("1234")]})
    rules = AnswerRules(schema=OutputSchema(int), retry_max_tokens=99)
    _, (line,) = land(script, tmp_path, answers=rules, requests=LIMITED)
    assert (line["parsed"], line["attempts"]) == (1234, 2)
    assert "More digits may have followed" in script.asked[""][1]["messages"][2]["content"]


def test_json_that_ends_where_its_tokens_do_is_whole(tmp_path: Path) -> None:
    _, (line,) = land(Script({"": [answer(GOOD, "length")]}), tmp_path, requests=LIMITED)
    assert (line["status"], line["attempts"]) == ("succeeded", 1)


def test_a_long_answer_is_validated_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one costs may be seconds, in which nothing would give way."""
    threads = []
    schema = OutputSchema(list[str])
    parse = schema.parse

    def noted(text: str | None) -> Any:
        threads.append(threading.current_thread())
        return parse(text)

    monkeypatch.setattr(schema, "parse", noted)
    script = Script({"text 0": [answer(json.dumps(["x" * LONG_CHARS]))], "": [answer('["short"]')]})
    manifest, lines = land(script, tmp_path, rows=2, answers=AnswerRules(schema=schema), max_in_flight=1)
    assert manifest["counts"]["succeeded"] == 2
    assert lines[0]["parsed"] == ["x" * LONG_CHARS]
    assert len(threads) == 2
    assert threads[0] is not threads[1]


def test_a_row_that_is_being_repaired_ends_before_its_shift_does(tmp_path: Path) -> None:
    """What it has would be asked for again, and what it was asked already be forgotten."""
    source = write_rows(tmp_path / "rows.jsonl", texts(1))
    script = Script({"": [answer(BAD)]})

    def slowly(body: dict[str, Any], nth: int) -> Fault | None:
        time.sleep(0.3)  # noqa: TID251 - in the server's thread
        return script(body, nth)

    with StubVLLM(fault=slowly) as stub:
        job = job_of(stub, source, answers=RULES, shift=timedelta(seconds=0.2))
        assert run(job, RunStore(str(tmp_path / "run")))["counts"]["invalid_output"] == 1
    assert len(script.asked[""]) == 3


def test_what_a_row_was_asked_is_kept_over_a_hold(tmp_path: Path) -> None:
    """Real-time takes its slot each time that its repair is in flight: it ends all the same."""
    notes = RunStore(str(tmp_path))
    queue = RowQueue({7: Spent(repairs=2)})
    request = RowRequest(7, "r", "/v1/chat/completions", b"{}", Position(file="", line=7))
    queue.feed([request])
    (ticket,) = queue.take(1)
    assert ticket.asked == Asked(request, repairs=2)
    queue.first(ticket)
    assert queue.spent() == {7: Spent(repairs=2)}
    job = job_of("http://127.0.0.1:1", ListSource([]))
    attempts.keep(job, notes, queue.spent(), before={})
    assert attempts.read(job, notes) == {7: Spent(repairs=2)}


# -- what lies there, and who reads it


def test_a_resume_takes_what_has_landed_and_other_rules_are_another_run(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", texts(6))
    store = RunStore(str(tmp_path / "run"))
    script = Script({"text 0": [answer(BAD)], "text 1": [answer("cut", "length")], "": [answer(GOOD)]})
    with StubVLLM(fault=script) as stub:
        first = run(job_of(stub, source, answers=RULES), store)
        assert first["counts"]["invalid_output"] == 2
        received = stub.received
        assert run(job_of(stub, source, answers=RULES), store) == first
        assert stub.received == received
        for other in (
            PLAIN,
            AnswerRules(schema=RULES.schema, repair_attempts=1),
            AnswerRules(schema=OutputSchema(dict)),
        ):
            with pytest.raises(Exception, match="was begun with other inputs: answers"):
                run(job_of(stub, source, answers=other), store)


def test_what_was_journalled_is_taken_with_its_status(tmp_path: Path) -> None:
    """The chunk is not complete when the try ends: its settled rows lie in the journal."""
    source = write_rows(tmp_path / "rows.jsonl", texts(4))
    store = RunStore(str(tmp_path / "run"))
    answers = {"text 0": [answer(BAD)], "text 1": [answer("cut", "length")], "text 2": [answer(GOOD)]}
    script = Script({**answers, "text 3": [Fault.answer(401, {"error": "no"}), answer(GOOD)]})
    with StubVLLM(fault=script) as stub:
        job = job_of(stub, source, answers=RULES, max_in_flight=1)
        with pytest.raises(Exception, match="unauthorised"):
            run(job, store)
        asked = {text: len(its) for text, its in script.asked.items()}
        manifest = run(job, store)
        assert {text: len(its) for text, its in script.asked.items()} == {**asked, "text 3": 2}
    assert manifest["counts"] == {"total": 4, "succeeded": 2, "truncated": 0, "invalid_output": 2, "errored": 0}
    assert len(letters(tmp_path)) == 2


def test_results_are_read_as_what_they_are(tmp_path: Path) -> None:
    script = Script({"text 1": [answer(BAD)], "": [answer(GOOD)]})
    manifest, _ = land(script, tmp_path, rows=9)
    found = list(read_results(manifest, Ticket))
    assert [each.index for each in found] == list(range(9))
    assert [each.index for each in found if not each.succeeded] == [1]
    assert found[0].parsed == Ticket(urgency="low", words=3)
    assert (found[1].parsed, found[1].output) == (None, BAD)
    assert next(read_results(manifest)).parsed == {"urgency": "low", "words": 3}


def test_results_that_are_not_there_are_told_of(tmp_path: Path) -> None:
    manifest, _ = land(Script({"": [answer(GOOD)]}), tmp_path, rows=5)
    with pytest.raises(ConfigurationError, match="takes the batch task's XCom"):
        list(read_results([]))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="key 'results'"):
        list(read_results({**manifest, "result_path": "xcom://dag/task/run"}))
    with pytest.raises(Exception, match="was done again, or differently"):
        list(read_results({**manifest, "fingerprint": "0" * 12}))
    part = next((tmp_path / "run").glob("part-00001-*"))
    part.unlink()
    with pytest.raises(Exception, match="has 0 of its 1 lines"):
        list(read_results(manifest))
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(Exception, match="There is no"):
        list(read_results(manifest))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"repair_attempts": -1}, "repair_attempts must be a whole number of 0 or more"),
        ({"repair_attempts": True}, "repair_attempts must be"),
        ({"retry_max_tokens": 0}, "retry_max_tokens must be a whole number of 1 or more"),
        ({"accept_truncated": True, "retry_max_tokens": 5}, "leave out retry_max_tokens"),
    ],
)
def test_rules_that_cannot_be_meant(words: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        AnswerRules(**words)
