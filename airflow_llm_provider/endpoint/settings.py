"""What a connection says about an endpoint, as one value.

Owns the shape and its validation. Does not know Airflow: `hooks.vllm` builds it from a connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from airflow_llm_provider.core.terms import Promise
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        for name in ("connect_timeout_s", "request_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"The vLLM connection's {name} must be above 0, not {getattr(self, name)}")
