"""The docs show what the examples say, and their links lead somewhere.

A block of code stands below a comment with its file and section: ``<!-- example_dags/weekly_report.py [week] -->``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import orjson
import pytest
from batch_fakes import job_of, run, texts, write_rows

from airflow_llm_provider.core.limit_headroom import most_at_once
from airflow_llm_provider.core.occupancy import Bound, Occupancy
from airflow_llm_provider.core.terms import Asked, Promise, agree
from airflow_llm_provider.core.workload import Placement
from airflow_llm_provider.operators.metrics import COUNTERS, GAUGES
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from airflow_llm_provider.testing import StubVLLM

ROOT = Path(__file__).parents[2]
GIVE_WAY = ROOT / "docs/how-to/give-way.md"
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
INCLUDED = re.compile(
    r"<!-- (?P<file>example_dags/\S+) \[(?P<section>\w+)\] -->\n```python\n(?P<code>.*?)```", re.DOTALL
)
LINK = re.compile(r"\]\((?!https?:|#)(?P<file>[^)#]+)(?:#(?P<heading>[^)]+))?\)")
BLOCKS = [
    pytest.param(page, found, id=f"{page.relative_to(ROOT)} [{found['section']}]")
    for page in PAGES
    for found in INCLUDED.finditer(page.read_text())
]


def section_of(file: str, name: str) -> str:
    """What stands between the markers, without the markers inside it."""
    _, _, rest = (ROOT / file).read_text().partition(f"# [START {name}]\n")
    text, end, _ = rest.partition(f"# [END {name}]")
    assert end, f"{file} has no section {name!r}"
    kept = [line for line in text.splitlines() if not re.match(r"\s*# \[(START|END) \w+\]$", line)]
    return re.sub(r"\n{3,}", "\n\n\n", dedent("\n".join(kept)).strip("\n ") + "\n")


@pytest.mark.parametrize(("page", "found"), BLOCKS)
def test_a_page_shows_the_example_as_it_is(page: Path, found: re.Match[str]) -> None:
    assert found["code"] == section_of(found["file"], found["section"])


def test_every_example_is_shown_and_every_comment_is_understood() -> None:
    shown = {found["file"] for found in (block.values[1] for block in BLOCKS)}
    assert shown == {f"example_dags/{path.name}" for path in (ROOT / "example_dags").glob("*.py")}
    comments = sum(page.read_text().count("<!-- example_dags/") for page in PAGES)
    assert comments == len(BLOCKS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text()):
        target = (page.parent / link["file"]).resolve()
        assert target.exists(), f"{page.name} links to {link['file']}"
        if link["heading"]:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert link["heading"] in slugs, f"{page.name} links to {link['file']}#{link['heading']}"


@pytest.mark.parametrize("room", ["core", "batch", "endpoint", "simulator"])
def test_the_map_has_every_module_of_a_room_and_no_other(room: str) -> None:
    cells = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    mapped = [path for cell in cells for path in paths(cell) if path.startswith(f"{room}/")]
    there = {f"{room}/{path.name}" for path in (ROOT / "airflow_llm_provider" / room).glob("*.py")}
    assert set(mapped) == there - {f"{room}/__init__.py"}
    assert len(mapped) == len(set(mapped))


def paths(cell: str) -> list[str]:
    """The files that a cell names; one without its folder is beside the one before."""
    found: list[str] = []
    for name in re.findall(r"`([^`]+\.py)`", cell):
        found.append(name if "/" in name else f"{found[-1].rpartition('/')[0]}/{name}")
    return found


def test_a_log_line_that_is_quoted_is_the_one_that_is_logged() -> None:
    logged = re.findall(r'"(Nothing is sent [^"]+)"', (ROOT / "airflow_llm_provider/batch/reporter.py").read_text())
    quoted = {line for page in PAGES for line in re.findall(r"`(Nothing is sent [^`]+)`", page.read_text())}
    assert quoted == {line.replace("%s", "…") for line in logged}


def test_what_is_said_of_the_load_is_quoted_as_it_is_logged() -> None:
    source = (ROOT / "airflow_llm_provider/batch/control.py").read_text()
    logged = [re.sub(r"%[sd]", "…", line) for line in re.findall(r'"(The load of [^"]+)"', source)]
    quoted = {line for page in PAGES for line in re.findall(r"`(The load of [^`]+)`", page.read_text())}
    assert len(quoted) == len(logged) == 2
    assert all(any(line.startswith(each) for line in logged) for each in quoted)


def test_giving_way_is_shown_as_it_is_logged_and_its_metrics_are_named() -> None:
    page = GIVE_WAY.read_text()
    held = Occupancy(in_flight=208, limit=211, bound=Bound.LEARNED, others=41, waiting=0, yields=12)
    for text in (page, (ROOT / "docs/operator.md").read_text()):
        assert str(held) in text
    promise = Promise(slots=256, placement=Placement.SHARED)
    agreement = agree(Asked(), promise, connection="vllm_shared", now=datetime(2026, 11, 24, tzinfo=UTC))
    shown = {each.name: str(each) for each in agreement.values}
    for name in ("max_in_flight", "limit_law", "headroom", "headroom_unread"):
        assert f"{shown[name]}\n" in page
    few = Promise(slots=8, placement=Placement.SHARED)
    agreement = agree(Asked(), few, connection="vllm_shared", now=datetime(2026, 11, 24, tzinfo=UTC))
    (line,) = [str(each) for each in agreement.values if each.name == "max_in_flight"]
    assert f"{line}\n" in page
    assert f"of 256, {most_at_once(256, 0)} at most are taken" in page
    silent = Promise(placement=Placement.SHARED)
    told = agree(Asked(), silent, connection="…", now=datetime(2026, 11, 24, tzinfo=UTC)).advice
    (advice,) = re.findall(r"`(Connection '…' says no slots [^`]+)`", page)
    assert told is not None
    assert told.startswith(advice)
    assert set(re.findall(r"`(llm_batch\.\w+)`", page)) == {*GAUGES, *COUNTERS}


def test_a_release_is_told_with_the_limit_that_the_nights_connection_agrees_to() -> None:
    nightly = (ROOT / "docs/how-to/nightly.md").read_text()
    extra = orjson.loads(re.findall(r"--conn-extra '(.*?)'", nightly, re.DOTALL)[0])
    promise = Promise(slots=extra["slots"], placement=Placement(extra["placement"]))
    agreement = agree(Asked(), promise, connection="vllm_default", now=datetime(2026, 11, 24, tzinfo=UTC))
    for text in (nightly, (ROOT / "docs/how-to/release.md").read_text()):
        assert re.findall(r"Released until .*?, at most (\d+) in flight", text) == [str(agreement.terms.limit)]
    assert f"in flight of {most_at_once(extra['slots'], 0)} (learned)" in nightly


def test_what_a_shared_gpu_logs_is_what_its_connection_allows() -> None:
    page = (ROOT / "docs/how-to/shared-gpu.md").read_text()
    extra = orjson.loads(re.findall(r"--conn-extra '(.*?)'", page, re.DOTALL)[0])
    slots, most = extra["slots"], extra["max_in_flight"]
    learned = Occupancy(in_flight=61, limit=64, bound=Bound.LEARNED, others=188, yields=12)
    capped = Occupancy(in_flight=most, limit=most, bound=Bound.RELEASE, others=112)
    for each in (learned, capped):
        assert f"`… {each}`" in page
        assert each.in_flight <= each.limit <= most
        assert each.limit + (each.others or 0) <= slots
    promise = Promise(slots=slots, max_in_flight=most, placement=Placement(extra["placement"]))
    agreement = agree(Asked(), promise, connection="vllm_shared", now=datetime(2026, 11, 24, tzinfo=UTC))
    (line,) = [str(each).strip() for each in agreement.values if each.name == "max_in_flight"]
    assert f"`{line}`" in page


def test_every_field_of_progress_is_described(stub: StubVLLM, tmp_path: Path) -> None:
    run(job_of(stub, write_rows(tmp_path / "in.jsonl", texts(1))), RunStore(f"file://{tmp_path}/out"))
    progress = orjson.loads((tmp_path / "out/_run/progress.json").read_bytes())
    _, _, text = (ROOT / "docs/run-format.md").read_text().partition("\n## `progress.json`\n")
    described, of_servers = text.partition("\n## ")[0].split("Each of `servers` has")
    assert names(described) == list(progress)
    assert names(of_servers) == list(progress["servers"][0])


def names(text: str) -> list[str]:
    """What a table's first column names in backticks."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_each_act_of_the_table_is_shown_by_what_there_is_and_each_that_there_is_stands_in_the_table() -> None:
    page = (ROOT / "docs/acts.md").read_text()
    shown = {name for line in page.splitlines() if line.startswith("| ") for name in names_in(line.split("|")[-2])}
    system = ROOT / "tests/system"
    listed = re.search(r"^ACTS: .*? = \[\n(.*?)\n\]", (system / "test_acts.py").read_text(), re.DOTALL | re.MULTILINE)
    assert listed is not None
    acts = {name.strip(" ,") for name in listed[1].splitlines()}
    assert acts <= shown
    tests = "".join(path.read_text() for path in system.glob("test_acts*.py"))
    for name in shown:
        assert (ROOT / name).exists() or (system / name).exists() or f"\ndef {name}(" in tests, name


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)
