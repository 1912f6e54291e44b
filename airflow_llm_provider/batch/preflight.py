"""Before the first request: is the endpoint there, does it take our key, does it serve the model?

Owns the short patience at the start. Does not send rows.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_delay
from tenacity.wait import wait_exponential, wait_random

from airflow_llm_provider.core.progress import duration
from airflow_llm_provider.core.retry import Failure, Reaction
from airflow_llm_provider.endpoint.client import EndpointClient
from airflow_llm_provider.exceptions import EndpointDownError, EndpointRefusedError, RunStoppedError

if TYPE_CHECKING:
    from airflow_llm_provider.batch.stop import StopSwitch
    from airflow_llm_provider.endpoint.identity import ServerIdentity
    from airflow_llm_provider.endpoint.settings import EndpointSettings

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a try waits at its start. Shorter than within a run: a wrong address should show soon."""


async def identify(settings: EndpointSettings, stop: StopSwitch, *, patience_s: float = PATIENCE_S) -> ServerIdentity:
    """Who answers at the endpoint, waiting a little where nobody does.

    Raises:
        EndpointRefusedError: it answers and refuses.
        EndpointDownError: nobody answers for `patience_s`.
        RunStoppedError: `stop` was set meanwhile.
    """
    url = settings.base_urls[0]

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
    async with EndpointClient(settings, base_url=url) as client:
        work: asyncio.Future[ServerIdentity | Failure] = asyncio.ensure_future(asking(attempt, client))

        def cancel(_reason: str) -> None:
            work.cancel()

        stop.attach(asyncio.get_running_loop(), cancel)
        try:
            result = await work
        except asyncio.CancelledError:
            raise RunStoppedError(f"{stop.reason}: nothing was sent yet") from None
        finally:
            stop.detach()
    if not isinstance(result, Failure):
        return result
    if result.reaction is Reaction.STOP:
        raise EndpointRefusedError(f"The endpoint {url} refuses: {_words(result)}. Check the connection's URL and key")
    raise EndpointDownError(
        f"The endpoint {url} gave no answer for {duration(patience_s)}; last: {_words(result)}. "
        "Nothing was sent; the next try asks again"
    )


def _words(failure: Failure | None) -> str:
    return f"{failure.kind} ({failure.message})" if failure else "no answer"
