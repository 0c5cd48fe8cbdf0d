"""How long copies and collectives take when they have their links to themselves."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.specs.hardware import Link


def copy_latency_s(route: Sequence[Link]) -> float:
    """Time before the first byte arrives: the latencies of the links in turn."""
    return sum(link.latency_s for link in route)


def collective_latency_s(links: Sequence[Link], ranks: int) -> float:
    """Time a collective takes with nothing to carry.

    Where every link states a figure of engines' own all-reduce, the largest of them; else the 2 (n - 1)
    hops of a ring over the slowest link.
    """
    stated = [link.collective.latency_s for link in links if link.collective is not None]
    if stated and len(stated) == len(links):
        return max(stated)
    return 2 * (ranks - 1) * max((link.latency_s for link in links), default=0.0)


def collective_bytes_per_s(link: Link) -> float:
    """What a collective reaches of one direction of a link."""
    if link.collective is not None:
        return link.bandwidth_bytes_per_s * link.collective.efficiency
    return link.achieved_bytes_per_s
