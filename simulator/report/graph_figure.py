"""The work graph of a model as a figure. The caller writes the file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch

from simulator.errors import InputError, Problem, did_you_mean
from simulator.report.graph_layout import (
    HEADER,
    NODE_HEIGHT,
    NODE_WIDTH,
    Frame,
    Label,
    Layout,
    PlacedNode,
    Point,
    Wire,
    laid_out,
)
from simulator.report.model_sheet import format_flops, layers_text, step_text
from simulator.study.folded_graph import FoldedGraph
from simulator.study.show_model import Amounts
from simulator.units import format_bytes

_METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""File formats, and what is left out of each so that it does not change by the day or the version."""

_FILLS = {
    "matmul": ("#CFE3F5", "#0072B2"),
    "attention": ("#FBDCC4", "#D55E00"),
    "elementwise": ("#E9E9E9", "#666666"),
    "embedding": ("#CDEBDF", "#009E73"),
    "sampling": ("#F3DCEA", "#CC79A7"),
}
"""Of an operator's class, with the colour of its edge: shades of Okabe and Ito's palette."""
_KEPT_COLOUR = "#333333"
_LINES: dict[str, tuple[str, float, Literal["-"] | tuple[float, tuple[float, float]]]] = {
    "value": ("#333333", 0.8, "-"),
    "residual": ("#7A7A7A", 1.8, "-"),
    "next layer": ("#7A7A7A", 1.4, (0, (4, 2))),
    "token loop": ("#8C510A", 1.6, "-"),
}
_LINE_NAMES = {
    "residual": "residual stream",
    "value": "other values",
    "next layer": "to the next layer",
    "token loop": "the token loop",
}
_MARKS = {"KV": "KV: uses the KV cache", "state": "state: uses a kept state"}
_LEAST_WIDTH, _LINE, _COLUMN = 6.0, 0.17, 1.9
"""Of the figure; a line of its heading or legend, a column of its legend. Inches."""
_LONGEST_NAME = 50
_DPI = 120


def model_graph(graph: FoldedGraph) -> Figure:
    """Draw a model's operators and the values between them, from the token ids to the next ones."""
    layout = laid_out(graph, _LEAST_WIDTH)
    title, handles = _title(graph), _legend(layout)
    rows = -(-len(handles) // int(layout.width / _COLUMN))
    above, below = _LINE * (len(title) + 1), _LINE * (rows + 2)
    figure = Figure(figsize=(layout.width, above + layout.height + below))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, layout.width), ylim=(layout.height + below, -above))
    axes.axis("off")
    _write_title(axes, title, layout.width / 2, -above)
    _draw(axes, graph, layout)
    columns = -(-len(handles) // rows)
    figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=7, frameon=False)
    return figure


def file_bytes(figure: Figure, path: Path) -> bytes:
    """A figure in the format of a file name, the same bytes for the same figure.

    Raises InputError where the name ends in none of them.
    """
    suffix = path.suffix.lower()
    if suffix not in _METADATA:
        known = f"{', '.join(_METADATA)}{did_you_mean(suffix, _METADATA)}"
        raise InputError(
            [Problem("command line", key="--figure", value=str(path), advice=f"end it in one of: {known}")]
        )
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "placewright"}):
        figure.savefig(buffer, format=suffix.removeprefix("."), dpi=_DPI, metadata=_METADATA[suffix])
    return buffer.getvalue()


def _title(graph: FoldedGraph) -> list[str]:
    """The name, and what the figures in the boxes are of."""
    name = graph.name if len(graph.name) <= _LONGEST_NAME else f"{graph.name[: _LONGEST_NAME - 3]}..."
    lines = [name, *(f"{step.name}: {step_text(step)}" for step in graph.steps)]
    lines.append(f"in each box: FLOPs and bytes moved, of one layer; weights in {graph.weights}")
    if len(graph.blocks) > 1:
        lines.append("layers follow one another by number; each is of one of the kinds side by side")
    return lines


def _write_title(axes: Axes, lines: Sequence[str], x: float, top: float) -> None:
    name, *rest = lines
    look: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}
    axes.text(x, top + _LINE * 1.2, name, fontsize=11, weight="bold", **look)
    for number, line in enumerate(rest):
        axes.text(x, top + _LINE * (number + 2.4), line, fontsize=7.5, **look)


def _draw(axes: Axes, graph: FoldedGraph, layout: Layout) -> None:
    for frame in layout.frames:
        _draw_frame(axes, frame)
    for wire in layout.wires:
        _draw_wire(axes, wire)
    for label in layout.labels:
        _draw_label(axes, label)
    for placed in layout.nodes:
        _draw_node(axes, placed, [step.name for step in graph.steps])


