"""The lone times of some price classes as one matrix over the features of a step, and what comes of them.

Every lone time (of arithmetic, of memory traffic, of a link) is a linear form of the features. Steps are
rows: one product gives the lone times of all, a handful of operations on arrays the seconds of each class.
On a step's few numbers an operation costs the same whatever it does, so what counts is that they are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from simulator.costs.operators import TINY_S, blended_terms, cold_share, norm_of_two
from simulator.graph.shape import FEATURE_COUNT, Amount
from simulator.simulation.task_prices import STRAIGHT, Form, Kernel, Price, Way

Floats = NDArray[np.float64]

PARTS = ("compute", "memory", "transfer", "host", "overhead")
"""What a task's time consists of; `overhead` is what a kernel costs however small it is."""


class PriceMatrix:
    """Prices of some classes: kernels, then flows, then the work of the engine's thread."""

    def __init__(self, prices: Sequence[Price], shape_count: int) -> None:
        """Stack the forms of all classes."""
        numbered = list(enumerate(prices))
        kernels = [(at, price.microbatch, kernel) for at, price in numbered for kernel in price.kernels]
        loads = [(at, price.microbatch, load) for at, price in numbered for load in price.loads]
        rows: list[tuple[int, int, Form]] = []

        def put(forms: Iterable[tuple[int, int, Form]]) -> slice:
            first = len(rows)
            rows.extend(forms)
            return slice(first, len(rows))

        self._compute = put((at, m, k.compute) for at, m, k in kernels)
        self._memory = put((at, m, k.memory) for at, m, k in kernels)
        self._least = put((at, m, k.least) for at, m, k in kernels)
        self.loads = put(loads)
        self._host = put((at, price.microbatch, form) for at, price in numbered for form in price.host)
        self.bus = put((at, price.microbatch, form) for at, price in numbered for form in price.bus)
        self._chains = put((at, m, k.chains) for at, m, k in kernels if k.chains)
        self._of_joint = put((at, m, k.joint) for at, m, k in kernels if k.joint)
        self._beside = put((at, m, HAS_PREFILL) for at, m, k in kernels if k.joint)
        pairs = [(at, m, k.joint_chains) for at, m, k in kernels if k.joint_chains]
        self._of_joint_chains = put((at, m, pair[0]) for at, m, pair in pairs)
        self._joint_counts = put((at, m, pair[1]) for at, m, pair in pairs)
        grids = [(at, m, k.grid) for at, m, k in kernels if k.grid]
        self._keys = put((at, m, grid[1]) for at, m, grid in grids)
        self._sequences = put((at, m, grid[2]) for at, m, grid in grids)
        self._decoding = put((at, m, DECODING) for at, m, k in kernels if k.regroup_s)
        matrix = _stacked([(m, form) for _, m, form in rows], shape_count)
        self.class_of_form = np.array([at for at, *_ in rows], dtype=np.intp)
        self._used = np.flatnonzero(matrix.any(axis=0))
        """Features that anything depends on; a model has a use for some of them only."""
        self._matrix = matrix[:, self._used].T.copy()
        self._kernel_count, self._load_count = len(kernels), len(loads)
        self._lay_out_kernels([kernel for *_, kernel in kernels])
        self._kernel_starts = _starts([len(price.kernels) for price in prices])
        self._load_starts = _starts([len(price.loads) for price in prices])
        flows = [price.ways for price in prices if price.loads]
        self._has_ways = any(ways != STRAIGHT for ways in flows)
        self._way_extra_s, self._way_slowness, self._way_below_s = _laid_out(flows)
        self._flow_latency_s = np.array([price.latency_s for price in prices if price.loads])
        self.class_count = len(prices)

    def classes_that_depend_on(self, features: Sequence[int]) -> NDArray[np.intp]:
        """Those with a form that some of the features enter."""
        enters = self._matrix[np.isin(self._used, features)].any(axis=0)
        return np.unique(self.class_of_form[enters])

    def _lay_out_kernels(self, kernels: Sequence[Kernel]) -> None:
        """What all kernels have, and which of them a cache, a least time or a second pass concerns."""
        chained, split = _numbers(k.chains for k in kernels), _numbers(k.split_s for k in kernels)
        joint, joint_chained = _numbers(k.joint for k in kernels), _numbers(k.joint_chains for k in kernels)
        regrouped, warm = _numbers(k.regroup_s for k in kernels), _numbers(k.cached > 1 for k in kernels)
        self._has_chained, self._chained = bool(chained), _where(chained)
        self._has_split, self._split = bool(split), _where(split)
        self._has_joint, self._joint = bool(joint), _where(joint)
        self._has_joint_chained, self._joint_chained = bool(joint_chained), _where(joint_chained)
        self._has_regrouped, self._regrouped = bool(regrouped), _where(regrouped)
        self._has_warm, self._warm = bool(warm), _where(warm)
        self._of_beside = np.searchsorted(joint, joint_chained)
        """Which of the joint kernels those with chains are."""
        self._overhead_s = np.array([kernel.overhead_s for kernel in kernels])
        self._blend = np.array([kernel.blend for kernel in kernels])
        self._inverse_blend = 1 / self._blend
        self._split_s = np.array([kernels[at].split_s for at in split])
        self._regroup_s = np.array([kernels[at].regroup_s for at in regrouped])
        self._cache_s = np.array([kernels[at].cache_s for at in warm])
        self._saved_of_cached = 1 - 1 / np.array([kernels[at].cached for at in warm])
        self._longest_chain_s = np.array([kernels[at].longest_chain_s for at in chained])
        self._has_long_chains = bool(np.isfinite(self._longest_chain_s).any())
        self._joint_longest_s = np.array([kernels[at].longest_chain_s for at in joint_chained])
        self._has_least = any(
            (any(k.least.coefficients) and k.least.s_per_unit) or k.joint_chains for k in kernels
        )
        self._corrected = [(at, k.correction) for at, k in enumerate(kernels) if k.correction]
        self._grids = [(at, np.array(k.grid[0].factors)) for at, k in enumerate(kernels) if k.grid]

    def lone_s(self, features: Floats) -> Floats:
        """The lone times of some steps: a row of `features` holds the shapes of a step's microbatches.

        A step's price does not depend on its neighbours, nor on features that have no part in it: `einsum`
        goes through the features one by one, which a matrix product by BLAS does not promise.
        """
        times: Floats = np.einsum("sf,fr->sr", features.take(self._used, axis=1), self._matrix)
        return times

    def own_s(self, lone_s: Floats) -> Floats:
        """Seconds of each class beyond its latency: shape [step, class]."""
        compute_s, memory_s, overhead_s = self._kernel_terms(lone_s)
        kernel_s = norm_of_two(compute_s, memory_s, self._blend, self._inverse_blend)
        kernel_s += overhead_s
        if len(self._kernel_starts) < self._kernel_count:
            kernel_s = np.add.reduceat(kernel_s, self._kernel_starts, axis=1)
        if kernel_s.shape[1] == self.class_count:
            return kernel_s
        return np.concatenate((kernel_s, self._flow_s(lone_s[:, self.loads]), lone_s[:, self._host]), axis=1)

    def split_s(self, lone_s: Floats) -> Floats:
        """Seconds of each class by `PARTS`: shape [..., class, part], for lone times of shape [..., form]."""
        compute_s, memory_s, overhead_s = self._kernel_terms(lone_s)
        arithmetic_s, traffic_s = blended_terms(compute_s, memory_s, self._blend)
        result = np.zeros((*lone_s.shape[:-1], self.class_count, len(PARTS)))
        kernels, flows = len(self._kernel_starts), len(self._load_starts)
        for part, of_kernels_s in ((0, arithmetic_s), (1, traffic_s), (4, overhead_s)):
            result[..., :kernels, part] = np.add.reduceat(of_kernels_s, self._kernel_starts, axis=-1)
        if flows:
            moving_s = self._flow_s(lone_s[..., self.loads])
            result[..., kernels : kernels + flows, 2] = moving_s + self._flow_latency_s
        result[..., kernels + flows :, 3] = lone_s[..., self._host]
        return result

    def _kernel_terms(self, lone_s: Floats) -> tuple[Floats, Floats, Floats]:
        """Time of every kernel on arithmetic, on memory with all that delays it, and its fixed overhead."""
        compute_s, memory_s = lone_s[..., self._compute], lone_s[..., self._memory]
        least_s = lone_s[..., self._least]
        is_run = np.sign(memory_s)
        overhead_s = self._overhead_s * is_run
        if self._has_chained:
            least_s = least_s.copy()
            mean_s = least_s[..., self._chained] / np.maximum(lone_s[..., self._chains], 1.0)
            if self._has_long_chains:
                mean_s = np.minimum(mean_s, self._longest_chain_s)
            least_s[..., self._chained] = mean_s
        if self._has_split:
            of_split_s = least_s[..., self._split]
            is_split = np.heaviside(memory_s[..., self._split] - of_split_s, 0.0)
            is_split *= np.sign(of_split_s)
            is_split *= self._split_s
            overhead_s[..., self._split] += is_split
        if self._has_regrouped:
            several = lone_s[..., self._decoding] > 1
            overhead_s[..., self._regrouped] += self._regroup_s * several
        if self._has_joint and (beside := lone_s[..., self._beside]).any():
            compute_s, least_s = compute_s.copy(), least_s.copy()
            self._join(lone_s, beside, compute_s, least_s, overhead_s)
        if self._has_warm:
            memory_s = memory_s.copy()
            warm_s = memory_s[..., self._warm]
            share = cold_share(warm_s / self._cache_s)
            np.subtract(1, share, out=share)
            share *= self._saved_of_cached
            np.subtract(1, share, out=share)
            warm_s *= share
            memory_s[..., self._warm] = warm_s
        if self._has_least:
            memory_s = norm_of_two(memory_s, least_s, self._blend, self._inverse_blend)
            memory_s *= is_run
        if self._corrected or self._grids:
            factors = self._factors(compute_s, lone_s)
            return compute_s * factors, memory_s * factors, overhead_s * factors
        return compute_s, memory_s, overhead_s

    def _join(
        self, lone_s: Floats, beside: Floats, compute_s: Floats, least_s: Floats, overhead_s: Floats
    ) -> None:
        """Let decoding sequences be part of the prompts' kernel, in the steps that have prompts."""
        compute_s[..., self._joint] += beside * lone_s[..., self._of_joint]
        overhead_s[..., self._joint] *= 1 - beside
        if self._has_joint_chained:
            mean_s = lone_s[..., self._of_joint_chains] / np.maximum(lone_s[..., self._joint_counts], 1.0)
            mean_s = np.minimum(mean_s, self._joint_longest_s)
            at, beside = self._joint_chained, beside[..., self._of_beside]
            least_s[..., at] = np.where(beside > 0, mean_s, least_s[..., at])

    def _factors(self, compute_s: Floats, lone_s: Floats) -> Floats:
        """What measured times make of each kernel: a factor on all of its terms, and so on their norm."""
        factors = np.ones_like(compute_s)
        for at, correction in self._corrected:
            log_s = np.log(np.maximum(compute_s[..., at], TINY_S))
            factors[..., at] = np.interp(log_s, correction.log_compute_s, correction.factors)
        keys, sequences = lone_s[..., self._keys], lone_s[..., self._sequences]
        for number, (at, grid) in enumerate(self._grids):
            factors[..., at] = _between(grid, sequences[..., number], keys[..., number])
        return factors

    def _flow_s(self, loads: Floats) -> Floats:
        """Seconds of every class of flows beyond its latency, by the quickest of its ways, from the time of
        each link: shape [..., flow], of [..., load]."""
        if not self._load_count:
            return loads
        several = len(self._load_starts) < self._load_count
        longest_s: Floats = np.maximum.reduceat(loads, self._load_starts, axis=-1) if several else loads
        if not self._has_ways:
            return longest_s
        of_every_way = longest_s[..., None]
        by_way = of_every_way * self._way_slowness
        by_way += self._way_extra_s
        np.copyto(by_way, np.inf, where=of_every_way >= self._way_below_s)
        quickest_s: Floats = np.minimum.reduce(by_way, axis=-1)
        return quickest_s


HAS_PREFILL = Form(Amount.of(has_prefill=1).coefficients, 1.0)
DECODING = Form(Amount.of(decode_tokens=1).coefficients, 1.0)


def _stacked(forms: Sequence[tuple[int, Form]], shape_count: int) -> Floats:
    """Seconds per unit of each feature: a row for each form, with the number of its shape."""
    matrix: Floats = np.zeros((len(forms), FEATURE_COUNT * shape_count))
    for row, (shape, form) in enumerate(forms):
        first = FEATURE_COUNT * shape if len(form.coefficients) == FEATURE_COUNT else 0
        columns = slice(first, first + len(form.coefficients))
        matrix[row, columns] = np.array(form.coefficients, dtype=np.float64) * form.s_per_unit
    return matrix


def _numbers(marks: Iterable[object]) -> list[int]:
    """Which of some kernels are marked."""
    return [number for number, mark in enumerate(marks) if mark]


def _where(numbers: Sequence[int]) -> slice | NDArray[np.intp]:
    """Numbers as an index: a slice, which is quicker, where they follow each other."""
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        return slice(numbers[0], numbers[-1] + 1)
    return np.array(numbers, dtype=np.intp)


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
