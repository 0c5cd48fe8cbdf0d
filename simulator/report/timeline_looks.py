"""How things of a drawn timeline look: what its bars and its legend share. Lengths are inches."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from simulator.report.timeline_bars import Bar
from simulator.report.timeline_layout import Panel

LINE = 0.17
"""Height of a line of text."""
MARGIN = 0.12
TEXT, SMALL = 7.5, 6.5
"""Sizes of text, in points."""
EM = {TEXT: 0.064, SMALL: 0.056}
"""Width of a letter, rather too much."""
HATCHES = ("", "//////", "......", "xxxxxx")
"""Of a batch's parts, from its first."""
BATCH_HATCHES = ("", "\\\\\\\\\\\\", "------", "++++++")
"""Of batches that are under way at once, from the first."""
PALE = 0.4
INK, FAINT = "#333333", "#8A8A8A"
PADDING = 0.025
"""Between a bar and its lane's edges; bars that follow one another are drawn that far apart at most."""
_LEAST_BAR = 0.022
"""A bar is drawn at least so wide."""
_GROUND = 0.14
"""What a number needs beside it where its bar is no plain ground."""

Rectangle = list[tuple[float, float]]


def write(axes: Axes, x: float, y: float, text: str, size: float = TEXT, **look: Any) -> None:
    axes.text(x, y, text, fontsize=size, va="center", parse_math=False, **look)


def rectangle(left: float, top: float, right: float, bottom: float) -> Rectangle:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def drawn_ends(panel: Panel, bar: Bar) -> tuple[float, float]:
    """Left and right edge of a bar."""
    left, right = panel.x(bar.start_s), panel.x(bar.end_s)
    left = min(left, panel.right - _LEAST_BAR)
    return left, max(right - min(PADDING, (right - left) / 6), left + _LEAST_BAR)


def hatch_of(panel: Panel, bar: Bar) -> str:
    batch = BATCH_HATCHES[panel.batch(bar) % len(BATCH_HATCHES)]
    return batch + HATCHES[panel.part(bar) % len(HATCHES)]


def is_plain(panel: Panel, bar: Bar) -> bool:
    """Of one colour all over."""
    return len(bar.busy_s) == 1 and not hatch_of(panel, bar)


_WIDE_DIGIT = 0.3
"""Digits are wider than letters are on average; of a letter's width."""


def label_on(panel: Panel, bar: Bar) -> str | None:
    """What is written on a bar: the longest that fits; nothing where most of the bar is empty."""
    if not bar.is_dense:
        return None
    left, right = drawn_ends(panel, bar)
    room = right - left - (0 if is_plain(panel, bar) else _GROUND)
    return next((text for text in bar.labels if (len(text) + _WIDE_DIGIT) * EM[SMALL] <= room), None)
