"""Times between successive tokens at the client."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import sub

from simulator.results.summary import Summary
from simulator.simulation.ticks import seconds


class Gaps:
    """In ticks, each with how many sequences shared it."""

    def __init__(self) -> None:
        self.ticks, self.counts = array("q"), array("q")

    def add(self, ticks: int, count: int) -> None:
        """Some sequences have waited so long for a token."""
        self.ticks.append(ticks)
        self.counts.append(count)

    def add_between(self, first: int, later: Sequence[int], count: int) -> None:
        """Some sequences have received a token each at several ticks that follow each other."""
        self.ticks.extend(map(sub, later, (first, *later)))
        self.counts.extend([count] * len(later))


class SummedGaps(Gaps):
    """Of which only a summary is kept."""

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self._summary = summary

    def add(self, ticks: int, count: int) -> None:
        self._summary.itl_s.add(seconds(ticks), count)

    def add_between(self, first: int, later: Sequence[int], count: int) -> None:
        self._summary.itl_s.add_each(map(seconds, map(sub, later, (first, *later))), count)
