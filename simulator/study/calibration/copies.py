"""Copies between a device and its host as measured, and the figures of their link that fit them.

A copy takes `launch + latency + bytes / bandwidth`, one to the host `synchronize` besides. A table shows only
sums: what the device states of its launch is taken as given, the rest of a small copy's time is the link's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.specs.hardware import Transition
from simulator.study.calibration.collectives import FEWEST_ROWS, NOISE, microseconds
from simulator.study.calibration.columns import Columns, Floats, Texts

TO_DEVICE, TO_HOST = "to_device", "to_host"


@dataclass(frozen=True)
class CopyRows:
    """Measured copies; a row is an entry of each array."""

    direction: Texts
    """`to_device` or `to_host`."""
    is_pinned: NDArray[np.bool_]
    nbytes: Floats
    time_s: Floats

    def __len__(self) -> int:
        return len(self.time_s)

    def where(self, chosen: NDArray[np.bool_]) -> CopyRows:
        return CopyRows(self.direction[chosen], self.is_pinned[chosen], self.nbytes[chosen],
                        self.time_s[chosen])  # fmt: skip


@dataclass(frozen=True)
class CopyFit:
    """Figures of a link between a host and a device, and how far the rows are from them."""

    latency_s: float
    synchronize_s: float | None
    """Of the device; None without copies to the host."""
    efficiency: float
    pageable_efficiency: float | None
    """None without copies of memory that is not pinned."""
    samples: int
    median_error: float
    p90_error: float


def read_copies(columns: Columns) -> CopyRows:
    """The rows of a table of operators whose `operator` is `copy`; raises InputError."""
    chosen = np.flatnonzero(columns.texts("operator") == "copy")
    direction, pinned = columns.texts("direction")[chosen], columns.texts("pinned")[chosen]
    for number, to, is_pinned in zip(chosen.tolist(), direction.tolist(), pinned.tolist(), strict=True):
        if to not in (TO_DEVICE, TO_HOST):
            columns.refuse("direction", number, to, f"one of: {TO_DEVICE}, {TO_HOST}")
        if is_pinned.lower() not in ("true", "false"):
            columns.refuse("pinned", number, is_pinned, "write true or false")
    nbytes, time_us = columns.positive("bytes", chosen), columns.positive("time_us", chosen)
    return CopyRows(direction, np.char.lower(pinned) == "true", nbytes, microseconds(time_us))


def fit_copies(rows: CopyRows, bytes_per_s: float, transition: Transition) -> CopyFit | None:
    """The figures that fit copies over a link of that nominal bandwidth, of a device with that `transition`;
    None for too few copies of pinned memory."""
    pinned = rows.where(rows.is_pinned)
    if len(pinned) < FEWEST_ROWS:
        return None
    pageable = rows.where(~rows.is_pinned)
    has_pageable, has_back = len(pageable) >= FEWEST_ROWS, bool((rows.direction == TO_HOST).any())
    used = rows if has_pageable else pinned
    log_s, is_back = np.log(used.time_s), used.direction == TO_HOST
    least_s = float(used.time_s.min())

    def seconds(numbers: Floats) -> Floats:
        start, wait, share, pageable_share = np.exp(numbers)
        reached = bytes_per_s * np.where(used.is_pinned, share, pageable_share)
        result: Floats = start + np.where(is_back, wait, 0.0) + used.nbytes / reached
        return result

    first = np.log([least_s, least_s / 10, 0.8, 0.3])
    low, high = np.log([1e-9, 1e-9, 1e-4, 1e-4]), np.log([1.0, 1.0, 1.0, 1.0]) + 1e-9
    def residuals(numbers: Floats) -> Floats:
        result: Floats = np.log(seconds(numbers)) - log_s
        return result

    found = least_squares(residuals, first, bounds=(low, high), loss="soft_l1", f_scale=NOISE)
    start_s, wait_s, share, pageable_share = (float(value) for value in np.exp(found.x))
    errors = np.abs(seconds(found.x) / used.time_s - 1)
    return CopyFit(
        latency_s=max(0.0, start_s - transition.launch_s),
        synchronize_s=wait_s if has_back else None,
        efficiency=min(1.0, share),
        pageable_efficiency=min(1.0, share, pageable_share) if has_pageable else None,
        samples=len(used),
        median_error=float(np.median(errors)),
        p90_error=float(np.quantile(errors, 0.9)),
    )
