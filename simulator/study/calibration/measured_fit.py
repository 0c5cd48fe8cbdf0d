"""Fits the four numbers of an efficiency to some timed kernels of one class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.costs.operators import blended_terms

Floats = NDArray[np.float64]

LEAST_SHARE, MOST_BLEND = 1e-4, 12.0
SHORTEST_S = 1e-8
STARTS = ((0.5, 0.5, 2.0), (0.1, 0.5, 1.2), (0.5, 0.1, 1.2), (0.02, 0.9, 1.2))
"""Shares of compute and memory, and the blend, that the search begins from."""
SCALE = 0.1
"""Relative errors beyond this one weigh less and less."""


@dataclass(frozen=True)
class FittedEfficiency:
    """The numbers of an `efficiency`, and how far they are from what they were fitted to."""

    compute: float
    memory: float
    overhead_s: float
    blend: float
    samples: int
    median_error: float
    """Of the relative errors, without their signs."""
    p90_error: float
    slowdown: float = 1.0
    """By what `compute` and `memory` were divided afterwards."""
    more: Mapping[str, str | float] = field(default_factory=dict)
    """Further numbers of the class, as a profile has them: chain, block, cached ..."""

    def times_s(self, flops: Floats, moved_bytes: Floats, peak: float, bandwidth: float) -> Floats:
        """What kernels of so much work take."""
        numbers = np.array([self.compute, self.memory, self.overhead_s, self.blend])
        return _times_s(numbers, flops / peak, moved_bytes / bandwidth)


def fit_efficiency(
    flops: Floats, moved_bytes: Floats, time_s: Floats, peak: float, bandwidth: float
) -> FittedEfficiency:
    """The numbers with the least relative errors; large errors count less than by their squares.

    flops, moved_bytes, time_s: of each kernel. Shares stay within 1; where the kernels have no arithmetic,
    `compute` is 1.
    """
    compute_s, memory_s = flops / peak, moved_bytes / bandwidth
    lower = np.log([LEAST_SHARE, LEAST_SHARE, SHORTEST_S, 1.0])
    upper = np.log([1.0, 1.0, max(float(time_s.max()), 2 * SHORTEST_S), MOST_BLEND])
    least_s = float(np.clip(time_s.min(), 2 * SHORTEST_S, np.exp(upper[2])))

    def errors(logs: Floats) -> Floats:
        return np.log(_times_s(np.exp(logs), compute_s, memory_s) / time_s)

    found = min(
        (
            least_squares(
                errors, np.clip(np.log([compute, memory, least_s * 0.9, blend]), lower, upper),
                bounds=(lower, upper), loss="soft_l1", f_scale=SCALE,
            )
            for compute, memory, blend in STARTS
        ),
        key=lambda each: float(each.cost),
    )  # fmt: skip
    off = np.abs(np.expm1(errors(found.x)))
    compute, memory, overhead_s, blend = (float(number) for number in np.exp(found.x))
    compute = compute if flops.any() else 1.0
    return FittedEfficiency(
        compute, memory, overhead_s, blend, len(time_s), float(np.median(off)),
        float(np.quantile(off, 0.9)),
    )  # fmt: skip


def _times_s(numbers: Floats, compute_s: Floats, memory_s: Floats) -> Floats:
    compute, memory, overhead_s, blend = numbers
    terms = blended_terms(compute_s / compute, memory_s / memory, np.full(len(compute_s), blend))
    times_s: Floats = terms[0] + terms[1] + overhead_s
    return times_s
