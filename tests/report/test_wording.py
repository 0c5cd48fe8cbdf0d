from dataclasses import replace

import pytest

from simulator.report.wording import COST, Reading, largest_share, reading, row_name, shown_axes, status
from simulator.results.run_result import Band

from .studies import a_run, a_study, metrics, saturated, unfit, unpriced


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Reading(0.4, 0.4, 0.4), "0.4"),
        (Reading(0.4, 0.399, 0.401), "0.4"),
        (Reading(0.4, 0.38, 0.45), "0.4 (0.38..0.45)"),
        (Reading(0.4, 0.38, None), "0.4 (at least 0.38)"),
        (Reading(None, 0.3, None), "unknown (at least 0.3)"),
        (Reading(None, None, None), "unknown"),
    ],
)
def test_a_band_is_shown_where_it_is_wider_than_one_percent(found, text):
    assert found.text() == text


def test_a_cost_with_an_unknown_part_is_never_a_point():
    assert reading(unpriced(), COST).text() == "unknown (at least 0.1)"
    assert reading(replace(unpriced(), bands={}), COST).low == pytest.approx(0.1)


def test_status_of_a_row():
    slow = a_run(metrics=metrics(ttft_s=2.0))
    rows = [a_run(), slow, saturated(), unfit(), a_run(slo={})]
    assert [status(row) for row in rows] == ["meets", "misses", "saturated", "does not fit", "-"]


def test_axes_that_the_labels_say_need_no_column():
    runs = [
        a_run(placement=f"tensor_parallel {degree}",
              axes={"machine": "box", "workload.arrivals.rate": rate, "placement.degree": degree})
        for degree in (2, 4) for rate in (1.0, 8.0)
    ]  # fmt: skip
    axes = shown_axes(a_study(*runs))
    assert axes == {"workload.arrivals.rate": "rate"}
    assert row_name(runs[1], axes) == "tensor_parallel 2 on box (rate 8)"


def test_axes_with_one_last_key_are_told_apart():
    run = a_run(axes={"precision.weights": "fp8", "machine.count": 2, "workload.count": 3})
    assert list(shown_axes(a_study(run)).values()) == ["weights", "machine.count", "workload.count"]


def test_the_largest_share():
    assert largest_share(a_run()) == ("memory", 0.75)
    assert largest_share(unfit()) is None


def test_band_of_a_latency():
    run = a_run(bands={"ttft_s.p99": Band(0.3, 0.5)})
    assert reading(run, "ttft_s.p99") == Reading(0.4, 0.3, 0.5)
