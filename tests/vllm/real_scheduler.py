"""Runs in vLLM's environment: plays workloads through vLLM's own scheduler, without a model, and tells each step.

usage: real_scheduler.py MODEL_DIR < workloads.json > steps.json    (test_scheduler.py has both formats)
"""

from __future__ import annotations

import json
import sys

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager


def scheduler(spec: dict, model: str) -> Scheduler:
    block_size = spec["block_size"]
    config = VllmConfig(
        model_config=ModelConfig(model=model, dtype="bfloat16", max_model_len=spec["max_model_len"]),
        cache_config=CacheConfig(block_size=block_size, enable_prefix_caching=spec["prefix_caching"]),
        scheduler_config=SchedulerConfig(
            max_num_seqs=spec["max_num_seqs"],
            max_num_batched_tokens=spec["max_num_batched_tokens"],
            max_model_len=spec["max_model_len"],
            policy=spec["policy"],
            enable_chunked_prefill=True,
            async_scheduling=False,
            is_encoder_decoder=False,
        ),
    )
    config.cache_config.num_gpu_blocks = spec["num_blocks"]
    layer = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(
        num_blocks=spec["num_blocks"], kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)]
    )
    return Scheduler(config, kv, StructuredOutputManager(config), block_size, log_stats=True)


def play(workload: dict, model: str) -> list[dict]:
    spec, told = workload["spec"], []
    real = scheduler(spec, model)
    hasher = get_request_block_hasher(spec["block_size"], sha256) if spec["prefix_caching"] else None
    answers, preemptions = {}, {}
    for number in range(10_000):
        for order, (step, one) in enumerate(workload["arrivals"]):
            if step == number:
                answers[one["id"]] = one["answer"]
                preemptions[one["id"]] = 0
                real.add_request(
                    Request(
                        request_id=one["id"],
                        prompt_token_ids=one["prompt"],
                        sampling_params=SamplingParams(max_tokens=len(one["answer"]), ignore_eos=True),
                        pooling_params=None,
                        arrival_time=float(order),
                        priority=one["priority"],
                        block_hasher=hasher,
                    )
                )
        for step, name in workload["aborts"]:
            if step == number:
                real.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        if not real.has_unfinished_requests() and all(step <= number for step, _ in workload["arrivals"]):
            return told
        planned = real.schedule()
        names = list(planned.num_scheduled_tokens)
        sampled = []
        for name in names:
            request = real.requests[name]
            done = request.num_computed_tokens >= request.num_tokens
            sampled.append([answers[name][request.num_output_tokens]] if done else [])
        cached = {one.req_id: one.num_computed_tokens for one in planned.scheduled_new_reqs}
        preempted = sorted(name for name, one in real.requests.items() if one.num_preemptions > preemptions[name])
        preemptions |= {name: one.num_preemptions for name, one in real.requests.items()}
        if names:
            index = {name: at for at, name in enumerate(names)}
            real.update_from_output(
                planned, ModelRunnerOutput(req_ids=names, req_id_to_index=index, sampled_token_ids=sampled)
            )
        running, waiting = real.get_request_counts()
        told.append(
            {
                "tokens": dict(planned.num_scheduled_tokens),
                "cached": cached,
                "preempted": preempted,
                "running": running,
                "waiting": waiting,
                "kv_usage": round(real.kv_cache_manager.usage, 9),
            }
        )
    raise RuntimeError("vLLM's scheduler does not come to an end")


def main() -> None:
    init_none_hash(sha256)
    workloads = json.load(sys.stdin)
    json.dump([play(workload, sys.argv[1]) for workload in workloads], sys.stdout)


if __name__ == "__main__":
    main()
