"""Operator time from measured tables: the fitted formula, corrected by what neighbouring rows measured.

The correction of a shape is the mean, weighted by distance, of how far the formula is off for the nearest
measured shapes, all on logarithms: a table's own steps and jumps come in where there are rows, and far from
any row the formula stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from simulator.costs.operators import Floats
from simulator.study.calibration.samples import Samples

NEIGHBOURS = 6
REACH_OCTAVES = 3.0
"""Farther rows say nothing: distance is over all sides of a shape, a doubling of one of them is 1."""
SMOOTHING_OCTAVES = 0.05
"""Keeps the weight of a row finite that has the very shape asked for; repeated rows then count alike."""


@dataclass(frozen=True)
class Lookup:
    """Measured rows of one kind of kernel on one device, beside what the formula makes of them."""

    places: KDTree
    corrections: Floats
    """Logarithm of measured over predicted, of each row."""

    @classmethod
    def of(cls, samples: Samples, predicted_s: Floats) -> Lookup:
        """A table of `samples`, for which the formula gives `predicted_s`."""
        return cls.of_all([(samples, predicted_s)])

    @classmethod
    def of_all(cls, tables: Sequence[tuple[Samples, Floats]]) -> Lookup:
        """Of several kinds of rows with the same sides, as the products of a layer."""
        places = np.concatenate([_places(samples) for samples, _ in tables])
        corrections = [np.log(samples.time_s / predicted_s) for samples, predicted_s in tables]
        return cls(KDTree(places), np.concatenate(corrections))

    def corrected(self, samples: Samples, predicted_s: Floats) -> tuple[Floats, Floats]:
        """Seconds of other shapes by the table, and the octaves to the nearest row of each; beyond the reach
        the formula alone."""
        count = min(NEIGHBOURS, len(self.corrections))
        found = self.places.query(_places(samples), k=count)
        distance, which = (np.asarray(each).reshape(len(samples), count) for each in found)
        weight = 1 / (distance + SMOOTHING_OCTAVES) ** 2
        weight[distance > REACH_OCTAVES] = 0.0
        total = weight.sum(axis=1)
        correction = (weight * self.corrections[which]).sum(axis=1) / np.where(total > 0, total, 1.0)
        return predicted_s * np.exp(correction), distance[:, 0]


def _places(samples: Samples) -> Floats:
    """Shapes as points: the logarithms of their sides, to base 2; a side of nothing lies an octave below
    1."""
    return np.stack([np.log2(np.maximum(side, 0.5)) for side in samples.shape.values()], axis=1)
