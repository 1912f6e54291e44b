"""Who answers at an endpoint's base URLs, in words for the person who wrote the connection.

Owns the sentences for every way of answering and failing, and which of them a person must act on. Does not know
Airflow or connections, and asks through the same client as batch work: what is found here holds there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from airflow_llm_provider.core.retry import Failure, FailureKind
from airflow_llm_provider.exceptions import EndpointDownError, EndpointRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.endpoint.identity import ServerIdentity
    from airflow_llm_provider.endpoint.settings import EndpointSettings
    from airflow_llm_provider.exceptions import LLMBatchError

TIMEOUT_S: Final = 10.0
"""How long one question may take, at most: somebody waits for the answer in the UI."""

_SHOWN_MODELS = 20

_UNREACHABLE = "Cannot reach {url}: {why}. Is it up, and are host and port right?"
_NOT_READY = "{url} is up but not ready: {why}. Try again in a while"
_NOT_COMPATIBLE = "{url} does not answer as an OpenAI-compatible server: {why}. Check the connection's host and port"

_SENTENCES: Mapping[FailureKind, str] = MappingProxyType(
    {
        FailureKind.UNREACHABLE: _UNREACHABLE,
        FailureKind.GATEWAY_LOST: _UNREACHABLE,
        FailureKind.CONNECTION_LOST: _UNREACHABLE,
        FailureKind.STALE_CONNECTION: _UNREACHABLE,
        FailureKind.TIMEOUT: _UNREACHABLE,
        FailureKind.BUSY: _NOT_READY,
        FailureKind.DRAINING: _NOT_READY,
        FailureKind.ENGINE_DEAD: _NOT_READY,
        FailureKind.SERVER_ERROR: _NOT_READY,
        # What the server says to a wrong key is left out: some servers quote a part of it.
        FailureKind.UNAUTHORISED: "{url} refuses access ({status}): {key}",
        FailureKind.UNTRUSTED: "The certificate of {url} is not trusted: {why}. "
        "Set `verify` in the connection's extra to the path of the CA bundle that signed it",
        FailureKind.BAD_REQUEST: _NOT_COMPATIBLE,
        FailureKind.MODEL_NOT_FOUND: _NOT_COMPATIBLE,
        FailureKind.ROUTE_NOT_FOUND: _NOT_COMPATIBLE,
        FailureKind.GARBLED: _NOT_COMPATIBLE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of asking one base URL.

    Attributes:
        base_url: the server root that was asked.
        answer: who answered, or why nobody did.
        has_key: whether an API key was sent.
    """

    base_url: str
    answer: ServerIdentity | Failure
    has_key: bool

    def verdict(self, model: str | None) -> tuple[bool, str]:
        """Return whether ``model`` can be asked for here, and the sentence that says so.

        None asks for nothing in particular, which is fine wherever some model is served.
        """
        if isinstance(self.answer, Failure):
            return False, self._failure_sentence(self.answer)
        names = [served.id for served in self.answer.models]
        if not names:
            return False, f"{self.base_url} answers, but serves no model"
        if model is not None and model not in names:
            return False, f"{self.base_url} does not serve the model {model!r}; it serves {_listed(names)}"
        version = f" (version {self.answer.version})" if self.answer.version else ""
        kind = f"as vLLM{version}" if self.answer.is_vllm else f"in OpenAI's way, but not as vLLM{version}"
        unsaid = "; the connection names no model, so each DAG must" if model is None and len(names) > 1 else ""
        return True, f"{self.base_url} serves {_listed([model] if model else names)} and answers {kind}{unsaid}"

    def identity(self) -> ServerIdentity:
        """Return who answered.

        Raises:
            EndpointRefusedError: a server answered, and a person must change something: key, certificate, address.
            EndpointDownError: it cannot be reached, or is not ready.
        """
        if not isinstance(self.answer, Failure):
            return self.answer
        down = _SENTENCES[self.answer.kind] in {_UNREACHABLE, _NOT_READY}
        error: type[LLMBatchError] = EndpointDownError if down else EndpointRefusedError
        raise error(self._failure_sentence(self.answer))

    def _failure_sentence(self, failure: Failure) -> str:
        refused = "the API key in the connection's password is not accepted"
        missing = "it wants an API key, and the connection's password is empty"
        return _SENTENCES[failure.kind].format(
            url=self.base_url,
            why=failure.message.removeprefix(f"{self.base_url}: ").rstrip("."),
            status=failure.http_status,
            key=refused if self.has_key else missing,
        )


async def look(settings: EndpointSettings) -> tuple[Finding, ...]:
    """Ask every base URL, all at once, for its models and version; sends no prompt, and no failure raises.

    Raises:
        ConfigurationError: the CA bundle can't be read.
    """
    from airflow_llm_provider.endpoint.client import EndpointClient  # noqa: PLC0415 - Airflow's parsers need no aiohttp

    hasty = replace(
        settings,
        connect_timeout_s=min(settings.connect_timeout_s, TIMEOUT_S),
        request_timeout_s=min(settings.request_timeout_s, TIMEOUT_S),
    )

    async def ask(base_url: str) -> Finding:
        async with EndpointClient(hasty, base_url=base_url) as client:
            return Finding(base_url=base_url, answer=await client.identify(), has_key=settings.api_key is not None)

    return tuple(await asyncio.gather(*(ask(url) for url in settings.base_urls)))


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN_MODELS])
    return shown if len(names) <= _SHOWN_MODELS else f"{shown} and {len(names) - _SHOWN_MODELS} more"
