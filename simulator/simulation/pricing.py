"""Prices a template: from the shape of a step to the duration of each task.

The tasks of a template have few distinct prices (a layer costs what the layer before costs), so tasks are
grouped into price classes once, and a step prices the classes with a handful of array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.costs.host import step_s
from simulator.costs.operators import blended_terms, kernel_rates
from simulator.costs.transfers import collective_bytes_per_s, collective_latency_s, copy_latency_s
from simulator.graph.machine import Directed
from simulator.graph.shape import FEATURE_COUNT, StepShape
from simulator.placement.lowering import Program
from simulator.placement.plan import Task, Template
from simulator.simulation.ticks import TICKS_PER_S, Ticks, ticks
from simulator.specs.engine import Engine

Floats = NDArray[np.float64]

CATEGORIES = ("compute", "memory", "transfer", "host")
"""What a task's time can be charged to."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One kernel of a price class: linear forms and the rates of its device."""

    flops: tuple[int, ...]
    moved_bytes: tuple[int, ...]
    flops_per_s: float
    bytes_per_s: float
    overhead_s: float
    blend: float


@dataclass(frozen=True, slots=True)
class _Price:
    """Everything that decides the duration of a task; equal prices make a class."""

    microbatch: int
    rows: tuple[_Row, ...] = ()
    loads: tuple[tuple[tuple[int, ...], float], ...] = ()
    """For each link crossed: bytes as a linear form, and seconds a byte."""
    latency_s: float = 0.0
    fixed_s: float = 0.0
    per_sequence_s: float = 0.0


@dataclass(frozen=True)
class Durations:
    """The price of each class for one step, in ticks; a flow's latency comes before its bytes move."""

    total: Ticks
    latency: Ticks
    split_s: Floats
    """Seconds of each class charged to compute, memory, transfer and host; shape [class, 4]."""
    load_s: Floats
    """Seconds that each link of each flow's class would need alone, in the order of the loads."""


class PricedTemplate:
    """A template on a machine with its profiles: `durations` of a step's shape."""

    def __init__(self, template: Template, program: Program, engine: Engine) -> None:
        self.template = template
        prices: dict[_Price, int] = {}
        pricer = _Pricer(program, engine)
        of_task = [prices.setdefault(pricer.price(task), len(prices)) for task in template.tasks]
        self.class_of_task: NDArray[np.intp] = np.array(of_task, dtype=np.intp)
        self.class_count = len(prices)
        self._prices = list(prices)
        self._build_rows()
        self._build_loads()

    def _build_rows(self) -> None:
        rows = [(index, price.microbatch, row) for index, price in enumerate(self._prices) for row in price.rows]
        self._row_class = np.array([index for index, _, _ in rows], dtype=np.intp)
        self._row_microbatch = np.array([microbatch for _, microbatch, _ in rows], dtype=np.intp)
        self._flops = _forms([row.flops for _, _, row in rows])
        self._bytes = _forms([row.moved_bytes for _, _, row in rows])
        self._flops_per_s = np.array([row.flops_per_s for _, _, row in rows])
        self._bytes_per_s = np.array([row.bytes_per_s for _, _, row in rows])
        self._overhead_s = np.array([row.overhead_s for _, _, row in rows])
        self._blend = np.array([row.blend for _, _, row in rows])

    def _build_loads(self) -> None:
        loads = [(index, p.microbatch, form, per_byte) for index, p in enumerate(self._prices)
                 for form, per_byte in p.loads]  # fmt: skip
        self._load_class = np.array([index for index, *_ in loads], dtype=np.intp)
        self._load_microbatch = np.array([microbatch for _, microbatch, _, _ in loads], dtype=np.intp)
        self._load_bytes = _forms([form for _, _, form, _ in loads])
        self._load_s_per_byte = np.array([per_byte for *_, per_byte in loads])
        self._latency_s = np.array([price.latency_s for price in self._prices])
        self._has_flow = np.array([bool(price.loads) for price in self._prices])
        self._latency = np.where(self._has_flow, np.rint(self._latency_s * TICKS_PER_S), 0).astype(np.int64)
        self._fixed_s = np.array([price.fixed_s for price in self._prices])
        self._per_sequence_s = np.array([price.per_sequence_s for price in self._prices])
        self._microbatch = np.array([price.microbatch for price in self._prices], dtype=np.intp)

    def durations(self, shapes: Sequence[StepShape]) -> Durations:
        """Price every class for a step with the given shape of each microbatch."""
        features = np.array(shapes, dtype=np.float64)
        count = self.class_count
        split_s = np.zeros((count, len(CATEGORIES)))
        if self._row_class.size:
            of_rows = features[self._row_microbatch]
            flops = (self._flops * of_rows).sum(axis=1)
            moved = (self._bytes * of_rows).sum(axis=1)
            compute_s, memory_s = blended_terms(flops, moved, self._flops_per_s, self._bytes_per_s, self._blend)
            compute_s = compute_s + np.where(moved > 0, self._overhead_s, 0.0)
            split_s[:, 0] = np.bincount(self._row_class, compute_s, count)
            split_s[:, 1] = np.bincount(self._row_class, memory_s, count)
        flow_s, load_s = np.zeros(count), np.zeros(0)
        if self._load_class.size:
            carried = (self._load_bytes * features[self._load_microbatch]).sum(axis=1)
            load_s = carried * self._load_s_per_byte
            np.maximum.at(flow_s, self._load_class, load_s)
        split_s[:, 2] = np.where(self._has_flow, self._latency_s + flow_s, 0.0)
        split_s[:, 3] = self._fixed_s + self._per_sequence_s * features[self._microbatch, 2]
        moving = ticks(np.where(self._has_flow, flow_s, split_s[:, 0] + split_s[:, 1] + split_s[:, 3]))
        return Durations(self._latency + moving, self._latency, split_s, load_s)

    def link_loads(self, index: int, durations: Durations) -> dict[str, float]:
        """For each link that task `index` crosses, the share of it taken up when it flows alone."""
        rows = np.flatnonzero(self._load_class == self.class_of_task[index])
        alone = durations.load_s[rows]
        longest = alone.max()
        links = (link for link, _ in self.template.tasks[index].link_bytes)
        shares = alone / longest if longest > 0 else np.ones_like(alone)
        return dict(zip(links, shares.tolist(), strict=True))


