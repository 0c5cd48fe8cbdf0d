"""Which serving loop a step of a timeline belongs to. Loops are told apart by the engine's thread that begins
their steps; those that take turns on the same devices are batches of one replica."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.results.records import Span


@dataclass(frozen=True)
class Loops:
    """The serving loops of recorded steps, in the order in which they begin."""

    thread_of: Mapping[int, str]
    """By step, the engine's thread."""
    replica_of: Mapping[str, int]
    """By thread, counted from 0."""
    batch_of: Mapping[str, int]
    """By thread, its place among the loops of its replica."""
    parts_of: Mapping[int, int]
    """By step, into how many parts its batch is cut; the number after the last one stands for all of it."""

    def steps_with(self, step: int) -> list[int]:
        """The steps of the same loop as a step, in order."""
        return sorted(other for other, thread in self.thread_of.items() if thread == self.thread_of[step])

    def are_one(self, step: int, other: int) -> bool:
        """Whether two steps are of the same loop."""
        return self.thread_of[step] == self.thread_of[other]

    def batch(self, step: int) -> int:
        return self.batch_of[self.thread_of[step]]

    def part(self, step: int, microbatch: int | None) -> int:
        """Which part of its step's batch a microbatch is; 0 where it is several or all."""
        return microbatch if microbatch is not None and microbatch < self.parts_of[step] else 0

    def name(self, step: int) -> str:
        """What tells a step's loop from the others; empty where there are none.

        >>> Loops({0: "a", 1: "b"}, {"a": 0, "b": 0}, {"a": 0, "b": 1}, {}).name(1)
        'batch 2'
        >>> Loops({0: "a", 1: "b"}, {"a": 0, "b": 1}, {"a": 0, "b": 0}, {}).name(1)
        'replica 2'
        """
        thread = self.thread_of[step]
        places = {"replica": self.replica_of, "batch": self.batch_of}
        told = {word: place[thread] + 1 for word, place in places.items() if any(place.values())}
        return ", ".join(f"{word} {number}" for word, number in told.items())


def loops_of(spans: Sequence[Span]) -> Loops:
    thread_of = _threads(spans)
    streams: dict[str, set[str]] = defaultdict(set)
    parts: dict[int, int] = defaultdict(int)
    for span in spans:
        if span.category != "host":
            streams[thread_of[span.step]].update(span.units)
        if span.operator == "gather":
            parts[span.step] = max(parts[span.step], span.microbatch + 1)
    replicas: list[list[str]] = []
    threads = dict.fromkeys(thread_of[step] for step in sorted(thread_of))
    for thread in sorted(threads, key=_is_between_loops):
        shares = (each for each in replicas if any(streams[thread] & streams[other] for other in each))
        found = next(shares, None)
        if found is None:
            replicas.append([thread])
        else:
            found.append(thread)
    return Loops(
        thread_of,
        {thread: number for number, threads in enumerate(replicas) for thread in threads},
        {thread: place for threads in replicas for place, thread in enumerate(threads)},
        parts,
    )


def _is_between_loops(thread: str) -> bool:
    """Whether it is told of sequences that one loop hands over to another."""
    return ".handover-" in thread


def _threads(spans: Sequence[Span]) -> dict[int, str]:
    """By step, the stream of what the host does first."""
    found: dict[int, str] = {}
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.category == "host" and span.units:
            found.setdefault(span.step, span.units[0])
    return {span.step: found.get(span.step, "") for span in spans}
