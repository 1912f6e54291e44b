from __future__ import annotations

import pytest

from airflow_llm_provider.simulator.spec import LARGE_GPU, EngineSpec, StepModel


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is a whole number of 1 or more, not 0"),
        ({"block_size": -1}, "block_size is a whole number of 1 or more"),
        ({"max_num_queued_reqs": -1}, "max_num_queued_reqs is a whole number of 0 or more, or None"),
        ({"max_num_queued_tokens": -5}, "max_num_queued_tokens is a whole number of 0 or more, or None"),
        ({"policy": "lifo"}, "policy is 'fcfs' or 'priority', not 'lifo'"),
        ({"max_num_seqs": 300, "max_num_batched_tokens": 299}, "must be at least max_num_seqs"),
        ({"num_blocks": 256}, "hold less than one sequence of max_model_len"),
    ],
)
def test_a_server_that_would_not_start_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        EngineSpec(**wrong)


def test_the_least_memory_that_does():
    assert EngineSpec(num_blocks=257, max_model_len=4096, block_size=16).usable_blocks == 256


@pytest.mark.parametrize(
    ("name", "value"),
    [("base_s", 0.0), ("base_s", -1.0), ("per_seq_s", -1e-9), ("jitter", float("nan")), ("request_s", float("inf"))],
)
def test_times_are_times(name, value):
    times = {"base_s": 1.0, "per_seq_s": 0.0, "per_prefill_token_s": 0.0}
    with pytest.raises(ValueError, match=name):
        StepModel(**{**times, name: value})


def test_the_large_one_is_of_the_order_it_says():
    alone = 1 / LARGE_GPU.mean_s(decoding=1, prefill_tokens=0, context_tokens=500)
    full = 256 / LARGE_GPU.mean_s(decoding=256, prefill_tokens=0, context_tokens=256 * 500)
    prompts = 2048 / LARGE_GPU.mean_s(decoding=0, prefill_tokens=2048, context_tokens=0)
    assert 90 < alone < 130
    assert 10_000 < full < 16_000
    assert 20_000 < prompts < 30_000
