"""`ReleaseTrigger`: waits in the triggerer until batch may run.

Owns reading the connection anew at each look, so that a hold switch or a changed window is obeyed while a task waits,
and the log of what is waited for. Does not own a rule of release (`core.release`), nor what the waiting task does then.

Everything it is made of is plain and no secret: the connection is read where it runs. It keeps nothing else, so a
triggerer that is restarted, or loses it to another one, starts it again from the same arguments.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.batch.watch import LatencyWatch
from airflow_llm_provider.core.release import Cause, Hold, Release, decide
from airflow_llm_provider.core.terms import Asked, Promise, agree
from airflow_llm_provider.exceptions import NoRetryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from airflow_llm_provider.core.release import Terms
    from airflow_llm_provider.endpoint.settings import EndpointSettings, LatencySettings

POLL_S = 5.0
"""How often the connection is read and the release brain asked: a hold switch is obeyed within 10 s."""

MINIMUM_S = 15.0
"""A trigger never fires sooner: Airflow 3.3.2 marks tasks failed that come back within about 3 s of deferring."""


class ReleaseTrigger(BaseTrigger):
    """Fires once, when batch may run or waiting makes no sense. The event's ``event`` says which.

    ``released``: it may; ``reason`` says why.
    ``unknown``: real-time's latency has been unreadable for the connection's ``unknown_alert_s``: ``since``, ``reason``
    ``error``: waiting on makes no sense, as with a connection that is gone; ``reason``.

    Args:
        vllm_conn_id: the connection; None where only a window is waited for.
        asked: what the DAG asked for (`core.terms.Asked.as_dict`).
        remaining_s: how long the rest of the run takes at the pace measured; None where nobody knows.
        recovering: real-time was not well when the task began to wait, so it must have been well for a while again.
        unknown_since: since when latency has been unreadable, UTC ISO 8601; None where it was not.
        alerted: the alert about that has been raised already.
    """

    def __init__(
        self,
        *,
        vllm_conn_id: str | None,
        asked: dict[str, Any],
        remaining_s: float | None = None,
        recovering: bool = False,
        unknown_since: str | None = None,
        alerted: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Airflow's has no types
        self.vllm_conn_id = vllm_conn_id
        self.asked = asked
        self.remaining_s = remaining_s
        self.recovering = recovering
        self.unknown_since = unknown_since
        self.alerted = alerted
        self._watches: dict[str, LatencyWatch] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._said: object = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The arguments, as Airflow keeps them in its database."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "vllm_conn_id": self.vllm_conn_id,
                "asked": self.asked,
                "remaining_s": self.remaining_s,
                "recovering": self.recovering,
                "unknown_since": self.unknown_since,
                "alerted": self.alerted,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look every `POLL_S` seconds until there is something to tell."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            while (event := await self._look()) is None:  # noqa: ASYNC110 - what it waits for is the clock's and others'
                await asyncio.sleep(POLL_S)
            await asyncio.sleep(max(0.0, MINIMUM_S - (loop.time() - started_s)))
            yield TriggerEvent(event)  # type: ignore[no-untyped-call] # Airflow's has no types
        finally:
            self._stop_watching()

    async def _look(self) -> dict[str, Any] | None:
        """The event to fire; None while there is none."""
        try:
            settings = await self._settings()
            now = utc_now()
            agreement = agree(
                Asked.from_dict(self.asked),
                settings.promise if settings else Promise(),
                connection=self.vllm_conn_id or "",
                now=now,
            )
        except NoRetryError as error:
            return {"event": "error", "reason": str(error)}
        except Exception as error:  # noqa: BLE001 - Airflow's API or a secrets backend that is away for a moment
            self._say(
                f"The connection {self.vllm_conn_id!r} can't be read, so nothing is released: {error}", about=str(error)
            )
            return None
        urls = settings.base_urls if settings else ("",)
        decisions = [self._decide(agreement.terms, settings, url, now) for url in urls]
        released = next((each for each in decisions if isinstance(each, Release)), None)
        if released is not None:  # one server that may be sent requests is enough to go on
            self.log.info("Released: %s", released.reason)
            return {"event": "released", "reason": released.reason}
        return self._waiting([each for each in decisions if isinstance(each, Hold)], settings, now)

    def _decide(self, terms: Terms, settings: EndpointSettings | None, url: str, now: datetime) -> Release | Hold:
        watch = self._watches.get(url)
        return decide(
            now,
            terms,
            switch=settings.promise.hold if settings else None,
            standing=watch.standing if watch else None,
            running=False,
            remaining_s=self.remaining_s,
        )

    async def _settings(self) -> EndpointSettings | None:
        if self.vllm_conn_id is None:
            return None
        from airflow_llm_provider.hooks.vllm import VLLMHook  # noqa: PLC0415 - a triggerer parses many of us

        return await VLLMHook(self.vllm_conn_id).aget_settings()

    def _waiting(
        self, holds: Sequence[Hold], settings: EndpointSettings | None, now: datetime
    ) -> dict[str, Any] | None:
        """The event to fire though nothing is released; `holds` has one for each server."""
        hold = holds[0]
        until = f"; looking again at {hold.until:%Y-%m-%d %H:%M:%S} UTC at the latest" if hold.until else ""
        reasons = "; ".join(dict.fromkeys(each.reason for each in holds))
        self._say(f"Waiting: {reasons}{until}", about=[(each.cause, each.until) for each in holds])
        if hold.cause in (Cause.SWITCH, Cause.WINDOW) or settings is None or settings.latency is None:
            self._stop_watching()
            if hold.cause is Cause.WINDOW and hold.until is None:
                return {"event": "error", "reason": f"Batch can never run: {hold.reason}"}
            return None
        self._keep_watching(settings, settings.latency)
        causes = {each.cause for each in holds}
        if causes != {Cause.UNKNOWN}:
            if Cause.LOOKING not in causes:
                self.unknown_since = None
            return None
        since = datetime.fromisoformat(self.unknown_since) if self.unknown_since else now
        self.unknown_since = since.isoformat()
        if self.alerted or now - since < timedelta(seconds=settings.latency.unknown_alert_s):
            return None
        return {"event": "unknown", "since": self.unknown_since, "reason": reasons}

    def _keep_watching(self, settings: EndpointSettings, latency: LatencySettings) -> None:
        """Watch real-time's latency on every server; anew where the connection says something else than before."""
        same = self._watches.keys() == set(settings.base_urls) and all(
            watch.settings == latency for watch in self._watches.values()
        )
        for task in self._watching:
            if task.done() and not task.cancelled():
                self.log.error("Looking at real-time's latency failed and begins anew: %r", task.exception())
                same = False
        if same and self._watches:
            return
        self._stop_watching()
        self._watches = {
            url: LatencyWatch(latency, settings, base_url=url, recovering=self.recovering) for url in settings.base_urls
        }
        self._watching = [asyncio.create_task(watch.run()) for watch in self._watches.values()]

    def _stop_watching(self) -> None:
        for task in self._watching:
            task.cancel()
        self._watches, self._watching = {}, []

    def _say(self, text: str, *, about: object) -> None:
        if about != self._said:
            self._said = about
            self.log.info(text)
