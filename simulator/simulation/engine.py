"""Carries plans out task by task on SimPy: the reference for every quicker way to price a step.

A task starts when what it needs has ended, streams have reached it, and its plan has been launched. As
streams serve in program order, waiting for a stream is waiting for the task before on it; so a task's wait
is a count of other tasks, and an end is a look at who waited for it. Who waits for whom inside a plan is
the same for every plan of a template, and worked out once.

At one tick, ends come before the flows that start, so that a flow never shares a link with one that has
just ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from simpy import Environment, Event

from simulator.placement.plan import Template
from simulator.simulation.events import FLOWS, NORMAL
from simulator.simulation.flows import SharedLinks
from simulator.simulation.pricing import Durations, PricedTemplate
from simulator.simulation.recursion import Schedule

Callbacks = list[Callable[[Event], None]]


@dataclass(frozen=True, slots=True)
class Sheet:
    """What every launch of a template needs to know of it."""

    wait_counts: list[int]
    """For each task the number of earlier tasks of its plan that it waits for."""
    waiters: list[tuple[int, ...]]
    """For each task those of its plan that wait for it."""
    first_on_unit: tuple[tuple[str, int], ...]
    last_on_unit: tuple[tuple[str, int], ...]
    readers: dict[str, tuple[int, ...]]
    """Tasks that read something no earlier task of the plan has written, by its name."""
    kept: tuple[tuple[str, int], ...]
    """Kept tensors, each with the task that writes it last."""
    is_flow: list[bool]
    latency: list[int]

    @classmethod
    def of(cls, priced: PricedTemplate) -> Sheet:
        """Read a template once."""
        template = priced.template
        needs, on_units = template.needs, template.previous_on_units
        before = [{*a, *b} for a, b in zip(needs, on_units, strict=True)]
        waiters: list[list[int]] = [[] for _ in before]
        for index, earlier in enumerate(before):
            for other in sorted(earlier):
                waiters[other].append(index)
        last = {unit: index for index, task in enumerate(template.tasks) for unit in task.units}
        numbered = list(enumerate(template.tasks))
        first = {unit: index for index, task in reversed(numbered) for unit in task.units}
        kept = {tensor.name: i for i, task in numbered for tensor in task.writes if tensor.kept}
        return cls(
            [len(earlier) for earlier in before], [tuple(each) for each in waiters], tuple(first.items()),
            tuple(last.items()), _outside_readers(template), tuple(kept.items()),
            [bool(links) for links in priced.links_of_task],
            priced.latency[priced.class_of_task].tolist(),
        )  # fmt: skip


def _outside_readers(template: Template) -> dict[str, tuple[int, ...]]:
    readers: dict[str, list[int]] = {}
    written: set[str] = set()
    for index, task in enumerate(template.tasks):
        for name in task.reads:
            if name not in written:
                readers.setdefault(name, []).append(index)
        written.update(tensor.name for tensor in task.writes)
    return {name: tuple(indices) for name, indices in readers.items()}


@dataclass(eq=False, slots=True)
class Launched:
    """A plan under way: when each task started and ended so far (-1: not yet)."""

    priced: PricedTemplate
    durations: Durations
    sheet: Sheet
    number: int
    outcome: Event
    ticks: list[int]
    """The lone duration of each task."""
    waits: list[int]
    starts: list[int]
    ends: list[int]
    left: int
    """Tasks that have not ended."""
    when_all_ended: Callable[[Launched], None] | None
    later: dict[int, list[tuple[Launched, int]]] = field(default_factory=dict)
    """Tasks of later plans that wait for one of this."""

    def so_far(self) -> Schedule:
        return Schedule(tuple(self.starts), tuple(self.ends), None)


class TaskEvent(Event):
    """The end of a task that is no flow, or the end of a flow's latency."""

    _ok = True
    _value = None

    def __init__(self, callbacks: Callbacks, launched: Launched, index: int) -> None:
        self.callbacks = callbacks
        self.launched, self.index = launched, index


