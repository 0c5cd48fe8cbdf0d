"""Prices a template: from the shape of a step to the duration of each task.

The tasks of a template have few distinct prices (a layer costs what the layer before costs), so tasks are
grouped into price classes once. Every lone time (of arithmetic, of memory traffic, of a link) is a linear
form of the step's features; a step is priced by one matrix product and a handful of operations on short
arrays. Classes are ordered: kernels, then flows, then the work of the engine's thread. The forms themselves
are `task_prices`'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.costs.operators import blended_terms, cold_share, with_least
from simulator.errors import SimulatorError
from simulator.graph.shape import FEATURE_COUNT, Amount, StepShape
from simulator.placement.plan import Template
from simulator.placement.program import Program
from simulator.simulation.task_prices import STRAIGHT, Form, Kernel, Price, Pricer, Way
from simulator.simulation.ticks import LONGEST_STEP_S, TICKS_PER_S, Ticks, tick, ticks
from simulator.specs.engine import Engine
from simulator.units import format_seconds

Floats = NDArray[np.float64]

PARTS = ("compute", "memory", "transfer", "host", "overhead")
"""What a task's time consists of; `overhead` is what a kernel costs however small it is."""


@dataclass(frozen=True, slots=True)
class Durations:
    """The price of each class for one step."""

    total: Ticks
    lone_s: Floats
    """The linear forms: arithmetic, memory and least time of each kernel, each load, each host form, each
    bus."""
    shares: dict[int, tuple[list[float], float]] = field(default_factory=dict, compare=False)
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
        self._lay_out(self.shape_count)

    def _lay_out(self, microbatches: int) -> None:
        """Stack the forms of all classes into one matrix."""
        kernels = [(price.microbatch, kernel) for price in self._prices for kernel in price.kernels]
        loads = [(price.microbatch, load) for price in self._prices for load in price.loads]
        host = [(price.microbatch, form) for price in self._prices for form in price.host]
        bus = [(price.microbatch, form) for price in self._prices for form in price.bus]
        forms = [(m, getattr(k, part)) for part in ("compute", "memory", "least") for m, k in kernels]
        forms += loads + host + bus
        chained = [(at, m, k.chains) for at, (m, k) in enumerate(kernels) if k.chains]
        joint = [(at, m, k.joint) for at, (m, k) in enumerate(kernels) if k.joint]
        bus_end = len(forms)
        forms += [(m, form) for _, m, form in chained]
        forms += [(m, form) for _, m, form in joint]
        forms += [(m, Form(Amount.of(has_prefill=1).coefficients, 1.0)) for _, m, _ in joint]
        of_joint = [(at, m, k.joint_chains) for at, (m, k) in enumerate(kernels) if k.joint_chains]
        forms += [(m, pair[which]) for which in (0, 1) for _, m, pair in of_joint]
        grids = [(m, k.grid) for m, k in kernels if k.grid]
        forms += [(m, grid[which]) for which in (1, 2) for m, grid in grids]
        regrouped = [(at, m) for at, (m, k) in enumerate(kernels) if k.regroup_s]
        forms += [(m, Form(Amount.of(decode_tokens=1).coefficients, 1.0)) for _, m in regrouped]
        self._chained = np.array([at for at, *_ in chained], dtype=np.intp)
        self._joint = np.array([at for at, *_ in joint], dtype=np.intp)
        self._joint_chained = np.array([at for at, *_ in of_joint], dtype=np.intp)
        self._regrouped = np.array([at for at, _ in regrouped], dtype=np.intp)
        counts = (len(chained), len(joint), len(joint), len(of_joint), len(of_joint), len(grids), len(grids),
                  len(regrouped))  # fmt: skip
        (self._chains_at, self._joint_at, self._beside_at, self._joint_chains_at, self._joint_counts_at,
         self._keys_at, self._sequences_at, self._decoding_at) = (
            slice(start, end) for start, end in pairwise(accumulate((bus_end, *counts)))
        )  # fmt: skip
        self._of_beside = np.searchsorted(self._joint, self._joint_chained)
        """Which of the joint kernels those with chains are."""
        matrix: Floats = np.zeros((len(forms), FEATURE_COUNT * microbatches))
        for row, (microbatch, form) in enumerate(forms):
            first = FEATURE_COUNT * microbatch if len(form.coefficients) == FEATURE_COUNT else 0
            columns = slice(first, first + len(form.coefficients))
            matrix[row, columns] = np.array(form.coefficients, dtype=np.float64) * form.s_per_unit
        self._used = np.flatnonzero(matrix.any(axis=0))
        """Features that anything depends on; a model has a use for some of them only."""
        self._matrix = matrix[:, self._used].copy()
        self._kernel_count, self._load_count = len(kernels), len(loads)
        self._load_start, self._bus_start = 3 * len(kernels), bus_end - len(bus)
        self._lay_out_kernels([kernel for _, kernel in kernels])
        self._kernel_starts = _starts([len(price.kernels) for price in self._prices])
        self._load_starts = _starts([len(price.loads) for price in self._prices])
        self._load_s_per_byte = np.array([load.s_per_unit for _, load in loads])
        flows = [price.ways for price in self._prices if price.loads]
        self._has_ways = any(ways != STRAIGHT for ways in flows)
        self._way_extra_s, self._way_slowness, self._way_below_s = _laid_out(flows)
        self._load_slices = _slices([len(price.loads) for price in self._prices])
        self._bus_slices = _slices([len(price.bus) for price in self._prices])
        latency_s = np.array([price.latency_s for price in self._prices])
        self.latency: Ticks = np.array([tick(s) for s in latency_s], dtype=np.int64)
        self._latency_s = latency_s
        self._tasks_of_class = np.bincount(self.class_of_task, minlength=self.class_count).astype(np.float64)
        self._longest_s = LONGEST_STEP_S - float(latency_s @ self._tasks_of_class)
        """What the rest of all tasks may come to."""

    def _lay_out_kernels(self, kernels: Sequence[Kernel]) -> None:
        """What all kernels have, and which of them a cache, a least time or a second pass concerns."""
        self._overhead_s = np.array([kernel.overhead_s for kernel in kernels])
        self._blend = np.array([kernel.blend for kernel in kernels])
        self._inverse_blend = 1 / self._blend
        self._split_s = np.array([kernel.split_s for kernel in kernels])
        self._splits = bool(self._split_s.any())
        self._regroup_s = np.array([kernels[at].regroup_s for at in self._regrouped])
        self._warm = np.array([at for at, k in enumerate(kernels) if k.cached > 1], dtype=np.intp)
        self._cache_s = np.array([kernels[at].cache_s for at in self._warm])
        self._cached = np.array([kernels[at].cached for at in self._warm])
        self._longest_chain_s = np.array([kernels[at].longest_chain_s for at in self._chained])
        self._joint_longest_s = np.array([kernels[at].longest_chain_s for at in self._joint_chained])
        self._has_least = any(
            (any(k.least.coefficients) and k.least.s_per_unit) or k.joint_chains for k in kernels
        )
        self._corrected = [(at, k.correction) for at, k in enumerate(kernels) if k.correction]
        self._grids = [(at, np.array(k.grid[0].factors)) for at, k in enumerate(kernels) if k.grid]

    def _kernel_terms(self, lone_s: Floats) -> tuple[Floats, Floats, Floats]:
        """Time of every kernel on arithmetic, on memory with all that delays it, and its fixed overhead."""
        count = self._kernel_count
        compute_s, memory_s = lone_s[..., :count], lone_s[..., count : 2 * count]
        least_s = lone_s[..., 2 * count : 3 * count]
        overhead_s = self._overhead_s * (memory_s > 0)
        if len(self._chained):
            least_s = least_s.copy()
            mean_s = least_s[..., self._chained] / np.maximum(lone_s[..., self._chains_at], 1.0)
            least_s[..., self._chained] = np.minimum(mean_s, self._longest_chain_s)
        if self._splits:
            overhead_s = overhead_s + self._split_s * ((least_s > 0) & (memory_s > least_s))
        if len(self._regrouped):
            several = lone_s[..., self._decoding_at] > 1
            overhead_s[..., self._regrouped] += self._regroup_s * several
        if len(self._joint) and (beside := lone_s[..., self._beside_at]).any():
            compute_s, least_s = compute_s.copy(), least_s.copy()
            self._join(lone_s, beside, compute_s, least_s, overhead_s)
        if len(self._warm):
            memory_s = memory_s.copy()
            warm_s = memory_s[..., self._warm]
            share = 1 - (1 - cold_share(warm_s / self._cache_s)) * (1 - 1 / self._cached)
            memory_s[..., self._warm] = warm_s * share
        if self._has_least:
            memory_s = with_least(memory_s, least_s, self._blend)
        if self._corrected or self._grids:
            factors = self._factors(compute_s, lone_s)
            return compute_s * factors, memory_s * factors, overhead_s * factors
        return compute_s, memory_s, overhead_s

    def _join(
        self, lone_s: Floats, beside: Floats, compute_s: Floats, least_s: Floats, overhead_s: Floats
    ) -> None:
        """Let decoding sequences be part of the prompts' kernel, in the steps that have prompts."""
        compute_s[..., self._joint] += beside * lone_s[..., self._joint_at]
        overhead_s[..., self._joint] *= 1 - beside
        if len(self._joint_chained):
            mean_s = lone_s[..., self._joint_chains_at] / np.maximum(lone_s[..., self._joint_counts_at], 1.0)
            mean_s = np.minimum(mean_s, self._joint_longest_s)
            at, beside = self._joint_chained, beside[..., self._of_beside]
            least_s[..., at] = np.where(beside > 0, mean_s, least_s[..., at])

    def _factors(self, compute_s: Floats, lone_s: Floats) -> Floats:
        """What measured times make of each kernel: a factor on all of its terms, and so on their norm."""
        factors = np.ones_like(compute_s)
        for at, correction in self._corrected:
            log_s = np.log(np.maximum(compute_s[..., at], TINY_S))
            factors[..., at] = np.interp(log_s, correction.log_compute_s, correction.factors)
        keys, sequences = lone_s[..., self._keys_at], lone_s[..., self._sequences_at]
        for number, (at, grid) in enumerate(self._grids):
            factors[..., at] = _between(grid, sequences[..., number], keys[..., number])
        return factors

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
        compute_s, memory_s, overhead_s = self._kernel_terms(lone_s)
        longer = np.maximum(compute_s, memory_s)
        ratio = np.minimum(compute_s, memory_s) / np.maximum(longer, TINY_S)
        kernel_s = longer * (1 + ratio**self._blend) ** self._inverse_blend
        kernel_s += overhead_s
        flow_s = self._flow_s(lone_s[:, self._load_start : self._load_start + self._load_count])
        host_s = lone_s[:, self._load_start + self._load_count : self._bus_start]
        kernel_s = np.add.reduceat(kernel_s, self._kernel_starts, axis=1)
        own_s = np.concatenate((kernel_s, flow_s, host_s), axis=1)
        if (own_s @ self._tasks_of_class).max() > self._longest_s:
            raise SimulatorError(
                f"a step takes more than {format_seconds(LONGEST_STEP_S)}, which is as long as the clock can "
                "count; look for a rate or an overhead of the wrong magnitude in the profiles"
            )
        return ticks(own_s) + self.latency, lone_s

    def _flow_s(self, loads: Floats) -> Floats:
        """Seconds of every class of flows beyond its latency, by the quickest of its ways, from the time of
        each link: shape [..., flow], of [..., load]."""
        if not self._load_count:
            return loads
        longest_s: Floats = np.maximum.reduceat(loads, self._load_starts, axis=-1)
        if not self._has_ways:
            return longest_s
        of_every_way = longest_s[..., None]
        by_way = of_every_way * self._way_slowness
        by_way += self._way_extra_s
        np.copyto(by_way, np.inf, where=of_every_way >= self._way_below_s)
        quickest_s: Floats = np.minimum.reduce(by_way, axis=-1)
        return quickest_s

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
        each_s = durations.lone_s[self._load_start : self._load_start + self._load_count][rows]
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
        compute_s, memory_s, overhead_s = self._kernel_terms(lone_s)
        arithmetic_s, traffic_s = blended_terms(compute_s, memory_s, self._blend)
        result = np.zeros((*lone_s.shape[:-1], self.class_count, len(PARTS)))
        kernels, flows = len(self._kernel_starts), len(self._load_starts)
        for part, of_kernels_s in ((0, arithmetic_s), (1, traffic_s), (4, overhead_s)):
            result[..., :kernels, part] = np.add.reduceat(of_kernels_s, self._kernel_starts, axis=-1)
        if flows:
            moving_s = self._flow_s(lone_s[..., self._load_start : self._load_start + self._load_count])
            result[..., kernels : kernels + flows, 2] = moving_s + self._latency_s[kernels : kernels + flows]
        result[..., kernels + flows :, 3] = lone_s[..., self._load_start + self._load_count : self._bus_start]
        return result


