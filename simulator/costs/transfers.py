"""How long copies and collectives take when they have their links to themselves."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.specs.hardware import Collective, Link


def copy_latency_s(route: Sequence[Link]) -> float:
    """Time before the first byte arrives: the latencies of the links in turn."""
    return sum(link.latency_s for link in route)


def collective_figures(link: Link, ranks: int) -> Collective | None:
    """A link's measured figures for so many ranks: of that number or the next larger one stated, else of
    the largest; None where the link states none."""
    stated = sorted(link.collective, key=lambda figures: figures.ranks)
    return next((figures for figures in stated if figures.ranks >= ranks), stated[-1] if stated else None)


def collective_latency_s(links: Sequence[Link], ranks: int) -> float:
    """Time a collective takes with nothing to carry.

    Where every link states a figure of engines' own all-reduce, the largest of them; else the 2 (n - 1)
    hops of a ring over the slowest link.
    """
    stated = [figures.latency_s for link in links if (figures := collective_figures(link, ranks))]
    if stated and len(stated) == len(links):
        return max(stated)
    return 2 * (ranks - 1) * max((link.latency_s for link in links), default=0.0)


def collective_bytes_per_s(link: Link, ranks: int) -> float:
    """What a collective among so many ranks reaches of one direction of a link."""
    figures = collective_figures(link, ranks)
    if figures is not None:
        return link.bandwidth_bytes_per_s * figures.efficiency
    return link.achieved_bytes_per_s
