"""Sequences that wait for a slot, in the order of the engine's policy.

Owns the order. Does not know when one is taken (`simulator.engine`).
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from airflow_llm_provider.simulator.sequence import Sequence
    from airflow_llm_provider.simulator.spec import Policy


class WaitingQueue(Protocol):
    """Who is next."""

    def push(self, sequence: Sequence) -> None:
        """One that has arrived."""
        ...

    def push_preempted(self, sequence: Sequence) -> None:
        """One that ran before."""
        ...

    def peek(self) -> Sequence:
        """The next one. There must be one."""
        ...

    def pop(self) -> Sequence:
        """Take the next one. There must be one."""
        ...

    def discard(self, sequence: Sequence) -> None:
        """One that does not wait any longer. It must be here."""
        ...

    def __len__(self) -> int: ...


class ArrivalQueue:
    """First come, first served; preempted sequences go before all others."""

    def __init__(self) -> None:
        self._sequences: deque[Sequence] = deque()

    def push(self, sequence: Sequence) -> None:
        """To the end."""
        self._sequences.append(sequence)

    def push_preempted(self, sequence: Sequence) -> None:
        """To the front."""
        self._sequences.appendleft(sequence)

    def peek(self) -> Sequence:
        """The front."""
        return self._sequences[0]

    def pop(self) -> Sequence:
        """The front."""
        return self._sequences.popleft()

    def discard(self, sequence: Sequence) -> None:
        """Wherever it stands."""
        self._sequences.remove(sequence)

    def __len__(self) -> int:
        return len(self._sequences)


class PriorityQueue:
    """Lower priorities first, then by arrival. Having been preempted changes nothing, as in vLLM."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Sequence]] = []

    def push(self, sequence: Sequence) -> None:
        """To its place."""
        heapq.heappush(self._heap, (*sequence.rank, sequence))

    push_preempted = push

    def peek(self) -> Sequence:
        """The most urgent."""
        return self._heap[0][-1]

    def pop(self) -> Sequence:
        """The most urgent."""
        return heapq.heappop(self._heap)[-1]

    def discard(self, sequence: Sequence) -> None:
        """Wherever it stands."""
        self._heap.remove((*sequence.rank, sequence))
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)


def waiting_queue(policy: Policy) -> WaitingQueue:
    """The queue of a policy."""
    return PriorityQueue() if policy == "priority" else ArrivalQueue()
