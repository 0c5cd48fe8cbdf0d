"""Collectives as measured, and the figures of a link that fit them.

A way to carry a collective out takes `latency + hop * rounds + bytes / bandwidth`, and of several ways the
quickest is taken, as libraries choose among protocols. So the fit is of the least of such lines: first of a
smoothed one, then of the least itself, on logarithms of times, with a loss that forgives outliers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.costs.transfers import collective_s
from simulator.specs.hardware import ALGORITHMS, Algorithm, Collective, Collectives, Link
from simulator.study.calibration.columns import Columns, Floats, Texts

By = Literal["engine", "engine-eager", "library"]

BY: tuple[By, ...] = get_args(By)

SMALL_BYTES = 256 * 1024
"""Collectives of up to this size are judged apart: an engine's decode has them, and latency decides."""

TOGETHER: tuple[tuple[Algorithm, ...], ...] = (
    ("all_reduce",),
    ("all_gather", "reduce_scatter"),
    ("all_to_all",),
)
"""Algorithms that share their figures: gathering and scattering are the same ring."""

ENGINE_BELOW_BYTES = 8 * 1024 * 1024
"""vLLM takes its own all-reduce below this size (`max_size` of its custom all-reduce, 0.14 and 0.24): in its
tables, times jump to NCCL's here."""

FEWEST_ROWS = 8
"""Fewer rows would leave the four numbers of a way to chance."""


@dataclass(frozen=True)
class CollectiveRows:
    """Measured collectives; a row is an entry of each array."""

    algorithm: Texts
    by: Texts
    ranks: NDArray[np.int64]
    payload_bytes: Floats
    """Of the whole result of an all-reduce or all-gather, of one rank's input of the other two."""
    time_s: Floats

    def __len__(self) -> int:
        return len(self.time_s)

    def where(self, chosen: NDArray[np.bool_]) -> CollectiveRows:
        return CollectiveRows(self.algorithm[chosen], self.by[chosen], self.ranks[chosen],
                              self.payload_bytes[chosen], self.time_s[chosen])  # fmt: skip

    def of(self, algorithms: Sequence[Algorithm], by: By) -> CollectiveRows:
        """The rows of some algorithms that were carried out by one."""
        return self.where(np.isin(self.algorithm, algorithms) & (self.by == by))

    @property
    def is_small(self) -> NDArray[np.bool_]:
        return self.payload_bytes <= SMALL_BYTES

    @property
    def rounds(self) -> Floats:
        twice = np.where(self.algorithm == "all_reduce", 2.0, 1.0)
        result: Floats = twice * (self.ranks - 1)
        return result

    @property
    def link_bytes(self) -> Floats:
        """What a ring puts on one direction of each link."""
        result: Floats = self.rounds / self.ranks * self.payload_bytes
        return result


@dataclass(frozen=True)
class Sample:
    """Rows of one system, and what they ran over."""

    rows: CollectiveRows
    bytes_per_s: float
    """Nominal, one direction of the link."""


@dataclass(frozen=True)
class Fit:
    """Figures of a link, and how far the rows they were fitted to are from them."""

    collectives: Collectives
    samples: int
    median_error: float
    p90_error: float


# -- the documented table -----------------------------------------------------------------------------------


def read_collectives(columns: Columns) -> CollectiveRows:
    """The rows of a table of operators whose `operator` is `collective`; raises InputError."""
    chosen = np.flatnonzero(columns.texts("operator") == "collective")
    algorithm, by = columns.texts("algorithm")[chosen], columns.texts("by")[chosen]
    for number, what, who in zip(chosen.tolist(), algorithm.tolist(), by.tolist(), strict=True):
        if what not in ALGORITHMS:
            columns.refuse("algorithm", number, what, f"one of: {', '.join(ALGORITHMS)}")
        if who not in BY:
            columns.refuse("by", number, who, f"one of: {', '.join(BY)}")
    ranks = columns.whole("ranks", least=2, rows=chosen)
    nbytes, time_us = columns.positive("bytes", chosen), columns.positive("time_us", chosen)
    return CollectiveRows(algorithm, by, ranks, nbytes, microseconds(time_us))


def microseconds(values: Floats) -> Floats:
    """Microseconds as seconds."""
    return values / 1_000_000


# -- what a link says of measured rows ----------------------------------------------------------------------


def predicted_s(link: Link, rows: CollectiveRows) -> Floats:
    """Seconds of every row over a link: by the library alone, or by the quicker of engine and library."""
    of_library = link.collective.model_copy(update={"engine": ()})
    by_library = link.model_copy(update={"collective": of_library})
    cells = zip(rows.algorithm.tolist(), rows.by.tolist(), rows.ranks.tolist(), rows.payload_bytes.tolist(),
                strict=True)  # fmt: skip
    return np.array([
        collective_s(by_library if by == "library" else link, algorithm, ranks, payload)
        for algorithm, by, ranks, payload in cells
    ])  # fmt: skip


