"""What is observed for vLLM's families, and what they say.

Owns which event counts where. Pure. Does not know the words (`simulator.vllm_families`) or the text format
(`simulator.prometheus`), nor when anything happens (`simulator.engine`).

Durations are the engine's seconds: on an accelerated server, more of them than pass on the wall. An aborted request
counts nowhere but in the tokens it got, as with a real vLLM. Left out: the series ``…_created``, and the families of
the Python process (but ``process_start_time_seconds``) and of the HTTP server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_llm_provider.simulator import vllm_families as table
from airflow_llm_provider.simulator.prometheus import Buckets, Family, Sample
from airflow_llm_provider.simulator.words import Finished, Stepped, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_llm_provider.simulator.engine import Engine, Event, Refusal

    _Values = Mapping[str, float] | float

_REASONS = ("stop", "length", "abort", "error", "repetition")
_LIMITS: tuple[Refusal, ...] = ("max_num_queued_reqs", "max_num_queued_tokens")


class Metrics:
    """What one server has seen.

    Args:
        engine: its engine, idle; it must be asked to tell its steps.
        model: the name under which everything is reported: the first served one.
        started_s: the process's start, in Unix time.
    """

    def __init__(self, engine: Engine, *, model: str, started_s: float) -> None:
        self._engine = engine
        self._cached_tokens = 0
        self._started_s = started_s
        self._labels = {"engine": "0", "model_name": model}
        self._model = {"model_name": model}
        tokens = table.token_bounds(engine.spec.max_model_len)
        self._histograms = {
            name: Buckets(table.BOUNDS.get(name, table.REQUEST if "_seconds" in name else tokens))
            for name in table.HISTOGRAMS
        }
        self._arrived: dict[str, float] = {}

    def arrived(self, request_id: str, at_s: float) -> None:
        """A sequence was submitted."""
        self._arrived[request_id] = at_s

    def aborted(self, request_id: str) -> None:
        """Nobody wants a sequence any longer."""
        self._arrived.pop(request_id, None)

    def happened(self, event: Event) -> None:
        """Takes note of what the engine tells."""
        observe = self._histograms
        match event:
            case Stepped():
                observe["iteration_tokens_total"].observe(self._computed(event) + event.generated_tokens)
                if event.decoding:
                    observe["inter_token_latency_seconds"].observe(event.duration_s, event.decoding)
            case Tokens() if event.first:
                arrived_s = self._arrived.pop(event.request_id, event.at_s)
                observe["time_to_first_token_seconds"].observe(event.at_s - arrived_s)
            case Finished():
                self._ended(event)

    def _computed(self, step: Stepped) -> int:
        """Of the prompts that a step completed, the tokens that had to be computed."""
        cached, self._cached_tokens = self._cached_tokens, self._engine.totals.cached_prompt_tokens
        return step.prompt_tokens - (self._cached_tokens - cached)

    def _ended(self, end: Finished) -> None:
        for name, value in (
            ("request_prompt_tokens", end.prompt_tokens),
            ("request_generation_tokens", end.generated_tokens),
            ("request_time_per_output_token_seconds", end.mean_itl_s),
            ("e2e_request_latency_seconds", end.e2e_s),
            ("request_queue_time_seconds", end.queued_s),
            ("request_inference_time_seconds", end.inference_s),
            ("request_prefill_time_seconds", end.prefill_s),
            ("request_decode_time_seconds", end.decode_s),
            ("request_num_preemptions", end.preemptions),
            ("request_prefill_kv_computed_tokens", end.prompt_tokens - end.cached_tokens),
        ):
            self._histograms[name].observe(value)

    def answered(self, ends: Iterable[Finished], *, count: int, max_tokens: int) -> None:
        """A prompt has all its answers.

        Args:
            ends: theirs.
            count: how many were asked for.
            max_tokens: that each could have.
        """
        tokens = [end.generated_tokens for end in ends]
        self._histograms["request_max_num_generation_tokens"].observe(max(tokens))
        self._histograms["request_params_n"].observe(count)
        self._histograms["request_params_max_tokens"].observe(max_tokens, len(tokens))

    def families(self) -> list[Family]:
        """Everything, in vLLM's order."""
        start = [Sample("process_start_time_seconds", {}, self._started_s)]
        told = "Start time of the process since unix epoch in seconds."
        return [
            Family("process_start_time_seconds", "gauge", told, start),
            *self._of("gauge", table.GAUGES, _gauges(self._engine)),
            *self._of("counter", table.COUNTERS, _counters(self._engine)),
            *(
                Family(f"vllm:{name}", "histogram", told, self._histograms[name].samples(f"vllm:{name}", self._labels))
                for name, told in table.HISTOGRAMS.items()
            ),
            self._cache_config(),
        ]

    def _of(self, kind: str, texts: Mapping[str, str], values: Mapping[str, _Values]) -> list[Family]:
        """The table's families of a kind. Those that nothing is said of are 0."""
        return [self._family(kind, name, told, values.get(name, 0)) for name, told in texts.items()]

    def _family(self, kind: str, name: str, told: str, values: _Values) -> Family:
        labels = self._model if name == "admission_rejections" else self._labels
        series = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
        if isinstance(values, int | float):
            return Family(series, kind, told, [Sample(series, labels, values)])
        label = table.LABELS[name]
        samples = [Sample(series, {**labels, label: which}, value) for which, value in values.items()]
        return Family(series, kind, told, samples)

    def _cache_config(self) -> Family:
        spec = self._engine.spec
        tokens = spec.num_blocks * spec.block_size
        labels = {
            **table.CACHE_CONFIG,
            "block_size": str(spec.block_size),
            "effective_attention_block_size": str(spec.block_size),
            "enable_prefix_caching": str(spec.prefix_caching),
            "engine": "0",
            "kv_cache_max_concurrency": str(tokens / spec.max_model_len),
            "kv_cache_size_tokens": str(tokens),
            "num_gpu_blocks": str(spec.num_blocks),
        }
        told = "Information of the LLMEngine CacheConfig"
        return Family("vllm:cache_config_info", "gauge", told, [Sample("vllm:cache_config_info", labels, 1)])


def _gauges(engine: Engine) -> dict[str, _Values]:
    gauges = engine.gauges
    return {
        "num_requests_running": gauges.running,
        "num_requests_waiting": gauges.waiting,
        "num_requests_waiting_by_reason": {"capacity": gauges.waiting, "deferred": 0},
        "engine_sleep_state": {"awake": 1, "weights_offloaded": 0, "discard_all": 0},
        "kv_cache_usage_perc": gauges.kv_usage,
    }


def _counters(engine: Engine) -> dict[str, _Values]:
    totals = engine.totals
    cached = totals.cached_prompt_tokens
    computed = totals.prompt_tokens - cached
    hits = totals.prefix_hits
    return {
        "prefix_cache_queries": totals.prefix_queries,
        "prefix_cache_hits": hits,
        "num_preemptions": totals.preemptions,
        "prompt_tokens": totals.prompt_tokens,
        "prompt_tokens_by_source": {"local_compute": computed, "local_cache_hit": cached, "external_kv_transfer": 0},
        "prompt_tokens_cached": cached,
        "prompt_tokens_cached_by_source": {
            "device": hits,
            **dict.fromkeys(("host", "p2p", "disk", "external_unspecified"), 0),
        },
        "generation_tokens": totals.generation_tokens,
        "request_success": {reason: 0 if reason == "abort" else totals.finished[reason] for reason in _REASONS},
        "admission_rejections": {reason: totals.rejected[reason] for reason in _LIMITS},
    }
