"""Mondays at 06:00 UK time: one report on the week's nightly summaries, as Markdown and as HTML.

It reads what `nightly_summarisation` lands: `{results}/nightly_summarisation/{evening}/{run}/manifest.json` and the
parts beside it. A night is found by the evening it is for and not by when its run ran, so one that a backfill made good
on Friday stands where it belongs. A night that is not there is shown as missing. The report of a week that is made
again replaces the one before.
"""

from __future__ import annotations

import html
import json
import logging
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pendulum
from airflow.configuration import AIRFLOW_HOME, conf
from airflow.sdk import DAG, CronTriggerTimetable, ObjectStoragePath, Param, get_current_context, task

log = logging.getLogger(__name__)

LONDON = "Europe/London"
SHOWN_SUMMARIES = 3  # of each night
SHOWN_CHARS = 300  # of each summary


# [START week]
def week_before(moment: pendulum.DateTime) -> list[pendulum.Date]:
    """The seven evenings, Monday to Sunday, before the last Monday 06:00 in London that is not after `moment`."""
    local = moment.in_timezone(LONDON)
    monday = local.date().subtract(days=local.weekday())
    if local < pendulum.datetime(monday.year, monday.month, monday.day, 6, tz=LONDON):
        monday = monday.subtract(weeks=1)
    return [monday.subtract(days=days) for days in range(7, 0, -1)]


# [END week]


# [START read]
@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What was found of one night.

    Attributes:
        evening: the date on which it began.
        manifest: of its run; of the one that finished last, where there are several.
        summaries: a few of its results, as label and text.
        unfinished: how far a run is, where one has begun and none has finished.
    """

    evening: pendulum.Date
    manifest: dict[str, Any] | None = None
    summaries: tuple[tuple[str, str], ...] = ()
    unfinished: str | None = None


def read_night(nights: ObjectStoragePath, evening: pendulum.Date) -> Night:
    """Look for a night's runs."""
    runs = inside(nights / evening.isoformat())
    if not runs:
        return Night(evening=evening)
    finished = [(run, manifest) for run in runs if (manifest := read_json(run / "manifest.json"))]
    if not finished:
        progress = [found for run in runs if (found := read_json(run / "_run" / "progress.json"))]
        so_far = [f"{each['done']:,} of {each['total']:,}" for each in progress]
        return Night(evening=evening, unfinished=", ".join(["not finished", *so_far]))
    run, manifest = max(finished, key=lambda each: datetime.fromisoformat(each[1]["finished_at"]))
    return Night(evening=evening, manifest=manifest, summaries=read_summaries(run, manifest))