# -- fitting ------------------------------------------------------------------------------------------------


def fit_collectives(samples: Sequence[Sample], below_bytes: float = ENGINE_BELOW_BYTES) -> Fit | None:
    """The figures that fit measured collectives of one system best, or of several with links of one kind.

    Every group of algorithms has ways of its own. The engine's are fitted to its rows below `below_bytes`,
    and end there, for numbers of ranks at which it is quicker than the library. Where an engine has no
    all-reduce of its own, its rows are the library's and are fitted as such. Rows launched eagerly tell of
    the host and are left out. None where a library's rows are too few for any group.
    """
    if not samples:
        return None
    library = _fit_library(samples)
    if not library:
        return None
    most = _most_ranks_of_engine(samples, library, below_bytes) if library[0].algorithms == TOGETHER[0] else 0
    if most < math.inf:
        library = _fit_library([_handed_over(sample, most) for sample in samples])
    engine = _fit_engine(samples, most, below_bytes)
    collectives = Collectives(engine=engine, library=library)
    errors = np.concatenate([_errors(collectives, each) for each in samples])
    return Fit(collectives, len(errors), float(np.median(errors)), float(np.quantile(errors, 0.9)))


@dataclass(frozen=True)
class _Work:
    """What the time of a collective depends on."""

    rounds: Floats
    nominal_s: Floats
    """Of its bytes at the link's nominal bandwidth."""
    ranks: Floats

    def where(self, chosen: NDArray[np.bool_]) -> _Work:
        return _Work(self.rounds[chosen], self.nominal_s[chosen], self.ranks[chosen])


def _of(samples: Sequence[Sample], algorithms: Sequence[Algorithm], by: By) -> tuple[_Work, Floats]:
    """The work of some rows of every sample, and the logarithms of their times."""
    chosen = [(each.rows.of(algorithms, by), each.bytes_per_s) for each in samples]
    work = _Work(
        np.concatenate([rows.rounds for rows, _ in chosen]),
        np.concatenate([rows.link_bytes / bytes_per_s for rows, bytes_per_s in chosen]),
        np.concatenate([rows.ranks.astype(np.float64) for rows, _ in chosen]),
    )
    return work, np.log(np.concatenate([rows.time_s for rows, _ in chosen]))


def _fit_library(samples: Sequence[Sample]) -> tuple[Collective, ...]:
    return tuple(
        way
        for algorithms in TOGETHER
        for way in _fit_ways(*_of(samples, algorithms, "library"), algorithms)
    )


def _most_ranks_of_engine(
    samples: Sequence[Sample], library: Sequence[Collective], below_bytes: float
) -> float:
    """The number of ranks up to which an engine's all-reduce is quicker than the library; infinite if it is
    for all that were measured, 0 if for none."""
    by_library = Collectives(library=tuple(library))
    quicker: dict[int, list[float]] = {}
    for sample in samples:
        rows = sample.rows.of(("all_reduce",), "engine")
        rows = rows.where((rows.payload_bytes > SAME_BELOW_BYTES) & (rows.payload_bytes < below_bytes))
        ratio = rows.time_s / predicted_s(_link(by_library, sample.bytes_per_s), rows)
        for ranks in np.unique(rows.ranks).tolist():
            quicker.setdefault(ranks, []).extend(ratio[rows.ranks == ranks].tolist())
    most = 0.0
    for ranks in sorted(quicker):
        if np.median(quicker[ranks]) >= WORTH_HAVING:
            return most
        most = float(ranks)
    return math.inf


def _handed_over(sample: Sample, most_ranks: float) -> Sample:
    """A sample whose engine's rows among more ranks are the library's."""
    rows = sample.rows
    handed_over = (rows.by == "engine") & (rows.ranks > most_ranks)
    by = np.where(handed_over, "library", rows.by)
    return Sample(replace(rows, by=by), sample.bytes_per_s)


def _fit_engine(samples: Sequence[Sample], most_ranks: float, below_bytes: float) -> tuple[Collective, ...]:
    """The engine's own all-reduce, to so many ranks."""
    own = [
        Sample(
            each.rows.where((each.rows.payload_bytes < below_bytes) & (each.rows.ranks <= most_ranks)),
            each.bytes_per_s,
        )
        for each in samples
    ]
    limit = int(most_ranks) if math.isfinite(most_ranks) else None
    return tuple(
        way.model_copy(update={"below_bytes": float(below_bytes), "most_ranks": limit})
        for way in _fit_ways(*_of(own, ("all_reduce",), "engine"), ("all_reduce",))
    )


