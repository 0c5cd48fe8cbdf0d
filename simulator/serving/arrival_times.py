"""When requests are sent, by each process of arrivals.

Processes whose rate varies are Poisson of rate 1 in the work that the rate adds up to, carried back to time
(inversion; Çınlar 1975, ch. 4.7): another mean rate keeps the draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from simulator.specs.arrivals import (
    Arrivals,
    BatchArrivals,
    ClosedArrivals,
    ConstantArrivals,
    DiurnalArrivals,
    GammaArrivals,
    OnOffArrivals,
    PoissonArrivals,
)

Floats = NDArray[np.float64]


def arrival_times(
    arrivals: Arrivals, count: int, rng: np.random.Generator, states: np.random.Generator
) -> Floats:
    """Seconds at which `count` requests are sent, in order; states: draws how long bursts last."""
    match arrivals:
        case BatchArrivals() | ClosedArrivals():
            return np.zeros(count)
        case ConstantArrivals():
            return np.arange(count) / arrivals.rate_per_s
        case PoissonArrivals():
            return np.cumsum(rng.exponential(1 / arrivals.rate_per_s, count))
        case GammaArrivals():
            shape = arrivals.cv**-2
            return np.cumsum(rng.gamma(shape, 1 / (shape * arrivals.rate_per_s), count))
        case OnOffArrivals():
            return on_off_times(arrivals, np.cumsum(rng.exponential(1.0, count)), states)
        case DiurnalArrivals():
            return diurnal_times(arrivals, np.cumsum(rng.exponential(1.0, count)))
    raise AssertionError("a trace brings its own times")


# -- bursts -------------------------------------------------------------------------------------------------


def on_off_times(arrivals: OnOffArrivals, expected: Floats, states: np.random.Generator) -> Floats:
    """When so many requests, ascending, have been expected: the rate summed up over the bursts so far."""
    rates, starts, counted = [], [0.0], [0.0]
    for rate, duration_s in _phases(arrivals, states):
        rates.append(rate)
        starts.append(starts[-1] + duration_s)
        counted.append(counted[-1] + rate * duration_s)
        if counted[-1] > expected[-1]:
            break
    phase = np.searchsorted(counted, expected, side="right") - 1
    starts_s, into_s = np.array(starts), (expected - np.array(counted)[phase]) / np.array(rates)[phase]
    times_s: Floats = np.minimum(starts_s[phase] + into_s, starts_s[phase + 1])
    return times_s


def _phases(arrivals: OnOffArrivals, states: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Rate and seconds of one burst or pause after another."""
    is_fixed = arrivals.durations == "fixed"
    is_on = is_fixed or states.random() < arrivals.on_s / arrivals.cycle_s
    while True:
        mean_s = arrivals.on_s if is_on else arrivals.off_s
        rate = arrivals.rate_per_s if is_on else arrivals.off_rate_per_s
        yield rate, mean_s if is_fixed else mean_s * states.exponential()
        is_on = not is_on


# -- the time of day ----------------------------------------------------------------------------------------

_HALVINGS = 60


def diurnal_times(arrivals: DiurnalArrivals, expected: Floats) -> Floats:
    """When so many requests, ascending, have been expected: bisection of the rate's integral."""
    swing_s = arrivals.amplitude * arrivals.period_s / (2 * math.pi)
    turn, start = 2 * math.pi / arrivals.period_s, 2 * math.pi * (arrivals.start_s / arrivals.period_s)
    mean_s = expected / arrivals.rate_per_s
    low, high = np.maximum(mean_s - 2 * swing_s, 0.0), mean_s + 2 * swing_s
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_late = middle + swing_s * (math.cos(start) - np.cos(turn * middle + start)) > mean_s
        low, high = np.where(is_late, low, middle), np.where(is_late, middle, high)
    return np.maximum.accumulate(high)
