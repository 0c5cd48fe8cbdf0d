"""Fits the numbers of a profile's `efficiency` to measured kernels.

Robust least squares on the logarithm of predicted over measured: an error of a factor counts alike at 3 us
and at 30 ms, and rows that nothing explains (a clock that fell, another kernel) pull little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from simulator.costs.operators import Floats, KernelLoad, KernelRates, arithmetic, kernel_s, rates_of
from simulator.graph.work import OperatorClass
from simulator.specs.hardware import Device, Efficiency, Precision
from simulator.study.calibration.samples import Part, Samples

MOST_ROWS = 1200
"""Of one table and kind of kernel; more are thinned out evenly, which changes no number that matters."""

MOST_OF_FEWEST = 8
"""How many times as many rows a kind of kernel has at most as the one with the fewest that it is fitted with:
what is measured in detail must not drown what is not."""

FEWEST_ROWS = 50
"""Kinds with fewer rows do not hold others back."""

LARGE_ERROR = 0.1
"""Errors, as logarithms, from which on a row counts less and less."""

Key = tuple[OperatorClass, Precision]

PLAIN = Efficiency(compute=1.0, memory=1.0, overhead_s=0.0, blend=1.0)
"""What is not fitted."""


@dataclass(frozen=True)
class _Number:
    """One number of `Efficiency`: where it starts and between what it may lie, in the units of `scale`."""

    name: str
    start: float
    low: float
    high: float
    scale: float = 1.0


_COMPUTE = _Number("compute", 0.7, 0.02, 1.0)
_MEMORY = _Number("memory", 0.8, 0.02, 1.0)
_OVERHEAD = _Number("overhead_s", 4.0, 0.0, 400.0, 1e-6)
_BLEND = _Number("blend", 2.0, 1.0, 8.0)
_CHAIN = _Number("chain_s", 1.0, 0.0, 50.0, 1e-9)
_CHAIN_MOST = _Number("chain_most", 2.0, 0.25, 32.0, 1024)
_BLOCK = _Number("block", 1.0, 0.0, 40.0, 100)
_SPLIT = _Number("split_s", 2.0, 0.0, 30.0, 1e-6)
_REGROUP = _Number("regroup_s", 1.0, 0.0, 30.0, 1e-6)
_JOINT = _Number("joint", 64.0, 1.0, 256.0)
_CACHED = _Number("cached_bytes_per_s", 16.0, 1.0, 100.0, 1e9)

_ROWS = (_MEMORY, _OVERHEAD, _BLEND, _CHAIN, _CACHED)
NUMBERS: Mapping[OperatorClass, tuple[_Number, ...]] = {
    "matmul": (_COMPUTE, _MEMORY, _OVERHEAD, _BLEND, _CHAIN, _CHAIN_MOST, _CACHED),
    "grouped_matmul": (_COMPUTE, _MEMORY, _OVERHEAD, _BLEND, _CHAIN, _CHAIN_MOST),
    "attention_prefill": (_COMPUTE, _MEMORY, _OVERHEAD, _BLEND, _CHAIN, _BLOCK, _CACHED),
    "attention_decode": (
        _COMPUTE, _MEMORY, _OVERHEAD, _BLEND, _CHAIN, _BLOCK, _SPLIT, _REGROUP, _JOINT, _CACHED
    ),
    "norm": _ROWS,
    "activation": _ROWS,
    "rotary": _ROWS,
    "elementwise": (_MEMORY, _OVERHEAD, _CACHED),
    "quantise": (_MEMORY, _OVERHEAD, _BLOCK, _CACHED),
    "embedding": (_MEMORY, _OVERHEAD, _CACHED),
    "sampling": (_MEMORY, _OVERHEAD, _BLEND, _CHAIN),
}
"""What is fitted of each class; what is left out stays as it is by default. Kernels without arithmetic have
no share of it to find."""


@dataclass(frozen=True)
class FittedClass:
    """The numbers of one operator class and precision, and how well they fit."""

    operator_class: OperatorClass
    precision: Precision
    efficiency: Efficiency
    samples: int
    median_error: float
    p90_error: float
    note: str = ""

    @property
    def key(self) -> str:
        """As `efficiency` has it: matmul.bf16."""
        return f"{self.operator_class}.{self.precision}"


def fit(devices: Mapping[str, Device], samples: Sequence[Samples]) -> dict[Key, Efficiency]:
    """Numbers for every class and precision in `samples`, which may be of several devices: one set for all.

    Classes whose kernels were measured together are fitted together. Deterministic.
    """
    found: dict[Key, Efficiency] = {}
    for keys, group in _fitted_together(samples):
        found |= _fit(devices, keys, group)
    return found


def keys_of(samples: Samples) -> tuple[Key, ...]:
    """Classes and precisions of the kernels that were measured, each once."""
    return tuple(dict.fromkeys((part.operator_class, part.precision) for part in samples.parts))


def _fitted_together(samples: Sequence[Samples]) -> list[tuple[tuple[Key, ...], list[Samples]]]:
    """Samples by the kernels they share, in order of appearance."""
    found: list[tuple[set[Key], list[Samples]]] = []
    for each in samples:
        keys = set(keys_of(each))
        sharing = [one for one in found if one[0] & keys]
        rest = [one for one in found if not one[0] & keys]
        joined = (keys.union(*(one[0] for one in sharing)), [s for one in sharing for s in one[1]] + [each])
        found = [*rest, joined]
    return [(tuple(sorted(keys)), group) for keys, group in found]


def _fit(
    devices: Mapping[str, Device], keys: Sequence[Key], samples: Sequence[Samples]
) -> dict[Key, Efficiency]:
    fewest = max(min(len(each) for each in samples), FEWEST_ROWS)
    most = min(MOST_ROWS, MOST_OF_FEWEST * fewest)
    thinned = [_thinned(each, most) for each in samples]
    free = [(key, number) for key in keys for number in _free(key, devices, thinned)]
    chained = [each for each in free if each[0][0] == "attention_decode" and each[1].name == _CHAIN.name]
    if not chained:
        return _search(devices, keys, thinned, free)[1]
    # With a chain, sequences of unshared keys are not split at all: nothing leads from one to the other.
    split = _search(devices, keys, thinned, [each for each in free if each not in chained])
    return min(split, _search(devices, keys, thinned, free), key=lambda found: found[0])[1]


def _search(
    devices: Mapping[str, Device], keys: Sequence[Key], samples: Sequence[Samples],
    numbers: Sequence[tuple[Key, _Number]],
) -> tuple[float, dict[Key, Efficiency]]:  # fmt: skip
    """The free numbers that fit best, the others as they are by default, and how badly they fit."""
    low, high = (np.array([getattr(number, end) for _, number in numbers]) for end in ("low", "high"))

    def residuals(values: Floats) -> Floats:
        efficiency = _efficiency_of(keys, numbers, values)
        return np.concatenate([
            np.log(predict(each, devices[each.device], efficiency) / each.time_s) for each in samples
        ])  # fmt: skip

    def found_from(factor: float, of_cache: float) -> Any:
        factors = (of_cache if number.name == _CACHED.name else factor for _, number in numbers)
        started = [number.start * each for (_, number), each in zip(numbers, factors, strict=True)]
        start = np.clip(started, low + 1e-6, high - 1e-6)
        return least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=LARGE_ERROR)

    best = _better(found_from(1.0, 1.0), found_from(0.4, 0.4))
    found = _efficiency_of(keys, numbers, best.x)
    if any(_has_idle_cache(found, devices[each.device]) for each in samples):
        best = _better(best, found_from(1.0, 4.0))
    return float(best.cost), _efficiency_of(keys, numbers, best.x)


def _better(one: Any, other: Any) -> Any:
    """The result of a search that fits better; the first, if the other one hardly does."""
    return other if other.cost < one.cost * (1 - 1e-6) else one


def _has_idle_cache(found: Mapping[Key, Efficiency], device: Device) -> bool:
    """Whether a cache was found to be no quicker than the memory. The search cannot leave such a number: near
    it nothing changes."""
    bandwidth, units = device.memory.bandwidth_bytes_per_s or 0.0, device.units or 0
    return bool(units) and any(
        each.cached_bytes_per_s is not None and each.cached_bytes_per_s * units <= each.memory * bandwidth
        for each in found.values()
    )


def _free(key: Key, devices: Mapping[str, Device], samples: Sequence[Samples]) -> tuple[_Number, ...]:
    """The numbers of a class that samples can tell: of a cache only where a device states one, of batches
    with prompts only where some were measured."""
    parts = [part for each in samples for part in each.parts if (part.operator_class, part.precision) == key]
    unknowable = set[str]()
    if not any(_tells_of_cache(each, key, devices[each.device]) for each in samples):
        unknowable.add("cached_bytes_per_s")
    if not any(_has_chains(part.load) for part in parts):
        unknowable |= {"chain_s", "chain_most"}
    if not any(part.load.block_bytes.any() or part.load.block_flops.any() for part in parts):
        unknowable |= {"block", "split_s"}
    if not any(part.load.beside_prompts.any() for part in parts):
        unknowable.add("joint")
    if not any(part.load.regroups.any() for part in parts):
        unknowable.add("regroup_s")
    return tuple(number for number in NUMBERS[key[0]] if number.name not in unknowable)


def _has_chains(load: KernelLoad) -> bool:
    """Whether some kernels have chains that are not split."""
    return bool((load.chain * np.maximum(1 - load.is_shared, load.beside_prompts)).any())


def _tells_of_cache(samples: Samples, key: Key, device: Device) -> bool:
    """Whether a device has a cache, and rows that it holds."""
    cache = device.memory.cache_bytes
    if not cache or not device.units:
        return False
    loads = [part.load for part in samples.parts if (part.operator_class, part.precision) == key]
    return any((load.used_bytes < cache / 2).any() for load in loads)


def _thinned(samples: Samples, most: int) -> Samples:
    """At most so many rows, evenly spread over all when ordered by time."""
    if len(samples) <= most:
        return samples
    order = np.argsort(samples.time_s, kind="stable")
    kept = order[np.linspace(0, len(order) - 1, most).astype(np.intp)]
    return samples.at(np.sort(kept))


def _efficiency_of(
    keys: Sequence[Key], numbers: Sequence[tuple[Key, _Number]], values: Floats
) -> dict[Key, Efficiency]:
    """The records that a vector of fitted numbers stands for."""
    found = {}
    for key in keys:
        mine = {number.name: float(value) * number.scale
                for (owner, number), value in zip(numbers, values, strict=True) if owner == key}  # fmt: skip
        found[key] = PLAIN.model_copy(update=mine)
    return found


def predict(samples: Samples, device: Device, efficiency: Mapping[Key, Efficiency]) -> Floats:
    """Seconds of each row by the given numbers: its kernels one after the other."""
    total: Floats = np.zeros(len(samples))
    for part in samples.parts:
        total += kernel_s(part.load, rates(part, device, efficiency))
    return total


def rates(part: Part, device: Device, efficiency: Mapping[Key, Efficiency]) -> KernelRates:
    """What a kernel reaches on a device by the given numbers."""
    peak = arithmetic(device, (part.precision,))[1]
    return rates_of(device, efficiency[part.operator_class, part.precision], peak)
