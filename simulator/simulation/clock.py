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
from simulator.simulation.reduced import reduce
from simulator.simulation.ticks import Ticks, seconds
from simulator.specs.engine import Engine

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

KEPT_STEPS = 2048
FEWEST_AHEAD, MOST_AHEAD = 4, 64


class Crowded(Exception):
    """Two flows met on a link, so that a cheap schedule cannot be trusted."""

    def __init__(self, link: str) -> None:
        super().__init__(link)
        self.link = link


@dataclass(frozen=True, slots=True)
class _Kept:
    """Some steps of one template, waiting to be added up: rows of features, ticks and lone times."""

    features: Floats
    total: Ticks
    lone_s: Floats
    path: Counts
    """Tasks of each class on the path that decided the outcome."""
    active: int
    """Sequences that took part."""


class Use:
    """A priced template, and what all its steps amount to. Steps are kept until some thousands of them
    can be added up together, which costs a step next to nothing."""

    def __init__(self, priced: PricedTemplate) -> None:
        self.priced = priced
        self.reduced = reduce(priced)
        self.forecast = _Forecast(priced)
        self.class_ticks = np.zeros(priced.class_count, dtype=np.int64)
        self.features = np.zeros((priced.template.microbatch_count, FEATURE_COUNT), dtype=np.int64)
        self.time_s: Floats = np.zeros(len(CATEGORIES))
        self._kept: list[_Kept] = []
        self._kept_steps = 0

    def durations(self, shapes: tuple[StepShape, ...]) -> Durations:
        """Price a step, together with those that would follow it if it only decodes."""
        if len(shapes) == 1 and not shapes[0].prefill_tokens:
            return self.forecast.take(shapes[0])
        return self.priced.durations(shapes)

    def add(self, kept: _Kept) -> None:
        """Note some steps that were carried out."""
        self._kept.append(kept)
        self._kept_steps += len(kept.total)
        if self._kept_steps >= KEPT_STEPS:
            self.settle()

    def settle(self) -> None:
        """Add up what has been kept."""
        if not self._kept:
            return
        kept, counts = self._kept, [len(each.total) for each in self._kept]
        self._kept, self._kept_steps = [], 0
        features = np.concatenate([each.features for each in kept]).sum(axis=0)
        self.features += features.astype(np.int64).reshape(self.features.shape)
        self.class_ticks += np.concatenate([each.total for each in kept]).sum(axis=0)
        split_s = self.priced.split_s(np.concatenate([each.lone_s for each in kept]))
        weights = np.array([each.path * each.active for each in kept])
        self.time_s += np.einsum("sc,sck->k", np.repeat(weights, counts, axis=0), split_s)


class _Forecast:
    """Prices decode steps some at a time: the next step has, as a rule, the same sequences with one key
    more for each. As many are priced as came true of the last forecast, so that little is in vain."""

    def __init__(self, priced: PricedTemplate) -> None:
        self._priced = priced
        self._expected: StepShape | None = None
        self._came_true = 0
        """Steps since the sequences last changed."""
        self._next = 0
        self._features: Floats = np.zeros((0, FEATURE_COUNT))
        self._total: Ticks = np.zeros((0, 0), dtype=np.int64)
        self._lone_s: Floats = np.zeros((0, 0))

    def upcoming(self, shape: StepShape) -> tuple[Floats, Ticks, Floats]:
        """Features, ticks and lone times of a decode step and of those after it, at least one row."""
        goes_on = shape == self._expected
        if not goes_on or self._next == len(self._total):
            many = min(max(self._came_true, FEWEST_AHEAD), MOST_AHEAD)
            self._came_true = self._came_true if goes_on else 0
            growth = np.array(StepShape(one=0, decode_span=shape.decode_tokens), dtype=np.float64)
            self._features = np.array(shape, dtype=np.float64) + np.outer(np.arange(many), growth)
            self._total, self._lone_s = self._priced.durations_of_many(self._features)
            self._next, self._expected = 0, shape
        return self._features[self._next :], self._total[self._next :], self._lone_s[self._next :]

    def use(self, shape: StepShape, count: int) -> None:
        """Go on by `count` of the upcoming steps, the first of which has `shape`."""
        self._next += count
        self._came_true += count
        self._expected = shape._replace(decode_span=shape.decode_span + count * shape.decode_tokens)

    def take(self, shape: StepShape) -> Durations:
        """The price of a decode step."""
        _, total, lone_s = self.upcoming(shape)
        self.use(shape, 1)
        return Durations(total[0], lone_s[0])


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

    def use(self, microbatches: int) -> Use:
        """The use of the template that the next step with so many microbatches takes."""
        key = (microbatches, self.warm)
        if key not in self.uses:
            template = self.program.template(*key)
            self.uses[key] = Use(PricedTemplate(template, self.program, self.engine))
        return self.uses[key]

    def next_use(self, shapes: tuple[StepShape, ...]) -> tuple[Use, Durations]:
        """Price a step that is about to be launched."""
        use = self.use(len(shapes))
        streaming = self.program.placement.streaming
        self.warm = streaming is not None and streaming.across_steps
        return use, use.durations(shapes)

    def settled(self) -> Sequence[Use]:
        """Every template used, all its steps added up."""
        for use in self.uses.values():
            use.settle()
        return list(self.uses.values())


