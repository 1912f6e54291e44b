"""What shapes a run's answers, and whether rows can become requests at all, before a run begins.

Owns what is fingerprinted. Does not decide what follows where it has changed (`execution`).
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.batch.prepare import Preparer
from airflow_llm_provider.core.identity import canonical
from airflow_llm_provider.core.prompt import RequestTemplate
from airflow_llm_provider.core.request import BadRow
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.storage.source import Scan

SAMPLE_ROWS = 20
"""Rows rendered before a run begins: where none of them can become a request, the DAG is wrong and not the rows."""


def shaping_of(job: BatchJob) -> dict[str, Any]:
    """Everything that shapes an answer and is known before the endpoint is asked; no URLs, keys or headers."""
    requests = job.requests
    template = RequestTemplate(requests, model=job.model or "")
    shaping = {
        "model": job.model,
        "endpoint": requests.endpoint,
        "prompt": requests.prompt,
        "messages": [dict(message) for message in requests.messages] if requests.messages else None,
        "system_prompt": requests.system_prompt,
        "parameters": dict(requests.parameters),
        "context": template.used_context(),
        "source": job.source.spec(),
    }
    if requests.renames_model and not requests.templated:
        shaping["renames_model"] = True
    if template.has_parts:
        shaping["parts"] = "templates"
    if requests.document is not None:
        shaping["document"] = requests.document
    if answers := job.answers.shaping():
        shaping["answers"] = answers
    normal: dict[str, Any] = orjson.loads(canonical(shaping))  # as run.json will give it back: no tuples
    return normal


def check_sample(job: BatchJob, scan: Scan, model: str) -> None:
    """Refuse to begin where none of the first rows can become a request: then it is the DAG that is wrong."""
    preparer = Preparer(RequestTemplate(job.requests, model=model), priority=job.priority)
    chunks = (scan.plan.chunk(number) for number in range(len(scan.plan)))
    rows = chain.from_iterable(job.source.rows(scan.snapshot, chunk) for chunk in chunks)
    prepared = [preparer.prepare(row) for row in islice(rows, SAMPLE_ROWS)]
    bad = [row for row in prepared if isinstance(row, BadRow)]
    if len(bad) == len(prepared):
        raise ConfigurationError(
            f"None of the first {len(bad)} rows can become a request, so nothing was begun. The first: "
            f"{job.redaction.text(bad[0].message)}"
        )
