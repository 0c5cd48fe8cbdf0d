"""How far predictions are from measurements, and whether they rank as the measurements do.

Every error is a fraction of the measured value: predicted / measured - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FEWEST_TO_RANK = 3
"""Fewer rows have no rank correlation worth the name."""

LEAST_DIFFERENCE = 0.02
"""Measured values nearer than this share of the smaller are in no order: repeats differ as much."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The errors of one metric over rows that were predicted; None where too few rows say anything."""

    median_ape: float
    """Median of the absolute error."""
    p90_ape: float
    bias: float
    """Median of the signed error; positive where predictions are too high."""
    rank_correlation: float | None
    """Spearman's."""
    pairs_in_order: float | None
    """Share of pairs of rows, of those that measurements tell apart, predicted in the measured order."""
    coverage_90: float | None = None
    """Share of rows inside their 90 % interval; None while predictions carry no interval."""
    median_half_width: float | None = None
    """Median of half the interval's width over the prediction."""

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def accuracy(measured: Sequence[float], predicted: Sequence[float]) -> Accuracy:
    """Compare predictions with what was measured, row by row; measured values are positive.

    >>> accuracy([10.0, 20.0], [11.0, 18.0]).median_ape
    0.1
    """
    assert len(measured) == len(predicted) > 0, "every measured value needs a prediction"
    truth, guess = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    errors = accuracy_of(truth, guess)
    return replace(errors, rank_correlation=rank_correlation(truth, guess),
                   pairs_in_order=pairs_in_order(truth, guess))  # fmt: skip


def accuracy_of(measured: Floats, predicted: Floats) -> Accuracy:
    """As `accuracy`, without the ranks, whose cost grows with the square of the rows."""
    assert (measured > 0).all(), "a relative error needs a positive measurement"
    errors = (predicted - measured) / measured
    return Accuracy(
        median_ape=float(np.median(np.abs(errors))),
        p90_ape=float(np.quantile(np.abs(errors), 0.9)),
        bias=float(np.median(errors)),
        rank_correlation=None,
        pairs_in_order=None,
    )


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None for fewer than three rows, or
    where all values of one side are equal.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])
    0.5
    """
    ranks = _ranks(np.asarray(first)), _ranks(np.asarray(second))
    if len(ranks[0]) < FEWEST_TO_RANK:
        return None
    one, other = (each - each.mean() for each in ranks)
    scale = float((one @ one) * (other @ other)) ** 0.5
    return float(one @ other) / scale if scale else None


def _ranks(values: NDArray[np.generic]) -> Floats:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: Floats = (2 * last - counts - 1) / 2
    return mean_rank[which]


def pairs_in_order(measured: ArrayLike, predicted: ArrayLike) -> float | None:
    """Share of pairs predicted in the measured order, of those whose measured values differ by more than
    2 % of the smaller; None if there is no such pair. A tie of predictions is not in order.

    >>> pairs_in_order([1.0, 2.0, 2.01], [1.0, 3.0, 0.5])
    0.5
    """
    order = np.argsort(np.asarray(measured), kind="stable")
    truth, guess = np.asarray(measured)[order], np.asarray(predicted)[order]
    told_apart = in_order = 0
    for index, smaller in enumerate(truth):
        larger = index + 1 + np.flatnonzero(truth[index + 1 :] - smaller > LEAST_DIFFERENCE * smaller)
        told_apart += len(larger)
        in_order += int((guess[larger] > guess[index]).sum())
    return in_order / told_apart if told_apart else None
