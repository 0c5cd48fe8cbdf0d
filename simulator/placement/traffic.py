"""What copies and collectives put on the links they cross."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.graph.machine import Directed
from simulator.graph.shape import Amount, split_evenly


def ring_link_elements(count: int, ranks: int) -> tuple[int, ...]:
    """Elements of a vector of `count` that rank r sends to rank r + 1 in a ring all-reduce.

    Reduce-scatter and all-gather each send every piece but one over every link; which one follows from
    rank r starting with its own piece (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).

    >>> ring_link_elements(10, 4)
    (15, 16, 15, 14)
    """
    pieces = split_evenly(count, ranks)
    return tuple(2 * count - pieces[(r + 1) % ranks] - pieces[(r + 2) % ranks] for r in range(ranks))


def link_bytes(
    traffic: Sequence[tuple[Sequence[Directed], Amount]],
) -> tuple[tuple[str, Amount], ...]:
    """Add up what each directed link carries."""
    carried: dict[str, Amount] = {}
    for route, nbytes in traffic:
        for directed in route:
            before = carried.get(directed.name)
            carried[directed.name] = nbytes if before is None else before + nbytes
    return tuple(carried.items())
