"""The docs show what the examples say, and their links lead somewhere.

A block of code stands below a comment with its file and section: ``<!-- example_dags/weekly_report.py [week] -->``.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
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
