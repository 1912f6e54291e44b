"""Before the first request: is the endpoint there, does it take our key, does it serve the model?

Owns the short patience at the start. Does not send rows.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_delay
from tenacity.wait import wait_exponential, wait_random

from airflow_llm_provider.core.progress import duration
from airflow_llm_provider.core.redaction import KEEP, Redaction
from airflow_llm_provider.core.retry import Failure, Reaction
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.endpoint.identity import resolve_model
from airflow_llm_provider.exceptions import EndpointDownError, EndpointRefusedError, RunStoppedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.endpoint.identity import ServerIdentity
    from airflow_llm_provider.endpoint.settings import EndpointSettings

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a try waits at its start. Shorter than within a run: a wrong address should show soon."""


OTHERS_S = 3.0
"""How much longer other servers are waited for, once one has answered."""


async def identify(
    settings: EndpointSettings, stop: StopSwitch, *, patience_s: float = PATIENCE_S, redaction: Redaction = KEEP
) -> dict[str, ServerIdentity]:
    """Who answers at the endpoint, by base URL, waiting a little where nobody does.

    One server that answers is enough: the others are looked for again while the run goes on.

    Raises:
        EndpointRefusedError: one answers and refuses.
        EndpointDownError: nobody answers for `patience_s`.
        RunStoppedError: `stop` was set meanwhile.
    """
    asking = {url: asyncio.ensure_future(_ask(settings, url, patience_s, redaction)) for url in settings.base_urls}

    def cancel(_reason: str) -> None:
        for each in asking.values():
            each.cancel()

    stop.attach(asyncio.get_running_loop(), cancel)
    try:
        results = await _first_and_others(asking)
    except asyncio.CancelledError:
        raise RunStoppedError(f"{stop.reason}: nothing was sent yet") from None
    finally:
        stop.detach()
    return _judge(results, patience_s)


def what_serves(answers: Mapping[str, ServerIdentity], wanted: str | None) -> dict[str, Any]:
    """What serves the model, in the form that ``run.json`` keeps.

    Raises:
        EndpointRefusedError: the model is not served, or not the same one by every server.
    """
    served = {url: resolve_model(identity, wanted) for url, identity in answers.items()}
    for url, model in served.items():
        identity = answers[url]
        log.info(
            "The endpoint %s serves %s (root %s, version %s%s)",
            url,
            model.id,
            model.root or "not told",
            identity.version or "not told",
            "" if identity.is_vllm else "; it does not answer as vLLM",
        )
    names, roots = {model.id for model in served.values()}, {model.root for model in served.values() if model.root}
    if len(names) > 1 or len(roots) > 1:
        each = "; ".join(f"{url} serves {model.id!r} (root {model.root})" for url, model in served.items())
        raise EndpointRefusedError(
            f"The connection's servers do not serve the same model: {each}. Serve one model on all of them, or name "
            "those that do in a connection of their own"
        )
    (url, model), *_ = served.items()
    return {
        "model": model.id,
        "root": next((each.root for each in served.values() if each.root), None),
        "version": answers[url].version,
        "is_vllm": all(identity.is_vllm for identity in answers.values()),
    }


async def _first_and_others(
    asking: Mapping[str, asyncio.Future[ServerIdentity | Failure]],
) -> dict[str, ServerIdentity | Failure | None]:
    """What each answered; None for those that had not when another one's answer was `OTHERS_S` old."""
    waiting = set(asking.values())
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if any(not isinstance(each.result(), Failure) for each in done):
            break
    if waiting:
        _, waiting = await asyncio.wait(waiting, timeout=OTHERS_S)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return {url: None if each in waiting else each.result() for url, each in asking.items()}


def _judge(results: Mapping[str, ServerIdentity | Failure | None], patience_s: float) -> dict[str, ServerIdentity]:
    answers: dict[str, ServerIdentity] = {}
    for url, result in results.items():
        if isinstance(result, Failure) and result.reaction is Reaction.STOP:
            raise EndpointRefusedError(
                f"The endpoint {url} refuses: {_words(result)}. Check the connection's URL and key"
            )
        if result is not None and not isinstance(result, Failure):
            answers[url] = result
    if not answers:
        url, failure = next((url, result) for url, result in results.items() if isinstance(result, Failure))
        raise EndpointDownError(
            f"The endpoint {url} gave no answer for {duration(patience_s)}; last: {_words(failure)}. "
            "Nothing was sent; the next try asks again"
        )
    for url in results.keys() - answers.keys():
        log.warning("%s does not answer, and is left out until it does", url)
    return answers


async def _ask(
    settings: EndpointSettings, url: str, patience_s: float, redaction: Redaction
) -> ServerIdentity | Failure:
    def tell(state: RetryCallState) -> None:
        failure = state.outcome.result() if state.outcome else None
        log.warning("%s: %s. Trying again for up to %s", url, _words(failure), duration(patience_s))

    async def attempt(client: EndpointClient) -> ServerIdentity | Failure:
        return await client.identify()

    asking = AsyncRetrying(
        retry=retry_if_result(lambda result: isinstance(result, Failure) and result.reaction is not Reaction.STOP),
        wait=wait_exponential(multiplier=0.5, max=10) + wait_random(0, 0.5),
        stop=stop_after_delay(patience_s),
        before_sleep=tell,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    async with EndpointClient(settings, base_url=url, redaction=redaction) as client:
        result: ServerIdentity | Failure = await asking(attempt, client)
        return result


def _words(failure: Failure | None) -> str:
    return f"{failure.kind} ({failure.message})" if failure else "no answer"
