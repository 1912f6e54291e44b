"""Looks at a server's load and has the run obey what its limit makes of it.

Owns when it is looked, and the log line where the limit changes. Does not own a control law (`core.limit`), nor what
the release brain allows (`gate`): the least of both is in force.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from airflow_llm_provider.core.circuit import State
from airflow_llm_provider.core.load import Load

if TYPE_CHECKING:
    from airflow_llm_provider.core.dispatch import Dispatcher
    from airflow_llm_provider.core.limit import Learnt, Verdict
    from airflow_llm_provider.core.retry import Failure
    from airflow_llm_provider.endpoint.load import LoadReader

log = logging.getLogger(__name__)

UNUSED_LOOK_S = 0.1
"""How often it is looked whether anything may be sent again; meanwhile no load is read."""

UNREAD_LOOKS = 3
"""So many in a row that read nothing are worth a warning."""

LOG_INTERVAL_S = 10.0
"""The limit may change many times a second: it is logged where it has moved since, and no more often."""

MOVED = 0.25
"""By such a share, or to or from nothing."""


QUEUES_S = 10.0
"""Where requests wait for so long on end while fewer run than there are said to be slots, there are fewer."""

SHORT_OF_MEMORY = 0.8
"""Share of the KV blocks in use: from there on it may be memory that they wait for."""


class Obeys(Protocol):
    """What the control does to the run, for one server."""

    def obey(self, verdict: Verdict) -> None:
        """Give up what is to be given up, and send what may be sent."""
        ...


class LimitControl:
    """Keeps one server's `Learnt` up to date.

    Args:
        learnt: what is learned; the dispatcher's.
        reader: reads the load.
        dispatcher: says what is in flight there, and whether anything may be.
        runner: obeys.
        name: the server's, for the log.
        slots: sequences that the server is said to run at once; None where nobody says.
    """

    def __init__(
        self,
        learnt: Learnt,
        reader: LoadReader,
        *,
        dispatcher: Dispatcher,
        runner: Obeys,
        name: str,
        slots: int | None = None,
    ) -> None:
        self._slots = slots
        """None, too, once it was said that they are too few."""
        self._learnt = learnt
        self._reader = reader
        self._dispatcher = dispatcher
        self._runner = runner
        self._name = name
        self._said_s = float("-inf")
        self._said: int | None = None
        self._unread = 0
        """Looks in a row that read nothing."""
        self._queues_s: float | None = None
        """Since when requests have waited at each look while fewer ran than there are slots."""
        self._said_too_many = False

    async def run(self) -> None:
        """Look and obey until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if self._dispatcher.held and not self._dispatcher.in_flight:
                self._learnt.rest()
                await asyncio.sleep(UNUSED_LOOK_S)
                continue
            answer = await self._reader.read()
            now = loop.time()
            load = answer if isinstance(answer, Load) else None
            dispatcher = self._dispatcher
            verdict = self._learnt.look(now, load, dispatcher.in_flight, needs=dispatcher.needs)
            self._note_unread(answer, verdict)
            if load is not None:
                self._note_slots(load)
                self._note_queue(load, now)
            self._say(verdict, now)
            self._runner.obey(verdict)
            await asyncio.sleep(verdict.look_in_s)

    def _note_unread(self, answer: Load | Failure | None, verdict: Verdict) -> None:
        """Say once that the load can't be read, and once that it can be again."""
        if isinstance(answer, Load):
            if self._unread >= UNREAD_LOOKS:
                log.info("The load of %s is read again", self._name)
            self._unread = 0
        elif self._unread < UNREAD_LOOKS and self._dispatcher.circuit.state is State.UP:  # else that is told already
            self._unread += 1
            if self._unread == UNREAD_LOOKS:
                why = answer.message if answer is not None else "its /metrics has no vllm:num_requests_running"
                log.warning(
                    "The load of %s can't be read, so at most %d are in flight there for now: %s. If a gateway stands "
                    "before the vLLM server, have it let /metrics through, or name the server itself as base URL",
                    self._name,
                    verdict.limit,
                    why,
                )

    def _note_slots(self, load: Load) -> None:
        """Say once that the server runs more than it is said to: batch would see it full while there is room."""
        if self._slots is None or load.running <= self._slots:
            return
        log.warning(
            "%s runs %d sequences at once, and its connection says slots = %d, so batch gets less than is free there, "
            "or nothing. Set slots to the server's --max-num-seqs, times --data-parallel-size where it has several "
            "engines",
            self._name,
            load.running,
            self._slots,
        )
        self._slots = None

    def _note_queue(self, load: Load, now: float) -> None:
        """Say once that the server runs fewer than it is said to: what batch takes beyond that stands in a queue."""
        memory = (load.kv_usage or 0.0) >= SHORT_OF_MEMORY
        if self._slots is None or not load.waiting or load.running >= self._slots or memory:
            self._queues_s = None
            return
        if self._queues_s is None:
            self._queues_s = now
        if self._said_too_many or now - self._queues_s < QUEUES_S:
            return
        self._said_too_many = True
        log.warning(
            "%s has had requests waiting for %.0f s, %d now, while %d run, and its connection says slots = %d, so "
            "batch may take places that are not there, and real-time waits. Compare slots with the server's "
            "--max-num-seqs; if they agree, prompts keep it busy: set a headroom",
            self._name,
            QUEUES_S,
            load.waiting,
            load.running,
            self._slots,
        )

    def _say(self, verdict: Verdict, now: float) -> None:
        before = self._said
        moved = before is None or (verdict.limit == 0) != (before == 0) or abs(verdict.limit - before) > MOVED * before
        if moved and now - self._said_s >= LOG_INTERVAL_S:
            self._said, self._said_s = verdict.limit, now
            log.info(
                "At most %d in flight on %s: %s", min(verdict.limit, self._dispatcher.limit), self._name, verdict.reason
            )
