"""The recursion R: when each task of a plan starts and ends, in one pass and without a search.

    finish = max(launch, finish of what it needs, finish of the previous task on each stream) + duration

It carries from plan to plan when each stream and each kept tensor becomes free. In R every flow has its lone
speed; the *certificate* tells whether that was true. If at every moment of R's schedule the loads of the
flows on each link fit on it, an event-by-event simulation with shared links ends every task at the same tick:
up to the first moment at which they do not both schedules are one, and there is none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.placement.plan import Template
from simulator.simulation.flows import fits
from simulator.simulation.pricing import Durations, PricedTemplate


@dataclass(frozen=True, slots=True)
class Span:
    """The time during which a flow holds its links. What it takes of them is worked out only where it
    matters: flows hardly ever overlap."""

    start: int
    end: int
    priced: PricedTemplate
    durations: Durations
    task: int

    def load(self, link: str) -> float:
        return self.priced.lone_flow(self.task, self.durations)[0].get(link, 0.0)


@dataclass
class Carried:
    """What one plan leaves to the next: the vector of the law."""

    free: dict[str, int] = field(default_factory=dict)
    """When each stream has finished all it was given."""
    ready: dict[str, int] = field(default_factory=dict)
    """When each kept tensor's latest version is there."""
    flows: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    """The flows over each link that may still be running."""

    def copy(self) -> Carried:
        """Of streams and tensors; flows matter to certificates only."""
        return Carried(dict(self.free), dict(self.ready))

    def forget_before(self, tick: int) -> None:
        """Drop flows that ended by `tick`; nothing launched later can meet them."""
        for link, spans in self.flows.items():
            self.flows[link] = [span for span in spans if span.end > tick]


@dataclass(frozen=True)
class Schedule:
    """Start and end of every task of a plan, in ticks."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    crowded_link: str | None
    """A link that could not give every flow its lone speed, so that the schedule is no certificate; None if
    there is none."""


def schedule(priced: PricedTemplate, durations: Durations, launch: int, carried: Carried) -> Schedule:
    """Apply R to one plan launched at `launch`, and bring `carried` up to date."""
    template = priced.template
    total, latency = durations.total.tolist(), priced.latency.tolist()
    classes = priced.class_of_task.tolist()
    carried.forget_before(launch)
    starts, ends = [], list[int]()
    crowded: str | None = None
    for index, task in enumerate(template.tasks):
        earliest = launch
        for unit in task.units:
            earliest = max(earliest, carried.free.get(unit, 0))
        for name in task.reads:
            if name in carried.ready:
                earliest = max(earliest, carried.ready[name])
        for need in template.needs[index]:
            earliest = max(earliest, ends[need])
        end = earliest + total[classes[index]]
        starts.append(earliest)
        ends.append(end)
        carried.free.update(dict.fromkeys(task.units, end))
        for tensor in task.writes:
            if tensor.kept:
                carried.ready[tensor.name] = end
        links = priced.links_of_task[index]
        if links:
            flow = Span(earliest + latency[classes[index]], end, priced, durations, index)
            for link in links:
                crowded = crowded or crowding(carried.flows[link], flow, link)
                carried.flows[link].append(flow)
    return Schedule(tuple(starts), tuple(ends), crowded)


def crowding(spans: Sequence[Span], flow: Span, link: str) -> str | None:
    """The link, if at some moment of `flow` the loads of all flows on it are more than it can carry."""
    near = [span for span in spans if span.start < flow.end and flow.start < span.end]
    if not near:
        return None
    loads = {id(span): span.load(link) for span in (*near, flow)}
    if fits(list(loads.values())):
        return None
    moments = {max(flow.start, span.start) for span in near}
    together = ([flow, *(span for span in near if span.start <= at < span.end)] for at in moments)
    return None if all(fits([loads[id(span)] for span in group]) for group in together) else link


def critical_path(template: Template, timed: Schedule, ranks: Sequence[int]) -> list[int]:
    """The chain of tasks, first to last, that decides when the outcome ends.

    Going back from the outcome, each task's predecessor is the one that ended last before it, of several
    the one with the largest of `ranks`; where a task waited for an earlier plan, the chain ends.
    """
    chain = [template.outcome]
    while True:
        index = chain[-1]
        before = (*template.needs[index], *template.previous_on_units[index])
        held_up_by = [i for i in before if timed.ends[i] == timed.starts[index]]
        if not held_up_by:
            return chain[::-1]
        chain.append(max(held_up_by, key=ranks.__getitem__))
