"""The priced templates of a program and how much each was used, added up over all steps of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.graph.shape import FEATURE_COUNT, StepShape
from simulator.placement.plan import Template, of_microbatch
from simulator.placement.program import Program
from simulator.simulation.pricing import PARTS, Durations, PricedTemplate
from simulator.simulation.reduced import reduce
from simulator.simulation.ticks import Ticks, seconds
from simulator.specs.engine import Engine

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

KEPT_STEPS = 2048
FEWEST_AHEAD, MOST_AHEAD = 24, 64
STEPS_AHEAD: Floats = np.arange(MOST_AHEAD, dtype=np.float64)[:, None]


@dataclass(frozen=True, slots=True)
class Kept:
    """Some steps of one template, waiting to be added up: rows of features, ticks and lone times."""

    features: Floats
    total: Ticks
    lone_s: Floats
    path: Counts
    """Tasks of each class on the path that decided the outcome, a row for each step."""
    active: int
    """Sequences that took part."""

    def __getitem__(self, rows: slice) -> Kept:
        return Kept(self.features[rows], self.total[rows], self.lone_s[rows], self.path[rows], self.active)


class Use:
    """A priced template, and what all its steps amount to. Steps are kept until some thousands of them
    can be added up together, which costs a step next to nothing."""

    def __init__(self, priced: PricedTemplate) -> None:
        self.priced = priced
        self.reduced = reduce(priced)
        self.forecast = Forecast(priced)
        self.class_ticks = np.zeros(priced.class_count, dtype=np.int64)
        self.features = np.zeros((priced.shape_count, FEATURE_COUNT), dtype=np.int64)
        self.time_s: Floats = np.zeros(len(PARTS))
        self._kept: list[Kept] = []
        self._kept_steps = 0

    def durations(self, shapes: tuple[StepShape, ...]) -> Durations:
        """Price a step, together with those that would follow it if it only decodes."""
        if not any(shape.prefill_tokens for shape in shapes):
            return self.forecast.take(shapes)
        return self.priced.durations(shapes)

    def add(self, kept: Kept) -> None:
        """Note some steps that were carried out. They are added up by so many, however they come, so that
        sums are the same to the last bit."""
        room = KEPT_STEPS - self._kept_steps
        if len(kept.total) > room:
            self.add(kept[:room])
            self.add(kept[room:])
            return
        self._kept.append(kept)
        self._kept_steps += len(kept.total)
        if self._kept_steps == KEPT_STEPS:
            self.settle()

    def settle(self) -> None:
        """Add up what has been kept."""
        if not self._kept:
            return
        kept = self._kept
        self._kept, self._kept_steps = [], 0
        features = np.concatenate([each.features for each in kept]).sum(axis=0)
        self.features += features.astype(np.int64).reshape(self.features.shape)
        self.class_ticks += np.concatenate([each.total for each in kept]).sum(axis=0)
        split_s = self.priced.split_s(np.concatenate([each.lone_s for each in kept]))
        weights = np.concatenate([each.path * each.active for each in kept])
        self.time_s += np.einsum("sc,sck->k", weights, split_s)


@dataclass(frozen=True, slots=True)
class Priced:
    """Some decode steps that follow each other: rows of features, ticks and lone times."""

    features: Floats
    total: Ticks
    lone_s: Floats

    def __getitem__(self, rows: slice) -> Priced:
        return Priced(self.features[rows], self.total[rows], self.lone_s[rows])


class Forecast:
    """Prices decode steps some at a time: the next step has, as a rule, the same sequences with one key
    more for each. As many are priced as came true of the last forecast, so that little is in vain."""

    def __init__(self, priced: PricedTemplate) -> None:
        self._priced = priced
        self._expected: tuple[StepShape, ...] = ()
        self._came_true = 0
        """Steps since the sequences last changed."""
        self._next = 0
        nothing: Floats = np.zeros((0, 0))
        self._rows = Priced(nothing, np.zeros((0, 0), dtype=np.int64), nothing)

    def upcoming(self, shapes: tuple[StepShape, ...]) -> Priced:
        """A decode step, given the shape of each of its microbatches, and those after it; at least one."""
        goes_on = shapes == self._expected
        if not goes_on or self._next == len(self._rows.total):
            many = min(max(self._came_true, FEWEST_AHEAD), MOST_AHEAD)
            self._came_true = self._came_true if goes_on else 0
            first = np.array(shapes, dtype=np.float64).ravel()
            grown = np.array([shape.grown(1) for shape in shapes], dtype=np.float64).ravel()
            features = first + STEPS_AHEAD[:many] * (grown - first)
            self._rows = Priced(features, *self._priced.durations_of_many(features))
            self._next, self._expected = 0, shapes
        return self._rows[self._next :]

    def use(self, shapes: tuple[StepShape, ...], count: int) -> None:
        """Go on by `count` of the upcoming steps, the first of which has `shapes`."""
        self._next += count
        self._came_true += count
        self._expected = tuple(shape.grown(count) for shape in shapes)

    def take(self, shapes: tuple[StepShape, ...]) -> Durations:
        """The price of a decode step."""
        rows = self.upcoming(shapes)
        self.use(shapes, 1)
        return Durations(rows.total[0], rows.lone_s[0])


@dataclass
class PlanBook:
    """The priced templates of a program, made when first used, and how much each was used."""

    program: Program
    engine: Engine
    moves: Mapping[str, Template] = field(default_factory=dict)
    """Plans besides steps, by name: those that move KV blocks."""
    uses: dict[tuple[int, bool] | str, Use] = field(default_factory=dict)
    warm: bool = False
    """Whether an earlier step has left fetched layers for the next one."""

    @cached_property
    def drafter(self) -> PlanBook | None:
        """The plans of what proposes tokens to the program."""
        drafter = self.program.drafter
        return None if drafter is None else PlanBook(drafter, self.engine)

    def use(self, microbatches: int) -> Use:
        """The use of the template that the next step with so many microbatches takes."""
        key = (microbatches, self.warm)
        if key not in self.uses:
            template = self.program.template(*key)
            self.uses[key] = Use(PricedTemplate(template, self.program, self.engine))
        return self.uses[key]

    def use_of_move(self, name: str) -> Use:
        """The use of one of the plans besides steps."""
        if name not in self.uses:
            self.uses[name] = Use(PricedTemplate(self.moves[name], self.program, self.engine))
        return self.uses[name]

    def use_of(self, shapes: tuple[StepShape, ...]) -> Use:
        """The use of the template that a step with these shapes takes; where ranks have sequences of their
        own, the last shape is that of all microbatches together."""
        return self.use(len(shapes) - self.program.placement.by_sequence)

    def next_use(self, shapes: tuple[StepShape, ...]) -> tuple[Use, Durations]:
        """Price a step that is about to be launched."""
        use = self.use_of(shapes)
        streaming = self.program.placement.streaming
        self.warm = streaming is not None and streaming.across_steps
        return use, use.durations(shapes)

    def settled(self) -> Sequence[Use]:
        """Every template used, all its steps added up."""
        for use in self.uses.values():
            use.settle()
        return [*self.uses.values(), *(self.drafter.settled() if self.drafter else ())]


def settled(books: Iterable[PlanBook]) -> Iterator[Use]:
    """Every template that was used, all its steps added up."""
    for book in books:
        yield from book.settled()


def busy_seconds(books: Iterable[PlanBook]) -> dict[str, float]:
    """How long each stream was held by all steps together."""
    busy: dict[str, int] = {}
    for use in settled(books):
        for index, task in enumerate(use.priced.template.tasks):
            spent = int(use.class_ticks[use.priced.class_of_task[index]])
            for unit in task.units:
                busy[unit] = busy.get(unit, 0) + spent
    return {unit: seconds(spent) for unit, spent in busy.items()}


def link_totals(books: Iterable[PlanBook]) -> dict[str, int]:
    """Bytes over each directed link by all steps together."""
    carried: dict[str, int] = {}
    for use in settled(books):
        rows = use.features.tolist()
        for task in use.priced.template.tasks:
            for link, amount in task.link_bytes:
                sums = of_microbatch(rows, task.microbatch, amount)
                total = sum(a * b for a, b in zip(amount.coefficients, sums, strict=True) if a)
                carried[link] = carried.get(link, 0) + total
    return carried


def flops_total(books: Iterable[PlanBook]) -> float:
    """FLOPs under the causal mask of all steps together."""
    total = 0
    for use in settled(books):
        for task in use.priced.template.tasks:
            sums = use.features[task.microbatch].tolist()
            for work in task.works:
                total += sum(a * b for a, b in zip(work.flops.coefficients, sums, strict=True) if a)
    return float(total)
