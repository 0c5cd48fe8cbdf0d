"""Processes of arrivals against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simulator.serving.arrival_times import arrival_times
from simulator.specs.arrivals import (
    Arrivals,
    DiurnalArrivals,
    GammaArrivals,
    OnOffArrivals,
    cycles,
    dispersion,
    expected_s,
)

Floats = NDArray[np.float64]


def times(arrivals: Arrivals, count: int, seed: int = 1) -> Floats:
    return arrival_times(arrivals, count, np.random.default_rng((seed, 0)), np.random.default_rng((seed, 5)))


def bursts(rate: float = 20.0, off_rate: float = 0.0, on: float = 2.0, off: float = 3.0, **changes: str) -> OnOffArrivals:
    return OnOffArrivals.model_validate(
        {"process": "on_off", "rate_per_s": rate, "off_rate_per_s": off_rate, "on_s": on, "off_s": off} | changes
    )


def daily(rate: float = 50.0, amplitude: float = 0.8, period: float = 100.0, start: float = 0.0) -> DiurnalArrivals:
    return DiurnalArrivals(process="diurnal", rate_per_s=rate, amplitude=amplitude, period_s=period, start_s=start)


# --- bursts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off_rate", [0.0, 4.0])
def test_bursts_have_the_mean_rate_of_both_states(off_rate: float) -> None:
    """(20 * 2 + off_rate * 3) / 5; a count of dispersion d is off by 4 sqrt(d / n) once in 16,000 times."""
    arrivals, count = bursts(off_rate=off_rate), 100_000
    rate = (20 * 2 + off_rate * 3) / 5
    assert arrivals.mean_rate_per_s == pytest.approx(rate)
    assert count / times(arrivals, count)[-1] == pytest.approx(rate, rel=4 * np.sqrt(dispersion(arrivals) / count))


def test_counts_of_bursts_are_as_dispersed_as_theory_says() -> None:
    """Of an interrupted Poisson process of rate 20, 2 s on and 3 s off: mean 8, and the variance of counts over long
    times is mean + 2 * 20^2 * P(on) P(off) * relaxation time, 1 / (1/2 + 1/3) s: 1 + 28.8 = 29.8 times the mean.
    Over windows of t the second part is less by (1 - e^-rt)/(rt), r = 5/6 per s: here of 100 s."""
    arrivals = bursts()
    assert dispersion(arrivals) == pytest.approx(1 + 2 * 400 * 0.4 * 0.6 * 1.2 / 8)
    window_s, r = 100.0, 5 / 6
    sent = times(arrivals, 400_000)
    counts = np.bincount((sent // window_s).astype(int))[:-1]
    expected = 1 + 28.8 * (1 - (1 - np.exp(-r * window_s)) / (r * window_s))
    found = counts.var(ddof=1) / counts.mean()
    assert found == pytest.approx(expected, rel=4 * np.sqrt(2 / len(counts)))


def test_gamma_arrivals_are_as_dispersed_as_renewal_theory_says() -> None:
    """Variance over mean of a renewal process's counts goes to cv^2 (Cox 1962)."""
    arrivals = GammaArrivals(process="gamma", rate_per_s=10.0, cv=2.0)
    counts = np.bincount((times(arrivals, 400_000) // 100).astype(int))[:-1]
    assert counts.var(ddof=1) / counts.mean() == pytest.approx(dispersion(arrivals), rel=4 * np.sqrt(2 / len(counts)))


def test_fixed_bursts_come_as_by_a_clock() -> None:
    """2 s on, 3 s off: nobody comes when it is off, and within bursts arrivals are even."""
    into = times(bursts(durations="fixed"), 10_000) % 5
    assert into.max() <= 2
    assert into.mean() == pytest.approx(1.0, abs=4 * (2 / np.sqrt(12)) / np.sqrt(10_000))


def test_bursts_without_difference_are_poisson() -> None:
    gaps = np.diff(times(bursts(rate=4.0, off_rate=4.0), 20_000)) * 4
    assert gaps.std() == pytest.approx(1.0, abs=4 * np.sqrt(2 / 20_000))
    assert dispersion(bursts(rate=4.0, off_rate=4.0)) == 1


def test_bursts_last_as_long_at_any_rate() -> None:
    """Ten times the rate has ten times the requests in the same bursts."""
    slow, fast = times(bursts(rate=20), 200), times(bursts(rate=200), 2000)
    silences = [np.flatnonzero(np.diff(sent) > 1.0) for sent in (slow, fast)]
    assert len(silences[0])
    assert slow[silences[0][:3]] == pytest.approx(fast[silences[1][:3]], abs=0.5)


# --- the time of day ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, 25.0, 80.0])
def test_the_rate_follows_a_sine(start: float) -> None:
    """Requests in each tenth of a period, over 100 of them, within 4 deviations of the integral of the rate."""
    arrivals = daily(start=start)
    sent = times(arrivals, 600_000)
    sent = sent[sent < 100 * 100]
    counts = np.bincount((sent % 100 // 10).astype(int))
    edges = 2 * np.pi * (np.arange(11) * 10 + start) / 100
    expected = 100 * 50 * (10 - 0.8 * 100 / (2 * np.pi) * np.diff(np.cos(edges)))
    assert counts == pytest.approx(expected, abs=4 * np.sqrt(expected.max()))


def test_inversion_gives_the_moments_that_solve_the_integral() -> None:
    """The rate summed up until each request is a Poisson process of rate 1: the draws themselves."""
    arrivals = daily(amplitude=1.0, period=7.0, start=2.0)
    sent = times(arrivals, 1000)
    turn = 2 * np.pi / 7
    summed = 50 * (sent + (np.cos(turn * 2) - np.cos(turn * (sent + 2))) / turn)
    assert summed == pytest.approx(np.cumsum(np.random.default_rng((1, 0)).exponential(1.0, 1000)), abs=1e-7)


def test_no_amplitude_is_poisson() -> None:
    drawn = np.cumsum(np.random.default_rng((1, 0)).exponential(1.0, 500)) / 50
    assert times(daily(amplitude=0.0), 500) == pytest.approx(drawn)


# --- laws ---------------------------------------------------------------------------------------------------

rates = st.floats(1e-3, 1e4)
durations = st.floats(1e-2, 1e4)
processes = st.one_of(
    st.builds(bursts, rates, st.floats(0, 1e3), durations, durations),
    st.builds(lambda *a: bursts(*a, durations="fixed"), rates, st.floats(0, 1e3), durations, durations),
    st.builds(daily, rates, st.floats(0, 1), st.floats(1, 1e6), st.floats(0, 1e6)),
)


@settings(max_examples=30)
@given(processes.filter(lambda process: expected_s(process, 60) < 1e7 and cycles(process, 60) < 1e4), st.integers(0, 9))
def test_times_are_in_order_within_bounds_and_few_are_the_first_of_many(arrivals: Arrivals, seed: int) -> None:
    many, few = times(arrivals, 60, seed), times(arrivals, 20, seed)
    assert (np.diff(many) >= 0).all()
    assert many[0] >= 0
    assert many[-1] <= 3.5 * expected_s(arrivals, 60)
    assert few == pytest.approx(many[:20])