def _draw_frame(axes: Axes, frame: Frame) -> None:
    corner, width, height = (frame.left, frame.top), frame.right - frame.left, frame.bottom - frame.top
    axes.add_patch(_box(corner, width, height, "#FAFAFA", "#999999", zorder=0))
    axes.add_patch(_box(corner, width, HEADER, "#E3E6EA", "#999999", zorder=0.5))
    for number, (line, size, weight) in enumerate(_frame_lines(frame)):
        y = frame.top + 0.14 + 0.17 * number
        axes.text(frame.middle, y, line, ha="center", va="center", fontsize=size, weight=weight)


def _box(corner: Point, width: float, height: float, fill: str, edge: str, zorder: float) -> FancyBboxPatch:
    style = "round,pad=0,rounding_size=0.06"
    return FancyBboxPatch(corner, width, height, boxstyle=style, fc=fill, ec=edge, lw=1.0, zorder=zorder)


def _frame_lines(frame: Frame) -> list[tuple[str, float, str]]:
    block = frame.block
    count = len(block.layers)
    which = f"{'layers' if count > 1 else 'layer'} {layers_text(block.layers, most=3)}"
    drawn = f"; sizes differ, shown is layer {block.layers[-1]}" if block.differ_in_size else ""
    repeated = f"{count} x: {which}" if count > 1 else which
    return [(repeated, 8.0, "bold"), (f"attention: {block.attention}{drawn}", 7.0, "normal"),
            (f"feed-forward: {block.feed_forward}", 7.0, "normal")]  # fmt: skip


def _draw_wire(axes: Axes, wire: Wire) -> None:
    colour, width, style = _LINES[wire.kind]
    xs, ys = zip(*wire.points, strict=True)
    axes.plot(xs, ys, color=colour, linewidth=width, linestyle=style, solid_capstyle="butt", zorder=1)
    if wire.has_arrow:
        arrow = {
            "arrowstyle": "-|>",
            "color": colour,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 7 + 2 * width,
        }
        axes.annotate("", wire.points[-1], _just_before(wire), arrowprops=arrow, zorder=1)


def _just_before(wire: Wire) -> Point:
    """A point so near to the end of a wire that an arrow from there is all head."""
    (x0, y0), (x1, y1) = wire.points[-2:]
    share = 0.05 / (abs(x1 - x0) + abs(y1 - y0))
    return x1 - (x1 - x0) * share, y1 - (y1 - y0) * share


def _draw_label(axes: Axes, label: Label) -> None:
    axes.text(
        label.x, label.y, label.text, fontsize=6.5, color="#444444", style="italic", va="center",
        ha="center" if label.is_centred else "left", rotation=90 if label.is_rotated else 0, zorder=3,
    )  # fmt: skip


def _draw_node(axes: Axes, placed: PlacedNode, steps: Sequence[str]) -> None:
    node, x, middle = placed.node, placed.x, placed.y
    corner = (x - NODE_WIDTH / 2, middle - NODE_HEIGHT / 2)
    axes.add_patch(_box(corner, NODE_WIDTH, NODE_HEIGHT, *_FILLS[node.node_class], zorder=2))
    lines = [f"{step}: {_work(work)}" for step, work in zip(steps, node.work, strict=True)]
    top = middle - 0.07 * len(lines)
    axes.text(x, top, node.name, ha="center", va="center", fontsize=8, weight="bold", zorder=3)
    for number, line in enumerate(lines, start=1):
        axes.text(x, top + 0.15 * number, line, ha="center", va="center", fontsize=6.5, zorder=3)
    if node.keeps:
        axes.text(
            x + NODE_WIDTH / 2 - 0.05, top, node.keeps, ha="right", va="center", fontsize=6, color="white",
            bbox={"boxstyle": "round,pad=0.15", "fc": _KEPT_COLOUR, "ec": "none"}, zorder=3,
        )  # fmt: skip


def _work(work: Amounts) -> str:
    moved = format_bytes(work.moved_bytes)
    return f"{format_flops(work.flops)}, {moved}" if work.flops else moved


def _legend(layout: Layout) -> list[Patch | Line2D]:
    """What is drawn, and only that."""
    nodes = [placed.node for placed in layout.nodes]
    classes, marks = {node.node_class for node in nodes}, {node.keeps for node in nodes}
    kinds = {wire.kind for wire in layout.wires}
    return [
        *(Patch(fc=fill, ec=edge, label=name) for name, (fill, edge) in _FILLS.items() if name in classes),
        *(_line(kind, text) for kind, text in _LINE_NAMES.items() if kind in kinds),
        *(Patch(fc=_KEPT_COLOUR, ec="none", label=text) for mark, text in _MARKS.items() if mark in marks),
    ]


def _line(kind: str, text: str) -> Line2D:
    colour, width, style = _LINES[kind]
    return Line2D([], [], color=colour, linewidth=width, linestyle=style, label=text)
