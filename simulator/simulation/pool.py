"""Servers of one queue: the cores of a host, the two directions of its network port."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


class Pool:
    """Some equal servers that take jobs in the order in which they become ready.

    Jobs must be submitted in that order; then a job's end is known at once, without an event.
    """

    def __init__(self, servers: int) -> None:
        self._free_at = [0] * servers
        self.busy = 0
        """Ticks that servers have worked or are committed to."""

    def submit(self, ready: int, duration: int) -> int:
        """The tick at which a job of `duration` ticks ends that is ready at tick `ready`."""
        free = self._free_at[0]
        end = (ready if ready > free else free) + duration
        heapq.heapreplace(self._free_at, end)
        self.busy += duration
        return end

    def submit_many(self, ready: Sequence[int], duration: int) -> list[int]:
        """The ticks at which some jobs of equal duration end, given when each is ready."""
        free_at, replace, ends = self._free_at, heapq.heapreplace, []
        for each in ready:
            free = free_at[0]
            end = (each if each > free else free) + duration
            replace(free_at, end)
            ends.append(end)
        self.busy += duration * len(ready)
        return ends
