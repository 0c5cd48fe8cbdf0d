"""The machine as a graph: memories joined by directed links, devices that compute on a memory.

Nodes of the graph are memories and the hubs between them (a PCIe switch, a scale-up fabric, a network);
an edge is one direction of one link. Devices are named `cpu`, `gpu-0`, `accelerator-1`; in a machine of
several nodes the node's name goes before: `nr1.accelerator-1`. Every device owns a memory of its own name,
but for a `cpu`, which computes on its host's DRAM, the memory `host`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import networkx as nx

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
class PlacedDevice:
    """A device of a machine: where it computes and whose host serves it."""

    name: str
    device: Device
    device_id: str
    memory: str
    node: str
    """Name of the machine's node; empty in a machine of one node."""


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

    @cached_property
    def links(self) -> dict[str, Directed]:
        """Every directed link by name."""
        return {data["directed"].name: data["directed"] for _, _, data in self.graph.edges(data=True)}

    def accelerators(self) -> tuple[str, ...]:
        """The devices that are not CPUs, in the order of the machine's file."""
        return tuple(name for name, placed in self.devices.items() if placed.device.kind != "cpu")


def machine_graph(machine: Machine) -> MachineGraph:
    """Lay out a machine.

    Assumptions: each device of a server has its own PCIe lanes to the host, and copies between two of
    them cross both; the devices of a network-attached host share one uplink behind its PCIe switch
    (Chips and Cheese, 2025-01-04); a scale-up fabric does not block.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    devices: dict[str, PlacedDevice] = {}
    hosts: dict[str, PlacedHost] = {}
    capacity: dict[str, int] = {}
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
        memories = [placed.memory for placed in named if placed.memory != host_memory]
        _wire_node(graph, node, host_memory, memories)
        network = machine.network or node.network
        if network is not None:
            _join(graph, host_memory, "network", network)
    return MachineGraph(machine, devices, hosts, capacity, graph)


def _wire_node(graph: nx.DiGraph[str], node: Node, host_memory: str, memories: list[str]) -> None:
    attached = host_memory
    if node.host.kind == "network-attached" and memories:
        attached = _prefixed(node.name, "pcie-switch")
        _join(graph, host_memory, attached, node.host_link)
    for memory in memories:
        _join(graph, memory, attached, node.host_link)
        if node.interconnect is not None:
            _join(graph, memory, _prefixed(node.name, "fabric"), node.interconnect)


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


def _join(graph: nx.DiGraph[str], a: str, b: str, link: Link) -> None:
    """Add both directions of a link between `a` and `b`."""
    time_s = link.latency_s + REFERENCE_MESSAGE_BYTES / link.achieved_bytes_per_s
    for source, target in ((a, b), (b, a)):
        directed = Directed(f"{source}->{target}", source, target, link)
        graph.add_edge(source, target, directed=directed, time_s=time_s)
