"""Where the boxes and lines of a model's graph go; lengths in inches, y downwards.

Values go straight down to the next operator of a lane, by a track on its right past others, across to another
lane. The residual stream runs on the left where it passes operators by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from simulator.report.graph_grid import RESIDUAL, Cell, cells
from simulator.study.folded_graph import Block, Edge, FoldedGraph, Node

NODE_WIDTH, NODE_HEIGHT = 1.95, 0.54
ROW, LANE = 0.82, 2.9
"""From one operator's centre to the next one's, down and across."""
HEADER = 0.62
"""Of a block, where it says which layers it is."""

_GAP = ROW - NODE_HEIGHT
_RAIL, _FIRST_TRACK, _TRACK = 0.3, 0.22, 0.3
"""From an operator's side to the residual stream on its left, to the first track on its right; from one track
to the next."""
_SIDE = 0.5
_BLOCK_GAP = 0.45
_BUS = 0.42
"""From a block to the line that joins all blocks, and from there to what comes before or after."""
_LOOP = 0.55
_OFF_CENTRE = 0.14
"""By which lines that meet an operator at one side keep apart."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """An operator and its centre."""

    node: Node
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Wire:
    """A line that a value takes."""

    points: tuple[Point, ...]
    kind: Literal["value", "residual", "next layer", "token loop"]
    has_arrow: bool = True


@dataclass(frozen=True, slots=True)
class Label:
    """The role of a value, beside its line: centred at a point, or from there to the right."""

    text: str
    x: float
    y: float
    is_rotated: bool = False
    is_centred: bool = True


@dataclass(frozen=True, slots=True)
class Frame:
    """The box around a block."""

    block: Block
    left: float
    top: float
    right: float
    bottom: float

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


@dataclass
class Layout:
    """Everything there is to draw."""

    nodes: list[PlacedNode] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def laid_out(graph: FoldedGraph, least_width: float = 0.0) -> Layout:
    """Place a whole model: a chain, its blocks side by side, a chain."""
    layout = Layout()
    grids = [_Grid(block) for block in graph.blocks]
    inner = sum(grid.width for grid in grids) + _BLOCK_GAP * (len(grids) - 1)
    layout.width = max(least_width, inner + 4 * _LOOP)
    first_y = _GAP + NODE_HEIGHT / 2
    before_y = _chain(layout, graph.before, first_y)
    left, top = (layout.width - inner) / 2, before_y + NODE_HEIGHT / 2 + 2 * _BUS
    for grid in grids:
        grid.place(layout, left, top)
        left += grid.width + _BLOCK_GAP
    bottom = max(frame.bottom for frame in layout.frames)
    last_y = _chain(layout, graph.after, bottom + 2 * _BUS + NODE_HEIGHT / 2)
    _into_blocks(layout, top)
    _out_of_blocks(layout, bottom, ", ".join(graph.after[0].reads))
    if sum(len(block.layers) for block in graph.blocks) > 1:
        _to_the_next_layer(layout, top - _BUS, bottom + _BUS)
    _close(layout, graph, first_y, last_y)
    layout.height = last_y + NODE_HEIGHT / 2 + _GAP
    return layout


def _chain(layout: Layout, nodes: Sequence[Node], y: float) -> float:
    """Operators one below the other in the middle; returns where the last one is."""
    middle = layout.width / 2
    for number, node in enumerate(nodes):
        if number:
            y += ROW
            _drop(layout, ", ".join(node.reads), middle, y - ROW + NODE_HEIGHT / 2, y - NODE_HEIGHT / 2)
        layout.nodes.append(PlacedNode(node, middle, y))
    return y


def _drop(layout: Layout, role: str, x: float, top: float, bottom: float) -> None:
    """A straight line down, its label on the right."""
    layout.wires.append(Wire(((x, top), (x, bottom)), "residual" if role == RESIDUAL else "value"))
    layout.labels.append(Label(role, x + 0.07, (top + bottom) / 2 - 0.02, is_centred=False))


def _into_blocks(layout: Layout, top: float) -> None:
    """The embedded tokens, to whichever block the first layer is in."""
    middle, start, bus = layout.width / 2, top - 2 * _BUS, top - _BUS
    layout.wires.append(Wire(((middle, start), (middle, bus)), "residual", has_arrow=False))
    layout.labels.append(Label(RESIDUAL, middle + 0.07, (start + bus) / 2, is_centred=False))
    for frame in layout.frames:
        layout.wires.append(Wire(((middle, bus), (frame.middle, bus), (frame.middle, top)), "residual"))


def _out_of_blocks(layout: Layout, bottom: float, role: str) -> None:
    """What the last layer leaves, from whichever block it is in."""
    middle, bus, end = layout.width / 2, bottom + _BUS, bottom + 2 * _BUS
    for frame in layout.frames:
        path = ((frame.middle, frame.bottom), (frame.middle, bus), (middle, bus))
        layout.wires.append(Wire(path, "residual", has_arrow=False))
    layout.wires.append(Wire(((middle, bus), (middle, end)), "residual"))
    layout.labels.append(Label(role, middle + 0.07, (bus + end) / 2, is_centred=False))


def _to_the_next_layer(layout: Layout, upper: float, lower: float) -> None:
    last = layout.frames[-1]
    outer = last.right + _LOOP / 2
    path = ((last.middle, lower), (outer, lower), (outer, upper), (last.middle, upper))
    layout.wires.append(Wire(path, "next layer"))
    layout.labels.append(Label("to the next layer", outer + 0.12, (upper + lower) / 2, is_rotated=True))


def _close(layout: Layout, graph: FoldedGraph, first_y: float, last_y: float) -> None:
    """The token ids that come in, and the output: back to the first operator, or out at the bottom."""
    middle, half = layout.width / 2, NODE_HEIGHT / 2
    _drop(layout, "ids", middle, first_y - half - _GAP, first_y - half)
    if not graph.is_loop:
        _drop(layout, graph.output, middle, last_y + half, last_y + half + _GAP)
        return
    side, outer = middle - NODE_WIDTH / 2, layout.frames[0].left - _LOOP / 2
    path = ((side, last_y), (outer, last_y), (outer, first_y), (side, first_y))
    layout.wires.append(Wire(path, "token loop"))
    text = f"{graph.output}: the chosen token goes round again"
    layout.labels.append(Label(text, outer - 0.12, (first_y + last_y) / 2, is_rotated=True))


# --- a block ------------------------------------------------------------------------------------------------

Way = Literal["straight", "rail", "skip", "fork", "join"]
"""Straight down; by the rail on the left; past operators on the right; to a later lane; to an earlier one."""


@dataclass(frozen=True, slots=True)
class _Net:
    """A value: from one operator, or from above, to all that read it."""

    source: str | None
    role: str
    targets: tuple[str | None, ...]


def _nets(block: Block) -> list[_Net]:
    found: dict[tuple[str | None, str], list[str | None]] = defaultdict(list)
    for edge in block.edges:
        found[edge.source, edge.role].append(edge.target)
    return [_Net(*value, tuple(targets)) for value, targets in found.items()]


class _Grid:
    """A block's operators in rows and lanes, and the lines between them."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.cells = cells(block)
        self.taken = set(self.cells.values())
        self.row_count = 1 + max((cell.row for cell in self.taken), default=0)
        self.last_lane = max((cell.lane for cell in self.taken), default=0)
        self.tracks: dict[int, list[int]] = defaultdict(list)
        """On the right of each lane, the row down to which each track is taken."""

    @property
    def width(self) -> float:
        outermost = [edge for edge in self.block.edges
                     if self._ends(edge)[0].lane == self.last_lane and self._way(edge) == "skip"]  # fmt: skip
        return 2 * _SIDE + NODE_WIDTH + self.last_lane * LANE + (_TRACK if outermost else 0)

    @property
    def height(self) -> float:
        return HEADER + self.row_count * ROW + _GAP

    def place(self, layout: Layout, left: float, top: float) -> None:
        """Draw the block with its upper left corner at a point."""
        self.layout, self.left, self.top = layout, left, top
        layout.frames.append(Frame(self.block, left, top, left + self.width, top + self.height))
        for node in self.block.nodes:
            cell = self.cells[node.name]
            layout.nodes.append(PlacedNode(node, self._x(cell.lane), self._y(cell.row)))
        for net in _nets(self.block):
            self._draw(net)

    def _draw(self, net: _Net) -> None:
        ways: dict[Way, list[Cell]] = defaultdict(list)
        for target in net.targets:
            edge = Edge(net.source, target, net.role)
            ways[self._way(edge)].append(self._ends(edge)[1])
        start = self._ends(Edge(net.source, net.targets[0], net.role))[0]
        for end in ways["straight"]:
            _drop(self.layout, net.role, self._x(end.lane), self._below(start), self._above(end))
        if ways["rail"]:
            self._rail(net.role, start, ways["rail"])
        if ways["skip"]:
            self._skip(net.role, start, ways["skip"], is_labelled=not ways["fork"])
        if ways["fork"]:
            self._fork(net.role, start, ways["fork"])
        for end in ways["join"]:
            self._join(net.role, start, end)

    # -- where ------------------------------------------------------------------------------------------

    def _x(self, lane: int) -> float:
        return self.left + _SIDE + NODE_WIDTH / 2 + lane * LANE

    def _y(self, row: int) -> float:
        return self.top + HEADER + _GAP + row * ROW + NODE_HEIGHT / 2

    def _ends(self, edge: Edge) -> tuple[Cell, Cell]:
        """Both places; the header is row -1, the lower border the row after the last, in the other's lane."""
        source = None if edge.source is None else self.cells[edge.source]
        target = None if edge.target is None else self.cells[edge.target]
        lane = (source or target or Cell(0, 0)).lane
        end = target or Cell(lane, self.row_count)
        return source or Cell(end.lane, -1), end

    def _below(self, cell: Cell) -> float:
        """Where a value leaves an operator, or the header, downwards."""
        return self.top + HEADER if cell.row < 0 else self._y(cell.row) + NODE_HEIGHT / 2

    def _above(self, cell: Cell) -> float:
        """Where a value comes into an operator, or to the lower border, from above."""
        return self.top + self.height if self._is_border(cell) else self._y(cell.row) - NODE_HEIGHT / 2

    def _is_border(self, cell: Cell) -> bool:
        return cell.row == self.row_count

    # -- which way --------------------------------------------------------------------------------------

    def _way(self, edge: Edge) -> Way:
        start, end = self._ends(edge)
        if end.lane != start.lane:
            return "fork" if end.lane > start.lane else "join"
        is_free = not any(Cell(start.lane, row) in self.taken for row in range(start.row + 1, end.row))
        if is_free and not (edge.role == RESIDUAL and self._has_company(edge)):
            return "straight"
        return "rail" if edge.role == RESIDUAL and start.lane == 0 else "skip"

    def _has_company(self, edge: Edge) -> bool:
        """Whether another value flows between the same two, which then has the straight way."""
        return any(
            (other.source, other.target) == (edge.source, edge.target) and other.role != edge.role
            for other in self.block.edges
        )

    def _rail(self, role: str, start: Cell, ends: Sequence[Cell]) -> None:
        side = self._x(0) - NODE_WIDTH / 2
        rail = side - _RAIL
        if start.row < 0:
            head: tuple[Point, ...] = ((rail, self._below(start)),)
        else:
            head = ((side, self._y(start.row) + _OFF_CENTRE), (rail, self._y(start.row) + _OFF_CENTRE))
        top = bottom = head[-1][1]
        for end in ends:
            y = self._above(end) if self._is_border(end) else self._y(end.row) - _OFF_CENTRE
            self._wire(role, *head, (rail, y), *(() if self._is_border(end) else ((side, y),)))
            bottom = max(bottom, y)
        if bottom - top < ROW:
            self.layout.labels.append(Label(role, rail + 0.07, top + _GAP / 2, is_centred=False))
        else:
            self.layout.labels.append(Label(role, rail - 0.1, (top + bottom) / 2, is_rotated=True))

    def _skip(self, role: str, start: Cell, ends: Sequence[Cell], is_labelled: bool) -> None:
        side = self._x(start.lane) + NODE_WIDTH / 2
        track = self._track(start, max(end.row for end in ends))
        x = side + _TRACK * track + _FIRST_TRACK
        if start.row < 0:
            head: tuple[Point, ...] = ((x, self._below(start)),)
        else:
            head = ((side, self._y(start.row)), (x, self._y(start.row)))
        for end in ends:
            y = self._above(end) if self._is_border(end) else self._y(end.row) - _OFF_CENTRE
            self._wire(role, *head, (x, y), *(() if self._is_border(end) else ((side, y),)))
        if is_labelled:
            self.layout.labels.append(Label(role, x + 0.09, head[-1][1] + ROW / 2, is_rotated=True))

    def _track(self, start: Cell, last_row: int) -> int:
        """The first track on the right of a lane that is free below `start`; it is taken."""
        taken = self.tracks[start.lane]
        for track, row in enumerate(taken):
            if row <= start.row:
                taken[track] = last_row
                return track
        taken.append(last_row)
        return len(taken) - 1

    def _fork(self, role: str, start: Cell, ends: Sequence[Cell]) -> None:
        side, y = self._x(start.lane) + NODE_WIDTH / 2, self._y(start.row)
        for end in ends:
            x = self._x(end.lane)
            self._wire(role, (side, y), (x, y), (x, self._above(end)))
        self.layout.labels.append(Label(role, side + (LANE - NODE_WIDTH) / 2, y - 0.08))

    def _join(self, role: str, start: Cell, end: Cell) -> None:
        x, side = self._x(start.lane), self._x(end.lane) + NODE_WIDTH / 2
        y = self._y(end.row) + _OFF_CENTRE * (start.lane - end.lane - 1)
        self._wire(role, (x, self._below(start)), (x, y), (side, y))
        self.layout.labels.append(Label(role, x - LANE / 2, y - 0.08))

    def _wire(self, role: str, *points: Point) -> None:
        self.layout.wires.append(Wire(points, "residual" if role == RESIDUAL else "value"))
