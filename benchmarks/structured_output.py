"""What a schema, a grammar and repairs make of a small model's answers: valid ones, requests, tokens, seconds.

A real vLLM on CPU serves SmolLM2-135M-Instruct, which is asked what each of a number of mails complains about, in arms
one after another over the same mails:

- told: the prompt has an example, the server does not know the schema;
- constrained: the server keeps to the schema while it generates.

Each without repairs and with two. The model class has a rule that no grammar knows, as real ones do: at most six words.

    make bench-structured ARGS="--rows 80 --temperature 0.7"
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field, field_validator

from airflow_llm_provider.batch.execution import run_job
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.answers import AnswerRules
from airflow_llm_provider.core.output_schema import OutputSchema
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.storage.store import RunStore
from benchmarks.bench import make_job
from benchmarks.colocation.servers import Server, made, vllm
from tools.small_model import model_path

SLOTS = 8
MOST_WORDS = 6
MAX_TOKENS = 120

PRODUCTS = ("lamp", "kettle", "router", "headphones", "bicycle", "printer", "heater", "camera")
FAULTS = (
    "does not switch on any more",
    "makes a loud noise at night",
    "arrived with a broken cover",
    "loses its connection every few minutes",
    "is much smaller than the picture showed",
)
WISHES = ("I want my money back.", "Please send a new one.", "What can I do?", "This is urgent, please call me.")


EXAMPLE = {"product": "toaster", "severity": "low", "wants_refund": False, "summary": "toaster burns the bread"}


class Complaint(BaseModel):
    """What a mail says."""

    product: str = Field(min_length=1, max_length=40)
    severity: Literal["low", "high"]
    wants_refund: bool
    summary: str

    @field_validator("summary")
    @classmethod
    def _is_short(cls, summary: str) -> str:
        if len(summary.split()) > MOST_WORDS:
            raise ValueError(f"the summary has {len(summary.split())} words, and may have {MOST_WORDS}")
        return summary


@dataclass(frozen=True)
class Arm:
    """How answers are asked for."""

    name: str
    constrained: bool
    repairs: int


ARMS = (
    Arm("told", constrained=False, repairs=0),
    Arm("told, 2 repairs", constrained=False, repairs=2),
    Arm("constrained", constrained=True, repairs=0),
    Arm("constrained, 2 repairs", constrained=True, repairs=2),
)


def mails(rows: int) -> list[dict[str, str]]:
    """So many, each different."""
    return [
        {
            "custom_id": f"mail-{number}",
            "text": f"Hello, the {PRODUCTS[number % 8]} that I bought {2 + number} days ago {FAULTS[number % 5]}. "
            f"{WISHES[number % 4]} Order {1000 + number}.",
        }
        for number in range(rows)
    ]


def prompt() -> str:
    """Says what is wanted by an example, as one does with a small model."""
    example = orjson.dumps(EXAMPLE).decode()
    return (
        "Read the mail and answer with JSON and nothing else, such as {% raw %}" + example + "{% endraw %} The summary "
        f"has at most {MOST_WORDS} words.\n\nMail: {{{{ row.text }}}}"
    )


def land(
    arm: Arm, server: Server, rows: Path, folder: Path, *, temperature: float
) -> tuple[dict[str, Any], float, int]:
    """The arm's manifest, its seconds and its requests."""
    schema = OutputSchema(Complaint)
    parameters: dict[str, Any] = {"temperature": temperature, "max_tokens": MAX_TOKENS}
    if arm.constrained:
        parameters["response_format"] = schema.response_format
    job = replace(
        make_job(server.url, rows, max_in_flight=SLOTS),
        endpoint=EndpointSettings(base_urls=(server.url,), api_key=server.api_key),
        requests=RequestSpec(prompt=prompt(), parameters=parameters),
        answers=AnswerRules(schema=schema, repair_attempts=arm.repairs),
        tolerance=Tolerance(1.0),
    )
    began_s = time.perf_counter()  # noqa: TID251 - a measurement
    manifest = run_job(job, RunStore(str(folder)), StopSwitch())
    took_s = time.perf_counter() - began_s  # noqa: TID251
    lines = [orjson.loads(line) for part in folder.glob("part-*.jsonl") for line in part.read_bytes().splitlines()]
    return manifest, took_s, sum(line["attempts"] for line in lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="What schemas, grammars and repairs make of a small model's answers.")
    parser.add_argument("--rows", type=int, default=80, help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="(%(default)s)")
    options = parser.parse_args()
    rows = options.rows
    logging.basicConfig(level=logging.WARNING)
    model = made(Path(__file__).parents[1] / ".run" / "smollm2", "make_smollm2.py", str(model_path()))
    with tempfile.TemporaryDirectory() as name, vllm(SLOTS, Path(name) / "vllm.log", model=model) as server:
        source = Path(name) / "mails.jsonl"
        source.write_bytes(b"".join(orjson.dumps(mail) + b"\n" for mail in mails(rows)))
        print(
            f"{rows} mails, SmolLM2-135M-Instruct, {SLOTS} slots, temperature {options.temperature:g}, "
            f"at most {MAX_TOKENS} tokens an answer"
        )
        print("| arm | valid | requests per row | prompt tokens | completion tokens | seconds |")
        print("|---|---|---|---|---|---|")
        for number, arm in enumerate(ARMS):
            manifest, took_s, requests = land(
                arm, server, source, Path(name) / f"run-{number}", temperature=options.temperature
            )
            counts, usage = manifest["counts"], manifest["usage"]
            print(
                f"| {arm.name} | {100 * counts['succeeded'] / rows:.0f} % | {requests / rows:.2f} | "
                f"{usage['prompt_tokens']:,} | {usage['completion_tokens']:,} | {took_s:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
