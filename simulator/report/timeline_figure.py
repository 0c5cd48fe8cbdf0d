"""The first two steps of a run as a picture: what each device does when. The caller writes the file."""

from __future__ import annotations

import io
import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from simulator.report.timeline_bars import Bar
from simulator.report.timeline_layout import GROUP_GAP, ROW, Crossing, Lane, Layout, Panel, laid_out
from simulator.report.timeline_legend import draw_legend, legend_of
from simulator.report.timeline_looks import (
    EM,
    FAINT,
    INK,
    LINE,
    MARGIN,
    PADDING,
    PALE,
    SMALL,
    TEXT,
    Rectangle,
    drawn_ends,
    hatch_of,
    is_plain,
    label_on,
    rectangle,
    write,
)
from simulator.report.timeline_parts import COLOURS
from simulator.results.records import Span
from simulator.units import format_seconds

_DPI = 120
_TITLE, _TITLE_EM, _MOST_TITLES = 10, 0.096, 2
"""Size of a title in points, width of its letters, and how many lines it may take."""
_LEAST_STRIPE = 0.12
"""Of a bar's height."""
_DARK = frozenset({"attention", "feed-forward", "collective", "host work"})
"""Parts whose bars are written on in white."""
_TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def timeline_figure(spans: Sequence[Span], title: str, caption: str = "") -> Figure:
    """Draw the first two steps of recorded spans, of which there is at least one.

    caption: what to look for, in a sentence or two.
    """
    layout = laid_out(spans)
    width = layout.right + 0.25
    titles = textwrap.wrap(title, int((width - 2 * MARGIN) / _TITLE_EM))[:_MOST_TITLES]
    captions = textwrap.wrap(caption, int((width - 2 * MARGIN) / EM[TEXT]))
    above = LINE * (len(captions) + 1.25 * len(titles) + 3.35)
    entries = legend_of(layout, width)
    legend_top = layout.height + LINE * (4.4 if layout.left_out else 3.4)
    below = legend_top - layout.height + LINE * (entries[-1].row + 0.8)
    figure = Figure(figsize=(width, above + layout.height + below), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(layout.height + below, -above))
    axes.axis("off")
    _write_title(axes, titles, captions, -above)
    _draw_lanes(axes, layout)
    unit = _time_unit(layout)
    for panel in layout.panels:
        _draw_panel(axes, panel, layout, unit)
    _label_time(axes, layout, unit)
    draw_legend(axes, entries, legend_top)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _write_title(axes: Axes, titles: Sequence[str], captions: Sequence[str], top: float) -> None:
    for number, line in enumerate(titles):
        write(axes, MARGIN, top + LINE * (1.1 + 1.25 * number), line, _TITLE, weight="bold")
    top += LINE * (1.05 + 1.25 * len(titles))
    for number, line in enumerate(captions):
        write(axes, MARGIN, top + LINE * number, line, color=INK)


# -- lanes --------------------------------------------------------------------------------------------------


def _draw_lanes(axes: Axes, layout: Layout) -> None:
    shade = [rectangle(panel.left, lane.top, panel.right, lane.top + ROW)
             for lane in layout.lanes for panel in layout.panels]  # fmt: skip
    look: dict[str, Any] = {"facecolors": "#F4F4F4", "edgecolors": "white", "linewidths": 0.8, "zorder": 0}
    axes.add_collection(PolyCollection(shade, **look))
    for lane in layout.lanes:
        if lane.is_first:
            write(axes, MARGIN, lane.middle, lane.group, weight="bold")
        write(axes, layout.left - 0.06, lane.middle, lane.text, ha="right", color=INK)
    if layout.left_out:
        text = f"{layout.left_out} more devices are not drawn"
        write(axes, MARGIN, layout.height + GROUP_GAP + LINE * 2.2, text, color=FAINT)


# -- a step -------------------------------------------------------------------------------------------------


def _draw_panel(axes: Axes, panel: Panel, layout: Layout, unit: str) -> None:
    _draw_bars(axes, panel)
    _draw_crossings(axes, panel)
    _draw_limits(axes, panel, layout)
    _draw_ticks(axes, panel, layout, unit)


def _draw_bars(axes: Axes, panel: Panel) -> None:
    looks: dict[tuple[str, bool], list[tuple[Rectangle, str]]] = defaultdict(list)
    for lane, bar in panel.bars:
        left, right = drawn_ends(panel, bar)
        looks[hatch_of(panel, bar), panel.is_left_over(bar)] += _stripes(bar, left, right, lane)
        label = label_on(panel, bar)
        if label is not None:
            _write_on(axes, ((left + right) / 2, lane.middle), bar, label, is_plain(panel, bar))
    for (hatch, is_left_over), drawn in looks.items():
        axes.add_collection(PolyCollection(
            [rectangle for rectangle, _ in drawn], facecolors=[colour for _, colour in drawn],
            edgecolors="white", linewidths=0, hatch=hatch or None, zorder=2,
            alpha=PALE if is_left_over else None,
        ))  # fmt: skip


