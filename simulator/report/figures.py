"""Plots of a study. The caller writes the file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from simulator.report.wording import MS_PER_S, THROUGHPUT, Reading, axis_text, reading
from simulator.results.run_result import RunResult, StudyResult

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C510A", "#555555")
"""Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_LOG_FROM_RATIO = 30.0
_LIMIT_COLOUR = "#B00020"
_PANELS_HEIGHT, _LEGEND_LINE_HEIGHT = 6.5, 0.22
"""Inches."""
_PLAIN = StrMethodFormatter("{x:,g}")
_PANELS = (("tpot_p99", "tpot_s.p99", "TPOT p99 (ms)"), ("ttft_p99", "ttft_s.p99", "TTFT p99 (ms)"))


@dataclass(frozen=True)
class _Looks:
    """Which colour a machine has and which marker a placement."""

    colours: dict[str, str]
    markers: dict[str, str]

    @staticmethod
    def of(runs: Sequence[RunResult]) -> _Looks:
        machines = dict.fromkeys(run.machine for run in runs)
        placements = dict.fromkeys(run.placement for run in runs)
        return _Looks(
            dict(zip(machines, itertools.cycle(_COLOURS), strict=False)),
            dict(zip(placements, itertools.cycle(_MARKERS), strict=False)),
        )


def latency_against_throughput(study: StudyResult) -> Figure:
    """TPOT p99 and TTFT p99 of every row that ran, against its output tokens a second.

    Bars are bands; a hollow marker is a saturated row, whose percentiles are lower bounds; a line joins
    the rows of one placement under several workloads.
    """
    runs = [run for run in study.runs if run.metrics is not None]
    looks = _Looks.of(runs)
    handles = _legend(runs, looks)
    height = _PANELS_HEIGHT + _LEGEND_LINE_HEIGHT * len(handles) / 2
    figure = Figure(figsize=(9, height), layout="constrained")
    figure.suptitle(study.scenario)
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for axes, (limit_name, latency, label) in zip(panels, _PANELS, strict=True):
        _draw_panel(axes, runs, looks, latency)
        _draw_limits(axes, runs, limit_name)
        axes.set_ylabel(label)
    panels[-1].set_xlabel("output throughput (tokens/s)")
    panels[-1].margins(x=0.08)
    panels[-1].xaxis.set_major_formatter(_PLAIN)
    figure.align_ylabels()
    if runs:
        figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, columnspacing=4)
    else:
        panels[0].text(0.5, 0.5, "no placement ran", ha="center", va="center", transform=panels[0].transAxes)
    return figure


def _draw_panel(axes: Axes, runs: Sequence[RunResult], looks: _Looks, latency: str) -> None:
    drawn = [run for run in runs if reading(run, latency).value is not None]
    for series in _series(drawn):
        xs = [reading(run, THROUGHPUT).value or 0.0 for run in series]
        ys = [(reading(run, latency).value or 0.0) * MS_PER_S for run in series]
        axes.plot(xs, ys, color=looks.colours[series[0].machine], linewidth=0.8, alpha=0.5, zorder=1)
    for run in drawn:
        _draw_point(axes, run, looks, latency)
    _scale(axes, [(reading(run, latency).value or 0.0) for run in drawn])
    axes.grid(visible=True, linewidth=0.4, alpha=0.5)


def _draw_point(axes: Axes, run: RunResult, looks: _Looks, latency: str) -> None:
    across, up = reading(run, THROUGHPUT), reading(run, latency)
    assert across.value is not None and up.value is not None
    colour = looks.colours[run.machine]
    axes.errorbar(
        [across.value], [up.value * MS_PER_S], xerr=_bars(across, 1.0), yerr=_bars(up, MS_PER_S),
        fmt=looks.markers[run.placement], color=colour, markersize=7, markeredgewidth=1.4,
        markerfacecolor="white" if run.saturated else colour, elinewidth=1, capsize=3, zorder=2,
    )  # fmt: skip


def _bars(found: Reading, scale: float) -> list[list[float]] | None:
    """How far the band reaches below and above; None where it is too narrow to see."""
    assert found.value is not None
    if not found.is_wide:
        return None
    low = found.value if found.low is None else min(found.low, found.value)
    high = found.value if found.high is None else max(found.high, found.value)
    return [[(found.value - low) * scale], [(high - found.value) * scale]]


def _series(runs: Sequence[RunResult]) -> list[list[RunResult]]:
    """Rows that differ in the workload only, where there are several, by throughput."""
    found: dict[tuple[str, ...], list[RunResult]] = {}
    for run in runs:
        own = [f"{name}={axis_text(value)}" for name, value in run.axes.items()
               if not name.startswith("workload.")]  # fmt: skip
        found.setdefault((run.machine, run.placement, *own), []).append(run)
    several = [series for series in found.values() if len(series) > 1]
    return [sorted(series, key=lambda run: reading(run, THROUGHPUT).value or 0.0) for series in several]


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the largest would flatten the rest, from zero otherwise."""
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) > 0 and max(positive) > _LOG_FROM_RATIO * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_PLAIN)
    else:
        axes.set_ylim(bottom=0)


def _draw_limits(axes: Axes, runs: Sequence[RunResult], name: str) -> None:
    for limit_s in sorted({run.slo[name] for run in runs if name in run.slo}):
        axes.axhline(limit_s * MS_PER_S, color=_LIMIT_COLOUR, linestyle="--", linewidth=1, zorder=0)


def _legend(runs: Sequence[RunResult], looks: _Looks) -> list[Line2D]:
    """Two columns of one length: colours and what else is drawn, then markers."""
    left = [_heading("machine")]
    left += [_key(name, marker="o", color=colour) for name, colour in looks.colours.items()]
    if any(run.saturated for run in runs):
        left.append(_key("saturated: at least", marker="o", color="black", markerfacecolor="white"))
    if any(name in run.slo for run in runs for name, _, _ in _PANELS):
        left.append(Line2D([], [], color=_LIMIT_COLOUR, linestyle="--", linewidth=1, label="SLO limit"))
    right = [_heading("placement")]
    right += [_key(name, marker=marker, color="black") for name, marker in looks.markers.items()]
    length = max(len(left), len(right))
    return [entry for column in (left, right) for entry in column + [_heading("")] * (length - len(column))]


def _heading(text: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=f"$\\bf{{{text}}}$" if text else " ")


def _key(label: str, *, marker: str, color: str, markerfacecolor: str | None = None) -> Line2D:
    return Line2D([], [], linestyle="none", marker=marker, color=color, markersize=7,
                  markerfacecolor=markerfacecolor or color, label=label)  # fmt: skip
