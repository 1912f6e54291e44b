"""Where real-time's latency is read: what all sources have in common, and which one a connection means.

Does not know how each of them reads (`latency_prometheus`, `latency_vllm`, `latency_canary`), nor what a reading means
(`core.objective`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from airflow_llm_provider.core.own_requests import OwnRequests
from airflow_llm_provider.endpoint.latency_canary import CanarySource
from airflow_llm_provider.endpoint.latency_prometheus import PrometheusSource
from airflow_llm_provider.endpoint.latency_vllm import MetricsSource
from airflow_llm_provider.endpoint.settings import Source
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from airflow_llm_provider.core.objective import Objective, Reading
    from airflow_llm_provider.endpoint.settings import EndpointSettings


class LatencySource(Protocol):
    """Reads every objective's quantile over the last sampling period. An async context manager, for one event loop."""

    @property
    def name(self) -> str:
        """What is read, for the log."""
        ...

    async def __aenter__(self) -> Self:
        """Open connections."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them, and end what is still under way."""
        ...

    async def read(self) -> Mapping[Objective, Reading]:
        """Read. Nothing about the network raises: it is a `core.objective.Failed`.

        The first call may take a sampling period, where there is nothing to look back to yet; others take as long as
        the network does. May be called at any interval: a source does not ask more often than is good for the asked.
        """
        ...


def latency_source(
    settings: EndpointSettings, own: OwnRequests | None = None, *, base_url: str | None = None
) -> LatencySource:
    """The source that the connection means. Reads CA bundles from disk: not for an event loop.

    Args:
        settings: the endpoint's.
        own: the record of the requests we send to `base_url`; None where we send none.
        base_url: of several, the one whose latency it is; None is the first.

    Raises:
        ConfigurationError: no objective is set, or a CA bundle can't be read.
    """
    latency, base_url = settings.latency, base_url or settings.base_urls[0]
    if latency is None:
        raise ConfigurationError("The connection sets no objective, so there is no latency to read")
    match latency.source:
        case Source.PROMETHEUS:
            return PrometheusSource(latency, base_url=base_url)
        case Source.VLLM:
            return MetricsSource(settings, latency, base_url=base_url, own=own or OwnRequests())
        case Source.CANARY:
            return CanarySource(settings, latency, base_url=base_url)
