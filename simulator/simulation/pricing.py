"""Prices a template: from the shape of a step to the duration of each task.

The tasks of a template have few distinct prices (a layer costs what the layer before costs), so tasks are
grouped into price classes once. Every lone time (of arithmetic, of memory traffic, of a link) is a linear
form of the step's features; a step is priced by one matrix product and a handful of operations on short
arrays. Classes are ordered: kernels, then flows, then the work of the engine's thread.

Which tasks are flows is decided here too: copies and collectives over their links, and kernels that compute
on a host's DRAM over its memory bus, where the machine has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from simulator.costs.host import own_code_s, own_passes, step_s
from simulator.costs.operators import blended_terms, kernel_rates
from simulator.costs.transfers import (
    collective_bytes_per_s,
    collective_latency_s,
    copy_bytes_per_s,
    copy_latency_s,
    transition_s,
)
from simulator.errors import SimulatorError
from simulator.graph.machine import Directed
from simulator.graph.operator_traits import operator_traits
from simulator.graph.shape import FEATURE_COUNT, Amount, StepShape, total
from simulator.graph.work import Work
from simulator.placement.plan import Task, Template
from simulator.placement.program import Program
from simulator.simulation.ticks import LONGEST_STEP_S, TICKS_PER_S, Ticks, tick, ticks
from simulator.specs.engine import Engine
from simulator.units import format_seconds

Floats = NDArray[np.float64]

PARTS = ("compute", "memory", "transfer", "host", "overhead")
"""What a task's time consists of; `overhead` is what a kernel costs however small it is."""


@dataclass(frozen=True, slots=True)
class _Form:
    """Seconds as a linear form: an amount and the seconds that one unit of it takes."""

    coefficients: tuple[int, ...]
    s_per_unit: float


@dataclass(frozen=True, slots=True)
class _Kernel:
    """One kernel of a price class."""

    compute: _Form
    memory: _Form
    overhead_s: float
    blend: float


@dataclass(frozen=True, slots=True)
class _Price:
    """Everything that decides the duration of a task; equal prices make a class. Of the three kinds of
    content one is there."""

    microbatch: int
    kernels: tuple[_Kernel, ...] = ()
    loads: tuple[_Form, ...] = ()
    """Of each link crossed."""
    host: tuple[_Form, ...] = ()
    latency_s: float = 0.0
    bus: tuple[_Form, ...] = ()
    """Of a kernel on a host's DRAM: the time its traffic would keep the memory bus busy."""

    @property
    def rank(self) -> int:
        return 0 if self.kernels else 1 if self.loads else 2


@dataclass(frozen=True, slots=True)
class Durations:
    """The price of each class for one step."""

    total: Ticks
    lone_s: Floats
    """The linear forms: arithmetic and memory time of each kernel, each load, each host form, each bus."""
    shares: dict[int, tuple[list[float], float]] = field(default_factory=dict, compare=False)
    """By class, what a lone flow of it takes of its links, and its bytes/s; worked out when asked for."""


