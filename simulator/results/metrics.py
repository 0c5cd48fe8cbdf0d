"""The field's metrics, from the facts of a run.

TTFT, TPOT, ITL and end-to-end latency are taken at the client. TPOT is a mean within each request, and
its statistics run over requests; ITL pools every gap between two tokens of any request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.results.records import RunRecord

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


def latency_metrics(record: RunRecord) -> LatencyMetrics:
    """Derive the metrics of a run in which at least one request finished."""
    finished = record.finished()
    duration_s = record.duration_s
    inputs = sum(request.prompt_tokens for request in finished)
    outputs = sum(request.output_tokens for request in finished)
    tpots = [request.tpot_s for request in finished]
    total_s = sum(record.time_s.values())
    return LatencyMetrics(
        ttft_s=distribution([request.ttft_s for request in finished]),
        tpot_s=distribution([tpot for tpot in tpots if tpot is not None]),
        itl_s=weighted_distribution(record.gaps_s, record.gap_counts),
        e2e_s=distribution([request.e2e_s for request in finished]),
        output_tokens_per_s=outputs / duration_s,
        total_tokens_per_s=(inputs + outputs) / duration_s,
        requests_per_s=len(finished) / duration_s,
        attribution={name: record.time_s[name] / total_s for name in CATEGORIES},
        overhead_share=record.overhead_s / total_s,
    )


LEAST_GROWN = 8
DEVIATIONS = 2


def is_saturated(record: RunRecord) -> bool:
    """Whether requests arrived faster than they were served when arrivals ended: more of them were in the
    system, and fewer were finished than arrived."""
    return is_growing(record.in_system_at_arrivals) and falls_behind(record)


def is_growing(in_system: NDArray[np.int64]) -> bool:
    """Whether more requests were in the system during the last third of the arrivals than during the
    middle third, by more than `LEAST_GROWN` on average."""
    third = len(in_system) // 3
    if third < LEAST_GROWN:
        return False
    middle, last = in_system[third : 2 * third].mean(), in_system[-third:].mean()
    return bool(last - middle > LEAST_GROWN)


def falls_behind(record: RunRecord) -> bool:
    """Whether fewer requests were finished than arrived in the last third of the arrivals.

    A run that starts empty fills up first, and on a short run that looks like a queue that grows; but
    then answers come at the rate of arrivals once the first are done. Of n arrivals, n - `DEVIATIONS` *
    sqrt(2 n) answers are within the noise: the difference of two Poisson counts of mean n varies by
    sqrt(2 n).
    """
    arrived = np.sort([request.queued_s for request in record.finished()])
    if len(arrived) < 3:
        return False
    count = len(arrived) // 3
    start_s, end_s = arrived[-count], arrived[-1]
    done = sum(start_s <= request.last_token_s <= end_s for request in record.finished())
    return bool(done < count - DEVIATIONS * math.sqrt(2 * count))
