"""Every night at 23:00 UK time: summarise documents with the team's own model, one result line per document.

The documents are the READMEs of the Python packages installed on this machine: real text, found everywhere.
`make demo` runs this file as it is.
"""

from __future__ import annotations

import json
import logging
import os
import re
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.sdk import DAG, CronTriggerTimetable, ObjectStoragePath, Param, get_current_context, task

from airflow_llm_provider.operators.llm_batch import LLMBatchOperator

if TYPE_CHECKING:
    from airflow.sdk.types import DagRunProtocol

log = logging.getLogger(__name__)

# [START prose]
SHORTEST = 100  # characters; less is no document
HEADING_LIST_OR_CODE = re.compile(r"[^A-Za-z`*]|Copyright|Licensed")


def prose(readme: str) -> str:
    """The paragraphs that are sentences: no badges, headings, lists or code."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", readme)]
    return "\n".join(
        each
        for each in paragraphs
        if each.endswith((".", "!")) and each.count("http") <= 1 and not HEADING_LIST_OR_CODE.match(each)
    )


# [END prose]


# [START night]
LONDON = "Europe/London"
MORNING = 7  # o'clock: what runs before it belongs to the night that began the evening before


def night_of(run: DagRunProtocol) -> pendulum.Date:
    """The evening of the night that `run` is for, whenever it runs: a backfill's is long past."""
    moment = pendulum.instance(run.logical_date or run.run_after).in_timezone(LONDON)
    return moment.date().subtract(days=1 if moment.hour < MORNING else 0)


# [END night]

# [START dag]
with DAG(
    dag_id="nightly_summarisation",
    schedule=CronTriggerTimetable("0 23 * * *", timezone=LONDON),
    catchup=False,
    max_active_runs=1,  # two nights never compete for the GPUs
    params={
        "base": Param(os.environ.get("DOCUMENTS_BASE", "file:///tmp/documents"), type="string"),
        "documents": Param(24, type="integer", minimum=1),
        "characters": Param(400, type="integer", minimum=100),
    },
    user_defined_macros={"night_of": night_of},
    doc_md=__doc__,
) as dag:
    # [START collect]
    @task
    def collect_documents() -> str:
        """Write the documents of this run as JSONL and return where they lie."""
        context = get_current_context()
        params = context["params"]
        texts = {}
        for package in distributions():
            text = prose((package.read_text("METADATA") or "").partition("\n\n")[2])
            if len(text) >= SHORTEST:
                texts[package.name] = text[: params["characters"]]
        names = sorted(texts, key=str.lower)[: params["documents"]]
        lines = [json.dumps({"custom_id": name, "title": name, "text": texts[name]}) for name in names]
        path = ObjectStoragePath(f"{params['base']}/{context['run_id']}/documents.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    # [END collect]

    # [START summarise]
    summarise = LLMBatchOperator(
        task_id="summarise",
        source=collect_documents(),
        prompt="{{ row.text }}\n\nIn one sentence, what does {{ row.title }} do?",
        temperature=0.0,
        max_tokens=40,
        on_truncated="accept",  # a summary that goes on is cut
        extra_body={"frequency_penalty": 0.5},  # small models repeat themselves
        placement="time-shifted",  # sends in the connection's window only: by night, when nobody else needs the GPUs
        result_path="nightly_summarisation/{{ night_of(dag_run) }}/{{ run_id }}",  # weekly_report looks here
    )
    # [END summarise]

    # [START show]
    @task
    def show(manifest: Any) -> None:
        """Log the first summaries; a real DAG would load them into a table."""
        part = next(ObjectStoragePath(manifest["result_path"]).glob("part-*.jsonl"))
        for line in part.read_bytes().splitlines()[:5]:
            row = json.loads(line)
            log.info(f"{row['custom_id']}: {row['output']}")
        log.info(f"{manifest['counts']} in {manifest['duration_s']} s: {manifest['parts']}")

    show(summarise.output)
    # [END show]
# [END dag]
