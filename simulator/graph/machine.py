"""The machine as a graph: memories joined by directed links, devices that compute on a memory.

Nodes of the graph are memories and the hubs between them (a PCIe switch, a scale-up fabric, a network, the
two sides of a host's DRAM); an edge is one direction of one link. Devices are named `cpu`, `gpu-0`,
`accelerator-1`; in a machine of several nodes the node's name goes before: `nr1.accelerator-1`. Every device
owns a memory of its own name, but for a `cpu`, which computes on its host's DRAM, the memory `host`. A
host's drives are the memory `nvme`.

What enters or leaves a DRAM of known bandwidth crosses `host.bus`, whose two directions are one capacity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import networkx as nx

from simulator.graph.work import Work
from simulator.specs.hardware import Device, Host, Link, Machine, Node

REFERENCE_MESSAGE_BYTES = 2**20
"""Routes are the quickest for a message of this size."""


@dataclass(frozen=True, slots=True)
class Directed:
    """One direction of one link."""

    name: str
    source: str
    target: str
    link: Link

    @property
    def bytes_per_s(self) -> float:
        """What transfers reach of the nominal bandwidth."""
        return self.link.achieved_bytes_per_s


@dataclass(frozen=True, slots=True)
class Correction:
    """How much longer a kernel takes than the formula says, by the seconds of its arithmetic alone; between
    two of them in proportion to the logarithm, beyond the last as there."""

    log_compute_s: tuple[float, ...]
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GridCorrection:
    """How much longer attention takes than the formula says, by how many sequences there are and how many
    keys one sees: 1, 2, 4 ... of each; in between in proportion to the logarithms, beyond the last as
    there."""

    factors: tuple[tuple[float, ...], ...]
    """[sequences, keys]."""


class MeasuredTimes(Protocol):
    """Measured kernels of a device, to correct the formula by."""

    def correction(self, work: Work) -> Correction | GridCorrection | None:
        """Of one kernel for any number of rows, or of sequences and keys; None where nothing like it was
        measured."""


@dataclass(frozen=True, slots=True)
class PlacedDevice:
    """A device of a machine: where it computes and whose host serves it."""

    name: str
    device: Device
    device_id: str
    memory: str
    node: str
    """Name of the machine's node; empty in a machine of one node."""
    times: MeasuredTimes | None = None
    """Measured kernels of it, if there are any."""


@dataclass(frozen=True, slots=True)
class PlacedHost:
    """A host of a machine; its DRAM is the memory of that name."""

    name: str
    host: Host
    host_id: str
    node: str


@dataclass(frozen=True)
class MachineGraph:
    """Devices, hosts, memories and the links between them."""

    machine: Machine
    devices: dict[str, PlacedDevice]
    hosts: dict[str, PlacedHost]
    capacity_bytes: dict[str, int]
    """Capacity of each memory, as the driver lets one use it."""
    storages: dict[str, str]
    """Memories that are drives, by the name of their host."""
    graph: nx.DiGraph[str]
    _routes: dict[tuple[str, str], tuple[Directed, ...]] = field(default_factory=dict, repr=False)

    def route(self, source: str, target: str) -> tuple[Directed, ...]:
        """The links a copy from memory `source` to memory `target` crosses, in order.

        The quickest path for a message of 1 MiB; equal paths are decided by the order of the machine's
        file. Raises `networkx.NetworkXNoPath` if the two memories are not connected.
        """
        key = (source, target)
        if key not in self._routes:
            path = nx.shortest_path(self.graph, source, target, weight="time_s")
            self._routes[key] = tuple(self.graph.edges[pair]["directed"] for pair in pairwise(path))
        return self._routes[key]

    def memory_of(self, device: str) -> str:
        return self.devices[device].memory

    def host_of(self, device: str) -> PlacedHost:
        """The host that launches work on `device`."""
        return self.hosts[_prefixed(self.devices[device].node, "host")]

    def host_without(self, cpu: str) -> PlacedHost | None:
        """The host whose cores a `cpu` that is not there would be; None for any other name."""
        named = (placed for placed in self.hosts.values() if _prefixed(placed.node, "cpu") == cpu)
        return next(named, None)

    def storage_of(self, device: str) -> str | None:
        """The memory that the drives of a device's host are; None if it has none."""
        return self.storages.get(self.host_of(device).name)

    def owner_of(self, memory: str) -> Device | None:
        """The device whose own memory it is; None for a host's DRAM and drives."""
        return self.devices[memory].device if memory in self.devices else None

    @cached_property
    def links(self) -> dict[str, Directed]:
        """Every directed link by name; a bus as it leaves its memory."""
        every = [data["directed"] for _, _, data in self.graph.edges(data=True)]
        return {directed.name: directed for directed in reversed(every)}

    def accelerators(self) -> tuple[str, ...]:
        """The devices that are not CPUs, in the order of the machine's file."""
        return tuple(name for name, placed in self.devices.items() if placed.device.kind != "cpu")


