"""Where the boxes and lines of a model's graph go; lengths in inches, y downwards.

Operators of a layer stand in rows, an operator below all that it reads from, and in lanes: the first one
follows the layer from its first operator to its last, others what branches off. The residual stream runs as a
rail on the left where it passes operators by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from simulator.study.folded_graph import Block, Edge, FoldedGraph, Node

NODE_WIDTH, NODE_HEIGHT = 1.95, 0.54
ROW, LANE = 0.82, 2.9
"""From one operator's centre to the next one's, down and across."""
HEADER = 0.62
"""Of a block, where it says which layers it is."""

_GAP = ROW - NODE_HEIGHT
_RAIL, _TRACK = 0.3, 0.3
"""From an operator's side to the residual stream on its left; to each line on its right, and between them."""
_SIDE = 0.5
_BLOCK_GAP = 0.45
_BUS = 0.42
"""From a block to the line that joins all blocks, and from there to what comes before or after."""
_LOOP = 0.55
_OFF_CENTRE = 0.14
"""By which lines that meet an operator at one side keep apart."""

Point = tuple[float, float]
RESIDUAL = "residual"


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
    middle = layout.width / 2
    first_y = _GAP + NODE_HEIGHT / 2
    bus = _chain(layout, graph.before, middle, first_y) + NODE_HEIGHT / 2 + _BUS
    left, top = middle - inner / 2, bus + _BUS
    centres = []
    for grid in grids:
        grid.place(layout, left, top)
        centres.append(left + grid.width / 2)
        left += grid.width + _BLOCK_GAP
    lower_bus = max(frame.bottom for frame in layout.frames) + _BUS
    last_y = _chain(layout, graph.after, middle, lower_bus + _BUS + NODE_HEIGHT / 2)
    _join_blocks(layout, graph, centres, (bus, lower_bus), (first_y, last_y))
    layout.height = last_y + NODE_HEIGHT / 2 + _GAP
    return layout


def _chain(layout: Layout, nodes: Sequence[Node], x: float, y: float) -> float:
    """Operators one below the other; returns where the last one is."""
    for number, node in enumerate(nodes):
        if number:
            y += ROW
            _drop(layout, ", ".join(node.reads), x, y - ROW + NODE_HEIGHT / 2, y - NODE_HEIGHT / 2)
        layout.nodes.append(PlacedNode(node, x, y))
    return y


def _drop(layout: Layout, role: str, x: float, top: float, bottom: float) -> None:
    """A straight line down, its label on the right."""
    layout.wires.append(Wire(((x, top), (x, bottom)), "residual" if role == RESIDUAL else "value"))
    layout.labels.append(Label(role, x + 0.07, (top + bottom) / 2 - 0.02, is_centred=False))


def _join_blocks(
    layout: Layout, graph: FoldedGraph, centres: Sequence[float], buses: Point, ends: Point
) -> None:
    """What leads to the first layer, from a layer to the next, from the last one on, and round again."""
    middle, (upper, lower), (first_y, last_y) = layout.width / 2, buses, ends
    start = layout.nodes[len(graph.before) - 1].y + NODE_HEIGHT / 2
    below = lower + _BUS
    _drop(layout, "ids", middle, first_y - NODE_HEIGHT / 2 - _GAP, first_y - NODE_HEIGHT / 2)
    layout.wires.append(Wire(((middle, start), (middle, upper)), "residual", has_arrow=False))
    layout.labels.append(Label(RESIDUAL, middle + 0.07, (start + upper) / 2, is_centred=False))
    layout.wires.append(Wire(((middle, lower), (middle, below)), "residual"))
    role = ", ".join(graph.after[0].reads)
    layout.labels.append(Label(role, middle + 0.07, (lower + below) / 2, is_centred=False))
    for frame, x in zip(layout.frames, centres, strict=True):
        layout.wires.append(Wire(((x, upper), (x, frame.top)), "residual"))
        layout.wires.append(Wire(((x, frame.bottom), (x, lower)), "residual", has_arrow=False))
    outer = layout.frames[-1].right + _LOOP / 2
    spans = [(min(*centres, middle), max(*centres, middle))] * 2
    for (low, high), y in zip(spans, buses, strict=True):
        layout.wires.append(Wire(((low, y), (high, y)), "residual", has_arrow=False))
    if sum(len(block.layers) for block in graph.blocks) > 1:
        path = ((spans[1][1], lower), (outer, lower), (outer, upper), (spans[0][1], upper))
        layout.wires.append(Wire(path, "next layer"))
        layout.labels.append(Label("to the next layer", outer + 0.12, (upper + lower) / 2, is_rotated=True))
    _close(layout, graph, first_y, last_y)


