"""The field's metrics, from the facts of a run.

TTFT, TPOT and end-to-end latency are taken by a clock of one's choice, ITL at the client. TPOT is a mean
within each request, and its statistics run over requests; ITL pools every gap between two tokens of any
request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.results.clocks import latencies
from simulator.results.records import RunRecord
from simulator.results.steady import SteadyState, steady_state
from simulator.specs.engine import MetricsClock

CATEGORIES = ("compute", "memory", "transfer", "host", "network", "waiting")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles; None throughout where nothing was observed."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


NOTHING_SEEN = Distribution(None, None, None, None, None)
QUANTILES = (0.5, 0.9, 0.95, 0.99)


def distribution(values: Sequence[float]) -> Distribution:
    """Statistics of some observations, percentiles by linear interpolation."""
    if not len(values):
        return NOTHING_SEEN
    array = np.asarray(values, dtype=np.float64)
    return Distribution(float(array.mean()), *(float(q) for q in np.quantile(array, QUANTILES)))


def weighted_distribution(values: NDArray[np.float64], counts: NDArray[np.int64]) -> Distribution:
    """Statistics of observations that occur `counts` times each; percentiles are observed values."""
    if not counts.sum():
        return NOTHING_SEEN
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order]) / counts.sum()
    quantiles = (float(values[order[np.searchsorted(reached, q)]]) for q in QUANTILES)
    return Distribution(float(np.average(values, weights=counts)), *quantiles)


@dataclass(frozen=True)
class LatencyMetrics:
    """Latency and rate of one run."""

    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    attribution: dict[str, float]
    """Share of the requests' time spent on each category; adds up to 1."""
    overhead_share: float = 0.0
    """Part of the share of compute that is fixed overhead of kernels."""
    steady: SteadyState | None = None
    """Means without the warm-up; None where no steady state was found. All else is of the whole run."""


def latency_metrics(record: RunRecord, clock: MetricsClock = "client") -> LatencyMetrics:
    """Derive the metrics of a run in which at least one request finished."""
    finished = record.finished()
    duration_s = record.duration_s
    inputs = sum(request.prompt_tokens for request in finished)
    outputs = sum(request.output_tokens for request in finished)
    seen = latencies(finished, clock)
    total_s = sum(record.time_s.values())
    return LatencyMetrics(
        ttft_s=distribution([each.ttft_s for each in seen]),
        tpot_s=distribution([each.tpot_s for each in seen if each.tpot_s is not None]),
        itl_s=weighted_distribution(record.gaps_s, record.gap_counts),
        e2e_s=distribution([each.e2e_s for each in seen]),
        output_tokens_per_s=outputs / duration_s,
        total_tokens_per_s=(inputs + outputs) / duration_s,
        requests_per_s=len(finished) / duration_s,
        attribution={name: record.time_s[name] / total_s for name in CATEGORIES},
        overhead_share=record.overhead_s / total_s,
        steady=steady_state(record),
    )


LEAST_GROWN = 8
DEVIATIONS = 2


def is_saturated(record: RunRecord, dispersion: float = 1.0, cycle: float = 0.0) -> bool:
    """Whether requests arrived faster than they were served when arrivals ended: more of them were in the
    system, and fewer were finished than arrived.

    dispersion: variance over mean of how many arrive in a long time. cycle: requests after which the rate of
    arrivals has been what it was; 0 where it does not vary as planned.
    """
    in_system = record.in_system_at_arrivals
    return is_growing(in_system, window(len(in_system), cycle)) and falls_behind(record, dispersion, cycle)


def window(arrivals: int, cycle: float) -> int:
    """How many of the last arrivals to compare with as many before: the last third, or a whole cycle where
    two are there, of which the hours of the day cannot make one look worse."""
    return round(cycle) if 0 < 2 * cycle <= arrivals else arrivals // 3


def is_growing(in_system: NDArray[np.int64], last_count: int | None = None) -> bool:
    """Whether more requests were in the system during the last so many arrivals, a third if it is not said,
    than during as many before, by more than `LEAST_GROWN` on average."""
    count = last_count or len(in_system) // 3
    if count < LEAST_GROWN:
        return False
    before, last = in_system[-2 * count : -count].mean(), in_system[-count:].mean()
    return bool(last - before > LEAST_GROWN)


def falls_behind(record: RunRecord, dispersion: float = 1.0, cycle: float = 0.0) -> bool:
    """Whether fewer requests were finished than arrived in the last third of the arrivals, or the last cycle.

    A run that starts empty fills up first, and on a short run that looks like a queue that grows; but
    then answers come at the rate of arrivals once the first are done. Of n arrivals, n - `DEVIATIONS` *
    sqrt((d + 1) n) answers are within the noise: the difference of arrivals of dispersion d and answers as
    of a Poisson process varies so much. Arrivals more even than Poisson are taken for Poisson.
    """
    arrived = np.sort([request.queued_s for request in record.finished()])
    if len(arrived) < 3:
        return False
    count = window(len(arrived), cycle)
    start_s, end_s = arrived[-count], arrived[-1]
    done = sum(start_s <= request.last_token_s <= end_s for request in record.finished())
    return bool(done < count - DEVIATIONS * math.sqrt((max(1.0, dispersion) + 1) * count))
