import io

import pytest

from simulator.report.figures import latency_against_throughput
from simulator.results.run_result import Band

from .studies import a_run, a_study, metrics, saturated, unfit


def points(axes):
    """The drawn markers: lines of one point; a limit and a joining line have two or more."""
    return [line for container in axes.containers for line in container.lines[:1]]


def study():
    rows = (a_run(bands={"tpot_s.p99": Band(0.02, 0.05), "output_tokens_per_s": Band(700.0, 850.0)}),
            a_run(placement="layer_split 16 on gpu"), saturated(), unfit())  # fmt: skip
    return a_study(*rows)


def test_every_row_that_ran_is_a_point_in_both_panels():
    figure = latency_against_throughput(study())
    assert [axes.get_ylabel() for axes in figure.axes] == ["TPOT p99 (ms)", "TTFT p99 (ms)"]
    assert figure.axes[-1].get_xlabel() == "output throughput (tokens/s)"
    assert [len(points(axes)) for axes in figure.axes] == [3, 3]
    assert points(figure.axes[0])[0].get_xydata().tolist() == [[800.0, 30.0]]


def test_machines_differ_in_colour_placements_in_marker_and_saturation_in_filling():
    first, second, full = points(latency_against_throughput(study()).axes[0])
    assert first.get_color() == second.get_color() != full.get_color()
    assert first.get_marker() == full.get_marker() != second.get_marker()
    assert full.get_markerfacecolor() == "white" != first.get_markerfacecolor()


def test_bands_are_bars():
    container = latency_against_throughput(study()).axes[0].containers[0]
    across, up = (bars.get_segments()[0] for bars in container.lines[2])
    assert across[:, 0].tolist() == pytest.approx([700.0, 850.0])
    assert up[:, 1].tolist() == pytest.approx([20.0, 50.0])


def test_limits_are_lines():
    figure = latency_against_throughput(study())
    limits = [[line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] for axes in figure.axes]
    assert limits == [[60.0], [1000.0]]


def test_rows_of_one_placement_are_joined_over_the_workload():
    runs = [a_run(metrics=metrics(rate=rate), axes={"workload.arrivals.rate": rate}) for rate in (9.0, 3.0)]
    axes = latency_against_throughput(a_study(*runs)).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines if len(line.get_xdata()) == 2 and
            line.get_linestyle() == "-"] == [[3.0, 9.0]]  # fmt: skip


def test_the_legend_names_what_is_drawn():
    texts = [text.get_text() for text in latency_against_throughput(study()).legends[0].get_texts()]
    for name in ("box", "small", "single_device", "layer_split 16 on gpu", "saturated: at least", "SLO limit"):
        assert name in texts


def test_a_study_in_which_nothing_ran_is_still_a_figure():
    figure = latency_against_throughput(a_study(unfit()))
    assert figure.axes[0].texts[0].get_text() == "no placement ran"


def test_the_same_study_draws_the_same_picture():
    def picture():
        buffer = io.BytesIO()
        latency_against_throughput(study()).savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    assert picture() == picture()
