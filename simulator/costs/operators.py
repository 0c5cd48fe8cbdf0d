"""How long a kernel takes on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.graph.work import OperatorClass, Work
from simulator.specs.hardware import BROADER_CLASS, ITEM_BYTES, Device, Efficiency, Precision

Floats = NDArray[np.float64]


TINY_S = 1e-300
"""Less than any time, and more than nothing to divide by."""


def blended_terms(compute_s: Floats, memory_s: Floats, blend: Floats) -> tuple[Floats, Floats]:
    """Times in seconds that arithmetic and memory traffic add to a kernel, before its fixed overhead.

    Their sum is the p-norm of the two lone times with exponent p = `blend`: 1 is no overlap at all, a
    large p the roofline (Williams et al. 2009, doi:10.1145/1498765.1498785). The sum is shared out in
    proportion to the two lone times to the power p.

    >>> blended_terms(np.array([3.0]), np.array([4.0]), np.array([2.0]))
    (array([1.8]), array([3.2]))
    """
    longer_s = np.maximum(compute_s, memory_s)
    ratio = np.minimum(compute_s, memory_s) / np.where(longer_s > 0, longer_s, 1.0)
    power = ratio**blend
    norm_s = longer_s * (1 + power) ** (1 / blend)
    share_of_longer = 1 / (1 + power)
    share = np.where(compute_s >= memory_s, share_of_longer, 1 - share_of_longer)
    return norm_s * share, norm_s * (1 - share)


CACHE_EDGE = 8
"""How sharply a cache stops helping once more is used than it holds: at half its size it serves 99.6 %, at
twice its size 0.4 %. Assumed; the tables of L40S and RTX 4090 show an edge about as sharp."""


def cold_share(used: Floats) -> Floats:
    """The share of the time on memory that is left as its own when a cache is `used` to that share of its
    size.

    >>> cold_share(np.array([0.1, 1.0, 10.0])).round(3)
    array([0. , 0.5, 1. ])
    """
    share: Floats = used**CACHE_EDGE
    share /= 1 + np.minimum(share, 1e9)
    np.copyto(share, 1.0, where=used >= 10)
    return share


def norm_of_two(one_s: Floats, other_s: Floats, blend: Floats, inverse_blend: Floats) -> Floats:
    """The p-norm of two times with exponent p = `blend`. Written to need few operations, each of which works
    on arrays: on a step's few numbers they cost the same whatever they do.

    >>> norm_of_two(np.array([3.0]), np.array([4.0]), np.array([2.0]), np.array([0.5]))
    array([5.])
    """
    longer_s: Floats = np.maximum(one_s, other_s)
    ratio = np.minimum(one_s, other_s)
    ratio /= np.maximum(longer_s, TINY_S)
    ratio **= blend
    ratio += 1
    ratio **= inverse_blend
    longer_s *= ratio
    return longer_s


def with_least(memory_s: Floats, least_s: Floats, blend: Floats) -> Floats:
    """Time on memory joined with the time that one processor needs for its part, as `blended_terms` joins:
    so that the p-norm over all three terms comes out. Nothing where nothing is moved."""
    return norm_of_two(memory_s, least_s, blend, 1 / blend) * (memory_s > 0)


@dataclass(frozen=True, slots=True)
class KernelRates:
    """What one operator class reaches on one device, in SI units."""

    flops_per_s: float
    bytes_per_s: float
    overhead_s: float
    blend: float
    chain_s: float = 0.0
    chain_most: int | None = None
    block: int = 0
    split_s: float = 0.0
    regroup_s: float = 0.0
    joint: int = 0
    cached: float = 1.0
    """How many times faster the cache is than the memory."""
    cache_bytes: float | None = None
    """Of the device."""

    @property
    def pairs_in_block(self) -> int:
        """Pairs of a query and a key that a causal kernel computes for nothing where its blocks of queries
        and keys meet the diagonal: half of a block's."""
        return self.block * self.block // 2

    @property
    def longest_chain_s(self) -> float:
        """What one processor needs at most for a chain; longer ones are shared out."""
        return math.inf if self.chain_most is None else self.chain_s * self.chain_most

    def chain_time_s(self, chain: int) -> float:
        """What one processor needs for a chain of so many numbers."""
        return min(self.chain_s * chain, self.longest_chain_s)