def _close(layout: Layout, graph: FoldedGraph, first_y: float, last_y: float) -> None:
    """The output: back to the first operator, or out at the bottom."""
    middle = layout.width / 2
    if not graph.is_loop:
        bottom = last_y + NODE_HEIGHT / 2
        _drop(layout, graph.output, middle, bottom, bottom + _GAP)
        return
    side, outer = middle - NODE_WIDTH / 2, layout.frames[0].left - _LOOP / 2
    outer = min(outer, side - _LOOP / 2)
    layout.wires.append(Wire(((side, last_y), (outer, last_y), (outer, first_y), (side, first_y)), "token loop"))
    text = f"{graph.output}: the chosen token goes round again"
    layout.labels.append(Label(text, outer - 0.12, (first_y + last_y) / 2, is_rotated=True))


# --- a block ------------------------------------------------------------------------------------------------


@dataclass
class _Net:
    """A value: from one operator, or from above, to all that read it."""

    source: str | None
    role: str
    targets: list[str | None]


class _Grid:
    """The rows and lanes of a block, and the lines between them."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.rows = _rows(block)
        self.lanes = _lanes(block, self.rows)
        self.row_count = 1 + max(self.rows.values(), default=0)
        self.lane_count = 1 + max(self.lanes.values(), default=0)
        self.at = {(self.lanes[name], self.rows[name]): name for name in self.rows}
        self.tracks: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Rows that lines on the right of a lane pass, one span a track."""
        self.taken: set[tuple[str | None, str | None]] = set()
        """Pairs that a straight line joins."""
        self.nets = _nets(block)

    @property
    def width(self) -> float:
        return 2 * _SIDE + NODE_WIDTH + (self.lane_count - 1) * LANE + (_TRACK if self._has_skips else 0)

    @property
    def height(self) -> float:
        return HEADER + self.row_count * ROW + _GAP

    @property
    def _has_skips(self) -> bool:
        """Whether lines pass on the right of the last lane."""
        last = self.lane_count - 1
        return any(self.lanes.get(edge.source or "") == last and self._kind(edge) == "skip"
                   for edge in self.block.edges)  # fmt: skip

    def place(self, layout: Layout, left: float, top: float) -> None:
        """Draw the block with its upper left corner at a point."""
        self.layout, self.left, self.top = layout, left, top
        layout.frames.append(Frame(self.block, left, top, left + self.width, top + self.height))
        for node in self.block.nodes:
            layout.nodes.append(PlacedNode(node, self.x(self.lanes[node.name]), self.y(self.rows[node.name])))
        for net in self.nets:
            self._draw(net)

    def x(self, lane: int) -> float:
        return self.left + _SIDE + NODE_WIDTH / 2 + lane * LANE

    def y(self, row: int) -> float:
        return self.top + HEADER + _GAP + row * ROW + NODE_HEIGHT / 2

    # -- which way a value takes ------------------------------------------------------------------------

    def _place(self, name: str | None, default: tuple[int, int]) -> tuple[int, int]:
        return default if name is None else (self.lanes[name], self.rows[name])

    def _kind(self, edge: Edge) -> Literal["straight", "rail", "skip", "fork", "join"]:
        """Straight down; by the rail on the left; past operators on the right; to a later lane; back."""
        lane, row = self._place(edge.source, (self.lanes.get(edge.target or "", 0), -1))
        end_lane, end_row = self._place(edge.target, (lane, self.row_count))
        if end_lane != lane:
            return "fork" if end_lane > lane else "join"
        is_free = all((lane, between) not in self.at for between in range(row + 1, end_row))
        others = [each for each in self.block.edges
                  if (each.source, each.target) == (edge.source, edge.target) and each.role != RESIDUAL]  # fmt: skip
        if edge.role == RESIDUAL and (not is_free or others):
            return "rail" if lane == 0 else "skip"
        return "straight" if is_free else "skip"

    def _draw(self, net: _Net) -> None:
        ways: dict[str, list[str | None]] = defaultdict(list)
        for target in net.targets:
            ways[self._kind(Edge(net.source, target, net.role))].append(target)
        for target in ways["straight"]:
            self._straight(net, target)
        if ways["rail"]:
            self._rail(net, ways["rail"])
        if ways["skip"]:
            self._skip(net, ways["skip"])
        if ways["fork"]:
            self._fork(net, [target for target in ways["fork"] if target is not None])
        for target in ways["join"]:
            self._join(net, target)

    # -- the ways ---------------------------------------------------------------------------------------

    def _bottom_of(self, name: str | None) -> float:
        """Where a value leaves its operator, or the header."""
        return self.top + HEADER if name is None else self.y(self.rows[name]) + NODE_HEIGHT / 2

    def _top_of(self, name: str | None) -> float:
        return self.top + self.height if name is None else self.y(self.rows[name]) - NODE_HEIGHT / 2

    def _wire(self, net: _Net, *points: Point, has_arrow: bool = True) -> None:
        kind: Literal["value", "residual"] = "residual" if net.role == RESIDUAL else "value"
        self.layout.wires.append(Wire(points, kind, has_arrow))

    def _straight(self, net: _Net, target: str | None) -> None:
        lane, _ = self._place(net.source if target is None else target, (0, 0))
        _drop(self.layout, net.role, self.x(lane), self._bottom_of(net.source), self._top_of(target))

    def _rail(self, net: _Net, targets: Sequence[str | None]) -> None:
        side = self.x(0) - NODE_WIDTH / 2
        rail = side - _RAIL
        start = self.top + HEADER if net.source is None else self.y(self.rows[net.source]) + _OFF_CENTRE
        head = ((rail, start),) if net.source is None else ((side, start), (rail, start))
        ends = [self._top_of(None) if each is None else self.y(self.rows[each]) - _OFF_CENTRE for each in targets]
        for target, end in zip(targets, ends, strict=True):
            tail = ((rail, end),) if target is None else ((rail, end), (side, end))
            self._wire(net, *head, *tail)
        if max(ends) - start < _GAP + NODE_HEIGHT:
            self.layout.labels.append(Label(net.role, rail + 0.07, start + _GAP / 2, is_centred=False))
        else:
            self._label(net.role, rail - 0.1, (start + max(ends)) / 2, is_rotated=True)

    def _skip(self, net: _Net, targets: Sequence[str | None]) -> None:
        lane, row = self._place(net.source, (0, -1))
        ends = [self._place(each, (lane, self.row_count))[1] for each in targets]
        side = self.x(lane) + NODE_WIDTH / 2
        x = side + _TRACK * (1 + self._track(lane, row, max(ends))) - 0.08
        start = self._bottom_of(None) if net.source is None else self.y(row)
        head = ((x, start),) if net.source is None else ((side, start), (x, start))
        for target, end in zip(targets, ends, strict=True):
            y = self._top_of(None) if target is None else self.y(end) - _OFF_CENTRE
            self._wire(net, *head, *(((x, y),) if target is None else ((x, y), (side, y))))
        self._label(net.role, x + 0.09, start + ROW / 2, is_rotated=True)

    def _track(self, lane: int, start: int, end: int) -> int:
        """The first track on the right of a lane that is free over some rows; it is taken."""
        spans = self.tracks[lane]
        for track, span in enumerate(spans):
            if span[1] <= start:
                spans[track] = (span[0], end)
                return track
        spans.append((start, end))
        return len(spans) - 1

    def _fork(self, net: _Net, targets: Sequence[str]) -> None:
        lane, row = self._place(net.source, (0, -1))
        y = self.y(row)
        for target in targets:
            x = self.x(self.lanes[target])
            self._wire(net, (self.x(lane) + NODE_WIDTH / 2, y), (x, y), (x, self._top_of(target)))
        first = min(self.lanes[target] for target in targets)
        self._label(net.role, self.x(first) - LANE / 2, y - 0.08)

    def _join(self, net: _Net, target: str | None) -> None:
        assert net.source is not None and target is not None
        lane, end_lane = self.lanes[net.source], self.lanes[target]
        y = self.y(self.rows[target]) + _OFF_CENTRE * (lane - end_lane - 1)
        self._wire(net, (self.x(lane), self._bottom_of(net.source)), (self.x(lane), y),
                   (self.x(end_lane) + NODE_WIDTH / 2, y))  # fmt: skip
        self._label(net.role, self.x(lane) - LANE / 2, y - 0.08)

    def _label(self, text: str, x: float, y: float, is_rotated: bool = False) -> None:
        self.layout.labels.append(Label(text, x, y, is_rotated))