def _stripes(bar: Bar, left: float, right: float, lane: Lane) -> list[tuple[Rectangle, str]]:
    """One above the other, as high as their share of the bar's time, but high enough to be seen. What is left
    free at the top is time between tasks."""
    total_s = max(bar.width_s, sum(time_s for _, time_s in bar.busy_s))
    shares = [max(time_s / total_s, _LEAST_STRIPE) for _, time_s in bar.busy_s]
    height = (ROW - 2 * PADDING) / max(1.0, sum(shares))
    top = lane.top + ROW - PADDING - height * sum(shares)
    result = []
    for (part, _), share in zip(bar.busy_s, shares, strict=True):
        result.append((rectangle(left, top, right, top + height * share), COLOURS[part]))
        top += height * share
    return result


def _write_on(axes: Axes, middle: tuple[float, float], bar: Bar, label: str, is_on_plain: bool) -> None:
    is_dark = len(bar.busy_s) == 1 and bar.busy_s[0][0] in _DARK
    look: dict[str, Any] = {"ha": "center", "zorder": 4, "color": "white" if is_dark else "black"}
    if not is_on_plain:
        ground = COLOURS[bar.busy_s[0][0]] if len(bar.busy_s) == 1 else "white"
        look["bbox"] = {"boxstyle": "square,pad=0.3", "fc": ground, "ec": "none"}
    write(axes, *middle, label, SMALL, **look)


def _draw_crossings(axes: Axes, panel: Panel) -> None:
    lines = [[(each.x, each.source), (each.x, each.target)] for each in panel.crossings]
    axes.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.8, zorder=1))
    heads = [_head(each) for each in panel.crossings if each.has_arrow]
    axes.add_collection(PolyCollection(heads, facecolors=INK, edgecolors="none", zorder=3))


def _head(crossing: Crossing) -> Rectangle:
    """The arrow's head, just inside the lane that receives."""
    down = 1 if crossing.source < crossing.target else -1
    tip = crossing.target - down * (ROW / 2 - 0.09)
    back = tip - down * 0.07
    return [(crossing.x, tip), (crossing.x - 0.03, back), (crossing.x + 0.03, back)]


def _draw_limits(axes: Axes, panel: Panel, layout: Layout) -> None:
    """Where the step starts and what it works on; when its outcome is there."""
    top, bottom = -LINE * 0.4, layout.height + 0.03
    outcome = panel.x(panel.outcome_s)
    axes.plot([panel.left] * 2, [-LINE * 2.6, bottom], color="black", linewidth=1.4, zorder=5)
    axes.plot([outcome] * 2, [top, bottom], color="black", linewidth=1.0, linestyle=(0, (3, 2)), zorder=5)
    axes.plot([outcome], [top], marker="v", color="black", markersize=5, zorder=5)
    write(axes, panel.left + 0.06, -LINE * 2.2, _step_text(panel), weight="bold")
    whose = panel.loops.name(panel.step)
    text = f"outcome {f'of {whose} ' if whose else ''}after {format_seconds(panel.outcome_s - panel.start_s)}"
    is_left = outcome - panel.left < len(text) * EM[TEXT] + 0.2
    x = outcome + (0.08 if is_left else -0.08)
    write(axes, x, -LINE * 0.9, text, ha="left" if is_left else "right", color=INK)


def _step_text(panel: Panel) -> str:
    prompts, sequences = panel.prefill_tokens, panel.decode_tokens
    if prompts and sequences:
        return f"step {panel.number}: {prompts:,} prompt tokens + {sequences:,} decoding"
    if prompts:
        return f"step {panel.number} (prefill): {prompts:,} prompt tokens"
    if sequences:
        whose = "1 sequence" if sequences == 1 else f"each of {sequences:,} sequences"
        return f"step {panel.number} (decode): a token for {whose}"
    return f"step {panel.number}"


# -- time ---------------------------------------------------------------------------------------------------


def _time_unit(layout: Layout) -> str:
    """The largest that leaves the longer step at least two."""
    longest_s = max(panel.end_s - panel.start_s for panel in layout.panels)
    return next((unit for unit, scale in _TIME_UNITS.items() if longest_s >= 2 * scale), "ns")


def _label_time(axes: Axes, layout: Layout, unit: str) -> None:
    scales = "" if layout.has_one_scale else "; the two steps have different scales"
    text = f"time since the step began ({unit}){scales}"
    write(axes, (layout.left + layout.right) / 2, layout.height + LINE * 2.0, text, ha="center")


def _draw_ticks(axes: Axes, panel: Panel, layout: Layout, unit: str) -> None:
    duration = (panel.end_s - panel.start_s) / _TIME_UNITS[unit]
    step = _nice(duration * 0.7 / panel.width)
    bottom, marks = layout.height + 0.03, []
    for number in range(int(duration / step) + 1):
        x = panel.left + panel.width * number * step / duration
        if x > panel.right - 0.15 and number:
            continue
        marks.append([(x, bottom), (x, bottom + 0.05)])
        write(axes, x, bottom + 0.13, f"{number * step:g}", SMALL, ha="center")
    edge = [[(panel.left, bottom), (panel.right, bottom)]]
    axes.add_collection(LineCollection(marks + edge, colors=INK, linewidths=0.8))


def _nice(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(float(f"{factor * power:.3g}") for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)
