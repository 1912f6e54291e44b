"""Promise 4: two tries of one task that run at once leave one whole run, whoever wins and whenever the second comes."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from batch_fakes import Try, dead_letter, job_of, part_lines, texts, write_rows

from airflow_llm_provider.batch import recorder
from airflow_llm_provider.core.request import Usage
from airflow_llm_provider.exceptions import RunStoppedError
from airflow_llm_provider.storage.lines import encode_outcome
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, StubVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.core.ledger import SettledLine
    from airflow_llm_provider.core.request import Outcome

ROWS = 9
ROUNDS = int(os.environ.get("LLM_TEST_ROUNDS", "50"))
"""`make race` takes 200."""


@pytest.fixture(autouse=True)
def different_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two tries write of one row differs, as answers do that are sampled."""
    rng = Random(0)

    def encode(outcome: Outcome) -> SettledLine:
        completion = outcome.completion
        if completion is not None:
            completion = replace(completion, usage=Usage(rng.randint(1, 1000), rng.randint(1, 1000), 0))
        return encode_outcome(replace(outcome, attempts=rng.randint(1, 1_000_000), completion=completion))

    monkeypatch.setattr(recorder, "encode_outcome", encode)


@pytest.fixture(scope="module")
def stub() -> Iterator[StubVLLM]:
    """Refuses the third row."""

    def refuse(request: dict[str, Any], _nth: int) -> Fault | None:
        return Fault.bad_request() if "text 2" in json.dumps(request) else None

    with StubVLLM(fault=refuse) as running:
        running.behaviour.delay_s = 0.004
        yield running


class Racer(threading.Thread):
    """A try in a thread of its own."""

    def __init__(self, job: BatchJob, folder: Path, *, after_s: float) -> None:
        super().__init__()
        self.made = Try(job, RunStore(str(folder)))
        self._after_s = after_s
        self.manifest: dict[str, Any] | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        time.sleep(self._after_s)  # noqa: TID251 - a race is a matter of moments
        try:
            self.manifest = self.made()
        except Exception as error:  # noqa: BLE001 - told below
            self.error = error


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_two_tries_at_once(stub: StubVLLM, tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    source = write_rows(tmp_path / "rows.jsonl", texts(ROWS))
    folder = tmp_path / "run"
    job = job_of(stub, source)
    numbers = rng.choice([(1, 2), (2, 1), (1, 1)])
    racers = [
        Racer(job_of(stub, source, try_number=number), folder, after_s=after_s)
        for number, after_s in zip(numbers, (0.0, rng.random() * 0.08), strict=True)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert not racer.is_alive()
    for racer in racers:
        assert racer.error is None or isinstance(racer.error, RunStoppedError), racer.error
    manifests = [racer.manifest for racer in racers if racer.manifest is not None]
    assert manifests, "each gave way to the other"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert [line["index"] for line in part_lines(folder)] == list(range(ROWS))
    for each in manifest["chunks"]:
        assert hashlib.sha256((folder / each["part"]).read_bytes()).hexdigest() == each["sha256"]
    letters = [json.loads(line)["index"] for line in dead_letter(folder).read_bytes().splitlines()]
    assert letters == [2]
    assert manifest["counts"] == {
        "total": ROWS,
        "succeeded": ROWS - 1,
        "truncated": 0,
        "invalid_output": 0,
        "errored": 1,
    }
    usage = sum((Usage(**line["usage"]) for line in part_lines(folder)), Usage())
    assert manifest["usage"] == usage.as_dict()
    assert all(each["fingerprint"] == manifest["fingerprint"] for each in manifests)
    third = Try(job, RunStore(str(folder)))
    assert third() == manifest
    assert not third.requested(stub)