class TaskEngine:
    """The streams and links of a machine, and the tasks on them."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.links = SharedLinks(env)
        self.plans_under_way = 0
        self._sheets: dict[PricedTemplate, Sheet] = {}
        self._launch_count = 0
        self._last_on_unit: dict[str, tuple[Launched, int]] = {}
        self._writer: dict[str, tuple[Launched, int]] = {}
        self._at_end: Callbacks = [self._ended]
        self._after_latency: Callbacks = [self._flows]

    def launch(
        self, priced: PricedTemplate, durations: Durations, outcome: Event | None = None,
        when_all_ended: Callable[[Launched], None] | None = None,
    ) -> Launched:  # fmt: skip
        """Launch a plan now; `outcome`, or an event of its own, comes with its outcome."""
        launched = self._plan(priced, durations, outcome or self.env.event(), when_all_ended)
        self._join(launched)
        for index, waits in enumerate(launched.waits):
            if waits == 0:
                self._start(launched, index)
        return launched

    def adopt(
        self, priced: PricedTemplate, durations: Durations, timed: Schedule, outcome: Event,
        when_all_ended: Callable[[Launched], None] | None = None,
    ) -> Launched:  # fmt: skip
        """Take over a plan launched earlier, which until now has gone as `timed` says: all of its flows have
        had their lone speed. Plans are taken over in the order in which they were launched."""
        now = int(self.env.now)
        launched = self._plan(priced, durations, outcome, when_all_ended)
        for index, (start, end) in enumerate(zip(timed.starts, timed.ends, strict=True)):
            if start <= now:
                launched.starts[index] = start
            if end <= now:
                launched.ends[index] = end
                launched.left -= 1
                for waiter in launched.sheet.waiters[index]:
                    launched.waits[waiter] -= 1
        assert launched.left, "a plan that has ended needs nobody to take it over"
        self._join(launched)
        for index, (start, end) in enumerate(zip(timed.starts, timed.ends, strict=True)):
            if start <= now < end:
                assert launched.waits[index] == 0, "a task that runs waits for nobody"
                self._go_on(launched, index, start, end)
        return launched

    def _plan(
        self, priced: PricedTemplate, durations: Durations, outcome: Event,
        when_all_ended: Callable[[Launched], None] | None,
    ) -> Launched:  # fmt: skip
        if priced not in self._sheets:
            self._sheets[priced] = Sheet.of(priced)
        sheet, count = self._sheets[priced], len(priced.template.tasks)
        self._launch_count += 1
        self.plans_under_way += 1
        return Launched(
            priced, durations, sheet, self._launch_count, outcome,
            durations.total[priced.class_of_task].tolist(), sheet.wait_counts.copy(), [-1] * count,
            [-1] * count, count, when_all_ended,
        )  # fmt: skip

    def _join(self, launched: Launched) -> None:
        """Let the tasks of a plan wait for those of earlier plans, and be waited for by those of later
        ones."""
        sheet, before = launched.sheet, dict[tuple[int, int, int], tuple[Launched, int, int]]()
        for (earlier, other), readers in self._waited_for(sheet):
            for index in readers:
                if earlier.ends[other] < 0 and launched.starts[index] < 0:
                    before[earlier.number, other, index] = (earlier, other, index)
        for earlier, other, index in before.values():
            earlier.later.setdefault(other, []).append((launched, index))
            launched.waits[index] += 1
        self._last_on_unit.update((unit, (launched, index)) for unit, index in sheet.last_on_unit)
        self._writer.update((name, (launched, index)) for name, index in sheet.kept)

    def _waited_for(self, sheet: Sheet) -> Iterable[tuple[tuple[Launched, int], tuple[int, ...]]]:
        """Tasks of earlier plans that hold a stream or wrote a kept tensor last, each with who needs it."""
        for unit, index in sheet.first_on_unit:
            if unit in self._last_on_unit:
                yield self._last_on_unit[unit], (index,)
        for name in sorted(self._writer.keys() & sheet.readers.keys()):
            yield self._writer[name], sheet.readers[name]

    def _start(self, launched: Launched, index: int) -> None:
        launched.starts[index] = self.env.now  # type: ignore[assignment]
        if launched.sheet.is_flow[index]:
            event, delay = TaskEvent(self._after_latency, launched, index), launched.sheet.latency[index]
            self.env.schedule(event, FLOWS, delay)  # type: ignore[arg-type]
        else:
            event = TaskEvent(self._at_end, launched, index)
            self.env.schedule(event, NORMAL, launched.ticks[index])  # type: ignore[arg-type]

    def _go_on(self, launched: Launched, index: int, start: int, end: int) -> None:
        """Let a task go on that started at tick `start` and, if nobody slows it, ends at tick `end`."""
        now = int(self.env.now)
        flows_from = start + launched.sheet.latency[index]
        if not launched.sheet.is_flow[index]:
            event = TaskEvent(self._at_end, launched, index)
            self.env.schedule(event, NORMAL, end - now)  # type: ignore[arg-type]
        elif flows_from > now:
            event = TaskEvent(self._after_latency, launched, index)
            self.env.schedule(event, FLOWS, flows_from - now)  # type: ignore[arg-type]
        else:
            self._flow(launched, index, flows_from)

    def _flows(self, event: Event) -> None:
        assert isinstance(event, TaskEvent)
        self._flow(event.launched, event.index, int(self.env.now))

    def _flow(self, launched: Launched, index: int, since: int) -> None:
        loads, bytes_per_s = launched.priced.lone_flow(index, launched.durations)
        lone_ticks = launched.ticks[index] - launched.sheet.latency[index]
        done = partial(self._end, launched, index)
        self.links.start(loads, lone_ticks, bytes_per_s, done, (launched.number, index), since)

    def _ended(self, event: Event) -> None:
        self._end(event.launched, event.index)  # type: ignore[attr-defined]

    def _end(self, launched: Launched, index: int) -> None:
        launched.ends[index] = self.env.now  # type: ignore[assignment]
        waits = launched.waits
        for waiter in launched.sheet.waiters[index]:
            waits[waiter] -= 1
            if not waits[waiter]:
                self._start(launched, waiter)
        if launched.later and index in launched.later:
            for other, waiter in launched.later.pop(index):
                other.waits[waiter] -= 1
                if not other.waits[waiter]:
                    self._start(other, waiter)
        if index == launched.priced.template.outcome:
            launched.outcome.succeed()
        launched.left -= 1
        if not launched.left:
            self.plans_under_way -= 1
            if launched.when_all_ended is not None:
                launched.when_all_ended(launched)
