"""A template reduced to what decides its makespan, for steps that start on quiet streams.

When nothing of earlier plans is under way at launch, R is a max-plus expression of the class prices
alone. Tasks with the same predecessors and the same price end together (the ranks of a tensor-parallel
stage do); a predecessor that precedes another one never decides; a chain is a count of classes. Most
templates reduce to one chain, so that pricing a step is a dot product; the result is R's to the tick. Several
steps are evaluated at once, as rows of arrays.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.simulation.flows import FULL
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
    peak_loads: Mapping[str, float]
    """For each link a bound on what all flows of one step take of it at any moment, whatever the
    durations."""
    trailing_links: frozenset[str]
    """Links that are crossed by tasks that the outcome does not wait for, or nobody for the outcome."""
    drains: bool
    """Whether everything has ended when the outcome has."""

    @cached_property
    def never_crowded(self) -> bool:
        """Whether no flow can be slowed by another of the same step."""
        return all(load <= 1.0 for load in self.peak_loads.values())

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Of each class in each segment."""
        return np.array([segment.counts for segment in self.segments], dtype=np.int64).T.copy()

    def ends(self, total: Ticks) -> list[int]:
        """Ticks after launch at which each segment ends, given each class's duration."""
        ends: list[int] = []
        for segment in self.segments:
            start = max((ends[index] for index in segment.before), default=0)
            ends.append(start + int(segment.counts @ total))
        return ends

    def ends_of_many(self, total: Ticks) -> Ticks:
        """As `ends` for several steps, given a row of durations for each: shape [step, segment]."""
        ends: Ticks = total @ self._counts
        for index, segment in enumerate(self.segments):
            if len(segment.before) == 1:
                ends[:, index] += ends[:, segment.before[0]]
            elif segment.before:
                ends[:, index] += ends[:, list(segment.before)].max(axis=1)
        return ends

    def critical_counts_of_many(self, ends: Ticks) -> NDArray[np.int64]:
        """As `critical_counts` for several steps: shape [step, class]."""
        first = self.segments[0].counts
        if len(self.segments) == 1:
            return np.broadcast_to(first, (len(ends), len(first)))
        counts: NDArray[np.int64] = np.zeros((len(self.segments), len(ends), len(first)), dtype=np.int64)
        rows = np.arange(len(ends))
        for index, segment in enumerate(self.segments):
            counts[index] = segment.counts
            if segment.before:
                by_node = np.array(sorted(segment.before, key=lambda i: -self.segments[i].last_node))
                decides = by_node[ends[:, by_node].argmax(axis=1)]
                counts[index] += counts[decides, rows]
        of_outcome: NDArray[np.int64] = counts[self.outcome]
        return of_outcome

    def critical_counts(self, ends: Sequence[int]) -> NDArray[np.int64]:
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


@dataclass(frozen=True)
class Merged:
    """Tasks that always end together as nodes, in an order in which predecessors come first."""

    node_of_task: tuple[int, ...]
    nodes: list[tuple[tuple[int, ...], int]]
    """For each node those that it waits for, but for predecessors of others, and its price class."""
    ancestors: list[int]
    """For each node a mask of all that precede it."""


def merge(priced: PricedTemplate, marks: Sequence[Hashable]) -> Merged:
    """Make tasks with the same predecessors, price and mark one."""
    template, classes = priced.template, priced.class_of_task.tolist()
    result = Merged((), [], [])
    canonical: list[int] = []
    known: dict[Hashable, int] = {}
    for index in range(len(template.tasks)):
        before = {canonical[i] for i in (*template.needs[index], *template.previous_on_units[index])}
        covered = 0
        for node in before:
            covered |= result.ancestors[node]
        deciding = tuple(sorted(node for node in before if not covered >> node & 1))
        key = (deciding, classes[index], marks[index])
        if key not in known:
            known[key] = len(result.nodes)
            result.nodes.append((deciding, classes[index]))
            result.ancestors.append(covered | sum(1 << node for node in deciding))
        canonical.append(known[key])
    return replace(result, node_of_task=tuple(canonical))


def reduce(priced: PricedTemplate) -> Reduced:
    """Reduce a template, as the module says."""
    merged = merge(priced, [None] * len(priced.template.tasks))
    canonical, ancestors = merged.node_of_task, merged.ancestors
    outcome = canonical[priced.template.outcome]
    segments, end_of = chains(merged.nodes, frozenset(), frozenset({outcome}), priced.class_count)
    before_outcome = ancestors[outcome] | 1 << outcome
    trailing = frozenset(
        link
        for node, links in zip(canonical, priced.links_of_task, strict=True)
        for link in links
        if priced.template.is_beside_steps or not before_outcome >> node & 1
    )
    drains = before_outcome == (1 << len(merged.nodes)) - 1
    peaks = _peak_loads(priced, canonical, ancestors, _descendants(merged.nodes))
    return Reduced(segments, end_of[outcome], canonical, peaks, trailing, drains)


def chains(
    nodes: list[tuple[tuple[int, ...], int]], first: frozenset[int], last: frozenset[int], class_count: int
) -> tuple[tuple[Segment, ...], dict[int, int]]:
    """Join each node to its predecessor where it is that one's only successor; but a segment begins with each
    node of `first` and ends with each of `last`. The segments, and that of each node."""
    successors = [0] * len(nodes)
    for before, _ in nodes:
        for node in before:
            successors[node] += 1
    segments: list[tuple[tuple[int, ...], NDArray[np.int64]]] = []
    segment_of: dict[int, int] = {}
    for node, (before, price_class) in enumerate(nodes):
        is_only = len(before) == 1 and successors[before[0]] == 1
        if is_only and node not in first and before[0] not in last:
            segment_of[node] = segment_of[before[0]]
        else:
            segment_of[node] = len(segments)
            starts_after = tuple(sorted({segment_of[i] for i in before}))
            segments.append((starts_after, np.zeros(class_count, dtype=np.int64)))
        segments[segment_of[node]][1][price_class] += 1
    last_node = {segment: node for node, segment in segment_of.items()}
    joined = (Segment(*segment, last_node[index]) for index, segment in enumerate(segments))
    return tuple(joined), segment_of


def _descendants(nodes: list[tuple[tuple[int, ...], int]]) -> list[int]:
    """For each node a mask of those that it precedes."""
    masks = [0] * len(nodes)
    for node in range(len(nodes) - 1, -1, -1):
        for before in nodes[node][0]:
            masks[before] |= masks[node] | 1 << node
    return masks


def _peak_loads(
    priced: PricedTemplate, canonical: Sequence[int], ancestors: list[int], descendants: list[int]
) -> dict[str, float]:
    """For each link the most that a flow and all that it is not ordered with can take of it together; a sum
    of two or more that does not surely fit counts as more than the link has."""
    flows: dict[str, dict[int, list[float]]] = {}
    for node, loads in zip(canonical, priced.most_loads, strict=True):
        for link, load in loads.items():
            flows.setdefault(link, {}).setdefault(node, []).append(load)
    peaks = {}
    for link, loads_of in flows.items():
        on_link = sum(1 << node for node in loads_of)
        peaks[link] = 0.0
        for node in loads_of:
            unordered = on_link & ~(ancestors[node] | descendants[node])
            together = [load for each in _members(unordered) for load in loads_of[each]]
            peaks[link] = max(peaks[link], sum(together) / (FULL if len(together) > 1 else 1.0))
    return peaks


def _members(mask: int) -> Iterator[int]:
    """The nodes of a mask."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