def machine_graph(machine: Machine) -> MachineGraph:
    """Lay out a machine.

    Assumptions: each device of a server has its own PCIe lanes to the host, and copies between two of
    them cross both, not the DRAM; the devices of a network-attached host share one uplink behind its PCIe
    switch (Chips and Cheese, 2025-01-04); a scale-up fabric does not block. Drives are read into DRAM and
    copied on from there (no GPUDirect storage), so what goes from a drive to a device crosses the bus twice.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    devices: dict[str, PlacedDevice] = {}
    hosts: dict[str, PlacedHost] = {}
    capacity: dict[str, int] = {}
    storages: dict[str, str] = {}
    for node in machine.nodes:
        host_memory = _prefixed(node.name, "host")
        hosts[host_memory] = PlacedHost(host_memory, node.host, node.host_id, node.name)
        capacity[host_memory] = int(node.host.memory.available_bytes)
        graph.add_node(host_memory)
        named = tuple(_name_devices(node))
        for placed in named:
            devices[placed.name] = placed
            if placed.memory != host_memory:
                capacity[placed.memory] = int(placed.device.memory.available_bytes)
        if node.host.storage is not None:
            storages[host_memory] = _prefixed(node.name, "nvme")
            capacity[storages[host_memory]] = int(node.host.storage.capacity_bytes)
        memories = [placed.memory for placed in named if placed.memory != host_memory]
        _wire_node(graph, machine, node, memories)
    return MachineGraph(machine, devices, hosts, capacity, storages, graph)


def _wire_node(graph: nx.DiGraph[str], machine: Machine, node: Node, memories: list[str]) -> None:
    host_memory = _prefixed(node.name, "host")
    attached, called = _side_of_dram(graph, node, "io"), host_memory
    network = machine.network or node.network
    if network is not None:
        _join(graph, "network", attached, network, called)
    if node.storage_link is not None:
        reader = _side_of_dram(graph, node, "storage")
        _join(graph, _prefixed(node.name, "nvme"), reader, node.storage_link, host_memory)
    if node.host.kind == "network-attached" and memories:
        switch = _prefixed(node.name, "pcie-switch")
        _join(graph, switch, attached, node.host_link, called)
        attached = called = switch
    for memory in memories:
        _join(graph, memory, attached, node.host_link, called)
        if node.interconnect is not None:
            fabric = _prefixed(node.name, "fabric")
            _join(graph, memory, fabric, node.interconnect, fabric)


def _side_of_dram(graph: nx.DiGraph[str], node: Node, side: str) -> str:
    """A hub behind the bus of a node's DRAM; the DRAM itself where its bandwidth is unknown.

    Devices and network stand on one side, drives on another, so that every way between the two leads
    through the DRAM, and the way between two devices does not.
    """
    host_memory, bus = _prefixed(node.name, "host"), node.host.bus
    if bus is None:
        return host_memory
    hub = f"{host_memory}.{side}"
    for source, target in ((host_memory, hub), (hub, host_memory)):
        _add(graph, Directed(f"{host_memory}.bus", source, target, bus))
    return hub


def _name_devices(node: Node) -> Iterable[PlacedDevice]:
    host_memory = _prefixed(node.name, "host")
    if node.cpu is not None:
        yield PlacedDevice(_prefixed(node.name, "cpu"), node.cpu, "cpu", host_memory, node.name)
    numbered: Counter[str] = Counter()
    for device_id, device in node.devices:
        name = _prefixed(node.name, f"{device.kind}-{numbered[device.kind]}")
        numbered[device.kind] += 1
        yield PlacedDevice(name, device, device_id, name, node.name)


def _prefixed(node: str, name: str) -> str:
    return f"{node}.{name}" if node else name


def _join(graph: nx.DiGraph[str], end: str, hub: str, link: Link, called: str) -> None:
    """Add both directions of a link between `end` and `hub`; its name has `called` for the hub."""
    _add(graph, Directed(f"{end}->{called}", end, hub, link))
    _add(graph, Directed(f"{called}->{end}", hub, end, link))


def _add(graph: nx.DiGraph[str], directed: Directed) -> None:
    time_s = directed.link.latency_s + REFERENCE_MESSAGE_BYTES / directed.bytes_per_s
    graph.add_edge(directed.source, directed.target, directed=directed, time_s=time_s)
