"""Names, memories and routes of machines."""

from __future__ import annotations

import networkx as nx
import pytest

from simulator.graph.machine import MachineGraph
from tests import tiny

GPUS = [tiny.device()] * 2


def route(graph: MachineGraph, source: str, target: str) -> list[str]:
    return [directed.name for directed in graph.route(source, target)]


def test_gpus_of_a_server_meet_in_its_memory() -> None:
    graph = tiny.server(2)
    assert route(graph, "gpu-0", "gpu-1") == ["gpu-0->host", "host->gpu-1"]
    assert route(graph, "gpu-1", "host") == ["gpu-1->host"]
    assert route(graph, "gpu-0", "gpu-0") == []


def test_devices_of_a_network_attached_host_share_its_uplink() -> None:
    graph = tiny.server(2, kind="network-attached")
    down = [route(graph, "host", f"gpu-{index}") for index in (0, 1)]
    assert down[0] == ["host->pcie-switch", "pcie-switch->gpu-0"]
    assert set(down[0]) & set(down[1]) == {"host->pcie-switch"}
    assert route(graph, "gpu-0", "gpu-1") == ["gpu-0->pcie-switch", "pcie-switch->gpu-1"]


def test_a_fabric_is_preferred_where_it_is_quicker() -> None:
    fast, slow = tiny.link("nvlink", bandwidth=1e9), tiny.link("slow", bandwidth=1e6)
    joined = tiny.server(2, interconnect=fast)
    assert route(joined, "gpu-0", "gpu-1") == ["gpu-0->fabric", "fabric->gpu-1"]
    assert route(joined, "gpu-0", "host") == ["gpu-0->host"]
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
    assert set(graph.links) == {"gpu-0->host", "host->gpu-0"}
    assert all(directed.bytes_per_s == 50.0 for directed in graph.links.values())
