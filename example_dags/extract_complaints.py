"""Every morning: what yesterday's mails complain about, as data.

The connection `vllm_batch` says where the model is; `docs/structured-output.md` says what becomes of answers that are
not what the model class says.
"""

from __future__ import annotations

from collections import Counter
from email import message_from_bytes
from email.policy import default
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import DAG, CronTriggerTimetable, ObjectStoragePath, Param, task
from pydantic import BaseModel, Field

from airflow_llm_provider.results import read_results

if TYPE_CHECKING:
    from collections.abc import Iterator


# [START complaint]
class Complaint(BaseModel):
    """What a mail says that is wrong."""

    product: str = Field(max_length=80)
    severity: Literal["low", "high"]
    wants_refund: bool


# [END complaint]


# [START dag]
with DAG(
    dag_id="extract_complaints",
    schedule=CronTriggerTimetable("0 6 * * *", timezone="Europe/London"),
    params={"mails": Param("file:///tmp/mails", type="string", description="A folder of .eml files")},
    doc_md=__doc__,
) as dag:
    # [START extract]
    @task.vllm_batch(
        vllm_conn_id="vllm_batch",
        prompt="What does this mail complain about?\n\n{{ row.body }}",
        output_schema=Complaint,
        temperature=0.0,
        max_tokens=200,
        retry_max_tokens=800,  # of the few that do not end within 200
    )
    def extract(mails: str) -> Iterator[dict[str, Any]]:
        """Called once, when the run begins: what it returns is kept until the run is finished."""
        for path in sorted(ObjectStoragePath(mails).glob("*.eml"), key=str):
            mail = message_from_bytes(path.read_bytes(), policy=default)
            body = mail.get_body(("plain",))
            yield {"custom_id": path.name, "body": body.get_content() if body is not None else ""}

    @task
    def count(manifest: Any) -> dict[str, int]:
        """How many there are of each product, and how many want their money back."""
        found: Counter[str] = Counter()
        for row in read_results(manifest, Complaint):
            if row.succeeded and row.parsed is not None:
                found[row.parsed.product] += 1
                found["refunds"] += row.parsed.wants_refund
        return dict(found)

    # [END extract]

    count(extract("{{ params.mails }}"))
# [END dag]