TINY_S = 1e-300


def _between(grid: Floats, sequences: Floats, keys: Floats) -> Floats:
    """The entry of a `GridCorrection` for so many sequences that see so many keys together."""
    count = np.maximum(sequences, 1.0)
    at = [np.log2(each) for each in (count, np.maximum(keys / count, 1.0))]
    low, share = [], []
    for each, size in zip(at, grid.shape, strict=True):
        first = np.clip(np.floor(each).astype(np.intp), 0, size - 2)
        low.append(first)
        share.append(np.clip(each - first, 0.0, 1.0))
    (i, j), (a, b) = low, share
    below = (1 - b) * grid[i, j] + b * grid[i, j + 1]
    above = (1 - b) * grid[i + 1, j] + b * grid[i + 1, j + 1]
    found: Floats = (1 - a) * below + a * above
    return found


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


def _laid_out(flows: Sequence[tuple[Way, ...]]) -> tuple[Floats, Floats, Floats]:
    """Extra seconds, slowness and limit of every flow's ways, each as [flow, way]; those of fewer ways than
    others are filled up with what takes forever."""
    most = max(map(len, flows), default=1)
    filler = Way(math.inf)
    filled = [(*ways, *[filler] * (most - len(ways))) for ways in flows]
    columns = [[(way.extra_s, way.slowness, way.below_s) for way in ways] for ways in filled]
    table = np.array(columns, dtype=np.float64).reshape(len(flows), most, 3)
    return table[..., 0].copy(), table[..., 1].copy(), table[..., 2].copy()


def _starts(counts: Sequence[int]) -> NDArray[np.intp]:
    """Where each class's rows begin, of the classes that have rows."""
    ends = list(accumulate(counts))
    return np.array([end - count for end, count in zip(ends, counts, strict=True) if count], dtype=np.intp)


def _slices(counts: Sequence[int]) -> list[slice]:
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
