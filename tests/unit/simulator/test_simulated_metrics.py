from __future__ import annotations

import re

from airflow_llm_provider.endpoint.exposition import Page
from airflow_llm_provider.simulator import prometheus
from airflow_llm_provider.simulator.engine import Engine, EngineSpec, SimRequest, StepModel
from airflow_llm_provider.simulator.prometheus import Buckets, Family, Sample
from airflow_llm_provider.simulator.vllm_families import token_bounds
from airflow_llm_provider.simulator.vllm_metrics import Metrics

SPEC = EngineSpec(
    max_num_seqs=2,
    max_model_len=2048,
    step=StepModel(base_s=0.01, per_seq_s=0.0, per_prefill_token_s=0.0),
    max_num_queued_reqs=3,
)


def test_the_text() -> None:
    labels = {"b": 'x"\\\n', "a": "1"}
    buckets = Buckets((1, 2.5))
    for value in (0.5, 1, 2, 9):
        buckets.observe(value)
    families = [
        Family("n_total", "counter", "How many.", [Sample("n_total", labels, 3)]),
        Family("h", "histogram", "How long.", buckets.samples("h", {})),
    ]
    assert prometheus.page(families).decode() == (
        "# HELP n_total How many.\n# TYPE n_total counter\n"
        'n_total{a="1",b="x\\"\\\\\\n"} 3.0\n'
        "# HELP h How long.\n# TYPE h histogram\n"
        'h_bucket{le="1.0"} 2.0\nh_bucket{le="2.5"} 3.0\nh_bucket{le="+Inf"} 4.0\nh_count 4.0\nh_sum 12.5\n'
    )
    assert prometheus.page(families, ["h_count", "h"]).decode() == (
        "# HELP h How long.\n# TYPE h histogram\nh_count 4.0\n"
    )
    assert prometheus.page(families, ["other"]) == b""


def test_bounds_of_tokens() -> None:
    assert token_bounds(1024) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert token_bounds(2048)[-1] == 2000


def run(engine: Engine, metrics: Metrics, until: float) -> None:
    for event in engine.advance(until):
        metrics.happened(event)


def test_what_is_counted() -> None:
    engine = Engine(SPEC, tell_steps=True)
    metrics = Metrics(engine, model="m", started_s=1.0)
    for number in range(4):
        request = SimRequest(request_id=str(number), prompt_tokens=10, max_tokens=5, every_token=False)
        if engine.submit(0.0, request) is None:
            metrics.arrived(request.request_id, 0.0)

    def page() -> Page:
        body = prometheus.page(metrics.families())
        return Page(body, sorted({name.decode() for name in re.findall(rb"^([^\s{#]+)", body, re.MULTILINE)}))

    run(engine, metrics, 0.021)
    now = page()
    assert (now.total("vllm:num_requests_running", "m"), now.total("vllm:num_requests_waiting", "m")) == (2, 1)
    assert now.total("vllm:admission_rejections_total", "m") == 1
    engine.abort(0.021, "2")
    metrics.aborted("2")
    run(engine, metrics, 9.0)
    now = page()
    assert now.total("process_start_time_seconds") == 1
    assert now.total("vllm:num_requests_running", "m") == 0
    assert now.total("vllm:generation_tokens_total", "m") == 10
    assert now.total("vllm:prompt_tokens_total", "m") == 20
    assert now.total("vllm:request_success_total", "m") == 2  # the aborted one is nowhere
    assert now.total("vllm:iteration_tokens_total_sum", "m") == 30
    ttft = now.histogram("vllm:time_to_first_token_seconds", "m")
    assert ttft is not None
    told = dict(zip(ttft.bounds, ttft.counts, strict=True))
    assert {bound: count for bound, count in told.items() if count} == {0.01: 1, 0.02: 1}  # one came a step late
    itl = now.histogram("vllm:inter_token_latency_seconds", "m")
    assert itl is not None
    assert itl.total == 8
    assert now.total("vllm:e2e_request_latency_seconds_count", "m") == 2