SAME_BELOW_BYTES = 32 * 1024
"""Of small messages an engine's graph saves the library's launch, so they do not tell whose kernel it is."""

WORTH_HAVING = 0.85
"""An engine's own all-reduce takes less than this share of the library's time, or is the library's."""


def _fit_ways(work: _Work, log_s: Floats, algorithms: tuple[Algorithm, ...]) -> tuple[Collective, ...]:
    """One way, or two where a second makes the fit clearly better; none for too few rows."""
    if len(log_s) < FEWEST_ROWS:
        return ()
    one, two = (_fit_so_many(work, log_s, count) for count in (1, 2))
    _, numbers = two if two[0] < CLEARLY_BETTER * one[0] else one
    return tuple(
        Collective(
            algorithms=algorithms, latency_s=_rounded(math.exp(latency)), hop_s=_rounded(math.exp(hop)),
            efficiency=min(1.0, _rounded(math.exp(efficiency))), growth=round(float(growth), 2),
        )
        for latency, hop, efficiency, growth in sorted(numbers.reshape(-1, 4).tolist())
    )  # fmt: skip


CLEARLY_BETTER = 0.8
"""A second way must reduce the loss to this share."""

SMOOTHNESS = 12.0
"""Exponent of the norm that stands for the least of several ways at first."""

NOISE = 0.1
"""Errors well beyond this share count as outliers."""

PULL = 0.02
"""Weight of what keeps numbers sensible that the rows do not tell: of one number of ranks, hop and growth."""


def _fit_so_many(work: _Work, log_s: Floats, count: int) -> tuple[float, Floats]:
    """The loss, and latency, hop, efficiency (logarithms) and growth of each way."""
    least_s = float(np.exp(np.quantile(log_s, 0.02)))
    starts = [(0.7, 0.08, 0.6), (0.7, 0.08, 0.25), (3.0, 0.3, 0.6)]
    chosen = starts[:1] if count == 1 else starts[1:]
    first = np.array([
        number for latency, hop, efficiency in chosen
        for number in (math.log(latency * least_s), math.log(hop * least_s), math.log(efficiency), 0.0)
    ])  # fmt: skip
    low = np.tile([math.log(1e-8), math.log(1e-10), math.log(1e-4), -4.0], count)
    high = np.tile([math.log(1.0), math.log(1.0), 0.0, 4.0], count)

    def residuals(numbers: Floats, smooth: bool) -> Floats:
        times = _times_by_way(work, numbers)
        logs = _soft_least(times) if smooth else np.log(times.min(axis=0))
        ways = numbers.reshape(-1, 4)
        pull = np.concatenate((ways[:, 3], ways[:, 1] - ways[:, 0] - math.log(0.1)))
        return np.concatenate((logs - log_s, PULL * pull))

    for smooth in (True, False):
        found = least_squares(residuals, first, args=(smooth,), loss="soft_l1", f_scale=NOISE,
                              bounds=(low, high), max_nfev=400)  # fmt: skip
        first = np.clip(found.x, low, high)
    return float(found.cost), first


def _times_by_way(work: _Work, numbers: Floats) -> Floats:
    """Seconds by each way: shape [way, row]."""
    latency, hop, efficiency, growth = (column[:, None] for column in numbers.reshape(-1, 4).T)
    share = np.minimum(1.0, np.exp(efficiency) * (work.ranks / 2) ** growth)
    times: Floats = np.exp(latency) + np.exp(hop) * work.rounds + work.nominal_s / share
    return times


def _soft_least(times: Floats) -> Floats:
    """Logarithm of a smooth stand-in for the least time of each row."""
    logs: Floats = -np.log((times**-SMOOTHNESS).sum(axis=0)) / SMOOTHNESS
    return logs


def _rounded(value: float) -> float:
    """To three digits, as profiles have them."""
    return float(f"{value:.3g}")


def _errors(collectives: Collectives, sample: Sample) -> Floats:
    """Of the rows that a fit is about: those of a library, and of an engine in a graph."""
    rows = sample.rows.where(sample.rows.by != "engine-eager")
    covered = {algorithm for way in collectives.library for algorithm in way.algorithms}
    rows = rows.where(np.isin(rows.algorithm, sorted(covered)))
    errors: Floats = np.abs(predicted_s(_link(collectives, sample.bytes_per_s), rows) / rows.time_s - 1)
    return errors


def _link(collectives: Collectives, bytes_per_s: float) -> Link:
    return Link(name="fitted", bandwidth_bytes_per_s=bytes_per_s, latency_s=0.0, collective=collectives)
