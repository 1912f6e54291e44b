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
from airflow_llm_provider.core.progress import duration
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


PATIENCE_S = 300.0
"""How long a connection may be unreadable, or make no sense, before the task is told."""


class ReleaseTrigger(BaseTrigger):
    """Fires once, when batch may run or waiting makes no sense. The event's ``event`` says which.

    ``released``: it may; ``reason`` says why. It hands back `unknown_since` and `alerted` as they were given, for a
    task that cannot read what the triggerer can.
    ``unknown``: real-time's latency has been unreadable for the connection's ``unknown_alert_s``: ``since``, ``reason``
    ``error``: waiting on makes no sense, as where the DAG asks for more than the connection allows; ``reason``.
    ``lost``: the connection could not be read for `PATIENCE_S`; ``reason``.

    Args:
        vllm_conn_id: the connection; None where only a window is waited for.
        asked: what the DAG asked for (`core.terms.Asked.as_dict`).
        remaining_s: how long the rest of the run takes at the pace measured; None where nobody knows.
        recovering: real-time was not well when the task began to wait, so it must have been well for a while again.
        not_before: when the task may come back at the soonest, UTC ISO 8601: at the close before which nothing more
            fits, or when the endpoint may be there again; None: whenever it is released.
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
        not_before: str | None = None,
        unknown_since: str | None = None,
        alerted: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Airflow's has no types
        self.vllm_conn_id = vllm_conn_id
        self.asked = asked
        self.remaining_s = remaining_s
        self.recovering = recovering
        self.not_before = not_before
        self.unknown_since = unknown_since
        self.alerted = alerted
        self._watches: dict[str, LatencyWatch] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._unknown_before, self._alerted_before = unknown_since, alerted
        self._puzzled_since: datetime | None = None
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
                "not_before": self.not_before,
                "unknown_since": self.unknown_since,
                "alerted": self.alerted,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look every `POLL_S` seconds until there is something to tell."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            while True:
                event = await self._look()
                early_s = MINIMUM_S - (loop.time() - started_s)
                if event is not None and early_s <= 0:
                    break
                await asyncio.sleep(POLL_S if event is None else min(POLL_S, early_s))  # and look again: things change
            yield TriggerEvent(event)  # type: ignore[no-untyped-call] # Airflow's has no types
        finally:
            self._stop_watching()

    async def _look(self) -> dict[str, Any] | None:
        """The event to fire; None while there is none."""
        now = utc_now()
        try:
            settings = await self._settings()
            agreement = agree(
                Asked.from_dict(self.asked),
                settings.promise if settings else Promise(),
                connection=self.vllm_conn_id or "",
                now=now,
            )
        except Exception as error:  # noqa: BLE001 - a backend that is away, a connection that is just being edited
            return self._puzzled(error, now)
        self._puzzled_since = None
        urls = settings.base_urls if settings else ("",)
        decisions = [self._decide(agreement.terms, settings, url, now) for url in urls]
        released = next((each for each in decisions if isinstance(each, Release)), None)
        causes = {each.cause for each in decisions if isinstance(each, Hold)}
        if self._drained(now) and not causes & {Cause.SWITCH, Cause.WINDOW}:
            self._say(f"Waiting until {self.not_before}: to come back before would be of no use", about="drained")
            self._stop_watching()
            return None
        if released is not None:  # one server that may be sent requests is enough to go on
            self._say(f"Released: {released.reason}", about="released")
            carried = {"unknown_since": self._unknown_before, "alerted": self._alerted_before}
            return {"event": "released", "reason": released.reason, **carried}
        return self._waiting([each for each in decisions if isinstance(each, Hold)], settings, now)

    def _drained(self, now: datetime) -> bool:
        return self.not_before is not None and now < datetime.fromisoformat(self.not_before)

    def _puzzled(self, error: Exception, now: datetime) -> dict[str, Any] | None:
        """What cannot be read or makes no sense may do so in a moment; nothing is released meanwhile."""
        self._puzzled_since = self._puzzled_since or now
        if now - self._puzzled_since >= timedelta(seconds=PATIENCE_S):
            return {"event": "error" if isinstance(error, NoRetryError) else "lost", "reason": str(error)}
        self._say(f"Waiting, for up to {duration(PATIENCE_S)}: {error}", about=str(error))
        return None

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
            self.unknown_since, self.alerted = None, False  # nobody looks, so nobody misses anything
            self._unknown_before, self._alerted_before = None, False
            if hold.cause is Cause.WINDOW and hold.until is None:
                return {"event": "error", "reason": f"Batch can never run: {hold.reason}"}
            return None
        self._keep_watching(settings, settings.latency)
        return self._alert_due(settings.latency, reasons, now)

    def _alert_due(self, latency: LatencySettings, reasons: str, now: datetime) -> dict[str, Any] | None:
        """The event that tells of a latency that nobody can read; once, until it has been well for long enough."""
        standings = [watch.standing for watch in self._watches.values() if watch.standing is not None]
        if not standings:
            return None
        unreadable = [standing.unknown_since for standing in standings if standing.unknown_since is not None]
        if not unreadable:
            self.unknown_since, self.alerted = None, False
            return None
        if self.unknown_since is None:
            self.unknown_since = min(unreadable).isoformat()
        if self.alerted or now - datetime.fromisoformat(self.unknown_since) < timedelta(
            seconds=latency.unknown_alert_s
        ):
            return None
        return {
            "event": "unknown",
            "since": self.unknown_since,
            "reason": reasons,
            "remaining_s": self.remaining_s,
        }

    def _keep_watching(self, settings: EndpointSettings, latency: LatencySettings) -> None:
        """Watch real-time's latency on every server; anew where the connection says something else than before."""
        watches = self._watches.values()
        if watches and all(watch.settings == latency and watch.endpoint == settings for watch in watches):
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
