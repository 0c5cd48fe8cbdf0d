"""The two fidelities: ways to learn when a step's outcome is there.

`step` applies the recursion R once per step. On quiet streams that is a dot product; where something of an
earlier step is still under way it is the full pass. If two flows meet on a link, R's schedule is no
certificate: the clock raises `Crowded`, and the run is done again as `task`, which runs every task on
SimPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event

from simulator.graph.shape import FEATURE_COUNT, StepShape
from simulator.placement.lowering import Program
from simulator.simulation.engine import Launched, TaskEngine
from simulator.simulation.pricing import CATEGORIES, Durations, PricedTemplate
from simulator.simulation.recursion import Carried, Schedule, critical_path, schedule
from simulator.simulation.reduced import Reduced, reduce
from simulator.simulation.ticks import seconds
from simulator.specs.engine import Engine

Floats = NDArray[np.float64]


class Crowded(Exception):
    """Two flows met on a link, so that a cheap schedule cannot be trusted."""

    def __init__(self, link: str) -> None:
        super().__init__(link)
        self.link = link


@dataclass
class Use:
    """What all steps of one template amount to."""

    priced: PricedTemplate
    reduced: Reduced
    class_ticks: NDArray[np.int64]
    """Total duration of each price class, once for each of its tasks' kind."""
    features: NDArray[np.int64]
    """Sums of the shapes of each microbatch."""


@dataclass(frozen=True)
class Recorded:
    """One step whose tasks are kept one by one, for timelines and for replay."""

    step: int
    priced: PricedTemplate
    shapes: tuple[StepShape, ...]
    timed: Schedule


@dataclass
class PlanBook:
    """The priced templates of a program, made when first used, and how much each was used."""

    program: Program
    engine: Engine
    uses: dict[tuple[int, bool], Use] = field(default_factory=dict)
    warm: bool = False
    """Whether an earlier step has left fetched layers for the next one."""

    def next_use(self, shapes: Sequence[StepShape]) -> tuple[Use, Durations]:
        """Price a step that is about to be launched."""
        key = (len(shapes), self.warm)
        if key not in self.uses:
            template = self.program.template(*key)
            priced = PricedTemplate(template, self.program, self.engine)
            self.uses[key] = Use(priced, reduce(priced), np.zeros(priced.class_count, dtype=np.int64),
                                 np.zeros((len(shapes), FEATURE_COUNT), dtype=np.int64))  # fmt: skip
        streaming = self.program.placement.streaming
        self.warm = streaming is not None and streaming.across_steps
        use = self.uses[key]
        durations = use.priced.durations(shapes)
        use.class_ticks += durations.total
        use.features += np.array(shapes, dtype=np.int64)
        return use, durations


class Clock:
    """What both fidelities share: the plan book, and the recording of the first steps."""

    def __init__(self, env: Environment, book: PlanBook, record_steps: int) -> None:
        self.env, self.book, self.record_steps = env, book, record_steps
        self.step_count = 0
        self.recorded: list[Recorded] = []
        self.path_s: Floats = np.zeros(len(CATEGORIES))
        """Seconds of compute, memory, transfer and host on the last step's critical path."""

    def run(self, shapes: tuple[StepShape, ...]) -> Event:
        """Launch a step now; the event it returns comes with its outcome."""
        raise AssertionError("a fidelity runs steps")

    def _path_s(self, use: Use, durations: Durations, timed: Schedule) -> Floats:
        classes = use.priced.class_of_task[critical_path(use.priced.template, timed)]
        result: Floats = durations.split_s[classes].sum(axis=0)
        return result