@dataclass(frozen=True, slots=True)
class KernelLoad:
    """What some kernels of one class do: arrays with an entry for each kernel."""

    flops: Floats
    moved_bytes: Floats
    chain: Floats
    block_flops: Floats
    block_bytes: Floats
    joint_flops: Floats
    """Of one more key for each decoding sequence."""
    beside_prompts: Floats
    """1 for attention in decode in a batch that has prompts too, else 0."""
    is_shared: Floats
    """1 for attention in decode whose heads of queries share heads of keys: their chains are split, but in
    the kernel of a prompt."""
    regroups: Floats
    """1 where there are several such heads of keys, and several sequences."""
    used_bytes: Floats
    """Of the cache, where operands may be in it; infinite where they are not."""

    @classmethod
    def of(
        cls, flops: Floats, moved_bytes: Floats, chain: float | Floats = 0.0,
        block_flops: float | Floats = 0.0, block_bytes: float | Floats = 0.0,
        joint_flops: float | Floats = 0.0, beside_prompts: float | Floats = 0.0,
        is_shared: float | Floats = 0.0, regroups: float | Floats = 0.0, used_bytes: float | Floats = np.inf,
    ) -> KernelLoad:  # fmt: skip
        """What is the same for all may be one number."""
        shape = np.shape(moved_bytes)
        fields = (flops, moved_bytes, chain, block_flops, block_bytes, joint_flops, beside_prompts, is_shared,
                  regroups, used_bytes)  # fmt: skip
        return cls(*(np.broadcast_to(np.asarray(each, dtype=np.float64), shape) for each in fields))

    def __len__(self) -> int:
        return len(self.moved_bytes)

    def at(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> KernelLoad:
        """Some of the kernels."""
        return KernelLoad(*(getattr(self, name)[rows] for name in self.__slots__))


def kernel_s(load: KernelLoad, rates: KernelRates) -> Floats:
    """How long each kernel takes, in seconds: what a step's price is made of, for kernels one by one.

    >>> rates = KernelRates(1e12, 1e11, overhead_s=1e-6, blend=1.0, chain_s=1e-9)
    >>> float(kernel_s(KernelLoad.of(np.array([2e6]), np.array([1e5]), chain=500), rates)[0].round(9))
    4.5e-06
    """
    blend = np.asarray(rates.blend)
    compute_s = (load.flops + load.block_flops * rates.block**2 / 2) / rates.flops_per_s
    memory_s = load.moved_bytes / rates.bytes_per_s
    chain = load.chain if rates.chain_most is None else np.minimum(load.chain, rates.chain_most)
    beside = load.beside_prompts * (rates.joint > 0)
    chain_s = chain * rates.chain_s
    is_split = (chain_s <= 0) | ((load.is_shared > 0) & (beside == 0))
    least_s = np.where(is_split, load.block_bytes * rates.block / rates.bytes_per_s, chain_s)
    overhead_s = rates.overhead_s + rates.split_s * (is_split & (least_s > 0) & (memory_s > least_s))
    overhead_s = overhead_s + rates.regroup_s * load.regroups
    if rates.joint:
        overhead_s = overhead_s * (1 - beside)
        padded = rates.joint * (load.flops + load.joint_flops * rates.block)
        compute_s = compute_s + beside * (padded - load.flops) / rates.flops_per_s
    if rates.cache_bytes and rates.cached > 1:
        warm = 1 - cold_share(load.used_bytes / rates.cache_bytes)
        memory_s = memory_s * (1 - warm * (1 - 1 / rates.cached))
    memory_s = with_least(memory_s, least_s, blend)
    arithmetic_s, traffic_s = blended_terms(compute_s, memory_s, blend)
    took_s: Floats = arithmetic_s + traffic_s + overhead_s
    return took_s


TWINS: dict[Precision, Precision] = {"bf16": "fp16", "fp16": "bf16"}
"""Formats that units run at the same rate, so that figures of one count for the other."""


def efficiency_keys(operator_class: OperatorClass, precision: Precision) -> tuple[str, ...]:
    """Under which keys figures for a class are looked for, the most specific first.

    >>> efficiency_keys("norm", "bf16")
    ('norm.bf16', 'norm.fp16', 'norm', 'elementwise.bf16', 'elementwise.fp16', 'elementwise')
    """
    broader = BROADER_CLASS.get(operator_class)
    formats = (precision, TWINS[precision]) if precision in TWINS else (precision,)
    return tuple(
        key
        for name in ((operator_class,) if broader is None else (operator_class, broader))
        for key in (*(f"{name}.{each}" for each in formats), name)
    )


def efficiency_of(device: Device, operator_class: OperatorClass, precision: Precision) -> Efficiency:
    """A device's figures for a class: its own, else those that its generation lends it, else its kind."""
    keys = efficiency_keys(operator_class, precision)
    for figures in (device.efficiency, *device.lent):
        for key in keys:
            if key in figures:
                return figures[key]
    raise AssertionError(f"a device read from the catalogue has figures for {operator_class}")


def arithmetic(device: Device, formats: Sequence[Precision]) -> tuple[Precision, float]:
    """The number format a device computes in when asked for one of `formats`, and its peak in FLOP/s.

    The first it has a unit for; else the next wider one it has; else its widest, slowed by the ratio of
    the widths (assumed: wide arithmetic pieced together from narrow).
    """
    for precision in formats:
        if precision in device.compute:
            return precision, device.compute[precision]
    wanted = ITEM_BYTES[formats[-1]]
    by_width = sorted(device.compute, key=lambda precision: (ITEM_BYTES[precision], precision))
    for precision in by_width:
        if ITEM_BYTES[precision] >= wanted and not precision.startswith("int"):
            return precision, device.compute[precision]
    widest = by_width[-1]
    return widest, device.compute[widest] * ITEM_BYTES[widest] / wanted


def kernel_rates(
    device: Device, operator_class: OperatorClass, formats: Sequence[Precision]
) -> KernelRates:
    """Rates of one operator class on a device, in the best of the acceptable formats."""
    precision, peak = arithmetic(device, formats)
    reached = efficiency_of(device, operator_class, precision)
    return rates_of(device, reached, peak)


def rates_of(device: Device, reached: Efficiency, peak_flops: float) -> KernelRates:
    """What a class reaches of a device's peaks."""
    bandwidth = device.memory.bandwidth_bytes_per_s
    assert bandwidth is not None, "a device that computes states its memory's bandwidth"
    memory_bytes_per_s = bandwidth * reached.memory
    cache_bytes_per_s = (reached.cached_bytes_per_s or 0.0) * (device.units or 0)
    return KernelRates(
        peak_flops * reached.compute, memory_bytes_per_s, reached.overhead_s, reached.blend, reached.chain_s,
        reached.chain_most, reached.block, reached.split_s, reached.regroup_s, reached.joint,
        max(1.0, cache_bytes_per_s / memory_bytes_per_s), device.memory.cache_bytes,
    )  # fmt: skip


def is_needed(device: Device, work: Work) -> bool:
    """Whether a device runs a kernel at all: one that brings numbers to a format runs only where products
    are computed in that format."""
    return work.only_in is None or arithmetic(device, work.formats)[0] == work.only_in