class PricedTemplate:
    """A template on a machine with its profiles: `durations` of a step's shape."""

    def __init__(self, template: Template, program: Program, engine: Engine) -> None:
        self.template = template
        pricer = _Pricer(program, engine)
        prices = [pricer.price(task) for task in template.tasks]
        self.links_of_task = tuple(pricer.links_crossed(task) for task in template.tasks)
        """For each task the links it flows over; none for one that is no flow."""
        self._prices = sorted(dict.fromkeys(prices), key=lambda price: price.rank)
        number = {price: index for index, price in enumerate(self._prices)}
        self.class_of_task: NDArray[np.intp] = np.array([number[price] for price in prices], dtype=np.intp)
        self.class_count = len(self._prices)
        self.shape_count = template.microbatch_count + template.joint
        self._lay_out(self.shape_count)

    def _lay_out(self, microbatches: int) -> None:
        """Stack the forms of all classes into one matrix."""
        kernels = [(price.microbatch, kernel) for price in self._prices for kernel in price.kernels]
        loads = [(price.microbatch, load) for price in self._prices for load in price.loads]
        host = [(price.microbatch, form) for price in self._prices for form in price.host]
        bus = [(price.microbatch, form) for price in self._prices for form in price.bus]
        forms = [(m, k.compute) for m, k in kernels] + [(m, k.memory) for m, k in kernels]
        forms += loads + host + bus
        matrix: Floats = np.zeros((len(forms), FEATURE_COUNT * microbatches))
        for row, (microbatch, form) in enumerate(forms):
            first = FEATURE_COUNT * microbatch if len(form.coefficients) == FEATURE_COUNT else 0
            columns = slice(first, first + len(form.coefficients))
            matrix[row, columns] = np.array(form.coefficients, dtype=np.float64) * form.s_per_unit
        self._used = np.flatnonzero(matrix.any(axis=0))
        """Features that anything depends on; a model has a use for some of them only."""
        self._matrix = matrix[:, self._used].copy()
        self._kernel_count, self._load_count, self._bus_start = (
            len(kernels),
            len(loads),
            len(forms) - len(bus),
        )
        self._overhead_s = np.array([kernel.overhead_s for _, kernel in kernels])
        self._blend = np.array([kernel.blend for _, kernel in kernels])
        self._inverse_blend = 1 / self._blend
        self._kernel_starts = _starts([len(price.kernels) for price in self._prices])
        self._load_starts = _starts([len(price.loads) for price in self._prices])
        self._load_s_per_byte = np.array([load.s_per_unit for _, load in loads])
        self._load_slices = _slices([len(price.loads) for price in self._prices])
        self._bus_slices = _slices([len(price.bus) for price in self._prices])
        latency_s = np.array([price.latency_s for price in self._prices])
        self.latency: Ticks = np.array([tick(s) for s in latency_s], dtype=np.int64)
        self._latency_s = latency_s
        self._tasks_of_class = np.bincount(self.class_of_task, minlength=self.class_count).astype(np.float64)
        self._longest_s = LONGEST_STEP_S - float(latency_s @ self._tasks_of_class)
        """What the rest of all tasks may come to."""

    def durations(self, shapes: Sequence[StepShape]) -> Durations:
        """Price every class for a step with the given shape of each microbatch."""
        total, lone_s = self.durations_of_many(np.array(shapes, dtype=np.float64).reshape(1, -1))
        return Durations(total[0], lone_s[0])

    def durations_of_many(self, features: Floats) -> tuple[Ticks, Floats]:
        """Price several steps at once: a row of `features` holds the shapes of a step's microbatches. Raises
        SimulatorError if a step is too long to count.

        A step's price does not depend on its neighbours: `einsum` adds up each row by itself, which a
        matrix product by BLAS does not promise.
        """
        lone_s = np.einsum("sf,rf->sr", features.take(self._used, axis=1), self._matrix)
        count = self._kernel_count
        compute_s, memory_s = lone_s[:, :count], lone_s[:, count : 2 * count]
        longer = np.maximum(compute_s, memory_s)
        ratio = np.minimum(compute_s, memory_s) / np.maximum(longer, TINY_S)
        kernel_s = longer * (1 + ratio**self._blend) ** self._inverse_blend
        kernel_s += self._overhead_s * (memory_s > 0)
        loads = lone_s[:, 2 * count : 2 * count + self._load_count]
        flow_s = np.maximum.reduceat(loads, self._load_starts, axis=1) if self._load_count else loads
        host_s = lone_s[:, 2 * count + self._load_count : self._bus_start]
        kernel_s = np.add.reduceat(kernel_s, self._kernel_starts, axis=1)
        own_s = np.concatenate((kernel_s, flow_s, host_s), axis=1)
        if (own_s @ self._tasks_of_class).max() > self._longest_s:
            raise SimulatorError(
                f"a step takes more than {format_seconds(LONGEST_STEP_S)}, which is as long as the clock can "
                "count; look for a rate or an overhead of the wrong magnitude in the profiles"
            )
        return ticks(own_s) + self.latency, lone_s

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
            bus_s = durations.lone_s[self._bus_start :][self._bus_slices[price_class]]
            alone_s = max(float(bus_s[0]), TINY_S)
            share = min(1.0, alone_s / (int(durations.total[price_class]) / TICKS_PER_S))
            return [share], share / price.bus[0].s_per_unit
        rows = self._load_slices[price_class]
        start = 2 * self._kernel_count
        each_s = durations.lone_s[start : start + self._load_count][rows]
        longest_s = max(float(each_s.max()), TINY_S)
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
        count = self._kernel_count
        compute_s, memory_s = lone_s[..., :count], lone_s[..., count : 2 * count]
        arithmetic_s, traffic_s = blended_terms(compute_s, memory_s, self._blend)
        overhead_s = self._overhead_s * (memory_s > 0)
        result = np.zeros((*lone_s.shape[:-1], self.class_count, len(PARTS)))
        kernels, flows = len(self._kernel_starts), len(self._load_starts)
        for part, of_kernels_s in ((0, arithmetic_s), (1, traffic_s), (4, overhead_s)):
            result[..., :kernels, part] = np.add.reduceat(of_kernels_s, self._kernel_starts, axis=-1)
        if flows:
            loads = lone_s[..., 2 * count : 2 * count + self._load_count]
            moving_s = np.maximum.reduceat(loads, self._load_starts, axis=-1)
            result[..., kernels : kernels + flows, 2] = moving_s + self._latency_s[kernels : kernels + flows]
        result[..., kernels + flows :, 3] = lone_s[..., 2 * count + self._load_count : self._bus_start]
        return result


