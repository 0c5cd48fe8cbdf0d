"""How long copies and collectives take when they have their links to themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.specs.hardware import (
    ALGORITHMS,
    Algorithm,
    Collective,
    Collectives,
    Device,
    Link,
    LinkKind,
    Transition,
)

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


# -- collectives ------------------------------------------------------------------------------------------

_RINGS: tuple[Algorithm, ...] = ("all_gather", "reduce_scatter", "all_to_all")

# Where a link states nothing of collectives, by its kind; assumed, from ai-dynamo/aiconfigurator@095f58a.
# Fabrics: as NVLink 4, the newest that is measured, fares under NCCL 2.29 and vLLM's own all-reduce, with
# all-to-all as the other rings. Buses: the geometric mean of NCCL's latencies on L40S and oneCCL's, twice as
# long, on Arc Pro B60; two of either reach 0.6 to 0.64 of the bandwidth, and four B60 keep that, as they copy
# to one another. More GPUs that cannot are slower.
COLLECTIVE_DEFAULTS: Mapping[LinkKind, Collectives] = {
    "fabric": Collectives(
        engine=(
            Collective(latency_s=4.23e-6, hop_s=0.0422e-6, efficiency=0.579, growth=-0.95, below_bytes=2**23),
            Collective(latency_s=6.14e-6, hop_s=0.233e-6, efficiency=0.515, growth=0.29, below_bytes=2**23),
        ),
        library=(
            Collective(latency_s=4.89e-6, hop_s=0.858e-6, efficiency=0.236, growth=0.5),
            Collective(latency_s=17.4e-6, hop_s=1.5e-6, efficiency=0.654, growth=0.19),
            Collective(algorithms=_RINGS, latency_s=4.9e-6, hop_s=0.862e-6, efficiency=0.221, growth=0.4),
            Collective(algorithms=_RINGS, latency_s=19.2e-6, hop_s=0.624e-6, efficiency=0.545, growth=0.22),
        ),
    ),
    "bus": Collectives(
        library=(Collective(algorithms=ALGORITHMS, latency_s=8.3e-6, hop_s=1.0e-6, efficiency=0.6),)
    ),
}


def rounds(algorithm: Algorithm, ranks: int) -> int:
    """Rounds of a ring: an all-reduce goes round twice.

    >>> rounds("all_reduce", 8), rounds("all_gather", 8)
    (14, 7)
    """
    return (2 if algorithm == "all_reduce" else 1) * (ranks - 1)


def ring_share(algorithm: Algorithm, ranks: int) -> float:
    """Bytes over each link of a ring, for each byte of the result of an all-reduce or all-gather, or of one
    rank's input of the other two.

    >>> ring_share("all_reduce", 4), ring_share("all_to_all", 4)
    (1.5, 0.75)
    """
    return rounds(algorithm, ranks) / ranks


@dataclass(frozen=True, slots=True)
class Way:
    """A way to carry a collective out over given links, beside the fastest way for large messages."""

    latency_s: float
    slowness: float
    """How many times as long its bytes take."""
    below_link_bytes: float
    """Collectives that put this much or more on a link cannot go this way."""


def collectives_of(link: Link) -> Collectives:
    """What a link states of collectives, else the figures of its kind; nothing for a network."""
    if link.collective.engine or link.collective.library or link.kind is None:
        return link.collective
    return COLLECTIVE_DEFAULTS[link.kind]


def collective_ways(links: Sequence[Link], algorithm: Algorithm, ranks: int) -> tuple[Way, ...]:
    """The ways to carry a collective out over some links.

    Where every link has figures, those of the link that is slowest for large messages; else there is one
    way: the rounds of a ring, each with the latency of the slowest link.
    """
    if not links or not all(collectives_of(link).ways(algorithm, ranks) for link in links):
        hop_s = max((link.latency_s for link in links), default=0.0)
        return (Way(hop_s * rounds(algorithm, ranks), 1.0, math.inf),)
    slowest = min(links, key=lambda link: collective_bytes_per_s(link, algorithm, ranks))
    stated = collectives_of(slowest).ways(algorithm, ranks)
    best = max(way.efficiency_of(ranks) for way in stated)
    return tuple(
        Way(
            way.latency_of(rounds(algorithm, ranks)),
            best / way.efficiency_of(ranks),
            math.inf if way.below_bytes is None else way.below_bytes * ring_share(algorithm, ranks),
        )
        for way in stated
    )


def collective_bytes_per_s(link: Link, algorithm: Algorithm, ranks: int) -> float:
    """What a collective reaches of one direction of a link, by the fastest way for large messages."""
    stated = collectives_of(link).ways(algorithm, ranks)
    if not stated:
        return link.achieved_bytes_per_s
    return link.bandwidth_bytes_per_s * max(way.efficiency_of(ranks) for way in stated)


def collective_s(link: Link, algorithm: Algorithm, ranks: int, payload_bytes: float) -> float:
    """Seconds of a collective over links of one sort, by the quickest way.

    payload_bytes: of the whole result of an all-reduce or all-gather, of one rank's input of the other two.
    """
    on_link = payload_bytes * ring_share(algorithm, ranks)
    bytes_s = on_link / collective_bytes_per_s(link, algorithm, ranks)
    return min(
        way.latency_s + bytes_s * way.slowness
        for way in collective_ways([link], algorithm, ranks)
        if on_link < way.below_link_bytes
    )
