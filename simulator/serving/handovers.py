"""Sequences on their way from loops that prefill to loops that decode: who waits for room, and whose blocks
are being copied. Who carries hand-overs out says when one is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from simulator.graph.shape import Chunk
from simulator.serving.actions import Handover
from simulator.serving.scheduler import Scheduler


class Handovers:
    """Each decode loop takes those that were sent to it in the order in which they came; nobody overtakes."""

    def __init__(self, sources: Mapping[int, Scheduler], targets: Mapping[int, Scheduler]) -> None:
        """The schedulers of the loops that prefill, and of those that decode, by their loops' numbers."""
        self._sources, self._targets = sources, targets
        self._waiting: dict[int, deque[int]] = {target: deque() for target in targets}
        self._source_of: dict[int, int] = {}
        """Of those that wait."""
        self._under_way: dict[int, Handover] = {}

    @property
    def waiting_count(self) -> int:
        """Sequences for which no decode loop has had room yet."""
        return len(self._source_of)

    def load(self, target: int) -> int:
        """Sequences on their way to a loop."""
        on_their_way = (handover.target for handover in self._under_way.values())
        return len(self._waiting[target]) + sum(each == target for each in on_their_way)

    def add(self, number: int, source: int, target: int) -> None:
        """A sequence has departed from a loop, and is to go on in another."""
        self._source_of[number] = source
        self._waiting[target].append(number)

    def begin(self) -> Iterator[Handover]:
        """Those for which there is room now, loop by loop; each is under way from then on."""
        for target, waiting in self._waiting.items():
            while waiting:
                departed = self._sources[self._source_of[waiting[0]]].departed(waiting[0])
                blocks = self._targets[target].reserve(departed)
                if blocks is None:
                    break
                number = waiting.popleft()
                chunk = Chunk(number, departed.cached, 0, False, tuple(departed.blocks), blocks)
                handover = Handover(self._source_of.pop(number), target, chunk)
                self._under_way[number] = handover
                yield handover

    def complete(self, handover: Handover) -> None:
        """All is copied: the source has its blocks back, and the sequence may be started in the target."""
        number = handover.chunk.sequence
        del self._under_way[number]
        self._sources[handover.source].release(number)

    def abort(self, number: int) -> int | None:
        """Forget a sequence that waits, and free its blocks; the loop that had them. None if it does not
        wait: a copy that is under way is carried through."""
        source = self._source_of.pop(number, None)
        if source is None:
            return None
        for waiting in self._waiting.values():
            if number in waiting:
                waiting.remove(number)
        self._sources[source].release(number)
        return source
