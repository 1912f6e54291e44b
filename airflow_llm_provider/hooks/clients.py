"""openai clients, made of an endpoint's settings, for DAG authors.

Owns how the settings map to openai's arguments and to its HTTP client's. Does not know where settings come from.
Batch work does not go through here: `endpoint.client` needs a tenth of the CPU. Where both have a say – TLS,
proxies, redirects, headers – they say the same.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import openai

from airflow_llm_provider.endpoint.transport import ssl_context

if TYPE_CHECKING:
    from airflow_llm_provider.endpoint.settings import EndpointSettings


def client(settings: EndpointSettings) -> openai.OpenAI:
    """Return a client for the first base URL.

    Raises:
        ConfigurationError: the CA bundle can't be read.
    """
    return openai.OpenAI(**_arguments(settings), http_client=openai.DefaultHttpxClient(**_http_arguments(settings)))


def async_client(settings: EndpointSettings) -> openai.AsyncOpenAI:
    """Return an async client for the first base URL. Reads the trust store from disk: not for an event loop.

    Raises:
        ConfigurationError: the CA bundle can't be read.
    """
    return openai.AsyncOpenAI(
        **_arguments(settings), http_client=openai.DefaultAsyncHttpxClient(**_http_arguments(settings))
    )


def _arguments(settings: EndpointSettings) -> dict[str, Any]:
    """What openai would otherwise take from the environment, key included, is said here or left out."""
    headers: dict[str, Any] = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
    for name, value in settings.extra_headers.items():
        headers["Authorization" if name.lower() == "authorization" else name] = value
    return {
        "base_url": f"{settings.base_urls[0]}/v1",
        "api_key": settings.api_key or "none",  # openai insists on one; `_without_key` keeps it from being sent
        "default_headers": headers,
        "timeout": openai.Timeout(settings.request_timeout_s, connect=settings.connect_timeout_s),
    }


def _http_arguments(settings: EndpointSettings) -> dict[str, Any]:
    """For openai's own httpx (httpx2 from openai 3 on): its defaults, except for what batch work does otherwise."""
    arguments: dict[str, Any] = {"verify": _tls(settings.verify), "trust_env": False, "follow_redirects": False}
    if not settings.api_key and "authorization" not in {name.lower() for name in settings.extra_headers}:
        arguments["auth"] = _without_key
    return arguments


def _without_key(request: Any) -> Any:
    """Authenticate, in httpx terms, by sending nothing: openai 3 refuses to leave the header out by itself."""
    del request.headers["Authorization"]
    return request


def _tls(verify: bool | str) -> ssl.SSLContext | bool:  # noqa: FBT001 - the connection's word
    """Trust what Python trusts, as aiohttp does: httpx by itself would take certifi's list instead."""
    return ssl.create_default_context() if verify is True else ssl_context(verify)
