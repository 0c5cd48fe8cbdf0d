"""The work graph of a model as a figure. The caller writes the file."""

from __future__ import annotations

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch

from simulator.report.graph_layout import (
    HEADER,
    NODE_HEIGHT,
    NODE_WIDTH,
    Frame,
    Label,
    Layout,
    PlacedNode,
    Wire,
    laid_out,
)
from simulator.report.model_sheet import format_flops, step_text
from simulator.study.folded_graph import FoldedGraph, Node
from simulator.study.show_model import Amounts
from simulator.units import format_bytes

SUFFIXES = (".png", ".svg", ".pdf")

_FILLS = {
    "matmul": ("#CFE3F5", "#0072B2"),
    "attention": ("#FBDCC4", "#D55E00"),
    "elementwise": ("#E9E9E9", "#666666"),
    "embedding": ("#CDEBDF", "#009E73"),
    "sampling": ("#F3DCEA", "#CC79A7"),
}
"""Of an operator's class, with the colour of its edge: shades of Okabe and Ito's palette."""
_LINES = {
    "value": ("#333333", 0.8, "-"),
    "residual": ("#7A7A7A", 1.8, "-"),
    "next layer": ("#7A7A7A", 1.4, (0, (4, 2))),
    "token loop": ("#8C510A", 1.6, "-"),
}
_TITLE, _LEGEND, _MARGIN = 0.95, 0.85, 0.1
_LEAST_WIDTH = 6.0
"""Inches."""
_DPI = 150


def model_graph(graph: FoldedGraph) -> Figure:
    """Draw a model's operators and the values between them, from the token ids to the next ones."""
    layout = laid_out(graph, _LEAST_WIDTH)
    height = _TITLE + layout.height + _LEGEND
    figure = Figure(figsize=(layout.width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, layout.width), ylim=(layout.height + _LEGEND, -_TITLE))
    axes.axis("off")
    _title(axes, graph, layout)
    _draw(axes, graph, layout)
    columns = max(3, int(layout.width / 2))
    figure.legend(handles=_legend(graph), loc="lower center", ncols=columns, fontsize=7, frameon=False)
    return figure
