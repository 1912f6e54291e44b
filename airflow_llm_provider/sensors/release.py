"""`OffPeakWindowSensor` and `RealtimeSLOSensor`: the gates of batch work as tasks of their own.

Owns what each of them waits for. Does not own a rule of release: both ask `core.release`, through the same trigger as a
waiting `LLMBatchOperator`. Whoever uses that operator needs neither: it waits by itself.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.batch.watch import LatencyWatch
from airflow_llm_provider.core.release import Release, decide
from airflow_llm_provider.core.terms import Asked, Promise, agree
from airflow_llm_provider.core.window_text import parse_windows
from airflow_llm_provider.core.workload import Placement
from airflow_llm_provider.exceptions import ConfigurationError, NoRetryError, RetryLaterError
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException
from airflow_llm_provider.hooks.vllm import VLLMHook
from airflow_llm_provider.triggers.release import ReleaseTrigger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow.sdk import Context

    from airflow_llm_provider.core.objective import Standing
    from airflow_llm_provider.core.release import Hold
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

    def execute(self, context: Context) -> Any:
        """Wait in the triggerer, or poke.

        Raises:
            AirflowFailException: waiting makes no sense, as with a connection that holds a bad value.
            AirflowException: the connection is not there.
        """
        if not self.deferrable:
            super().execute(context)
        elif not self.poke(context):
            self._defer()

    def poke(self, context: Context) -> bool:
        """Look once.

        Raises:
            AirflowFailException: waiting makes no sense.
            AirflowException: the connection is not there.
        """
        del context
        with _shown():
            decisions = self._decisions()
        released = next((each for each in decisions if isinstance(each, Release)), None)
        if released is None:
            self.log.info("Waiting: %s", "; ".join(dict.fromkeys(each.reason for each in decisions)))
            return False
        self.log.info("Released: %s", released.reason)  # one server that may be sent requests is enough
        return True

    def resume(self, context: Context, event: dict[str, Any]) -> None:
        """Succeed when the trigger says so.

        Raises:
            AirflowFailException: waiting on makes no sense.
            AirflowException: nobody knows how real-time does, or what the connection says, for too long.
        """
        del context
        if event["event"] == "error":
            raise AirflowFailException(str(event["reason"]))
        if event["event"] == "lost":
            raise AirflowException(str(event["reason"]))
        if event["event"] == "unknown":
            raise _unknown(event["since"], event["reason"])
        self.log.info("Released: %s", event["reason"])

    def _asked(self) -> Asked:
        return Asked(placement=str(Placement.TIME_SHIFTED), window=self.window, gates=(self._gate,))

    def _settings(self) -> EndpointSettings | None:
        return None if self.vllm_conn_id is None else VLLMHook(self.vllm_conn_id).get_settings()

    def _decisions(self) -> list[Release | Hold]:
        """What the release brain says, for each server."""
        settings = self._settings()
        promise = settings.promise if settings else Promise()
        agreement = agree(self._asked(), promise, connection=self.vllm_conn_id or "", now=utc_now())
        standings = self._look(settings)
        now = utc_now()  # a look takes its time
        return [
            decide(now, agreement.terms, switch=promise.hold, standing=standing, running=False)
            for standing in standings
        ]

    def _look(self, settings: EndpointSettings | None) -> Sequence[Standing | None]:
        """How real-time does, on each server."""
        del settings
        return (None,)

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

    It is well where it is on any of the connection's servers. A latency that can't be read is not well, unless the
    connection's ``on_unknown`` is ``cap``. After ``unknown_alert_s`` of that, the sensor fails.

    Args:
        vllm_conn_id: the connection, which names the objective and where latency is read. Templated.
        deferrable: wait in the triggerer, where it holds no worker and no pool slot; else poke, each time for as long
            as one reading takes. How long real-time has been well is then as exact as ``poke_interval`` is short.
        **kwargs: as for any sensor; ``timeout`` counts here too.

    Raises:
        ConfigurationError: not deferrable, and ``mode`` is ``reschedule``.
    """

    _gate = "objective"

    def __init__(self, *, vllm_conn_id: str = VLLMHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(vllm_conn_id=vllm_conn_id, window=None, **kwargs)
        self._watches: dict[str, LatencyWatch] = {}
        if not self.deferrable and self.reschedule:
            raise ConfigurationError(
                f"RealtimeSLOSensor {self.task_id!r}: with mode='reschedule' each look is a process of its own, which "
                "knows nothing of those before, so healthy_for_s and unknown_alert_s could not be kept. Leave "
                "deferrable at True, which holds no worker while it waits, or write mode='poke'"
            )

    def execute(self, context: Context) -> Any:
        """See `_ReleaseSensor.execute`; a deferrable one does not look by itself, since a look takes its time."""
        if not self.deferrable:
            super().execute(context)
            return
        with _shown():
            self._checked(self._settings())
        self._defer()

    def poke(self, context: Context) -> bool:
        """See `_ReleaseSensor.poke`.

        Raises:
            AirflowException: also, where nobody knows how real-time does, for too long.
        """
        if super().poke(context):
            return True
        for_s = min((watch.settings.unknown_alert_s for watch in self._watches.values()), default=0.0)
        standings = [watch.standing for watch in self._watches.values() if watch.standing is not None]
        unknown = [(each.unknown_since, each.reason) for each in standings if each.unknown_since is not None]
        since = min((since for since, _ in unknown), default=None)
        if since is not None and utc_now() - since >= timedelta(seconds=for_s):
            raise _unknown(since.isoformat(), "; ".join(dict.fromkeys(reason for _, reason in unknown)))
        return False

    def _look(self, settings: EndpointSettings | None) -> Sequence[Standing | None]:
        endpoint = self._checked(settings)
        if endpoint.promise.hold is not None:
            self._watches = {}  # nobody looks, so nobody misses anything
            return (None,)
        return asyncio.run(self._look_at(endpoint))

    async def _look_at(self, endpoint: EndpointSettings) -> Sequence[Standing]:
        """Look at every server. The watches are kept from poke to poke, since being well must last."""
        if endpoint.latency is None:
            raise AssertionError
        if any(watch.endpoint != endpoint for watch in self._watches.values()):
            self._watches = {}
        self._watches = self._watches or {
            url: LatencyWatch(endpoint.latency, endpoint, base_url=url) for url in endpoint.base_urls
        }
        return await asyncio.gather(*(watch.look() for watch in self._watches.values()))

    def _checked(self, settings: EndpointSettings | None) -> EndpointSettings:
        if settings is None or settings.latency is None:
            raise ConfigurationError(
                f"Connection {self.vllm_conn_id!r} names no objective, so there is nothing to wait for. Set objective "
                "and latency_source on it, or leave the sensor out"
            )
        return settings


@contextmanager
def _shown() -> Iterator[None]:
    """Our errors as Airflow's, by whether another try makes sense."""
    try:
        yield
    except NoRetryError as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from None
    except RetryLaterError as error:
        raise AirflowException(f"{type(error).__name__}: {error}") from None


def _unknown(since: str, reason: str) -> AirflowException:
    return AirflowException(f"Nobody has known since {since} how real-time does: {reason}")
