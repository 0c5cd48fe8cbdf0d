"""The legend of a drawn timeline. Lengths are inches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection

from simulator.report.timeline_layout import Layout
from simulator.report.timeline_looks import (
    BATCH_HATCHES,
    EM,
    FAINT,
    HATCHES,
    INK,
    LINE,
    MARGIN,
    PALE,
    SMALL,
    TEXT,
    Rectangle,
    label_on,
    rectangle,
    write,
)
from simulator.report.timeline_parts import COLOURS

_SIGN, _BESIDE, _BETWEEN = 0.22, 0.08, 0.16
"""Width of a sign, and what lies between it and its text, and between two entries."""
_COLOURS: dict[str, str] = {str(part): colour for part, colour in COLOURS.items()}
_MEANINGS = {"collective": "collective: devices add up or join what they have"}
"""Of parts whose name does not say it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A sign, what it means, and where it stands."""

    sign: str
    """A part of the work, or `part 2` of the batch, `batch 2`, `stripes`, `pale`, `number`, `arrow`."""
    text: str
    row: int
    left: float


def legend_of(layout: Layout, width: float) -> list[Entry]:
    """An entry for whatever is drawn, and only that, in rows of a width."""
    entries, row, left = [], 0, MARGIN
    for sign, text in _signs(layout):
        taken = _SIGN + _BESIDE + len(text) * EM[TEXT] + _BETWEEN
        if left + taken > width and left > MARGIN:
            row, left = row + 1, MARGIN
        entries.append(Entry(sign, text, row, left))
        left += taken
    return entries


def _signs(layout: Layout) -> Iterator[tuple[str, str]]:
    drawn = [(panel, bar) for panel in layout.panels for _, bar in panel.bars]
    parts = {part for _, bar in drawn for part, _ in bar.busy_s}
    yield from ((part, _MEANINGS.get(part, part)) for part in COLOURS if part in parts)
    for part in sorted({panel.part(bar) for panel, bar in drawn} - {0}):
        yield f"part {part}", f"part {part + 1} of the batch"
    for batch in sorted({panel.batch(bar) for panel, bar in drawn} - {0}):
        yield f"batch {batch}", f"batch {batch + 1}"
    if any(len(bar.busy_s) > 1 for _, bar in drawn):
        yield "stripes", "many short tasks: a stripe is as high as its share of the time"
    if any(panel.is_left_over(bar) for panel, bar in drawn):
        yield "pale", "pale: started by the step before"
    if any(label_on(panel, bar) for panel, bar in drawn):
        yield "number", "number of the layer"
    if any(crossing.has_arrow for panel in layout.panels for crossing in panel.crossings):
        yield "arrow", "from device to device"


def draw_legend(axes: Axes, entries: list[Entry], top: float) -> None:
    for entry in entries:
        y = top + entry.row * LINE
        _draw_sign(axes, entry.sign, entry.left, y)
        write(axes, entry.left + _SIGN + _BESIDE, y, entry.text)


def _draw_sign(axes: Axes, sign: str, x: float, y: float) -> None:
    box = rectangle(x, y - 0.055, x + _SIGN, y + 0.055)
    blue, orange = COLOURS["feed-forward"], COLOURS["attention"]
    match sign.split():
        case ["number"]:
            write(axes, x + _SIGN / 2, y, "0, 1", SMALL, ha="center")
        case ["arrow"]:
            axes.add_collection(LineCollection([[(x, y), (x + _SIGN, y)]], colors=FAINT, linewidths=0.8))
            head = [(x + _SIGN, y), (x + _SIGN - 0.07, y - 0.03), (x + _SIGN - 0.07, y + 0.03)]
            _fill(axes, [head], facecolors=INK)
        case ["stripes"]:
            _fill(axes, [box, rectangle(x, y, x + _SIGN, y + 0.055)], facecolors=[orange, blue])
        case ["pale"]:
            _fill(axes, [box], facecolors=blue, alpha=PALE)
        case ["part", number]:
            _fill(axes, [box], facecolors=blue, edgecolors="white", hatch=HATCHES[int(number) % len(HATCHES)])
        case ["batch", number]:
            hatch = BATCH_HATCHES[int(number) % len(BATCH_HATCHES)]
            _fill(axes, [box], facecolors=blue, edgecolors="white", hatch=hatch)
        case _:
            _fill(axes, [box], facecolors=_COLOURS[sign])


def _fill(axes: Axes, shapes: list[Rectangle], **look: Any) -> None:
    axes.add_collection(PolyCollection(shapes, linewidths=0, **look))
