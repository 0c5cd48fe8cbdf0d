"""The clock's unit: whole picoseconds. One function rounds, so that equal durations are equal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TICKS_PER_S = 10**12

Ticks = NDArray[np.int64]

LAST_LAUNCH = 2**63 - 2**59
"""Steps launched later (100 days) could end beyond what 64 bits count."""

LONGEST_STEP_S = 2**58 / TICKS_PER_S
"""Three days, for all tasks of a step one after another; no schedule of them takes longer."""


def ticks(seconds: NDArray[np.float64]) -> Ticks:
    """Durations in ticks, to the nearest; a duration of less than one tick takes one.

    >>> ticks(np.array([0.0, 1e-12, 2.6e-12]))
    array([1, 1, 3])
    """
    whole = seconds * TICKS_PER_S
    np.rint(whole, out=whole)
    return np.maximum(whole, 1.0, out=whole).astype(np.int64)


def tick(seconds: float) -> int:
    """One duration in ticks; zero stays zero, for delays that need not happen at all."""
    return round(seconds * TICKS_PER_S)


def seconds(ticks_: int | float) -> float:
    """Ticks as seconds."""
    return ticks_ / TICKS_PER_S
