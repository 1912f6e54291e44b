"""What a connection says about an endpoint, as one value.

Owns the shape and its validation. Does not know Airflow: `hooks.vllm` builds it from a connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from airflow_llm_provider.core.terms import Promise
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.core.objective import Metric, Objective
    from airflow_llm_provider.core.terms import OnUnknown

QUANTILE: Final = "{quantile}"
"""In a PromQL expression: the objective's share, such as 0.95."""

PERIOD: Final = "{period}"
"""In a PromQL expression: the sampling period, such as 30s."""

SERVER: Final = "{server}"
"""In a PromQL expression, inside quotes: host and port of the server whose latency is asked for, such as gpu1:8000."""

QUOTED: Final = re.compile(
    r"""(?P<outside>\#[^\n]*)|(?P<regex>[=!]~\s*)?(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)"""
)
"""What stands in quotes in a PromQL expression, and whether as a regular expression; comments, so that no quote in them
counts."""


class Source(StrEnum):
    """Where real-time's latency is read."""

    PROMETHEUS = "prometheus"  # what a gateway or its clients measured, by a PromQL expression
    VLLM = "vllm"  # the server's own histograms, less our own requests
    CANARY = "canary"  # requests of our own, sent as real-time would


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySettings:
    """What real-time was promised, where it is read whether that is kept, and what follows where it can't be read.

    Attributes:
        objectives: at least one.
        source: see `Source`.
        sampling_period_s: how far back a reading looks.
        healthy_for_s: how long real-time must be well, after it was not, before batch that waits is released.
        prometheus_url: the server's root, below which ``/api/v1/query`` is; for source `prometheus`.
        prometheus_query: per metric, a PromQL expression whose value is the quantile in seconds, with the placeholders
            `QUANTILE`, `PERIOD` and `SERVER`; for source `prometheus`.
        prometheus_headers: sent to Prometheus; values never shown by ``repr``.
        prometheus_verify: as `EndpointSettings.verify`, for Prometheus.
        only_batch_client: whether nothing but one task at a time sends batch work here; source `vllm` needs it to be.
        canary_priority: vLLM's priority of a canary: real-time's.
        on_unknown: ``hold``, or ``cap`` to `unknown_limit` requests in flight.
        unknown_limit: see `on_unknown`.
        unknown_alert_s: how long unknown may hold batch before somebody is told.

    Raises:
        ConfigurationError: when a value is invalid, or the source lacks what it needs.
    """

    objectives: tuple[Objective, ...]
    source: Source
    sampling_period_s: float = 30.0
    healthy_for_s: float = 60.0
    prometheus_url: str | None = None
    prometheus_query: Mapping[Metric, str] = field(default_factory=lambda: MappingProxyType({}))
    prometheus_headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    prometheus_verify: bool | str = True
    only_batch_client: bool = False
    canary_priority: int = 0
    on_unknown: OnUnknown = "hold"
    unknown_limit: int = 1
    unknown_alert_s: float = 1800.0

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ConfigurationError("Where latency is read is set, and no objective is: set both, or neither")
        for name in ("sampling_period_s", "unknown_alert_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.healthy_for_s < 0:
            raise ConfigurationError(f"healthy_for_s must be 0 or more, not {self.healthy_for_s}")
        if self.unknown_limit < 1:
            raise ConfigurationError(f"unknown_limit must be 1 or more, not {self.unknown_limit}")
        if self.on_unknown not in ("hold", "cap"):
            raise ConfigurationError(f"on_unknown must be hold or cap, not {self.on_unknown!r}")
        if self.source is Source.PROMETHEUS:
            self._check_prometheus()

    def _check_prometheus(self) -> None:
        if self.prometheus_url is None:
            raise ConfigurationError(
                "latency_source is prometheus, and nothing says where it is: set prometheus_url or prometheus_conn_id"
            )
        for metric in dict.fromkeys(objective.metric for objective in self.objectives):
            query = self.prometheus_query.get(metric)
            if query is None:
                raise ConfigurationError(
                    f"The objective promises {metric}, and prometheus_query has no expression for it: "
                    f'write {{"{metric}": "histogram_quantile({QUANTILE}, …[{PERIOD}]…)"}}'
                )
            several = [objective.name for objective in self.objectives if objective.metric is metric]
            if len(several) > 1 and QUANTILE not in query:
                raise ConfigurationError(
                    f"The objective promises {' and '.join(several)}, and prometheus_query's expression for {metric} "
                    f"is the same for both: write {QUANTILE} in it"
                )
            if SERVER in QUOTED.sub("", query):
                raise ConfigurationError(
                    f"prometheus_query's expression for {metric} has {SERVER} outside quotes: write it in quotes, "
                    f'as a label\'s value, such as instance="{SERVER}"'
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """Where an endpoint is and how to talk to it.

    Attributes:
        base_urls: server roots without ``/v1`` and without a trailing slash, e.g. ``http://gpu1:8000``.
        api_key: sent as a bearer token; never shown by ``repr``, never logged.
        model: the model to ask for; None lets the server decide where it serves exactly one.
        slots: the server's ``max_num_seqs`` as the platform team states it; None when not stated.
        extra_headers: sent with every request; values never shown by ``repr``.
        verify: True checks TLS certificates, False does not, a string is a CA bundle's path.
        connect_timeout_s: for opening a connection.
        request_timeout_s: for a whole request, queueing in the server included.
        promise: what the platform promised real-time, and so allows batch.
        given: names of the connection's extra fields that somebody filled in; the others are at their defaults.
        latency: the objective and where it is read; None where none is set, which is no gate.

    Raises:
        ConfigurationError: when a value is invalid.
    """

    base_urls: tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    slots: int | None = None
    extra_headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    verify: bool | str = True
    connect_timeout_s: float = 10.0
    request_timeout_s: float = 3600.0
    promise: Promise = field(default_factory=Promise)
    given: frozenset[str] = field(default=frozenset(), compare=False)
    latency: LatencySettings | None = None

    def __post_init__(self) -> None:
        if not self.base_urls:
            raise ConfigurationError("The vLLM connection names no base URL. Set its host, e.g. http://gpu1:8000")
        for url in self.base_urls:
            if not url.startswith(("http://", "https://")) or url.endswith("/"):
                raise ConfigurationError(
                    f"The vLLM connection's base URL {url!r} is not a server root such as http://gpu1:8000"
                )
        if self.slots is not None and self.slots < 1:
            raise ConfigurationError(f"The vLLM connection's slots must be 1 or more, not {self.slots}")
        for name, value in self.extra_headers.items():
            if any(sign in name + value for sign in "\r\n\0"):
                raise ConfigurationError(
                    f"The vLLM connection's header {name!r} has a line break, or its value has. Write it on one line"
                )
        for name in ("connect_timeout_s", "request_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"The vLLM connection's {name} must be above 0, not {getattr(self, name)}")
