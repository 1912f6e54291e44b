"""The nightly and the weekly example: which night a run is for, which nights a report is on, and what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pendulum
import pytest
from airflow.sdk import ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

EXAMPLES = Path(__file__).parents[2] / "example_dags"
HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> [click](javascript:alert(3)) ![i](http://e.example/i) "
    "**bold** _it_ `code` | cell | ~~gone~~ &lt; \\ <b> # head http://e.example www.e.example <http://e.example> $x$"
)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nightly, weekly = load("nightly_summarisation"), load("weekly_report")


def utc(text: str) -> pendulum.DateTime:
    return pendulum.from_format(text, "YYYY-MM-DD HH:mm", tz="UTC")


def dag_run(logical_date: str | None, run_after: str) -> Any:
    return SimpleNamespace(logical_date=logical_date and utc(logical_date), run_after=utc(run_after))


# --- which night, which week ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logical_date", "run_after", "night"),
    [
        ("2025-10-21 22:00", "2025-10-21 22:00", "2025-10-21"),  # 23:00 BST
        ("2025-10-26 23:00", "2025-10-26 23:00", "2025-10-26"),  # 23:00 GMT
        ("2025-10-21 22:00", "2026-01-05 12:00", "2025-10-21"),  # made good long after
        (None, "2025-07-01 23:30", "2025-07-01"),  # by hand, 00:30 BST on the 2nd
        (None, "2025-07-02 05:59", "2025-07-01"),  # 06:59 BST: last night's
        (None, "2025-07-02 06:00", "2025-07-02"),  # 07:00 BST: waits for tonight
        (None, "2025-10-26 00:30", "2025-10-25"),  # 01:30 BST, then once more an hour later
        (None, "2025-10-26 01:30", "2025-10-25"),
        (None, "2025-03-30 01:30", "2025-03-29"),  # 02:30 BST, just after the gap
    ],
)
def test_a_run_is_for_the_night_of_its_logical_date(logical_date: str | None, run_after: str, night: str) -> None:
    assert nightly.night_of(dag_run(logical_date, run_after)).isoformat() == night


@pytest.mark.parametrize(
    ("moment", "last_evening"),
    [
        ("2025-10-27 06:00", "2025-10-26"),  # the tick, in GMT; its week began in BST
        ("2025-10-27 05:59", "2025-10-19"),
        ("2025-03-31 05:00", "2025-03-30"),  # the tick, in BST
        ("2025-03-31 04:59", "2025-03-23"),
        ("2025-10-29 12:00", "2025-10-26"),
        ("2026-01-05 06:00", "2026-01-04"),
    ],
)
def test_the_week_is_the_one_before_the_last_monday_at_six(moment: str, last_evening: str) -> None:
    evenings = weekly.week_before(utc(moment))
    assert evenings[-1].isoformat() == last_evening
    assert [evening.isoweekday() for evening in evenings] == [1, 2, 3, 4, 5, 6, 7]
    assert evenings[-1].subtract(days=6) == evenings[0]


@given(st.datetimes(min_value=pendulum.naive(1980, 1, 1), max_value=pendulum.naive(2080, 1, 1)))
def test_every_moment_has_its_week(moment: Any) -> None:
    moment = pendulum.instance(moment, tz="UTC")
    monday = weekly.week_before(moment)[-1].add(days=1)
    due = pendulum.datetime(monday.year, monday.month, monday.day, 6, tz="Europe/London")
    assert due <= moment < due.add(weeks=1)


# --- what is found ----------------------------------------------------------------------------------


def manifest_of(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "counts": {"total": 24, "succeeded": 23, "truncated": 0, "invalid_output": 0, "errored": 1},
        "usage": {"prompt_tokens": 2400, "completion_tokens": 960, "cached_tokens": 0},
        "finished_at": "2025-10-21T22:20:00+00:00",
        "duration_s": 1199.6,
        "result_path": f"file://{folder}",
        "dead_letter": None,
        "chunks": [],
        **fields,
    }


def land(
    nights: Path, evening: str, run: str = "run", *, outputs: list[str | None] | None = None, **fields: Any
) -> None:
    """A finished run as the operator leaves it, two rows a part."""
    folder = nights / evening / run
    folder.mkdir(parents=True)
    rows = [{"custom_id": f"doc {number}", "output": text} for number, text in enumerate(outputs or [])]
    pairs = [rows[at : at + 2] for at in range(0, len(rows), 2)]
    for number, pair in enumerate(pairs):
        (folder / f"part-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair))
    chunks = [{"part": f"part-{number}.jsonl"} for number in range(len(pairs))]
    (folder / "manifest.json").write_text(json.dumps(manifest_of(folder, chunks=chunks, **fields)))


def read(nights: Path, evening: str) -> Any:
    return weekly.read_night(ObjectStoragePath(f"file://{nights}"), pendulum.Date.fromisoformat(evening))


def test_a_night_is_read_with_its_first_summaries(tmp_path: Path) -> None:
    land(tmp_path, "2025-10-21", outputs=[None, "a", "b", "", "c", "d"])
    night = read(tmp_path, "2025-10-21")
    assert night.summaries == (("doc 1", "a"), ("doc 2", "b"), ("doc 4", "c"))
    assert night.manifest["counts"]["total"] == 24


def test_of_several_runs_the_last_to_finish_counts(tmp_path: Path) -> None:
    land(tmp_path, "2025-10-21", "b", finished_at="2025-10-21T22:20:00+00:00", duration_s=1)
    land(tmp_path, "2025-10-21", "a", finished_at="2025-10-23T08:00:00.5+00:00", duration_s=2)
    land(tmp_path, "2025-10-21", "c", finished_at="2025-10-23T08:00:00+00:00", duration_s=3)
    (tmp_path / "2025-10-21" / "begun" / "_run").mkdir(parents=True)
    assert read(tmp_path, "2025-10-21").manifest["duration_s"] == 2


def test_a_night_can_be_missing_or_not_finished(tmp_path: Path) -> None:
    assert read(tmp_path / "nowhere", "2025-10-21") == weekly.Night(evening=pendulum.date(2025, 10, 21))
    (tmp_path / "2025-10-22" / "run" / "_run").mkdir(parents=True)
    assert read(tmp_path, "2025-10-22").unfinished == "not finished"
    (tmp_path / "2025-10-22" / "run" / "_run" / "progress.json").write_text('{"done": 1200, "total": 2400}')
    assert read(tmp_path, "2025-10-22").unfinished == "not finished, 1,200 of 2,400"


def test_a_night_that_cannot_be_read_is_not_missing(tmp_path: Path, mocker: MockerFixture) -> None:
    (tmp_path / "2025-10-22" / "run" / "manifest.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        read(tmp_path, "2025-10-22")
    mocker.patch.object(LocalFileSystem, "ls", side_effect=PermissionError)
    with pytest.raises(PermissionError):
        read(tmp_path, "2025-10-21")


def test_what_is_no_run_is_passed_over(tmp_path: Path) -> None:
    land(tmp_path, "2025-10-21")
    (tmp_path / "2025-10-21" / ".DS_Store").write_text("")
    assert read(tmp_path, "2025-10-21").manifest is not None


# --- what is said -----------------------------------------------------------------------------------


@pytest.fixture
def week(tmp_path: Path) -> Any:
    land(tmp_path, "2025-10-20", outputs=[HOSTILE, "x" * 1000, "two\n\nlines"])
    land(tmp_path, "2025-10-21", dead_letter="s3://b/dead-letter.jsonl")
    (tmp_path / "2025-10-22" / "run").mkdir(parents=True)
    nights = [read(tmp_path, f"2025-10-{day}") for day in range(20, 27)]
    return weekly.build_report(nights)


def test_the_week_adds_up_and_names_what_is_missing(week: Any) -> None:
    assert week.title == "Nightly summaries, 20 October to 26 October 2025"
    assert week.facts == (
        "Nights: 2 of 7; Wednesday not finished; Thursday missing; Friday missing; Saturday missing; Sunday missing",
        "Documents: 48; summarised: 46; dead letters: 2",
        "Tokens: 4,800 read, 1,920 written",
        "Time: 0:39:59",
    )
    assert week.rows[1] == ("Tue 21 Oct", "24", "23", "1", "2,400", "960", "0:20:00", "21 Oct 2025 23:20")
    assert week.rows[2] == ("Wed 22 Oct", "not finished", "–", "–", "–", "–", "–", "–")
    assert week.rows[6] == ("Sun 26 Oct", "missing", "–", "–", "–", "–", "–", "–")
    assert [title for title, _ in week.sections] == ["Monday 20 October", "Tuesday 21 October"]
    assert week.sections[1][1][-1] == ("Dead letters", "s3://b/dead-letter.jsonl")


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_hostile_output_is_text_in_html(week: Any) -> None:
    page = Page()
    page.feed(weekly.as_html(week))
    head, body = {"html", "head", "meta", "title", "style", "body"}, {"h1", "h2", "ul", "li", "dl", "dt", "dd"}
    assert page.tags == head | body | {"table", "tr", "th", "td"}
    assert page.attributes == {"lang", "charset", "http-equiv", "content"}
    assert weekly.shortened(HOSTILE) in page.texts
    assert "two lines" in page.texts


def test_hostile_output_is_text_in_markdown(week: Any) -> None:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(weekly.as_markdown(week))
    inline = [child for token in tokens for child in token.children or []]
    assert {token.type for token in inline} <= {"text", "text_special", "strong_open", "strong_close"}
    assert not {"html_block", "fence", "code_block", "hr", "blockquote_open"} & {token.type for token in tokens}
    texts = ["".join(child.content for child in token.children or []) for token in tokens if token.type == "inline"]
    assert f"doc 0: {weekly.shortened(HOSTILE)}" in texts
    assert len([token for token in tokens if token.type == "tr_open"]) == 8


def test_long_output_is_cut(week: Any) -> None:
    assert f"{'x' * 300}…" in weekly.as_markdown(week)
    assert "x" * 301 not in weekly.as_html(week)