class Clock:
    """What both fidelities share: the plan book, and the recording of the first steps."""

    def __init__(self, env: Environment, book: PlanBook, record_steps: int) -> None:
        self.env, self.book, self.record_steps = env, book, record_steps
        self.step_count = 0
        self.recorded: list[Recorded] = []
        self._last: tuple[Use, tuple[StepShape, ...], Durations] | None = None
        self._path: Counts = np.zeros(0, dtype=np.int64)
        """Tasks of each class on the last step's critical path."""

    def run(self, shapes: tuple[StepShape, ...]) -> Event:
        """Launch a step now; the event it returns comes with its outcome."""
        raise AssertionError("a fidelity runs steps")

    def ends_ahead(self, shape: StepShape, most: int) -> list[int]:
        """When the next decode steps will have ended, of which the first has `shape`: those, of at most
        `most`, that may be carried out at once by `skip`. None where every step needs events."""
        return []

    def skip(self, shape: StepShape, ends: Sequence[int], active: int) -> None:
        """Carry out the first steps of `ends_ahead`; the next one is launched when the last has ended."""
        raise AssertionError("only what `ends_ahead` offers can be skipped")

    def charge(self, active: int) -> None:
        """Charge the last step's time to the `active` sequences that took part in it."""
        assert self._last is not None
        use, shapes, durations = self._last
        features = np.array(shapes, dtype=np.float64).reshape(1, -1)
        use.add(_Kept(features, durations.total[None], durations.lone_s[None], self._path, active))


def _path_counts(use: Use, timed: Schedule) -> Counts:
    classes = use.priced.class_of_task[critical_path(use.priced.template, timed, use.reduced.nodes)]
    return np.bincount(classes, minlength=use.priced.class_count)


class StepClock(Clock):
    """One event a step."""

    def __init__(self, env: Environment, book: PlanBook, record_steps: int = 0) -> None:
        super().__init__(env, book, record_steps)
        self._carried = Carried()
        self._drained_at = 0
        """When all that was launched so far has ended."""
        self._unapplied: tuple[Use, Durations, int] | None = None
        """The last step, if only its makespan was computed."""
        self._skipped_to = 0
        """Until when steps were carried out at once."""

    def ends_ahead(self, shape: StepShape, most: int) -> list[int]:
        """As many as are priced already, if the template is one chain, so that each step ends with its
        outcome and starts on quiet streams."""
        launch = max(int(self.env.now), self._skipped_to)
        use = self.book.use(1)
        is_chain = len(use.reduced.segments) == 1 and use.reduced.never_crowded
        if not is_chain or self._drained_at > launch or self.step_count < self.record_steps or most < 1:
            return []
        _, total, _ = use.forecast.upcoming(shape)
        makespans = total[:most] @ use.reduced.segments[0].counts
        ends: list[int] = (launch + np.cumsum(makespans)).tolist()
        return ends

    def skip(self, shape: StepShape, ends: Sequence[int], active: int) -> None:
        use, count = self.book.use(1), len(ends)
        features, total, lone_s = use.forecast.upcoming(shape)
        features, total, lone_s = features[:count], total[:count], lone_s[:count]
        path = use.reduced.segments[0].counts
        use.forecast.use(shape, count)
        use.add(_Kept(features, total, lone_s, path, active))
        self.step_count += count
        self._drained_at = self._skipped_to = ends[-1]
        last = Durations(total[-1], lone_s[-1])
        self._unapplied = (use, last, ends[-1] - int(total[-1] @ path))

    def run(self, shapes: tuple[StepShape, ...]) -> Event:
        now = max(int(self.env.now), self._skipped_to)
        use, durations = self.book.next_use(shapes)
        self._last = (use, shapes, durations)
        quiet = use.reduced.never_crowded and self._drained_at <= now
        if quiet and self.step_count >= self.record_steps:
            outcome = self._run_quiet(use, durations, now)
        else:
            outcome = self._run_in_full(use, durations, now, shapes)
        self.step_count += 1
        return self.env.timeout(outcome - int(self.env.now))

    def _run_quiet(self, use: Use, durations: Durations, now: int) -> int:
        ends = use.reduced.ends(durations.total)
        self._path = use.reduced.critical_counts(ends)
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
        self._path = _path_counts(use, timed)
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
        self._last = (use, shapes, durations)
        launched = self._engine.launch(use.priced, durations)
        number = self.step_count
        self.step_count += 1

        def at_outcome(_: Event) -> None:
            self._path = _path_counts(use, _so_far(launched))

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
    for use in book.settled():
        for index, task in enumerate(use.priced.template.tasks):
            spent = int(use.class_ticks[use.priced.class_of_task[index]])
            for unit in task.units:
                busy[unit] = busy.get(unit, 0) + spent
    return {unit: seconds(spent) for unit, spent in busy.items()}


def link_totals(book: PlanBook) -> dict[str, int]:
    """Bytes over each directed link by all steps together."""
    carried: dict[str, int] = {}
    for use in book.settled():
        for task in use.priced.template.tasks:
            sums = use.features[task.microbatch].tolist()
            for link, amount in task.link_bytes:
                total = sum(a * b for a, b in zip(amount.coefficients, sums, strict=True) if a)
                carried[link] = carried.get(link, 0) + total
    return carried


def flops_total(book: PlanBook) -> float:
    """FLOPs under the causal mask of all steps together."""
    total = 0
    for use in book.settled():
        for task in use.priced.template.tasks:
            sums = use.features[task.microbatch].tolist()
            for work in task.works:
                total += sum(a * b for a, b in zip(work.flops.coefficients, sums, strict=True) if a)
    return float(total)
