"""Percentiles against repeated observations, and saturation on queues whose answer is known."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.metrics import (
    NOTHING_SEEN,
    QUANTILES,
    distribution,
    is_growing,
    is_saturated,
    weighted_distribution,
)
from simulator.results.records import RequestRecord, RunRecord
from simulator.serving.arrival_times import arrival_times
from simulator.specs.arrivals import Arrivals, DiurnalArrivals, OnOffArrivals, dispersion

EXACT = (Fraction(1, 2), Fraction(9, 10), Fraction(95, 100), Fraction(99, 100))
observed = st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 40)), min_size=1, max_size=30)


@given(observed)
def test_weighted_statistics_are_those_of_repeated_values(rows: list[tuple[int, int]]) -> None:
    """A percentile is the smallest value that so large a part of the observations does not exceed."""
    values, counts = np.array([row[0] for row in rows], dtype=float), np.array([row[1] for row in rows])
    repeated = np.sort(np.repeat(values, counts))
    found = weighted_distribution(values, counts)
    if not len(repeated):
        assert found == NOTHING_SEEN
        return
    assert found.mean == pytest.approx(repeated.mean())
    expected = [repeated[max(1, math.ceil(part * len(repeated))) - 1] for part in EXACT]
    assert [found.p50, found.p90, found.p95, found.p99] == expected


@given(observed)
def test_the_order_of_observations_does_not_matter(rows: list[tuple[int, int]]) -> None:
    values, counts = np.array([row[0] for row in rows], dtype=float), np.array([row[1] for row in rows])
    again = weighted_distribution(values[::-1], counts[::-1])
    found = weighted_distribution(values, counts)
    assert again.mean == pytest.approx(found.mean) if found.mean is not None else again.mean is None
    assert (again.p50, again.p90, again.p99) == (found.p50, found.p90, found.p99)


def test_percentiles_interpolate_by_hand() -> None:
    """0..10: the q-quantile is 10 q."""
    found = distribution(list(range(11)))
    assert found.mean == 5
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx([10 * q for q in QUANTILES])


def test_one_value_is_every_percentile_and_none_is_none() -> None:
    assert set(distribution([3.0]).as_dict().values()) == {3.0}
    assert distribution([]) == NOTHING_SEEN
    assert set(NOTHING_SEEN.as_dict().values()) == {None}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_observed(values: list[float]) -> None:
    found = distribution(values)
    ordered = [found.p50, found.p90, found.p95, found.p99]
    assert all(low is not None and high is not None and low <= high for low, high in pairwise(ordered))
    assert min(values) <= (found.p50 or 0.0) <= max(values)


# --- saturation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.2, 1.0, 3.0])
def test_a_queue_that_grows_steadily_is_growing(slope: float) -> None:
    assert is_growing((slope * np.arange(300)).astype(np.int64))


def test_a_queue_that_stays_as_long_is_not() -> None:
    noise = np.random.default_rng(1).poisson(20, 900)
    assert not is_growing(noise.astype(np.int64))
    assert not is_growing(np.full(900, 200))


def test_a_queue_that_fills_up_and_stays_is_not() -> None:
    assert not is_growing(np.minimum(np.arange(900), 250))


def test_few_requests_in_the_system_tell_nothing() -> None:
    assert not is_growing(np.repeat([1, 2, 4], 100))
    assert not is_growing(np.arange(20) * 100)
    assert not is_growing(np.array([], dtype=np.int64))


def test_a_queue_that_drains_is_not_saturated() -> None:
    assert not is_growing(np.arange(900)[::-1].copy())


# --- saturation under arrivals that vary ---------------------------------------------------------------------


def queue(arrivals: Arrivals, count: int, service_s: float, seed: int) -> RunRecord:
    """One server that takes `service_s` for each, in order: the record of a run, as far as saturation goes by it."""
    sent = arrival_times(arrivals, count, np.random.default_rng((seed, 0)), np.random.default_rng((seed, 5)))
    done, free = [], 0.0
    for at in sent.tolist():
        free = max(free, at) + service_s
        done.append(free)
    requests = tuple(
        RequestRecord(number, "finished", 1, at, 1, queued_s=at, last_token_s=end, first_received_s=end,
                      last_received_s=end)
        for number, (at, end) in enumerate(zip(sent.tolist(), done, strict=True))
    )  # fmt: skip
    seen = np.arange(1, count + 1) - np.searchsorted(done, sent, side="right")
    none = np.zeros(0)
    return RunRecord(requests, none, none.astype(int), 0, count, 0.0, done[-1], {}, 0.0, {}, 0.0, {}, 0.0, 0, 0, 0, 0,
                     seen, "step")  # fmt: skip


def judged(arrivals: Arrivals, count: int, service_s: float, seed: int) -> bool:
    cycle = arrivals.rate_per_s * arrivals.period_s if isinstance(arrivals, DiurnalArrivals) else 0.0
    return is_saturated(queue(arrivals, count, service_s, seed), dispersion(arrivals), cycle)


BURSTS = OnOffArrivals(process="on_off", rate_per_s=20.0, on_s=4.0, off_s=6.0)
DAY = DiurnalArrivals(process="diurnal", rate_per_s=8.0, amplitude=0.9, period_s=250.0)


@pytest.mark.parametrize(("arrivals", "count"), [(BURSTS, 600), (BURSTS, 5000), (DAY, 4000), (DAY, 5000), (DAY, 9000)])
def test_variation_alone_is_no_saturation(arrivals: Arrivals, count: int) -> None:
    """A server that could do 12 a second keeps up with 8 on average, though not with 20 or 15 while they last.
    Of 40 runs at most two are judged otherwise."""
    assert sum(judged(arrivals, count, 1 / 12, seed) for seed in range(40)) <= 2


@pytest.mark.parametrize(("arrivals", "count"), [(BURSTS, 5000), (DAY, 4000), (DAY, 5000), (DAY, 9000)])
def test_too_much_on_average_is_saturation(arrivals: Arrivals, count: int) -> None:
    """4 a second of 8 are served: a growing queue."""
    assert sum(judged(arrivals, count, 1 / 4, seed) for seed in range(20)) >= 19
