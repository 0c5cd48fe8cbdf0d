"""How long copies and collectives take when they have their links to themselves."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.specs.hardware import Collective, Device, Link, Transition

# Where a device states no figures of its own, by its kind. GPUs: a call of cudaMemcpyAsync takes 5 to 7 us
# (Wu et al. 2026, arXiv 2602.21548, section 5.2); to synchronise is assumed: a blocking cudaMemcpy of 1 kB
# takes 30 us on a V100 (te42kyfo/gpu-benches), of which launch and the link's latency leave 14 to 20 us, and
# drivers that poll wake sooner. Accelerators: assumed to fare as GPUs. A CPU copies by itself and waits for
# nobody.
TRANSITION_DEFAULTS: dict[str, Transition] = {
    "cpu": Transition(launch_s=0.0, synchronize_s=0.0),
    "gpu": Transition(launch_s=6e-6, synchronize_s=10e-6),
    "accelerator": Transition(launch_s=6e-6, synchronize_s=10e-6),
}


def transition_of(device: Device) -> Transition:
    """What a device states of its copies, else the figures of its kind."""
    return device.transition or TRANSITION_DEFAULTS[device.kind]


def transition_s(source: Device | None, target: Device | None) -> float:
    """What a copy costs beyond latency and bandwidth: to launch it, and to wake who waits for it.

    The two are the devices that own the memories at its ends; None is a host's DRAM or its drives. Whoever
    launches does so through the driver of a device, of two the slower one; only a copy that ends on the
    host is waited for, as what comes next on a device is held up by the device itself.
    """
    ends = [transition_of(device) for device in (source, target) if device is not None]
    waits = source is not None and target is None
    launch_s = max((end.launch_s for end in ends), default=0.0)
    return launch_s + (ends[0].synchronize_s if waits else 0.0)


def copy_latency_s(route: Sequence[Link]) -> float:
    """Time before the first byte arrives: the latencies of the links in turn."""
    return sum(link.latency_s for link in route)


def copy_bytes_per_s(link: Link, pageable: bool) -> float:
    """What a large copy reaches of one direction of a link; `pageable` if host memory that is not pinned is
    at one of its ends."""
    if pageable and link.pageable_efficiency is not None:
        return link.bandwidth_bytes_per_s * link.pageable_efficiency
    return link.achieved_bytes_per_s


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
