"""A job of ours on a simulated server that is small, busy and now and then broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_fakes import job_of, part_lines, run, texts, write_rows

from airflow_llm_provider.simulator.engine import StepModel
from airflow_llm_provider.simulator.fault import first_of
from airflow_llm_provider.storage.store import RunStore
from airflow_llm_provider.testing import Fault, FaultKind, Rule, SimulatedVLLM

if TYPE_CHECKING:
    from pathlib import Path

STEP = StepModel(base_s=0.001, per_seq_s=0.0, per_prefill_token_s=0.0)


def test_every_row_lands_once(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", texts(40))
    with SimulatedVLLM("sim", max_num_seqs=4, step=STEP, speed=5, mean_output_tokens=20) as server:
        reset = Fault(kind=FaultKind.RESET_MID_ANSWER)
        rules = [Rule(fault=Fault.busy(), first=1), Rule(fault=reset, contains="text 7", first_of_each=1)]
        server.fault = first_of(rules)
        manifest = run(job_of(server, source, max_in_flight=8), RunStore(f"file://{tmp_path}/run"))
        assert server.received > 40
        assert server.in_flight == 0
    assert manifest["counts"] == {"total": 40, "succeeded": 40, "truncated": 0, "invalid_output": 0, "errored": 0}
    assert manifest["served"]["model"] == "sim"
    lines = part_lines(tmp_path / "run")
    assert [line["index"] for line in lines] == list(range(40))
    assert sum(line["usage"]["completion_tokens"] for line in lines) == manifest["usage"]["completion_tokens"]