def _nets(block: Block) -> list[_Net]:
    found: dict[tuple[str | None, str], _Net] = {}
    for edge in block.edges:
        found.setdefault((edge.source, edge.role), _Net(edge.source, edge.role, [])).targets.append(edge.target)
    return list(found.values())


def _rows(block: Block) -> dict[str, int]:
    """Each operator below all that it reads from."""
    rows: dict[str, int] = {}
    for node in block.nodes:
        above = (rows[edge.source] for edge in block.edges if edge.target == node.name and edge.source)
        rows[node.name] = 1 + max(above, default=-1)
    return rows


def _lanes(block: Block, rows: Mapping[str, int]) -> dict[str, int]:
    """Each operator in the lane of the one it continues, if any, else in a lane that is free."""
    lanes: dict[str, int] = {}
    continued = dict(_continuations(block))
    for node in block.nodes:
        before = [lanes[source] for source, target in continued.items() if target == node.name]
        free = _free_lane(block, rows, lanes, node.name)
        lanes[node.name] = min(before, default=free)
    return lanes


def _continuations(block: Block) -> Iterator[tuple[str, str]]:
    """The operator that goes on in each one's lane: the first reader of what it makes of the stream, else of
    the stream itself."""
    for node in block.nodes:
        inner = [edge for edge in block.edges if edge.source == node.name and edge.target is not None]
        inner.sort(key=lambda edge: edge.role == RESIDUAL)
        if inner and inner[0].target is not None:
            yield node.name, inner[0].target


def _free_lane(block: Block, rows: Mapping[str, int], lanes: Mapping[str, int], name: str) -> int:
    """The first lane, after that of the layer itself, with no operator beside this one."""
    start, end = _span(block, rows, name)
    lane = 1 if lanes else 0
    while any(first < end and start < last
              for other, its_lane in lanes.items() if its_lane == lane
              for first, last in (_span(block, rows, other),)):  # fmt: skip
        lane += 1
    return lane


def _span(block: Block, rows: Mapping[str, int], name: str) -> tuple[int, int]:
    """Rows from where an operator may be led to, down to the last that reads from it."""
    targets: Iterable[int] = (rows[edge.target] for edge in block.edges if edge.source == name and edge.target)
    return rows[name] - 1, max(targets, default=rows[name])