TINY_S = 1e-300


def _most_loads(price: _Price) -> list[float]:
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


def _starts(counts: Sequence[int]) -> NDArray[np.intp]:
    """Where each class's rows begin, of the classes that have rows."""
    ends = list(accumulate(counts))
    return np.array([end - count for end, count in zip(ends, counts, strict=True) if count], dtype=np.intp)


def _slices(counts: Sequence[int]) -> list[slice]:
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


class _Pricer:
    """Looks up what each task of a program costs on the machine it was placed on."""

    def __init__(self, program: Program, engine: Engine) -> None:
        self.program, self.links = program, program.machine.links
        self.pinned = engine.memory.pinned
        self.launch, self.code = engine.launch, engine.code
        self.engine_step_s = step_s(engine, program.machine.hosts[program.host].host)

    def links_crossed(self, task: Task) -> tuple[str, ...]:
        """The links a task flows over: those it puts bytes on, or the memory bus a kernel computes over."""
        if task.kind == "compute":
            bus = self._bus(task)
            return (bus.name,) if bus is not None else ()
        return tuple(link for link, _ in task.link_bytes)

    def _bus(self, task: Task) -> Directed | None:
        """The memory bus of the host on whose DRAM a task computes, where the machine has one."""
        memory = self.program.machine.memory_of(task.place)
        return self.links.get(f"{memory}.bus") if memory in self.program.machine.hosts else None

    def price(self, task: Task) -> _Price:
        if task.kind == "compute":
            bus = self._bus(task)
            moved = total(self._moved_bytes(work) for work in task.works)
            over_bus = (_Form(moved.coefficients, 1 / bus.bytes_per_s),) if bus is not None else ()
            return _Price(task.microbatch, kernels=tuple(self._kernels(task)), bus=over_bus)
        if task.kind == "host":
            return _Price(task.microbatch, host=(self._host(task),))
        directed = [self.links[name] for name, _ in task.link_bytes]
        loads = tuple(
            _Form(amount.coefficients, 1 / self._bytes_per_s(task, directed, link))
            for link, (_, amount) in zip(directed, task.link_bytes, strict=True)
        )
        return _Price(task.microbatch, loads=loads, latency_s=self._latency_s(task, directed))

    def _host(self, task: Task) -> _Form:
        """The thread prepares a step, and launches kernels, as the engine's profile says; committing tokens
        takes one tick."""
        if task.host_work == "launch":
            when = "has_prefill" if self.launch.graphs == "decode" else "one"
            each = Amount.of(**{when: task.kernels * tick(self.launch.kernel_s)})
            return _Form(each.coefficients, 1 / tick(1.0))
        if task.host_work != "gather":
            return _Form(Amount().coefficients, 0.0)
        fixed_s, per_sequence_s = self.engine_step_s
        picoseconds = Amount.of(one=tick(fixed_s), sequences=tick(per_sequence_s))
        return _Form(picoseconds.coefficients, 1 / tick(1.0))

    def _kernels(self, task: Task) -> list[_Kernel]:
        device = self.program.machine.devices[task.place].device
        is_slow = device.kind == "cpu"
        traits = operator_traits(self.program.model, task.layer, task.operator)
        own_s = own_code_s(self.code, task.operator, traits) if is_slow else 0.0
        passes = own_passes(self.code, task.operator, traits)
        of_attention = [work for work in task.works if work.operator_class.startswith("attention")]
        called = of_attention or task.works[:1]
        kernels = []
        for work in task.works:
            rates = kernel_rates(device, work.operator_class, work.formats)
            compute = _Form(work.flops.coefficients, 1 / rates.flops_per_s)
            memory = _Form(self._moved_bytes(work).coefficients, passes / rates.bytes_per_s)
            code_s = own_s if work in called else 0.0
            kernels.append(_Kernel(compute, memory, rates.overhead_s + code_s, rates.blend))
        return kernels + self._visits(task.operator) * is_slow

    def _visits(self, operator: str) -> list[_Kernel]:
        """What the engine's own code takes for each expert that some token chose."""
        each_s = self.code.operators.get(f"{operator}.active", 0.0)
        visits = _Form(Amount.of(active_experts=1).coefficients, each_s)
        return [_Kernel(_Form(Amount().coefficients, 0.0), visits, 0.0, 1.0)] if each_s else []

    def _moved_bytes(self, work: Work) -> Amount:
        """Of a kernel, with the scores that attention leaves in memory where the engine does not fuse it."""
        if not self.code.score_bytes:
            return work.moved_bytes
        return work.moved_bytes + work.scores * self.code.score_bytes

    def _bytes_per_s(self, task: Task, directed: Sequence[Directed], link: Directed) -> float:
        if task.kind == "collective":
            return collective_bytes_per_s(link.link, len(task.units))
        source, targets = self._ends(task, directed)
        owners = [self.program.machine.owner_of(memory) for memory in (source, *targets)]
        pageable = not self.pinned and None in owners
        return copy_bytes_per_s(link.link, pageable)

    def _latency_s(self, task: Task, directed: Sequence[Directed]) -> float:
        """Of a collective, by its ranks; of a copy to several places, that of the longest route."""
        if task.kind == "collective":
            return collective_latency_s([link.link for link in directed], len(task.units))
        source, targets = self._ends(task, directed)
        return max(self._copy_latency_s(source, target) for target in targets)

    def _copy_latency_s(self, source: str, target: str) -> float:
        machine = self.program.machine
        route = [directed.link for directed in machine.route(source, target)]
        return copy_latency_s(route) + transition_s(machine.owner_of(source), machine.owner_of(target))

    def _ends(self, task: Task, directed: Sequence[Directed]) -> tuple[str, tuple[str, ...]]:
        """The memory that a copy starts from, and those that it goes to."""
        targets = dict.fromkeys(tensor.memory for tensor in task.writes) or (task.place,)
        first = directed[0]  # a bus is one link in both directions: its name tells the memory
        source = first.name.removesuffix(".bus") if first.name.endswith(".bus") else first.source
        return source, tuple(targets)