def _forms(forms: Sequence[tuple[int, ...]]) -> Floats:
    """Linear forms as rows of an array; amounts stay exact, being far below 2**53."""
    return np.array(forms, dtype=np.float64).reshape(len(forms), FEATURE_COUNT)


class _Pricer:
    """Looks up what each task of a program costs on the machine it was placed on."""

    def __init__(self, program: Program, engine: Engine) -> None:
        self.program, self.links = program, program.machine.links
        host = program.machine.hosts[program.host].host
        self.step_s, self.per_sequence_s = step_s(engine, host)

    def price(self, task: Task) -> _Price:
        if task.kind == "compute":
            return _Price(task.microbatch, rows=tuple(self._rows(task)))
        if task.kind == "host":
            if task.host_work == "gather":
                return _Price(task.microbatch, fixed_s=self.step_s, per_sequence_s=self.per_sequence_s)
            return _Price(task.microbatch)
        directed = [self.links[name] for name, _ in task.link_bytes]
        loads = tuple(
            (amount.coefficients, 1 / self._bytes_per_s(task, link))
            for link, (_, amount) in zip(directed, task.link_bytes, strict=True)
        )
        return _Price(task.microbatch, loads=loads, latency_s=self._latency_s(task, directed))

    def _rows(self, task: Task) -> list[_Row]:
        device = self.program.machine.devices[task.place].device
        rows = []
        for work in task.works:
            rates = kernel_rates(device, work.operator_class, work.formats)
            rows.append(_Row(work.flops.coefficients, work.moved_bytes.coefficients, rates.flops_per_s,
                             rates.bytes_per_s, rates.overhead_s, rates.blend))  # fmt: skip
        return rows

    def _bytes_per_s(self, task: Task, directed: Directed) -> float:
        if task.kind == "collective":
            return collective_bytes_per_s(directed.link)
        return directed.bytes_per_s

    def _latency_s(self, task: Task, directed: Sequence[Directed]) -> float:
        """Of a collective, by its ranks; of a copy to several places, that of the longest route."""
        if task.kind == "collective":
            return collective_latency_s([link.link for link in directed], len(task.reads))
        machine = self.program.machine
        memories = dict.fromkeys(tensor.memory for tensor in task.writes)
        source = directed[0].source
        return max(copy_latency_s([link.link for link in machine.route(source, memory)]) for memory in memories)
