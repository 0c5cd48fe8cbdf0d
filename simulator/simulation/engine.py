"""Carries plans out task by task on SimPy: the reference for every quicker way to price a step.

A task starts when what it needs has ended, streams have reached it, and its plan has been launched. As
streams serve in program order, waiting for a stream is waiting for the task before on it; so a task's wait
is a count of other tasks, and an end is a look at who waited for it.

At one tick, ends come before the flows that start, so that a flow never shares a link with one that has
just ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from simpy import Environment, Event

from simulator.simulation.events import FLOWS, after
from simulator.simulation.flows import SharedLinks
from simulator.simulation.pricing import Durations, PricedTemplate


@dataclass(eq=False, slots=True)
class _Running:
    """A task of a launched plan."""

    launched: Launched
    index: int
    waits_for: int = 0
    ended: bool = False
    waiters: list[_Running] = field(default_factory=list)


@dataclass(eq=False)
class Launched:
    """A plan under way: when each task started and ended so far (-1: not yet), and its two events."""

    priced: PricedTemplate
    durations: Durations
    outcome: Event
    all_ended: Event
    starts: list[int]
    ends: list[int]
    left: int


class TaskEngine:
    """The streams and links of a machine, and the tasks on them."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.links = SharedLinks(env)
        self._last_on_unit: dict[str, _Running] = {}
        self._writer: dict[str, _Running] = {}

    def launch(self, priced: PricedTemplate, durations: Durations) -> Launched:
        """Launch a plan now; what it returns has an event for its outcome."""
        count = len(priced.template.tasks)
        launched = Launched(priced, durations, self.env.event(), self.env.event(), [-1] * count,
                            [-1] * count, count)  # fmt: skip
        tasks: list[_Running] = []
        for index, task in enumerate(priced.template.tasks):
            running = _Running(launched, index)
            before = {tasks[need] for need in priced.template.needs[index]}
            before.update(self._last_on_unit[unit] for unit in task.units if unit in self._last_on_unit)
            before.update(self._writer[name] for name in task.reads if name in self._writer)
            for other in before:
                if not other.ended:
                    other.waiters.append(running)
                    running.waits_for += 1
            tasks.append(running)
            self._last_on_unit.update(dict.fromkeys(task.units, running))
            for tensor in task.writes:
                if tensor.kept:
                    self._writer[tensor.name] = running
        for running in tasks:
            if running.waits_for == 0:
                self._start(running)
        return launched

    def _start(self, running: _Running) -> None:
        launched, index = running.launched, running.index
        launched.starts[index] = int(self.env.now)
        price_class = launched.priced.class_of_task[index]
        total = int(launched.durations.total[price_class])
        task = launched.priced.template.tasks[index]
        if not task.link_bytes:
            after(self.env, total, action=lambda: self._end(running))
            return
        latency = int(launched.priced.latency[price_class])
        loads, bytes_per_s = launched.priced.lone_flow(index, launched.durations)
        if not any(loads.values()):  # nothing to carry, as cached tokens of a first prefill
            after(self.env, total, action=lambda: self._end(running))
            return

        def flow() -> None:
            self.links.start(loads, total - latency, bytes_per_s, lambda: self._end(running))

        after(self.env, latency, FLOWS, flow)

    def _end(self, running: _Running) -> None:
        launched, index = running.launched, running.index
        running.ended = True
        launched.ends[index] = int(self.env.now)
        launched.left -= 1
        for waiter in running.waiters:
            waiter.waits_for -= 1
            if waiter.waits_for == 0:
                self._start(waiter)
        running.waiters.clear()
        if index == launched.priced.template.outcome:
            launched.outcome.succeed()
        if launched.left == 0:
            launched.all_ended.succeed()
