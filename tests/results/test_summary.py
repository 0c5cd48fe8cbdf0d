"""What is added up of a run while it goes on, against the same from all that happened."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.metrics import QUANTILES, distribution, is_saturated, weighted_distribution
from simulator.results.records import RequestRecord
from simulator.results.sketch import RELATIVE_ERROR, Sketch
from simulator.results.summary import STRETCHES, WAITING, Flow, Summed

times = st.floats(1e-11, 1e8)
counted = st.lists(st.tuples(times, st.integers(1, 40)), min_size=1, max_size=60)
SLACK = 1 + 1e-9


def within_the_error(found: Sequence[float | None], exact: Sequence[float | None]) -> bool:
    return [f is None for f in found] == [e is None for e in exact] and all(
        abs(f - e) <= e * RELATIVE_ERROR * SLACK
        for f, e in zip(found, exact, strict=True)
        if f is not None and e is not None
    )


@given(counted)
def test_percentiles_are_within_the_error(rows: list[tuple[float, int]]) -> None:
    summed = Summed()
    for value, count in rows:
        summed.add(value, count)
    values, counts = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    for found, exact in (
        (summed.distribution(is_interpolated=False), weighted_distribution(values, counts)),
        (summed.distribution(is_interpolated=True), distribution(np.repeat(values, counts))),
    ):
        assert found.mean == pytest.approx(exact.mean, rel=1e-12)
        assert within_the_error(list(found.as_dict().values())[1:], list(exact.as_dict().values())[1:])


@given(counted, counted)
def test_sketches_of_parts_make_that_of_the_whole(
    first: list[tuple[float, int]], second: list[tuple[float, int]]
) -> None:
    parts = []
    for rows in (first, second, first + second):
        parts.append(Sketch())
        parts[-1].add(*zip(*rows, strict=True))
    one, other, whole = parts
    one.merge(other)
    assert one.count == whole.count
    assert [one.observed(q) for q in QUANTILES] == [whole.observed(q) for q in QUANTILES]


def test_nothing_seen_has_no_mean_and_no_percentiles() -> None:
    assert set(Summed().distribution(is_interpolated=True).as_dict().values()) == {None}
    assert Sketch().observed(0.5) is None


def test_the_mean_of_many_small_values_after_a_large_one_is_exact() -> None:
    """Plainly added up, the small ones would vanish one by one."""
    summed = Summed()
    summed.add(1e9)
    summed.add_each([1e-8] * (3 * WAITING), 1)
    assert summed.total_s == 1e9 + 3 * WAITING * 1e-8


def queue(rng: np.random.Generator, count: int, load: float) -> list[tuple[float, float]]:
    """When customers of a single server arrive and go."""
    arrived, gone, rows = 0.0, 0.0, []
    for between, service in zip(rng.exponential(1.0, count), rng.exponential(load, count), strict=True):
        arrived += between
        gone = max(gone, arrived) + service
        rows.append((arrived, gone))
    return rows


@pytest.mark.parametrize("load", [0.3, 0.8, 1.3, 2.0])
@pytest.mark.parametrize("count", [10, 90, 700, STRETCHES * 5 + 7])
def test_saturation_is_told_as_from_all_records(load: float, count: int) -> None:
    for seed in range(8):
        rows = queue(np.random.default_rng(seed), count, load)
        requests = [
            RequestRecord(n, "finished", 1, arrived, 1, arrived, last_token_s=gone)
            for n, (arrived, gone) in enumerate(rows)
        ]
        flow, in_system = Flow(), []
        events = sorted([(at, 1) for at, _ in rows] + [(at, 0) for _, at in rows])
        live = 0
        for _, arrives in events:
            live += 1 if arrives else -1
            if arrives:
                in_system.append(live)
                flow.arrive(live)
            else:
                flow.finish()
        record: Any = SimpleNamespace(
            in_system_at_arrivals=np.array(in_system), finished=lambda rs=requests: rs
        )
        assert flow.is_saturated() == is_saturated(record), seed
        assert len(flow.stretches) <= STRETCHES
