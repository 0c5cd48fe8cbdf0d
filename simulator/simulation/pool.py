"""Servers of one queue: the cores of a host, the two directions of its network port."""

from __future__ import annotations

import heapq


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
        start = max(ready, self._free_at[0])
        heapq.heapreplace(self._free_at, start + duration)
        self.busy += duration
        return start + duration
