from __future__ import annotations

import random
from dataclasses import asdict, replace

import pytest

from airflow_llm_provider.simulator.closed_loop import Burst, Loop, burst_ttft_s, throughput
from airflow_llm_provider.simulator.fit import ApiWork, Calibration, Churn, Prefill, Wave, fit, least_squares, spread
from airflow_llm_provider.simulator.spec import EngineSpec, StepModel

TRUE = StepModel(
    base_s=2e-3,
    per_seq_s=1e-4,
    per_prefill_token_s=1.5e-5,
    per_kv_token_s=4e-8,
    mixed_s=1e-3,
    jitter=0.2,
    request_s=1.5e-3,
    delay_s=3e-3,
    token_s=2e-5,
    chunk_s=1e-4,
)
WORK = [(64, 12_800, 64), (64, 12_800, 12_800), (200, 200, 200)]


SERVER = EngineSpec(max_num_seqs=8)


def loop(model: StepModel = TRUE, *, stream: bool) -> Loop:
    made = Loop(clients=8, requests=24, prompt_tokens=16, max_tokens=100, stream=stream, tokens_per_s=0.0)
    return replace(made, tokens_per_s=throughput(replace(SERVER, step=model), made))


def burst(model: StepModel = TRUE) -> Burst:
    made = Burst(size=8, prompt_tokens=16, ttft_s=0.0)
    return replace(made, ttft_s=burst_ttft_s(replace(SERVER, step=model), made))


def calibration(noise: float = 0.0) -> Calibration:
    """What a server of that model would show."""
    rng = random.Random(4)

    def seen(true_s: float) -> float:
        return true_s * rng.lognormvariate(0, noise)

    def step_s(decoding: int = 0, prefill: int = 0, context: float = 0) -> float:
        return TRUE.mean_s(decoding=decoding, prefill_tokens=prefill, context_tokens=context)

    lone_s = TRUE.request_s + TRUE.delay_s + TRUE.token_s + TRUE.chunk_s + step_s(prefill=16)
    return Calibration(
        waves=tuple(
            Wave(size=n, context_tokens=context, inter_token_s=seen(step_s(n, 0, n * context)))
            for n in (1, 2, 4, 8)
            for context in (116, 1600)
        ),
        prefills=tuple(
            Prefill(prompt_tokens=length, steps=1, prefill_s=seen(step_s(0, length))) for length in (16, 500, 1900)
        ),
        churn=Churn(
            decoding=8.0,
            prefill_tokens=4.8,
            context_tokens=224.0,
            starts=0.3,
            inter_token_s=seen(step_s(8, 0, 224) + 4.8 * TRUE.per_prefill_token_s + 0.3 * TRUE.mixed_s),
        ),
        api=tuple(
            ApiWork(
                requests=r, tokens=t, chunks=c, cpu_s=seen(TRUE.request_s * r + TRUE.token_s * t + TRUE.chunk_s * c)
            )
            for r, t, c in WORK
        ),
        lone_ttft_s=lone_s,
        lone_prompt_tokens=16,
        lone_prefills_s=tuple(rng.lognormvariate(0, TRUE.jitter) for _ in range(4000)),
        burst=burst(),
        loops=(loop(stream=False), loop(stream=True)),
    )


def test_it_finds_the_model_that_made_the_measurements():
    found = fit(calibration(), SERVER)
    for name, value in asdict(replace(TRUE, jitter=0.0)).items():
        if name != "jitter":
            assert getattr(found, name) == pytest.approx(value, rel=1e-6), name
    assert found.jitter == pytest.approx(TRUE.jitter, rel=0.05)


def test_noise_does_not_lead_it_astray():
    found = fit(calibration(noise=0.05), SERVER)
    for decoding, prefill, context in [(1, 0, 100), (8, 0, 8000), (4, 600, 1000)]:
        load = {"decoding": decoding, "prefill_tokens": prefill, "context_tokens": context}
        assert found.mean_s(**load) == pytest.approx(TRUE.mean_s(**load), rel=0.1)


def test_an_api_server_without_a_core_of_its_own_is_as_slow_as_it_shows():
    starved = replace(TRUE, **{name: 25 * getattr(TRUE, name) for name in ("request_s", "token_s", "chunk_s")})
    loops = (loop(starved, stream=False), loop(starved, stream=True))
    found = fit(replace(calibration(), loops=loops, burst=burst(starved)), SERVER)
    assert burst(found).ttft_s == pytest.approx(burst(starved).ttft_s, rel=0.1)
    for stream, seen in zip((False, True), loops, strict=True):
        assert loop(found, stream=stream).tokens_per_s == pytest.approx(seen.tokens_per_s, rel=0.03)
    assert loops[0].tokens_per_s < 0.9 * loop(stream=False).tokens_per_s
    assert found.token_s > 15 * TRUE.token_s


def test_a_burst_passes_the_api_server_one_by_one():
    model = StepModel(base_s=1.0, per_seq_s=0.0, per_prefill_token_s=0.0, request_s=1.5)
    asked = Burst(size=2, prompt_tokens=16, ttft_s=0.0)
    # taken at 1.5 and 3.0; the first's token is made at 2.5 and waits until the second is taken
    assert burst_ttft_s(EngineSpec(step=model), asked) == pytest.approx((3.0 + 4.0) / 2)


def test_a_closed_loop_takes_as_long_as_its_steps():
    steps = StepModel(base_s=0.01, per_seq_s=0.0, per_prefill_token_s=0.0)
    asked = Loop(clients=2, requests=5, prompt_tokens=16, max_tokens=10, stream=False, tokens_per_s=0.0)
    # three times ten steps, and two more: who is sent while a step is under way waits for its end
    assert throughput(EngineSpec(max_num_seqs=4, step=steps), asked) == pytest.approx(50 / 0.32)


def test_no_term_is_negative():
    # a second sequence seems to make the step shorter: that is noise, and costs nothing
    assert least_squares([(1, 1), (1, 2)], [1.0, 0.9]) == pytest.approx((0.9448, 0), abs=1e-3)
    quick = replace(calibration(), lone_ttft_s=1e-3)
    assert fit(quick, SERVER).delay_s == 0.0


def test_errors_are_relative():
    (x,) = least_squares([(1,), (100,)], [1.0, 110.0])
    assert x == pytest.approx((1 + 100 / 110) / (1 + (100 / 110) ** 2))


def test_too_few_kinds_of_load_are_told():
    few = replace(calibration(), waves=calibration().waves[:1])
    with pytest.raises(ValueError, match="5 measurements of this kind do not tell 5 terms apart"):
        fit(few, SERVER)
    with pytest.raises(ValueError, match="0 measurements"):
        least_squares([], [])


def test_a_spread_needs_gaps():
    assert spread([2.0, 2.0, 2.0]) == 0.0
    with pytest.raises(ValueError, match="no step to learn the jitter"):
        spread([0.0])