def read_summaries(run: ObjectStoragePath, manifest: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The first few results that succeeded; reads no further than it must."""
    found: list[tuple[str, str]] = []
    for chunk in manifest["chunks"]:
        with (run / chunk["part"]).open() as lines:
            for row in map(json.loads, lines):
                if len(found) == SHOWN_SUMMARIES:
                    return tuple(found)
                if row["output"]:
                    found.append((row["custom_id"], row["output"]))
    return tuple(found)


def inside(folder: ObjectStoragePath) -> list[ObjectStoragePath]:
    """What a folder holds; nothing where it is not there. Where it cannot be read this raises; `iterdir` need not."""
    try:
        names = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    return [folder / name.rstrip("/").rpartition("/")[2] for name in names]


def read_json(path: ObjectStoragePath) -> dict[str, Any] | None:
    """The object's content; None where there is no such object."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content


# [END read]


# [START report]
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report before it is Markdown or HTML; texts as they are, with nothing escaped yet."""

    title: str
    facts: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # title, and entries of label and text


def build_report(nights: list[Night]) -> Report:
    """One week's nights, in order."""
    found = [night.manifest for night in nights if night.manifest]
    without = [f"{night.evening:dddd} {night.unfinished or 'missing'}" for night in nights if not night.manifest]
    total = {name: sum(manifest["counts"][name] for manifest in found) for name in ("total", "succeeded", "errored")}
    tokens = {
        name: sum(manifest["usage"][name] for manifest in found) for name in ("prompt_tokens", "completion_tokens")
    }
    took = timedelta(seconds=round(sum(manifest["duration_s"] for manifest in found)))
    return Report(
        title=f"Nightly summaries, {nights[0].evening:D MMMM} to {nights[-1].evening:D MMMM YYYY}",
        facts=(
            "; ".join([f"Nights: {len(found)} of {len(nights)}", *without]),
            f"Documents: {total['total']:,}; summarised: {total['succeeded']:,}; dead letters: {total['errored']:,}",
            f"Tokens: {tokens['prompt_tokens']:,} read, {tokens['completion_tokens']:,} written",
            f"Time: {took}",
        ),
        header=("Night", "Documents", "Summarised", "Dead letters", "Tokens read", "Tokens written", "Took", "Ended"),
        rows=tuple(table_row(night) for night in nights),
        sections=tuple(
            (f"{night.evening:dddd D MMMM}", (*night.summaries, *where(night.manifest)))
            for night in nights
            if night.manifest
        ),
    )


def table_row(night: Night) -> tuple[str, ...]:
    """A night's figures, or why there are none."""
    name = f"{night.evening:ddd D MMM}"
    if night.manifest is None:
        return (name, night.unfinished or "missing", *["–"] * 6)
    counts, usage = night.manifest["counts"], night.manifest["usage"]
    numbers = [
        counts["total"],
        counts["succeeded"],
        counts["errored"],
        usage["prompt_tokens"],
        usage["completion_tokens"],
    ]
    ended = pendulum.instance(datetime.fromisoformat(night.manifest["finished_at"])).in_timezone(LONDON)
    took = timedelta(seconds=round(night.manifest["duration_s"]))
    return (name, *(f"{number:,}" for number in numbers), str(took), f"{ended:D MMM YYYY HH:mm}")


def where(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the night's results lie, and what of them needs a person."""
    places = [("Results", manifest["result_path"])]
    return [*places, ("Dead letters", manifest["dead_letter"])] if manifest["dead_letter"] else places


# [END report]


# [START render]
MARKUP = re.compile(r"[\\`*_\[\]<>|~&#!@$]|[:.](?=[^\s\d])")  # http://example.com and www.example.com would be links


def as_markdown(report: Report) -> str:
    """Whatever a model or a document says, it is shown and never takes effect."""

    def safe(text: str) -> str:
        return MARKUP.sub(r"\\\g<0>", shortened(text))

    def table_line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(map(safe, cells))} |"

    lines = [f"# {safe(report.title)}", "", *(f"- {safe(fact)}" for fact in report.facts), ""]
    lines += [table_line(report.header), "|---" * len(report.header) + "|", *map(table_line, report.rows)]
    for title, entries in report.sections:
        lines += ["", f"## {safe(title)}", "", *(f"- **{safe(label)}**: {safe(text)}" for label, text in entries)]
    return "\n".join(lines) + "\n"


def as_html(report: Report) -> str:
    """The same, with every text escaped, and a policy that would let nothing run or load."""

    def element(tag: str, *texts: str) -> str:
        return "".join(f"<{tag}>{html.escape(shortened(text))}</{tag}>" for text in texts)

    body = [element("h1", report.title), f"<ul>{element('li', *report.facts)}</ul>"]
    rows = [element("th", *report.header), *(element("td", *row) for row in report.rows)]
    body.append("<table>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table>")
    for title, entries in report.sections:
        pairs = "\n".join(element("dt", label) + element("dd", text) for label, text in entries)
        body += [element("h2", title), f"<dl>\n{pairs}\n</dl>"]
    return HTML_PAGE.format(title=html.escape(report.title), body="\n".join(body))


def shortened(text: str) -> str:
    """On one line, and not longer than is read."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}…"


HTML_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto }}
table {{ border-collapse: collapse }}
th, td {{ padding: .3em .8em; border-bottom: 1px solid #ccc; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
dt {{ font-weight: bold }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

# [END render]

# [START dag]
RESULTS_BASE = conf.get("llm_batch", "results_base", fallback="") or f"file://{AIRFLOW_HOME}/llm_batch"

with DAG(
    dag_id="weekly_report",
    schedule=CronTriggerTimetable("0 6 * * mon", timezone=LONDON),
    catchup=False,
    params={
        "nights": Param(f"{RESULTS_BASE}/nightly_summarisation", type="string", description="Where the nights lie"),
        "reports": Param(f"{RESULTS_BASE}/weekly_report", type="string", description="Where reports go"),
        "day": Param(
            None,
            type=["null", "string"],
            format="date",
            description="Make the last report due on this day or before; empty: before this run's own date",
        ),
    },
    doc_md=__doc__,
) as dag:

    @task(retries=2)
    def write_report(nights: str, reports: str, day: str | None) -> dict[str, str]:
        """Write the week's report in both forms and return where they lie."""
        run = get_current_context()["dag_run"]
        moment = pendulum.instance(run.logical_date or run.run_after)  # a run by hand has no logical date
        if day:
            moment = pendulum.from_format(day, "YYYY-MM-DD", tz=LONDON).end_of("day")
        found = [read_night(ObjectStoragePath(nights), evening) for evening in week_before(moment)]
        for night in found:
            log.log(logging.INFO if night.manifest else logging.WARNING, " | ".join(table_row(night)))
        report = build_report(found)
        folder = ObjectStoragePath(reports) / found[-1].evening.isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"markdown": ("report.md", as_markdown(report)), "html": ("report.html", as_html(report))}
        for name, text in texts.values():
            (folder / name).write_text(text, encoding="utf-8")
        return {form: str(folder / name) for form, (name, _) in texts.items()}

    write_report("{{ params.nights }}", "{{ params.reports }}", "{{ params.day or '' }}")
# [END dag]
