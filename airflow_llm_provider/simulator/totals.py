"""What a simulated engine says of itself: vLLM's gauges, and what its counters count.

Owns the values. Does not know what changes them (`simulator.engine`) nor how they are told (`simulator.vllm_metrics`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.words import Refusal


class Gauges(NamedTuple):
    """What vLLM's gauges say: the state at the end of the last step, however long the one under way takes.

    Attributes:
        running: ``vllm:num_requests_running``.
        waiting: ``vllm:num_requests_waiting``. Requests that came since the last step began are not in it yet.
        kv_usage: ``vllm:kv_cache_usage_perc``, 0 to 1.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


@dataclass(slots=True)
class Totals:
    """What happened so far, for vLLM's counters and for measuring. Read, not written.

    Attributes:
        prompt_tokens: of requests that got their first token.
        cached_prompt_tokens: of those, the ones found in the prefix cache.
        generation_tokens: made, those of aborted requests' last step not counted.
        prefix_queries: tokens looked for in the prefix cache.
        prefix_hits: those found.
        preemptions: losses of blocks.
        finished: requests by ``finished_reason``: stop, length, abort.
        rejected: requests refused, by reason.
        steps: taken.
        step_s: spent in steps.
        slot_s: the same, times sequences running: over ``max_num_seqs`` × elapsed time, the share of slots in use.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    rejected: Counter[Refusal] = field(default_factory=Counter)
    steps: int = 0
    step_s: float = 0.0
    slot_s: float = 0.0