class StepClock(Clock):
    """One event a step."""

    def __init__(self, env: Environment, book: PlanBook, record_steps: int = 0) -> None:
        super().__init__(env, book, record_steps)
        self._carried = Carried()
        self._drained_at = 0
        """When all that was launched so far has ended."""
        self._unapplied: tuple[Use, Durations, int] | None = None
        """The last step, if only its makespan was computed."""

    def run(self, shapes: tuple[StepShape, ...]) -> Event:
        now = int(self.env.now)
        use, durations = self.book.next_use(shapes)
        quiet = use.reduced.never_crowded and self._drained_at <= now
        if quiet and self.step_count >= self.record_steps:
            outcome = self._run_quiet(use, durations, now)
        else:
            outcome = self._run_in_full(use, durations, now, shapes)
        self.step_count += 1
        return self.env.timeout(outcome - now)

    def _run_quiet(self, use: Use, durations: Durations, now: int) -> int:
        ends = use.reduced.ends(durations.total)
        self.path_s = use.reduced.critical_counts(ends) @ durations.split_s
        self._drained_at = now + max(ends)
        self._unapplied = (use, durations, now)
        return now + ends[use.reduced.outcome]

    def _run_in_full(self, use: Use, durations: Durations, now: int, shapes: tuple[StepShape, ...]) -> int:
        if self._unapplied is not None:
            before, its_durations, launched = self._unapplied
            schedule(before.priced, its_durations, launched, self._carried)
            self._unapplied = None
        timed = schedule(use.priced, durations, now, self._carried)
        if timed.crowded_link is not None:
            raise Crowded(timed.crowded_link)
        self._drained_at = max(self._drained_at, *timed.ends)
        self.path_s = self._path_s(use, durations, timed)
        if self.step_count < self.record_steps:
            self.recorded.append(Recorded(self.step_count, use.priced, shapes, timed))
        return timed.ends[use.priced.template.outcome]


class TaskClock(Clock):
    """Every task an event."""

    def __init__(self, env: Environment, book: PlanBook, record_steps: int = 0) -> None:
        super().__init__(env, book, record_steps)
        self._engine = TaskEngine(env)

    def run(self, shapes: tuple[StepShape, ...]) -> Event:
        use, durations = self.book.next_use(shapes)
        launched = self._engine.launch(use.priced, durations)
        number = self.step_count
        self.step_count += 1

        def at_outcome(_: Event) -> None:
            self.path_s = self._path_s(use, durations, _so_far(launched))

        def at_end(_: Event) -> None:
            timed = Schedule(tuple(launched.starts), tuple(launched.ends), None)
            self.recorded.append(Recorded(number, use.priced, shapes, timed))

        assert launched.outcome.callbacks is not None and launched.all_ended.callbacks is not None
        launched.outcome.callbacks.append(at_outcome)
        if number < self.record_steps:
            launched.all_ended.callbacks.append(at_end)
        return launched.outcome


def _so_far(launched: Launched) -> Schedule:
    return Schedule(tuple(launched.starts), tuple(launched.ends), None)


def busy_seconds(book: PlanBook) -> dict[str, float]:
    """How long each stream was held by all steps together."""
    busy: dict[str, int] = {}
    for use in book.uses.values():
        for index, task in enumerate(use.priced.template.tasks):
            spent = int(use.class_ticks[use.priced.class_of_task[index]])
            for unit in task.units:
                busy[unit] = busy.get(unit, 0) + spent
    return {unit: seconds(spent) for unit, spent in busy.items()}


def link_totals(book: PlanBook) -> dict[str, int]:
    """Bytes over each directed link by all steps together."""
    carried: dict[str, int] = {}
    for use in book.uses.values():
        for task in use.priced.template.tasks:
            sums = use.features[task.microbatch].tolist()
            for link, amount in task.link_bytes:
                total = sum(a * b for a, b in zip(amount.coefficients, sums, strict=True) if a)
                carried[link] = carried.get(link, 0) + total
    return carried


def flops_total(book: PlanBook) -> float:
    """FLOPs under the causal mask of all steps together."""
    total = 0
    for use in book.uses.values():
        for task in use.priced.template.tasks:
            sums = use.features[task.microbatch].tolist()
            for work in task.works:
                total += sum(a * b for a, b in zip(work.flops.coefficients, sums, strict=True) if a)
    return float(total)
