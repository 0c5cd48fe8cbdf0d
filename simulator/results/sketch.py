"""A distribution in little memory: counts in bins of equal width in the logarithm.

DDSketch (Masson, Rim and Lee 2019, doi:10.14778/3352063.3352135), with all bins there from the start: a value
is known by its bin, to `RELATIVE_ERROR`. Sketches of parts add up to that of the whole, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RELATIVE_ERROR = 0.001
"""A value that is read off a sketch is wrong by at most this share of itself."""

_WIDTH = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
LEAST_S, MOST_S = 1e-12, 1e9
"""From a tick to 30 years; what is less or more counts as the least or the most."""
_FIRST = math.floor(math.log(LEAST_S) / _WIDTH)
_BINS = math.ceil(math.log(MOST_S) / _WIDTH) - _FIRST + 1


class Sketch:
    """How often values came, in seconds."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(_BINS, dtype=np.int64)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def add(self, values_s: Sequence[float], counts: Sequence[int]) -> None:
        """Count some values so many times each."""
        within = np.clip(np.asarray(values_s, dtype=np.float64), LEAST_S, MOST_S)
        bins = np.floor(np.log(within) / _WIDTH).astype(np.int64) - _FIRST
        np.add.at(self._counts, bins, np.asarray(counts, dtype=np.int64))

    def merge(self, other: Sketch) -> None:
        """Count all values of another sketch too."""
        self._counts += other._counts

    def interpolated(self, quantile: float) -> float | None:
        """A quantile by linear interpolation between two values, as `numpy.quantile` has it."""
        reached = np.cumsum(self._counts)
        if not reached[-1]:
            return None
        rank, share = divmod(quantile * (int(reached[-1]) - 1), 1.0)
        ranks = (rank, rank + 1 if share else rank)
        low, high = (_value(int(np.searchsorted(reached, each, side="right"))) for each in ranks)
        return (1 - share) * low + share * high

    def observed(self, quantile: float) -> float | None:
        """The least value that so large a share of all values do not exceed."""
        reached = np.cumsum(self._counts)
        if not reached[-1]:
            return None
        return _value(int(np.searchsorted(reached / reached[-1], quantile)))


def _value(number: int) -> float:
    """What stands for a bin: no value in it is farther away than `RELATIVE_ERROR`."""
    low = math.exp((number + _FIRST) * _WIDTH)
    return low * (1 + RELATIVE_ERROR)
