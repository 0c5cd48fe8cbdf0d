"""Names, memories and routes of machines."""

from __future__ import annotations

import networkx as nx
import pytest

from simulator.graph.machine import MachineGraph
from tests import tiny

GPUS = [tiny.device()] * 2


def route(graph: MachineGraph, source: str, target: str) -> list[str]:
    return [directed.name for directed in graph.route(source, target)]


def test_gpus_of_a_server_meet_beside_its_memory() -> None:
    graph = tiny.server(2)
    assert route(graph, "gpu-0", "gpu-1") == ["gpu-0->host", "host->gpu-1"]
    assert route(graph, "gpu-1", "host") == ["gpu-1->host", "host.bus"]
    assert route(graph, "host", "gpu-1") == ["host.bus", "host->gpu-1"]
    assert route(graph, "gpu-0", "gpu-0") == []


def test_devices_of_a_network_attached_host_share_its_uplink() -> None:
    graph = tiny.server(2, kind="network-attached")
    down = [route(graph, "host", f"gpu-{index}") for index in (0, 1)]
    assert down[0] == ["host.bus", "host->pcie-switch", "pcie-switch->gpu-0"]
    assert set(down[0]) & set(down[1]) == {"host.bus", "host->pcie-switch"}
    assert route(graph, "gpu-0", "gpu-1") == ["gpu-0->pcie-switch", "pcie-switch->gpu-1"]


def test_a_fabric_is_preferred_where_it_is_quicker() -> None:
    fast, slow = tiny.link("nvlink", bandwidth=1e9), tiny.link("slow", bandwidth=1e6)
    joined = tiny.server(2, interconnect=fast)
    assert route(joined, "gpu-0", "gpu-1") == ["gpu-0->fabric", "fabric->gpu-1"]
    assert route(joined, "gpu-0", "host") == ["gpu-0->host", "host.bus"]
    assert route(tiny.server(2, interconnect=slow), "gpu-0", "gpu-1") == ["gpu-0->host", "host->gpu-1"]


def test_nodes_meet_in_the_network() -> None:
    nodes = [tiny.node(name, gpus=GPUS[:1]) for name in ("a", "b")]
    graph = tiny.machine(*nodes, network=tiny.link("ethernet"))
    assert route(graph, "a.gpu-0", "b.gpu-0") == [
        "a.gpu-0->a.host", "a.host->network", "network->b.host", "b.host->b.gpu-0"
    ]  # fmt: skip
    assert graph.host_of("b.gpu-0").name == "b.host"


def test_nodes_without_a_network_are_not_connected() -> None:
    graph = tiny.machine(tiny.node("a", gpus=GPUS[:1]), tiny.node("b", gpus=GPUS[:1]))
    with pytest.raises(nx.NetworkXNoPath):
        graph.route("a.gpu-0", "b.gpu-0")


def test_a_cpu_computes_on_the_memory_of_its_host() -> None:
    graph = tiny.machine(tiny.node(gpus=[*GPUS, tiny.device("accelerator")], cpu=tiny.device("cpu")))
    assert list(graph.devices) == ["cpu", "gpu-0", "gpu-1", "accelerator-0"]
    assert graph.accelerators() == ("gpu-0", "gpu-1", "accelerator-0")
    assert graph.memory_of("cpu") == "host"
    assert graph.memory_of("accelerator-0") == "accelerator-0"
    assert set(graph.capacity_bytes) == {"host", "gpu-0", "gpu-1", "accelerator-0"}


def test_the_two_directions_of_a_link_are_two_links() -> None:
    graph = tiny.server(1, host_link=tiny.link(bandwidth=100.0, efficiency=0.5))
    assert set(graph.links) == {"gpu-0->host", "host->gpu-0", "host.bus"}
    assert {graph.links[name].bytes_per_s for name in ("gpu-0->host", "host->gpu-0")} == {50.0}


# -- the memory bus ------------------------------------------------------------------------------------------


def test_both_directions_of_a_bus_are_one_capacity() -> None:
    """DRAM reads or writes; what copies and kernels reach of it is 0.8 of the nominal unless a host says."""
    graph = tiny.machine(tiny.node("a", gpus=GPUS, dram=1e9), tiny.node("b", gpus=GPUS, dram=1e9, dram_share=0.5))
    there, back = graph.route("a.host", "a.gpu-0")[0], graph.route("a.gpu-0", "a.host")[-1]
    assert there.name == back.name == "a.host.bus"
    assert graph.links["a.host.bus"].source == "a.host"
    assert graph.links["a.host.bus"].bytes_per_s == 0.8e9
    assert graph.links["b.host.bus"].bytes_per_s == 0.5e9
    assert graph.links["a.host.bus"].link.latency_s == 0.0


@pytest.mark.parametrize("kind", ["server", "network-attached"])
def test_a_host_of_unknown_bandwidth_has_no_bus(kind: str) -> None:
    graph = tiny.machine(tiny.node(kind=kind, gpus=GPUS, dram=None, storage=tiny.link("drive")))
    assert "host.bus" not in graph.links
    last = "host->gpu-0" if kind == "server" else "pcie-switch->gpu-0"
    assert route(graph, "host", "gpu-0")[-1] == last
    assert route(graph, "nvme", "host") == ["nvme->host"]


def test_what_joins_two_nodes_passes_their_memories_by() -> None:
    nodes = [tiny.node(name, gpus=GPUS[:1]) for name in ("a", "b")]
    graph = tiny.machine(*nodes, network=tiny.link("ethernet"))
    assert route(graph, "a.host", "b.host") == ["a.host.bus", "a.host->network", "network->b.host", "b.host.bus"]
    assert not [name for name in route(graph, "a.gpu-0", "b.gpu-0") if name.endswith("bus")]


# -- drives --------------------------------------------------------------------------------------------------


def test_drives_are_read_through_the_memory_of_their_host() -> None:
    """In by the bus, out by the bus again: what goes to a device crosses it twice."""
    graph = tiny.machine(tiny.node(gpus=GPUS, storage=tiny.link("drive", bandwidth=1e12)))
    assert route(graph, "nvme", "host") == ["nvme->host", "host.bus"]
    assert route(graph, "host", "nvme") == ["host.bus", "host->nvme"]
    assert route(graph, "nvme", "gpu-1") == ["nvme->host", "host.bus", "host.bus", "host->gpu-1"]
    assert route(graph, "gpu-1", "nvme") == ["gpu-1->host", "host.bus", "host.bus", "host->nvme"]
    assert graph.capacity_bytes["nvme"] == 1e12


def test_every_host_has_its_own_drives_or_none() -> None:
    nodes = [tiny.node("a", gpus=GPUS[:1], storage=tiny.link("drive")), tiny.node("b", gpus=GPUS[:1])]
    graph = tiny.machine(*nodes, network=tiny.link("ethernet"))
    assert graph.storages == {"a.host": "a.nvme"}
    assert graph.storages == {"a.host": "a.nvme"}
    assert "b.nvme" not in graph.capacity_bytes


def test_memories_that_no_device_owns() -> None:
    graph = tiny.machine(tiny.node(gpus=GPUS, cpu=tiny.device("cpu"), storage=tiny.link("drive")))
    owners = {memory: graph.owner_of(memory) for memory in graph.capacity_bytes}
    assert {memory for memory, owner in owners.items() if owner is None} == {"host", "nvme"}
    assert owners["gpu-1"] is graph.devices["gpu-1"].device
