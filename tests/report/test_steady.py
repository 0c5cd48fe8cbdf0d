"""A line where the mean of a whole run is not that of its steady state, and none where it is."""

from __future__ import annotations

from dataclasses import replace

from simulator.report.steady import steady_notes
from simulator.results.steady import Estimate, SteadyState

from .studies import a_run, metrics


def lines(ttft_s: float, half_width_s: float) -> list[str]:
    """Of a run whose mean TTFT over all requests is 0.24 s."""
    steady = SteadyState(35, 65, Estimate(ttft_s, half_width_s, 13), None, Estimate(800.0, 20.0, 13))
    return list(steady_notes(a_run(metrics=replace(metrics(), steady=steady))))


def test_a_mean_that_is_off_is_said() -> None:
    assert lines(0.3, 0.01) == [
        "after a warm-up of 35 requests, which percentiles include, the means of 65 are"
        " TTFT 300 ± 10 ms, TPOT -, 800 ± 20 tok/s (90 % confidence)"
    ]


def test_what_is_within_the_interval_or_small_is_not() -> None:
    assert lines(0.3, 0.07) == []
    assert lines(0.245, 0.001) == []
    assert list(steady_notes(a_run())) == []
