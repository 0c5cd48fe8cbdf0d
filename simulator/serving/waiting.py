"""Who waits for admission, in the order in which they are taken: by name, as engine profiles say."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping

from simulator.serving.sequences import Sequence

Rank = tuple[int, ...]


class Waiting(ABC):
    """A queue of sequences, and who of those admitted gives way first when KV blocks run out."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def add(self, sequence: Sequence) -> None:
        """A request has come."""

    @abstractmethod
    def put_back(self, sequence: Sequence) -> None:
        """A sequence was preempted, the later admitted before the earlier where several were."""

    @abstractmethod
    def first(self) -> Sequence:
        """Who is admitted next."""

    @abstractmethod
    def pop(self) -> Sequence:
        """Take out who is first."""

    @abstractmethod
    def remove(self, number: int) -> bool:
        """Take out the sequence of this number; False if it does not wait."""

    def victim(self, running: dict[int, Sequence]) -> Sequence:
        """Who is preempted first: the one admitted last, which `running` has last."""
        return next(reversed(running.values()))


class FirstComeFirstServed(Waiting):
    """In order of arrival; a preempted sequence goes to the head."""

    def __init__(self) -> None:
        self._queue: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sequence: Sequence) -> None:
        self._queue.append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        self._queue.appendleft(sequence)

    def first(self) -> Sequence:
        return self._queue[0]

    def pop(self) -> Sequence:
        return self._queue.popleft()

    def remove(self, number: int) -> bool:
        kept = [sequence for sequence in self._queue if sequence.number != number]
        is_found = len(kept) < len(self._queue)
        self._queue = deque(kept)
        return is_found


class Ranked(Waiting):
    """The lowest rank first; of equals the one that came first. A preempted sequence keeps its place."""

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, int, Sequence]] = []

    @staticmethod
    @abstractmethod
    def rank(sequence: Sequence) -> Rank: ...

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (self.rank(sequence), sequence.arrival, sequence))

    def put_back(self, sequence: Sequence) -> None:
        self.add(sequence)

    def first(self) -> Sequence:
        return self._heap[0][-1]

    def pop(self) -> Sequence:
        return heapq.heappop(self._heap)[-1]

    def remove(self, number: int) -> bool:
        kept = [entry for entry in self._heap if entry[-1].number != number]
        is_found = len(kept) < len(self._heap)
        self._heap = kept
        heapq.heapify(self._heap)
        return is_found


class ByPriority(Ranked):
    """The lowest number first, as vLLM's `priority` policy; the highest number, and of equals who came last,
    gives way first."""

    @staticmethod
    def rank(sequence: Sequence) -> Rank:
        return (sequence.priority,)

    def victim(self, running: dict[int, Sequence]) -> Sequence:
        return max(running.values(), key=lambda each: (each.priority, each.arrival))


class ShortestFirst(Ranked):
    """The fewest tokens to prefill first. Nobody knows how long an answer will be."""

    @staticmethod
    def rank(sequence: Sequence) -> Rank:
        return (sequence.goal,)


ORDERS: Mapping[str, Callable[[], Waiting]] = {
    "fcfs": FirstComeFirstServed,
    "priority": ByPriority,
    "shortest_first": ShortestFirst,
}
