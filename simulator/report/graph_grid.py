"""In which row and lane each operator of a layer stands.

An operator stands in a row below all that it reads from. The first lane follows the layer from its first
operator to its last; what branches off has lanes of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from simulator.study.folded_graph import Block

RESIDUAL = "residual"


@dataclass(frozen=True, slots=True)
class Cell:
    """A place in the grid."""

    lane: int
    row: int


def cells(block: Block) -> dict[str, Cell]:
    """The place of each operator, by name."""
    rows = _rows(block)
    lanes: dict[str, int] = {}
    continued = list(_continuations(block))
    for node in block.nodes:
        before = [lanes[source] for source, target in continued if target == node.name]
        lanes[node.name] = min(before) if before else _free_lane(block, rows, lanes, node.name)
    return {name: Cell(lanes[name], row) for name, row in rows.items()}


def _rows(block: Block) -> dict[str, int]:
    rows: dict[str, int] = {}
    for node in block.nodes:
        above = (rows[edge.source] for edge in block.edges if edge.target == node.name and edge.source)
        rows[node.name] = 1 + max(above, default=-1)
    return rows


def _continuations(block: Block) -> Iterator[tuple[str, str]]:
    """Each operator with the one that goes on in its lane: the first that reads what it makes of the
    residual stream, else the first that reads the stream itself."""
    for node in block.nodes:
        inner = [edge for edge in block.edges if edge.source == node.name and edge.target is not None]
        inner.sort(key=lambda edge: edge.role == RESIDUAL)
        if inner and inner[0].target is not None:
            yield node.name, inner[0].target


def _free_lane(block: Block, rows: Mapping[str, int], lanes: Mapping[str, int], name: str) -> int:
    """The first lane, after that of the layer itself, with no operator beside this one."""
    start, end = _span(block, rows, name)
    lane = 1 if lanes else 0
    while any(
        first < end and start < last
        for other, its_lane in lanes.items()
        if its_lane == lane
        for first, last in (_span(block, rows, other),)
    ):
        lane += 1
    return lane


def _span(block: Block, rows: Mapping[str, int], name: str) -> tuple[int, int]:
    """Rows from where an operator's input branches off, down to the last operator that reads from it."""
    targets = (rows[edge.target] for edge in block.edges if edge.source == name and edge.target)
    return rows[name] - 1, max(targets, default=rows[name])
