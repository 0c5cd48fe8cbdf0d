"""Warm-up and confidence against series whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from simulator.results.records import RequestRecord
from simulator.results.steady import MOST_BATCHES, STUDENT_95, batch_means, mser5, received_tokens

Floats = NDArray[np.float64]


def by_definition(series: Floats) -> int:
    """MSER-5, written out."""
    means = [series[5 * k : 5 * k + 5].mean() for k in range(len(series) // 5)]
    errors = [
        sum((each - np.mean(means[cut:])) ** 2 for each in means[cut:]) / (len(means) - cut) ** 2
        for cut in range(len(means) - 4)
    ]
    return 5 * int(np.argmin(errors))


def test_a_step_is_cut_where_it_is() -> None:
    """By hand: means of five are 9, 9, then 1.4 and 1.6 in turn. Without the first two, twelve are left that deviate
    by 0.1: 12 * 0.01 / 12^2 = 0.0008. With one of them: 7.5^2 * 12 / 13 / 13^2 = 0.3. Without three: 0.01 / 11."""
    series = np.array([9.0] * 10 + [1.0, 2.0] * 30)
    assert mser5(series) == 10 == by_definition(series)


def test_a_series_without_warm_up_is_left_whole() -> None:
    assert mser5(np.full(100, 3.0)) == 0


def test_a_series_that_never_rests_has_no_steady_state() -> None:
    assert mser5(np.arange(200.0)) is None
    assert mser5(np.array([1.0] * 180 + [50.0] * 70)) is None
    assert mser5(np.ones(49)) is None, "too short"


@pytest.mark.parametrize("seed", range(8))
def test_the_sums_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    series = 5 + rng.normal(size=403) + 30 * np.exp(-np.arange(403) / 20)
    assert mser5(series) == by_definition(series)
    assert 20 <= by_definition(series) <= 200


def test_percentiles_of_student_are_those_of_a_longer_series() -> None:
    """Of t with n degrees of freedom by integrating its density up to the figure: 0.95."""
    for freedom, figure in STUDENT_95.items():
        at = np.linspace(0, figure, 200_001)
        scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
        density = scale * (1 + at**2 / freedom) ** (-(freedom + 1) / 2)
        assert 0.5 + np.trapezoid(density, at) == pytest.approx(0.95, abs=1e-4)


def autoregressive(rng: np.random.Generator, count: int, memory: float) -> Floats:
    """x' = memory x + noise, from its stationary distribution: variance 1 / (1 - memory^2)."""
    noise = rng.normal(size=count)
    value = noise[0] / math.sqrt(1 - memory**2)
    values = [value]
    for each in noise[1:]:
        value = memory * value + each
        values.append(value)
    return np.array(values)


def test_intervals_hold_the_mean_of_a_dependent_series_nine_times_of_ten() -> None:
    """AR(1) of memory 0.8, 4000 long: the variance of its mean is 1 / (1 - 0.8)^2 / 4000, 9 times that of as many
    independent values. 300 intervals hold the mean 0 in 90 +- 7 % of the cases, and are as wide as that says."""
    rng = np.random.default_rng(3)
    found = [batch_means(autoregressive(rng, 4000, 0.8)) for _ in range(300)]
    assert {each.batches for each in found if each} == {MOST_BATCHES}
    held = [abs(each.mean) <= each.half_width for each in found if each]
    assert len(held) == 300
    assert np.mean(held) == pytest.approx(0.9, abs=0.07)
    error = 1 / (1 - 0.8) / math.sqrt(4000)
    assert np.mean([each.half_width for each in found if each]) == pytest.approx(1.729 * error, rel=0.1)


def test_too_few_say_nothing() -> None:
    assert batch_means(np.arange(49.0)) is None
    fewest = batch_means(np.arange(50.0))
    assert fewest is not None
    assert (fewest.batches, fewest.mean) == (10, 24.5)
    assert fewest.half_width == pytest.approx(1.833 * np.arange(2, 50, 5).std(ddof=1) / math.sqrt(10))


def test_tokens_count_as_they_come() -> None:
    """Five tokens from 1 s to 3 s: the first at once, two of the others by 2 s."""
    five = RequestRecord(0, "finished", 7, 0.0, 5, first_received_s=1.0, last_received_s=3.0)
    one = RequestRecord(1, "finished", 7, 0.0, 1, first_received_s=2.5, last_received_s=2.5)
    moments = np.array([0.5, 1.0, 2.0, 2.5, 9.0])
    assert received_tokens([five, one], moments) == pytest.approx([0, 1, 3, 5, 6])
