"""`OffPeakWindowSensor` and `RealtimeSLOSensor`: the gates of batch work as tasks of their own.

Owns what each of them waits for. Does not own a rule of release: both ask `core.release`, through the same trigger as a
waiting `LLMBatchOperator`. Whoever uses that operator needs neither: it waits by itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.batch.watch import LatencyWatch
from airflow_llm_provider.core.release import Hold, Terms, decide
from airflow_llm_provider.core.terms import Asked, Promise, agree
from airflow_llm_provider.core.window_text import parse_windows
from airflow_llm_provider.core.workload import Placement
from airflow_llm_provider.exceptions import ConfigurationError, NoRetryError
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException
from airflow_llm_provider.hooks.vllm import VLLMHook
from airflow_llm_provider.triggers.release import ReleaseTrigger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_llm_provider.core.objective import Standing
    from airflow_llm_provider.endpoint.settings import EndpointSettings


class _ReleaseSensor(BaseSensorOperator):
    """Waits until the release brain releases."""

    template_fields: Sequence[str] = ("vllm_conn_id",)
    _gate = ""

    def __init__(self, *, vllm_conn_id: str | None, window: str | None, deferrable: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vllm_conn_id = vllm_conn_id
        self.window = window
        self.deferrable = deferrable
        self._watch: LatencyWatch | None = None

    def execute(self, context: Context) -> Any:
        """Wait in the triggerer, or poke.

        Raises:
            AirflowFailException: waiting makes no sense, as without a connection.
        """
        if not self.deferrable:
            super().execute(context)
        elif not self.poke(context):
            self._defer()

    def poke(self, context: Context) -> bool:
        """Look once.

        Raises:
            AirflowFailException: waiting makes no sense.
        """
        del context
        try:
            decision = self._decide()
        except NoRetryError as error:
            raise AirflowFailException(f"{type(error).__name__}: {error}") from None
        if isinstance(decision, Hold):
            self.log.info("Waiting: %s", decision.reason)
            return False
        self.log.info("Released: %s", decision.reason)
        return True

    def resume(self, context: Context, event: dict[str, Any]) -> None:
        """Succeed when the trigger says so.

        Raises:
            AirflowFailException: waiting on makes no sense.
            AirflowException: nobody knows how real-time does, for too long.
        """
        del context
        if event["event"] == "error":
            raise AirflowFailException(str(event["reason"]))
        if event["event"] == "unknown":
            raise AirflowException(f"Nobody has known since {event['since']} how real-time does: {event['reason']}")
        self.log.info("Released: %s", event["reason"])

    def _asked(self) -> Asked:
        return Asked(placement=str(Placement.TIME_SHIFTED), window=self.window, gates=(self._gate,))

    def _settings(self) -> EndpointSettings | None:
        return None if self.vllm_conn_id is None else VLLMHook(self.vllm_conn_id).get_settings()

    def _decide(self) -> Any:
        settings = self._settings()
        promise = settings.promise if settings else Promise()
        now = utc_now()
        agreement = agree(self._asked(), promise, connection=self.vllm_conn_id or "", now=now)
        standing = self._look(settings, agreement.terms)
        return decide(now, agreement.terms, switch=promise.hold, standing=standing, running=False)

    def _look(self, settings: EndpointSettings | None, terms: Terms) -> Standing | None:
        del settings, terms
        return None

    def _defer(self) -> NoReturn:
        trigger = ReleaseTrigger(vllm_conn_id=self.vllm_conn_id, asked=self._asked().as_dict(), recovering=False)
        self.defer(trigger=trigger, method_name="resume", timeout=self.timeout)


class OffPeakWindowSensor(_ReleaseSensor):
    """Waits until batch may run by the clock: the window is open, and the connection's hold switch is off.

    Args:
        window: such as ``23:00-07:00 Europe/London mon-fri``; by default the connection's, else 23:00-07:00
            Europe/London.
        vllm_conn_id: a connection whose window and hold switch count; None: only `window` does. Templated.
        deferrable: wait in the triggerer, where it holds no worker and no pool slot; else poke.
        **kwargs: as for any sensor; ``timeout`` counts here too.
    """

    _gate = "window"

    def __init__(self, *, window: str | None = None, vllm_conn_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(vllm_conn_id=vllm_conn_id, window=window, **kwargs)
        if window is not None:
            parse_windows(window)


class RealtimeSLOSensor(_ReleaseSensor):
    """Waits until real-time is as well as it was promised to be, and the connection's hold switch is off.

    A latency that can't be read is not well. After ``unknown_alert_s`` of that, the sensor fails.

    Args:
        vllm_conn_id: the connection, which names the objective and where latency is read. Templated.
        deferrable: wait in the triggerer, where it holds no worker and no pool slot; else poke, each time for as long
            as one reading takes.
        **kwargs: as for any sensor; ``timeout`` counts here too.
    """

    _gate = "objective"

    def __init__(self, *, vllm_conn_id: str = VLLMHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(vllm_conn_id=vllm_conn_id, window=None, **kwargs)

    def execute(self, context: Context) -> Any:
        """See `_ReleaseSensor.execute`; a deferrable one does not look by itself, since a look takes its time."""
        if not self.deferrable:
            super().execute(context)
            return
        try:
            self._checked(self._settings())
        except NoRetryError as error:
            raise AirflowFailException(f"{type(error).__name__}: {error}") from None
        self._defer()

    def _look(self, settings: EndpointSettings | None, terms: Terms) -> Standing | None:
        del terms
        endpoint = self._checked(settings)
        if endpoint.latency is None:
            raise AssertionError
        if self._watch is None or self._watch.settings != endpoint.latency:
            self._watch = LatencyWatch(endpoint.latency, endpoint)  # kept from poke to poke: being well must last
        return asyncio.run(self._watch.look())

    def _checked(self, settings: EndpointSettings | None) -> EndpointSettings:
        if settings is None or settings.latency is None:
            raise ConfigurationError(
                f"Connection {self.vllm_conn_id!r} names no objective, so there is nothing to wait for. Set objective "
                "and latency_source on it, or leave the sensor out"
            )
        return settings
