"""What a run says of its steady state: where its warm-up ends, and how sure the means after it are.

Warm-up: MSER-5. Of the series in means of five, cut off as many at the start as leave the mean of the rest
with the least standard error (White 1997, doi:10.1177/003754979706900601; in fives: White, Cobb and Spratt
2000, Winter Simulation Conference). Confidence: batch means (Law, "Simulation Modeling and Analysis", ch. 9),
for answers of a queue depend on one another and so tell less than as many independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.results.records import RequestRecord, RunRecord

Floats = NDArray[np.float64]

MSER_BATCH = 5
LEAST_LEFT = 5
"""Batches that must be left after the cut: the error of fewer is small by chance."""
LEAST_BATCHES, MOST_BATCHES = 10, 20
"""For a confidence interval: more than 30 gain nothing (Schmeiser 1982, doi:10.1287/opre.30.3.556)."""
LEAST_IN_A_BATCH = 5

STUDENT_95 = dict(zip(range(9, 20), (
    1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729,
), strict=True))  # fmt: skip
"""95th percentile of Student's t by degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods,
section 1.3.6.7.2."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over the steady state."""

    mean: float
    half_width: float
    """The true mean is within so much of `mean` nine times out of ten."""
    batches: int

    def as_dict(self) -> dict[str, float]:
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return {"mean": self.mean, "low": low, "high": high, "batches": self.batches}


@dataclass(frozen=True, slots=True)
class SteadyState:
    """Means without the warm-up; None where too little was seen."""

    warmup_requests: int
    """The first to be sent, which are not in these means."""
    requests: int
    ttft_s: Estimate | None
    tpot_s: Estimate | None
    output_tokens_per_s: Estimate | None
    """From when the first request of the steady state was sent until the last."""

    def as_dict(self) -> dict[str, object]:
        estimates = {name: getattr(self, name) for name in ("ttft_s", "tpot_s", "output_tokens_per_s")}
        return {"warmup_requests": self.warmup_requests, "requests": self.requests} | {
            name: estimate and estimate.as_dict() for name, estimate in estimates.items()
        }


def steady_state(record: RunRecord) -> SteadyState | None:
    """Judged by the end-to-end latency of requests in the order in which they were sent; None if the run is
    too short, or comes to rest only in its second half, if ever."""
    requests = sorted(record.finished(), key=lambda request: (request.sent_s, request.number))
    if not requests or requests[0].sent_s == requests[-1].sent_s:
        return None
    cut = mser5(np.array([request.e2e_s for request in requests]))
    if cut is None:
        return None
    steady = requests[cut:]
    tpots = [tpot for request in steady if (tpot := request.tpot_s) is not None]
    return SteadyState(
        warmup_requests=cut,
        requests=len(steady),
        ttft_s=batch_means(np.array([request.ttft_s for request in steady])),
        tpot_s=batch_means(np.array(tpots)),
        output_tokens_per_s=_throughput(requests, steady[0].sent_s, steady[-1].sent_s),
    )


def mser5(series: Floats) -> int | None:
    """How many observations at the start to leave out; None if there are too few, or it were more than half.

    >>> mser5(np.array([9.0] * 10 + [1.0, 2.0] * 30))
    10
    """
    count = len(series) // MSER_BATCH
    if count < 2 * LEAST_LEFT:
        return None
    means = series[: count * MSER_BATCH].reshape(count, MSER_BATCH).mean(axis=1)
    left = np.arange(count, 0, -1)
    centred = means - means.mean()
    deviations = _from_here(centred**2) - _from_here(centred) ** 2 / left
    deviations[deviations <= _ROUNDING * deviations[0]] = 0.0
    cut = int((deviations / left**2)[: count - LEAST_LEFT + 1].argmin())
    return cut * MSER_BATCH if cut <= count // 2 else None


_ROUNDING = 1e-12


def _from_here(values: Floats) -> Floats:
    """Sum of each value and all after it."""
    return np.cumsum(values[::-1])[::-1]


def batch_means(series: Floats) -> Estimate | None:
    """The mean, and how sure it is by the means of successive batches; None where they were too small."""
    batches = min(MOST_BATCHES, len(series) // LEAST_IN_A_BATCH)
    if batches < LEAST_BATCHES:
        return None
    means = [float(part.mean()) for part in np.array_split(series, batches)]
    return _estimate(float(series.mean()), means)


def _estimate(mean: float, batch: Sequence[float]) -> Estimate:
    error = float(np.std(batch, ddof=1)) / math.sqrt(len(batch))
    return Estimate(mean, STUDENT_95[len(batch) - 1] * error, len(batch))


def _throughput(requests: Sequence[RequestRecord], start_s: float, end_s: float) -> Estimate | None:
    """Output tokens a second between two moments, in batches of equal time. A request's tokens after the
    first count evenly between its first and its last."""
    batches = min(MOST_BATCHES, len(requests) // LEAST_IN_A_BATCH)
    if batches < LEAST_BATCHES or end_s <= start_s:
        return None
    edges = np.linspace(start_s, end_s, batches + 1)
    rates = np.diff(received_tokens(requests, edges)) * batches / (end_s - start_s)
    return _estimate(float(rates.mean()), rates.tolist())


_NO_TIME_S = 1e-12


def received_tokens(requests: Sequence[RequestRecord], moments_s: Floats) -> Floats:
    """Output tokens that clients have by each moment."""
    first_s = np.array([request.first_received_s for request in requests])
    last_s = np.array([request.last_received_s for request in requests])
    others = np.array([request.output_tokens - 1 for request in requests], dtype=np.float64)
    lasting_s = np.maximum(last_s - first_s, _NO_TIME_S)

    def by(moment_s: float) -> float:
        share = (np.clip(moment_s, first_s, last_s) - first_s) / lasting_s
        return float(((first_s <= moment_s) + others * np.where(moment_s >= last_s, 1.0, share)).sum())

    return np.array([by(moment_s) for moment_s in moments_s])
