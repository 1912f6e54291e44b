"""The simulated scheduler against vLLM's own, without a model, step by step.

Who gets how many tokens, who loses its blocks, who finds what in the prefix cache, how much KV memory is in use.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from random import Random

import pytest
from conftest import VENV

from airflow_llm_provider.simulator.scheduler import Scheduler
from airflow_llm_provider.simulator.sequence import Sequence
from airflow_llm_provider.simulator.spec import EngineSpec
from airflow_llm_provider.simulator.words import SimRequest, block_keys

pytestmark = pytest.mark.vllm
WORKLOADS = 60
SEED = int(os.environ.get("SEED", "0"))
MODEL_LEN = 200


def workload(rng: Random) -> dict:
    """Arrivals and aborts by the step before which they happen; prompts that begin alike, or do not."""
    block_size = 16
    least = -(-MODEL_LEN // block_size) + 1
    slots = rng.randint(1, 12)
    spec = {
        "max_num_seqs": slots,
        "max_num_batched_tokens": rng.choice([max(slots, 32), 100, 300]),
        "max_model_len": MODEL_LEN,
        "block_size": block_size,
        "num_blocks": rng.choice([least, least + rng.randint(0, 2 * least), 1000]),
        "policy": rng.choice(["fcfs", "priority"]),
        "prefix_caching": rng.random() < 0.7,
    }
    heads = [[rng.randrange(3000) for _ in range(MODEL_LEN)] for _ in range(2)]
    arrivals = []
    for number in range(rng.randint(1, 40)):
        length = rng.randint(1, MODEL_LEN - 1)
        alike = rng.choice([0, rng.randint(0, length)])
        prompt = rng.choice(heads)[:alike] + [rng.randrange(3000) for _ in range(length - alike)]
        answer = [rng.randrange(3000) for _ in range(rng.randint(1, MODEL_LEN - length))]
        arrivals.append(
            (
                rng.randint(0, 60),
                {"id": f"r{number}", "prompt": prompt, "answer": answer, "priority": rng.randint(0, 2)},
            )
        )
    arrivals.sort(key=lambda arrival: arrival[0])
    aborts = [(step + rng.randint(0, 40), one["id"]) for step, one in arrivals if rng.random() < 0.2]
    return {"spec": spec, "arrivals": arrivals, "aborts": aborts}


def simulated(workload: dict) -> list[dict]:
    """The same, by our own."""
    spec = EngineSpec(**workload["spec"])
    ours, told = Scheduler(spec), []
    there: dict[str, Sequence] = {}
    for number in range(10_000):
        for order, (step, one) in enumerate(workload["arrivals"]):
            if step == number:
                request = SimRequest(
                    request_id=one["id"],
                    prompt_tokens=len(one["prompt"]),
                    max_tokens=len(one["answer"]),
                    priority=one["priority"],
                    block_keys=block_keys(one["prompt"] + one["answer"], spec.block_size),
                )
                there[one["id"]] = Sequence(request, order=order, arrived_s=0.0, ready_s=0.0)
                ours.waiting.push(there[one["id"]])
        for step, name in workload["aborts"]:
            if step == number and (gone := there.pop(name, None)) is not None:
                if gone.running:
                    ours.leave([gone])
                else:
                    ours.waiting.discard(gone)
        if not there and all(step <= number for step, _ in workload["arrivals"]):
            return told
        plan = ours.plan()
        ended = [sequence for sequence in plan.yielding if sequence.complete]
        ours.leave(ended)
        for sequence in ended:
            del there[sequence.request.request_id]
        told.append(
            {
                "tokens": {sequence.request.request_id: tokens for sequence, tokens in plan.tokens.items()},
                "cached": {one.request.request_id: one.cached for one in plan.started if not one.preemptions},
                "preempted": sorted(sequence.request.request_id for sequence in plan.preempted),
                "running": len(ours.running),
                "waiting": len(ours.waiting),
                "kv_usage": round(ours.kv.usage, 9),
            }
        )
    raise AssertionError("our scheduler does not come to an end")


def test_step_by_step_the_same_as_vllms(model: Path):
    rng = Random(SEED)
    workloads = [workload(rng) for _ in range(WORKLOADS)]
    script = Path(__file__).with_name("real_scheduler.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    real = subprocess.run(
        [VENV / "bin" / "python", script, model],
        input=json.dumps(workloads),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seen = {"preempted": 0, "cached": 0, "steps": 0}
    for number, (asked, steps) in enumerate(zip(workloads, json.loads(real.stdout.splitlines()[-1]), strict=True)):
        ours = simulated(asked)
        for step, (theirs, own) in enumerate(zip(steps, ours, strict=False)):
            assert own == theirs, f"workload {number} of seed {SEED}, step {step}: {asked['spec']}"
            seen["preempted"] += len(theirs["preempted"])
            seen["cached"] += sum(theirs["cached"].values())
        assert len(ours) == len(steps)
        seen["steps"] += len(steps)
    print(seen)
    assert min(seen.values()) > 100, "these workloads show too little"
