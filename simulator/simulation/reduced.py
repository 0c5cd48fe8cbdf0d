"""A template reduced to what decides its makespan, for steps that start on quiet streams.

When nothing of earlier plans is under way at launch, R is a max-plus expression of the class prices
alone. Tasks with the same predecessors and the same price end together (the ranks of a tensor-parallel
stage do); a predecessor that precedes another one never decides; a chain is a count of classes. Most
templates reduce to one chain, so that pricing a step is a dot product; the result is R's to the tick.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from simulator.placement.plan import Template
from simulator.simulation.pricing import PricedTemplate
from simulator.simulation.ticks import Ticks


@dataclass(frozen=True)
class Segment:
    """A chain of tasks that starts when its last predecessor ends."""

    before: tuple[int, ...]
    counts: NDArray[np.int64]
    """How many tasks of each price class it holds."""
    last_node: int
    """What it ends with; of segments that end together the one with the larger decides."""


@dataclass(frozen=True)
class Reduced:
    """Segments in topological order."""

    segments: tuple[Segment, ...]
    outcome: int
    """The segment whose end is the step's outcome."""
    nodes: tuple[int, ...]
    """The node of each task; tasks that always end together are one."""
    never_crowded: bool
    """No two flows on a common link can overlap, whatever the durations: one always precedes the other."""

    def ends(self, total: Ticks) -> list[int]:
        """Ticks after launch at which each segment ends, given each class's duration."""
        ends: list[int] = []
        for segment in self.segments:
            start = max((ends[index] for index in segment.before), default=0)
            ends.append(start + int(segment.counts @ total))
        return ends

    def critical_counts(self, ends: list[int]) -> NDArray[np.int64]:
        """How many tasks of each class lie on the path that decides the outcome."""
        if len(self.segments) == 1:
            return self.segments[0].counts
        counts = np.zeros_like(self.segments[0].counts)
        index: int | None = self.outcome
        while index is not None:
            segment = self.segments[index]
            counts += segment.counts
            index = max(segment.before, key=lambda i: (ends[i], self.segments[i].last_node), default=None)
        return counts


def reduce(priced: PricedTemplate) -> Reduced:
    """Reduce a template, as the module says."""
    template, classes = priced.template, priced.class_of_task.tolist()
    canonical: list[int] = []
    ancestors: list[int] = []
    nodes: list[tuple[tuple[int, ...], int]] = []
    known: dict[tuple[tuple[int, ...], int], int] = {}
    for index in range(len(template.tasks)):
        before = {canonical[i] for i in (*template.needs[index], *template.previous_on_units[index])}
        covered = 0
        for node in before:
            covered |= ancestors[node]
        deciding = tuple(sorted(node for node in before if not covered >> node & 1))
        key = (deciding, classes[index])
        if key not in known:
            known[key] = len(nodes)
            nodes.append(key)
            mask = covered
            for node in deciding:
                mask |= 1 << node
            ancestors.append(mask)
        canonical.append(known[key])
    segments, end_of = _chains(nodes, canonical[template.outcome], priced.class_count)
    crowdable = not _never_crowded(template, canonical, ancestors)
    return Reduced(segments, end_of[canonical[template.outcome]], tuple(canonical), not crowdable)


def _chains(
    nodes: list[tuple[tuple[int, ...], int]], outcome: int, class_count: int
) -> tuple[tuple[Segment, ...], dict[int, int]]:
    """Join each node to its predecessor where it is that one's only successor."""
    successors = [0] * len(nodes)
    for before, _ in nodes:
        for node in before:
            successors[node] += 1
    segments: list[tuple[tuple[int, ...], NDArray[np.int64]]] = []
    segment_of: dict[int, int] = {}
    for node, (before, price_class) in enumerate(nodes):
        joins = len(before) == 1 and successors[before[0]] == 1 and before[0] != outcome
        if joins:
            segment_of[node] = segment_of[before[0]]
        else:
            segment_of[node] = len(segments)
            starts_after = tuple(sorted({segment_of[i] for i in before}))
            segments.append((starts_after, np.zeros(class_count, dtype=np.int64)))
        segments[segment_of[node]][1][price_class] += 1
    last_node = {segment: node for node, segment in segment_of.items()}
    joined = (Segment(*segment, last_node[index]) for index, segment in enumerate(segments))
    return tuple(joined), segment_of


def _never_crowded(template: Template, canonical: list[int], ancestors: list[int]) -> bool:
    flows: dict[str, list[int]] = {}
    for index, task in enumerate(template.tasks):
        for link, _ in task.link_bytes:
            flows.setdefault(link, []).append(canonical[index])
    for nodes in flows.values():
        for a, b in combinations(nodes, 2):
            ordered = a != b and (ancestors[b] >> a & 1 or ancestors[a] >> b & 1)
            if not ordered:
                return False
    return True
