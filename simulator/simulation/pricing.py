"""Prices a template: from the shape of a step to the duration of each task.

The tasks of a template have few distinct prices (a layer costs what the layer before costs), so tasks are
grouped into price classes once, and a step is priced by a `PriceMatrix`. Classes are ordered: kernels, then
flows, then the work of the engine's thread. The forms themselves are `task_prices`'.

Of a step that only decodes, what its sequences' keys do not enter depends on nothing but how many sequences
there are. It is priced once for each number and remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from simulator.costs.operators import TINY_S
from simulator.errors import SimulatorError
from simulator.graph.shape import FEATURE_COUNT, GROWING, StepShape
from simulator.placement.plan import Template
from simulator.placement.program import Program
from simulator.simulation.price_matrix import PriceMatrix
from simulator.simulation.task_prices import STRAIGHT, Price, Pricer
from simulator.simulation.ticks import LONGEST_STEP_S, TICKS_PER_S, Ticks, tick, ticks
from simulator.specs.engine import Engine
from simulator.units import format_seconds

Floats = NDArray[np.float64]

MOST_REMEMBERED = 1024
"""Prices of steps that differ in more than keys; with microbatches there is no end of them."""


@dataclass(eq=False, slots=True)
class Durations:
    """The price of each class for one step."""

    total: Ticks
    lone_s: Floats
    """The linear forms: arithmetic, memory and least time of each kernel, each load, each host form, each
    bus."""
    shares: dict[int, tuple[list[float], float]] = field(default_factory=dict)
    """By class, what a lone flow of it takes of its links, and its bytes/s; worked out when asked for."""


class PricedTemplate:
    """A template on a machine with its profiles: `durations` of a step's shape."""

    def __init__(self, template: Template, program: Program, engine: Engine) -> None:
        self.template = template
        pricer = Pricer(program, engine)
        prices = [pricer.price(task) for task in template.tasks]
        self.links_of_task = tuple(pricer.links_crossed(task) for task in template.tasks)
        """For each task the links it flows over; none for one that is no flow."""
        self._prices = sorted(dict.fromkeys(prices), key=lambda price: price.rank)
        number = {price: index for index, price in enumerate(self._prices)}
        self.class_of_task: NDArray[np.intp] = np.array([number[price] for price in prices], dtype=np.intp)
        self.class_count = len(self._prices)
        self.shape_count = template.microbatch_count + template.joint
        self._matrix = PriceMatrix(self._prices, self.shape_count)
        self._load_s_per_byte = np.array([load.s_per_unit for price in self._prices for load in price.loads])
        self._load_slices = _slices([len(price.loads) for price in self._prices])
        self._bus_slices = _slices([len(price.bus) for price in self._prices])
        latency_s = np.array([price.latency_s for price in self._prices])
        self.latency: Ticks = np.array([tick(s) for s in latency_s], dtype=np.int64)
        self._tasks_of_class = np.bincount(self.class_of_task, minlength=self.class_count).astype(np.float64)
        self._longest_s = LONGEST_STEP_S - float(latency_s @ self._tasks_of_class)
        """What the rest of all tasks may come to."""
        self._lay_out_growing()

    def _lay_out_growing(self) -> None:
        """Set apart the classes that depend on the keys of sequences that decode."""
        growing = [FEATURE_COUNT * shape + at for shape in range(self.shape_count) for at in GROWING]
        self._steady = np.delete(np.arange(FEATURE_COUNT * self.shape_count), growing)
        """Features that stay as they are when all sequences go on decoding."""
        self._growing = self._matrix.classes_that_depend_on(growing)
        self._growing_forms = np.flatnonzero(np.isin(self._matrix.class_of_form, self._growing))
        self._tasks_of_growing = self._tasks_of_class[self._growing]
        self._latency_of_growing = self.latency[self._growing]
        self._growing_matrix = PriceMatrix([self._prices[at] for at in self._growing], self.shape_count)
        self._remembered: dict[bytes, tuple[Ticks, Floats, float]] = {}
        """By the steady features the price of a step, and seconds of all its tasks that do not grow."""

    def durations(self, shapes: Sequence[StepShape]) -> Durations:
        """Price every class for a step with the given shape of each microbatch."""
        total, lone_s = self.durations_of_many(np.array(shapes, dtype=np.float64).reshape(1, -1))
        return Durations(total[0], lone_s[0])

    def durations_of_many(self, features: Floats) -> tuple[Ticks, Floats]:
        """Price several steps at once: a row of `features` holds the shapes of a step's microbatches. Raises
        SimulatorError if a step is too long to count."""
        lone_s = self._matrix.lone_s(features)
        own_s = self._matrix.own_s(lone_s)
        _check_length(own_s @ self._tasks_of_class, self._longest_s)
        total = ticks(own_s)
        total += self.latency
        return total, lone_s

    def durations_of_decoding(self, features: Floats) -> tuple[Ticks, Floats]:
        """The same of steps in which the same sequences decode, each with a key more in each step; the last
        is the longest but for details."""
        first_total, first_lone_s, steady_s = self._remember(features[:1])
        growing_s = self._growing_matrix.lone_s(features)
        own_s = self._growing_matrix.own_s(growing_s)
        _check_length(own_s[-1:] @ self._tasks_of_growing, self._longest_s - steady_s)
        of_growing = ticks(own_s)
        of_growing += self._latency_of_growing
        total = np.empty((len(features), self.class_count), dtype=np.int64)
        total[:] = first_total
        total[:, self._growing] = of_growing
        lone_s = np.empty((len(features), first_lone_s.shape[1]))
        lone_s[:] = first_lone_s
        lone_s[:, self._growing_forms] = growing_s
        return total, lone_s

    def _remember(self, features: Floats) -> tuple[Ticks, Floats, float]:
        """What is remembered of the steps that differ from one in keys only."""
        key = features.take(self._steady, axis=1).tobytes()
        found = self._remembered.get(key)
        if found is None:
            total, lone_s = self.durations_of_many(features)
            steady = total[0] * self._tasks_of_class
            steady_s = float(np.delete(steady, self._growing).sum()) / TICKS_PER_S
            if len(self._remembered) == MOST_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = total, lone_s, steady_s
        return found

    def lone_flow(self, index: int, durations: Durations) -> tuple[dict[str, float], float]:
        """For each link that task `index` crosses the share of it taken up when it flows alone, and the
        bytes/s it then moves over the link that carries most; a link without bytes is left out."""
        price_class = int(self.class_of_task[index])
        if price_class not in durations.shares:
            durations.shares[price_class] = self._lone_shares(price_class, durations)
        loads, bytes_per_s = durations.shares[price_class]
        crossed = zip(self.links_of_task[index], loads, strict=True)
        return {link: load for link, load in crossed if load > 0}, bytes_per_s

    def _lone_shares(self, price_class: int, durations: Durations) -> tuple[list[float], float]:
        price = self._prices[price_class]
        if price.bus:
            bus_s = durations.lone_s[self._matrix.bus][self._bus_slices[price_class]]
            alone_s = max(float(bus_s[0]), TINY_S)
            share = min(1.0, alone_s / (int(durations.total[price_class]) / TICKS_PER_S))
            return [share], share / price.bus[0].s_per_unit
        rows = self._load_slices[price_class]
        each_s = durations.lone_s[self._matrix.loads][rows]
        longest_s = max(float(each_s.max()), TINY_S)
        if price.ways != STRAIGHT:
            own_ticks = int(durations.total[price_class]) - int(self.latency[price_class])
            longest_s = max(longest_s, own_ticks / TICKS_PER_S)
        moved = float((each_s / self._load_s_per_byte[rows]).max())
        return (each_s / longest_s).tolist(), max(moved / longest_s, TINY_S)

    @cached_property
    def most_loads(self) -> tuple[Mapping[str, float], ...]:
        """For each task the most that it can take of each link it crosses, whatever the step: a constant
        where the amounts on all its links are proportional, else all of it."""
        by_class = [_most_loads(price) for price in self._prices]
        return tuple(
            dict(zip(links, by_class[price_class], strict=True)) if links else {}
            for links, price_class in zip(self.links_of_task, self.class_of_task.tolist(), strict=True)
        )

    def split_s(self, lone_s: Floats) -> Floats:
        """Seconds of each class by `PARTS`: shape [..., class, part], for lone times of shape [..., form]."""
        return self._matrix.split_s(lone_s)


def _check_length(steps_s: Floats, longest_s: float) -> None:
    """Whether the clock can count steps, given the seconds of all tasks of each."""
    if np.maximum.reduce(steps_s) > longest_s:
        raise SimulatorError(
            f"a step takes more than {format_seconds(LONGEST_STEP_S)}, which is as long as the clock can "
            "count; look for a rate or an overhead of the wrong magnitude in the profiles"
        )


def _most_loads(price: Price) -> list[float]:
    """The largest loads a class can have on its links: exact where its forms are multiples of one another."""
    if not price.loads:
        return [1.0] * len(price.bus)
    first = price.loads[0].coefficients
    pivot = next((at for at, count in enumerate(first) if count), None)
    if pivot is None or not all(_is_multiple(form.coefficients, first, pivot) for form in price.loads):
        return [1.0] * len(price.loads)
    seconds = [form.coefficients[pivot] * form.s_per_unit for form in price.loads]
    return [each / max(seconds) for each in seconds]


def _is_multiple(form: Sequence[int], of: Sequence[int], pivot: int) -> bool:
    return len(form) == len(of) and all(
        a * of[pivot] == b * form[pivot] for a, b in zip(form, of, strict=True)
    )


def _slices(counts: Sequence[int]) -> list[slice]:
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
