"""The field's metrics, from the facts of a run.

TTFT, TPOT, ITL and end-to-end latency are taken at the client. TPOT is a mean within each request, and
its statistics run over requests; ITL pools every gap between two tokens of any request.
"""

from __future__ import annotations

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
    values, counts = values[order], counts[order]
    reached = np.cumsum(counts) / counts.sum()
    quantiles = (float(values[int(np.searchsorted(reached, q))]) for q in QUANTILES)
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
    )


GROWTH = 1.33
LEAST_GROWN = 8


def is_saturated(in_system: NDArray[np.int64]) -> bool:
    """Whether the number of requests in the system was still growing when arrivals ended.

    It compares the middle third of arrivals with the last: a queue that grows steadily has 5/3 of the
    requests in the last, a stable one as many. `GROWTH` lies half-way; runs with few requests in the
    system, whose noise is of that order, do not count.
    """
    third = len(in_system) // 3
    if third < LEAST_GROWN:
        return False
    middle, last = in_system[third : 2 * third].mean(), in_system[-third:].mean()
    return bool(last > GROWTH * middle and last - middle > LEAST_GROWN)


FALLS_BEHIND = 0.85


def falls_behind(record: RunRecord) -> bool:
    """Whether fewer requests were finished than arrived in the last third of the arrivals.

    A run that starts empty fills up first, and on a short run that looks like a queue that grows; but
    then answers come at the rate of arrivals once the first are done. Fewer than `FALLS_BEHIND` of them
    is more than the noise of some dozens of arrivals.
    """
    arrived = np.sort([request.queued_s for request in record.finished()])
    if len(arrived) < 3:
        return False
    start_s, end_s = arrived[-(len(arrived) // 3)], arrived[-1]
    done = sum(start_s <= request.last_token_s <= end_s for request in record.finished())
    return bool(done < FALLS_BEHIND * (len(arrived) // 3))
