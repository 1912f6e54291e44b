"""What a simulated server is told: before it starts, and while it runs.

Owns the values. Does not know what follows from them (`simulator.server`, `simulator.inference`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from airflow_llm_provider.simulator.engine import EngineSpec

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.fault import FaultFunction

_MAX_SPEED: Final = 1_000_000
"""Beyond it, the engine's seconds are too many to tell them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """What a simulated server is like; names and defaults are those of ``vllm serve``'s flags, where it has them.

    Attributes:
        served_model_name: the first one reports metrics and signs answers; the others are aliases.
        root: what they stand for.
        engine: slots, limits and speeds.
        seed: of the engine's jitter.
        speed: engine seconds per second.
        mean_output_tokens: the mean length of an answer that may end by itself; None: it never does.
        enable_prompt_tokens_details: whether usage tells cached tokens.
        enable_per_request_metrics: whether answers tell their times.
        api_key: required as a bearer token on ``/v1``; None takes everything.

    Raises:
        ValueError: a number is out of range.
    """

    served_model_name: tuple[str, ...] = ("simulated",)
    root: str = "simulated-weights"
    engine: EngineSpec = field(default_factory=EngineSpec)
    seed: int = 0
    speed: float = 1.0
    mean_output_tokens: float | None = 64.0
    enable_prompt_tokens_details: bool = False
    enable_per_request_metrics: bool = False
    api_key: str | None = None

    def __post_init__(self) -> None:
        if not self.served_model_name or not all(self.served_model_name):
            told = f"not {self.served_model_name!r}"
            raise ValueError(f"served_model_name needs one name at least, and none may be empty: {told}.")
        if not 0 < self.speed <= _MAX_SPEED:
            raise ValueError(f"speed is a number above 0 and up to {_MAX_SPEED:,}, not {self.speed!r}.")
        mean = self.mean_output_tokens
        if mean is not None and not (isfinite(mean) and mean >= 1):
            raise ValueError(f"mean_output_tokens is a finite number of 1 or more, or None, not {mean!r}.")


@dataclass(slots=True, kw_only=True)
class State:
    """What may be changed while the server runs.

    Attributes:
        root: what the names stand for. Another root under the same name is a swapped model.
        draining: ``/health`` says 200 and every POST 500, as vLLM does with ``--shutdown-timeout``.
        fault: which requests go wrong, and how.
        received: POSTs to the model's routes.
        counts: the same by ``X-Request-Id``.
    """

    root: str
    draining: bool = False
    fault: FaultFunction | None = None
    received: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def with_flags(spec: ServerSpec, **flags: Any) -> ServerSpec:
    """The server with other values, of its own fields and of its engine's alike.

    Raises:
        TypeError: there is no such field.
        ValueError: a value is out of range.
    """
    own = {name: value for name, value in flags.items() if name in ServerSpec.__slots__}
    engine = {name: value for name, value in flags.items() if name not in own}
    spec = replace(spec, **own)
    return replace(spec, engine=replace(spec.engine, **engine))
