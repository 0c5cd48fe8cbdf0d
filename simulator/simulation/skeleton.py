"""A template reduced to what matters where earlier plans are still under way.

As in `reduced`, tasks become nodes and nodes chains; but whatever may have to wait for an earlier plan begins
a segment, whatever a later plan may wait for ends one, and so does every flow that may meet another. R on a
skeleton is R to the tick, at a fraction of its cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.simulation.pricing import Durations, PricedTemplate
from simulator.simulation.recursion import Carried, Span, crowding
from simulator.simulation.reduced import Merged, Reduced, chains, merge


@dataclass(frozen=True, slots=True)
class Bone:
    """A segment: a chain of tasks without a wait inside."""

    before: tuple[int, ...]
    units: tuple[str, ...]
    """Streams on which its first tasks follow those of earlier plans."""
    reads: tuple[str, ...]
    """What it reads that earlier plans may have written."""
    frees: tuple[str, ...]
    """Streams on which its last tasks are the plan's last."""
    keeps: tuple[str, ...]
    """Kept tensors that its last tasks write."""
    flows: tuple[int, ...]
    """Tasks that may meet other flows; it then holds nothing else."""
    rank: int
    """Of segments that end together before another, the one with the largest decides."""


@dataclass(frozen=True, slots=True)
class Passed:
    """When the segments of a plan start and end."""

    starts: list[int]
    ends: list[int]
    outcome_at: int
    crowded_link: str | None


@dataclass(frozen=True)
class Skeleton:
    """Segments in an order in which predecessors come first."""

    priced: PricedTemplate
    bones: tuple[Bone, ...]
    counts: NDArray[np.int64]
    """Tasks of each class in each segment."""
    outcome: int
    ranks: tuple[int, ...]
    """For each task its rank among those that may decide when another starts."""
    watched: frozenset[str]

    def schedule(self, durations: Durations, launch: int, carried: Carried) -> Passed:
        """Apply R to one plan, and bring `carried` up to date."""
        lengths = (self.counts @ durations.total).tolist()
        carried.forget_before(launch)
        starts, ends = self._held_up(launch, carried), list[int]()
        for index, bone in enumerate(self.bones):
            start = starts[index]
            for other in bone.before:
                if ends[other] > start:
                    start = ends[other]
            starts[index] = start
            ends.append(start + lengths[index])
        for bone, end in zip(self.bones, ends, strict=True):
            for unit in bone.frees:
                carried.free[unit] = end
            for name in bone.keeps:
                carried.ready[name] = end
        return Passed(starts, ends, ends[self.outcome], self._crowded(durations, starts, ends, carried))

    def _held_up(self, launch: int, carried: Carried) -> list[int]:
        """Until when the launch and earlier plans hold up each segment."""
        earliest = [launch] * len(self.bones)
        for index, bone in enumerate(self.bones):
            for unit in bone.units:
                at = carried.free.get(unit, 0)
                if at > earliest[index]:
                    earliest[index] = at
            for name in bone.reads:
                earliest[index] = max(earliest[index], carried.ready.get(name, 0))
        return earliest

    def _crowded(
        self, durations: Durations, starts: Sequence[int], ends: Sequence[int], carried: Carried
    ) -> str | None:
        crowded: str | None = None
        if not self.watched:
            return None
        classes, latency = self.priced.class_of_task, self.priced.latency
        for bone, start, end in zip(self.bones, starts, ends, strict=True):
            for task in bone.flows:
                flow = Span(start + int(latency[classes[task]]), end, self.priced, durations, task)
                for link in self.priced.links_of_task[task]:
                    if link in self.watched:
                        crowded = crowded or crowding(carried.flows[link], flow, link)
                        carried.flows[link].append(flow)
        return crowded

    def critical_counts(self, passed: Passed) -> NDArray[np.int64]:
        """How many tasks of each class lie on the path that decided the outcome."""
        counts: NDArray[np.int64] = np.zeros_like(self.counts[0])
        index: int | None = self.outcome
        while index is not None:
            counts += self.counts[index]
            held_up_by = [i for i in self.bones[index].before if passed.ends[i] == passed.starts[index]]
            index = max(held_up_by, key=lambda i: self.bones[i].rank, default=None)
        return counts


def skeleton(
    priced: PricedTemplate, reduced: Reduced, watched: frozenset[str], kept: frozenset[str]
) -> Skeleton:
    """Reduce a template. watched: the links on which flows may meet; kept: all that plans leave to later
    ones."""
    template = priced.template
    units, reads = _outside(priced, kept)
    flows = [bool(watched.intersection(links)) for links in priced.links_of_task]
    marks = list(zip(units, reads, flows, strict=True))
    merged = merge(priced, marks)
    last_on = {unit: index for index, task in enumerate(template.tasks) for unit in task.units}
    writer = {t.name: index for index, task in enumerate(template.tasks) for t in task.writes if t.kept}
    node = merged.node_of_task.__getitem__
    watched_nodes = {node(task) for task, is_watched in enumerate(flows) if is_watched}
    first = watched_nodes.union(node(task) for task, mark in enumerate(marks) if any(mark))
    last = watched_nodes.union(map(node, (template.outcome, *last_on.values(), *writer.values())))
    segments, segment_of = chains(merged.nodes, frozenset(first), frozenset(last), priced.class_count)
    members = _members(merged, segment_of, len(segments))
    ranks = _ranks(reduced, merged)
    bones = tuple(
        Bone(
            segment.before, _all(units[task] for task in tasks), _all(reads[task] for task in tasks),
            tuple(unit for unit, task in last_on.items() if task in tasks),
            tuple(name for name, task in writer.items() if task in tasks),
            tuple(task for task in sorted(tasks) if flows[task]), max(ranks[task] for task in tasks),
        )
        for segment, tasks in zip(segments, members, strict=True)
    )  # fmt: skip
    counts = np.array([segment.counts for segment in segments], dtype=np.int64)
    return Skeleton(priced, bones, counts, segment_of[node(template.outcome)], ranks, watched)


def _outside(
    priced: PricedTemplate, kept: frozenset[str]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """For each task the streams it is the first on, and what it reads of the kept tensors that no task before
    it writes."""
    held, written = set[str](), set[str]()
    units, reads = [], []
    for task in priced.template.tasks:
        units.append(tuple(unit for unit in task.units if unit not in held))
        reads.append(tuple(name for name in task.reads if name in kept and name not in written))
        held.update(task.units)
        written.update(tensor.name for tensor in task.writes)
    return units, reads


def _members(merged: Merged, segment_of: Mapping[int, int], count: int) -> list[set[int]]:
    """The tasks of each segment."""
    members: list[set[int]] = [set() for _ in range(count)]
    for task, node in enumerate(merged.node_of_task):
        members[segment_of[node]].add(task)
    return members


def _ranks(reduced: Reduced, merged: Merged) -> tuple[int, ...]:
    """By the node in the reduced template, as on quiet streams; among equals by the node here."""
    count = len(merged.nodes)
    return tuple(a * count + b for a, b in zip(reduced.nodes, merged.node_of_task, strict=True))


def _all(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for part in parts for each in part))
