"""Machines: ids resolved, hosts' cores turned into a device, problems of all parts at once."""

from pathlib import Path

import pytest

from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine

from .small_catalogue import lines_of, write


def test_a_flat_machine_is_one_nameless_node(catalogue: Catalogue) -> None:
    machine = load_machine("server-4x-l40s", catalogue)
    (node,) = machine.nodes
    assert (machine.id, machine.name, machine.network_id) == (
        "server-4x-l40s",
        "A server with four L40S",
        "pcie4-x16",
    )
    assert (node.name, node.host_id, node.host_link_id, node.interconnect) == (
        "",
        "server",
        "pcie4-x16",
        None,
    )
    assert [device_id for device_id, _ in node.devices] == ["l40s"] * 4
    assert node.price_usd == 0


def test_a_hosts_cpu_is_a_share_of_its_sockets_on_the_hosts_memory(catalogue: Catalogue) -> None:
    (node,) = load_machine("server-4x-l40s", catalogue).nodes
    assert node.cpu is not None
    assert node.cpu.compute == {"fp32": 5e12 * 2 * 0.5, "bf16": 10e12 * 2 * 0.5}
    assert node.cpu.memory == node.host.memory
    assert (node.cpu.power.max_w, node.cpu.price.purchase_usd) == (0, 0)


def test_a_host_whose_cpu_is_unknown_offers_no_device(catalogue: Catalogue) -> None:
    (node,) = load_machine("nr1-4x-l40s", catalogue).nodes
    assert node.cpu is None


def test_a_composite_keeps_its_nodes_in_order(catalogue: Catalogue) -> None:
    machine = load_machine("duo", catalogue)
    assert [node.name for node in machine.nodes] == ["a", "b"]
    assert [device_id for device_id, _ in machine.nodes[1].devices] == ["l40s", "epyc"]
    assert machine.nodes[0].price_usd == 125
    assert machine.network is not None


def test_uncertain_figures_of_all_parts_carry_their_place(catalogue: Catalogue) -> None:
    figures = {each.key_path: each for each in load_machine("duo", catalogue).figures}
    assert "hosts.nr1.power.max" in figures
    assert "machines.duo.nodes.0.price.purchase" in figures
    assert figures["devices.l40s.price.purchase"].source_kind == "published"
    assert figures["devices.epyc.compute.fp32"].affects == "time"


def test_a_hosts_cpu_brings_only_the_figures_it_uses(catalogue: Catalogue) -> None:
    paths = [each.key_path for each in load_machine("server-4x-l40s", catalogue).figures]
    assert "devices.epyc.compute.fp32" in paths
    assert "devices.epyc.price.purchase" not in paths


def test_cases_reach_every_part(catalogue: Catalogue) -> None:
    best, worst = (load_machine("server-4x-l40s", catalogue, case) for case in ("best", "worst"))
    assert best.nodes[0].devices[0][1].price.purchase_usd == 7000
    assert worst.nodes[0].devices[0][1].price.purchase_usd == 10_000
    assert worst.nodes[0].cpu is not None
    assert worst.nodes[0].cpu.compute["fp32"] == 4e12


def test_a_machine_may_be_a_mapping(catalogue: Catalogue) -> None:
    machine = load_machine({"host": "nr1", "devices": {"l40s": 2}, "host_link": "pcie4-x16"}, catalogue)
    assert (machine.id, machine.name, len(machine.nodes[0].devices)) == ("inline", "inline", 2)


def test_every_unknown_id_is_named_with_the_nearest(catalogue: Catalogue, house: Path) -> None:
    write(
        house,
        "hardware_profiles/machines/bad.yaml",
        "name: bad\nhost: nr2\ndevices: {l40: 4, epyc: 0}\nhost_link: pcie5-x16\nnetwrk: x\n",
    )
    assert lines_of(lambda: load_machine("bad", catalogue)) == [
        "bad.yaml:3:25: devices.epyc = 0: must be at least 1",
        "bad.yaml:5:1: netwrk = 'x': unknown key; did you mean 'network'?",
    ]
    write(
        house,
        "hardware_profiles/machines/bad.yaml",
        "name: bad\nhost: nr2\ndevices: {l40: 4}\nhost_link: pcie5-x16\n",
    )
    assert lines_of(lambda: load_machine("bad", catalogue)) == [
        "bad.yaml:2:7: host = 'nr2': no such host; did you mean 'nr1'?",
        "bad.yaml:3:11: devices.l40: no such device; did you mean 'l40s'?",
        "bad.yaml:4:12: host_link = 'pcie5-x16': no such link; did you mean 'pcie4-x16'?",
    ]


def test_problems_of_every_part_come_together(catalogue: Catalogue, house: Path) -> None:
    for kind, name in (("devices", "l40s"), ("links", "pcie4-x16")):
        path = house / f"hardware_profiles/{kind}/{name}.yaml"
        path.write_text(path.read_text() + "colour: red\n")
    found = lines_of(lambda: load_machine("server-4x-l40s", catalogue))
    assert [line.split(":")[0] for line in found] == ["l40s.yaml", "pcie4-x16.yaml"]


def test_a_host_takes_only_so_many_devices(catalogue: Catalogue, house: Path) -> None:
    write(
        house,
        "hardware_profiles/machines/big.yaml",
        "name: big\nhost: nr1\ndevices: {l40s: 4, epyc: 1}\nhost_link: pcie4-x16\n",
    )
    assert lines_of(lambda: load_machine("big", catalogue)) == [
        "big.yaml:3:1: devices: 5 devices, but host nr1 takes at most 4"
    ]


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("epic", "server.yaml:5:15: cpu.device = 'epic': no such device; did you mean 'epyc'?"),
        ("l40s", "server.yaml:5:15: cpu.device = 'l40s': is a gpu; name a device of kind cpu"),
    ],
)
def test_a_hosts_cpu_must_be_a_cpu(catalogue: Catalogue, house: Path, cpu: str, expected: str) -> None:
    path = house / "hardware_profiles/hosts/server.yaml"
    path.write_text(path.read_text().replace("device: epyc", f"device: {cpu}"))
    assert lines_of(lambda: load_machine("server-4x-l40s", catalogue)) == [expected]


def with_storage(house: Path, link: str) -> None:
    path = house / "hardware_profiles/hosts/server.yaml"
    storage = f"storage: {{capacity: 2 TB, link: {link}}}\n"
    path.write_text(path.read_text().replace("cores: 192\n", f"cores: 192\n{storage}")
                    .replace("sources: {", "sources: {storage: {kind: assumed, ref: guess}, "))  # fmt: skip


def test_a_hosts_drives_bring_their_link_and_its_figures(catalogue: Catalogue, house: Path) -> None:
    with_storage(house, "drive")
    write(house, "hardware_profiles/links/drive.yaml", "name: drive\nbandwidth: 3..7 GB/s\nlatency: 80 us\n"
          "sources: {bandwidth: {kind: assumed, ref: guess}, latency: {kind: assumed, ref: guess}}\n")  # fmt: skip
    machine = load_machine("server-4x-l40s", catalogue)
    (node,) = machine.nodes
    assert node.host.storage is not None and node.storage_link is not None
    assert (node.host.storage.capacity_bytes, node.storage_link.bandwidth_bytes_per_s) == (2e12, 21e18**0.5)
    assert "links.drive.bandwidth" in [figure.key_path for figure in machine.figures]
    assert load_machine("nr1-4x-l40s", catalogue).nodes[0].storage_link is None


def test_a_link_to_drives_must_exist(catalogue: Catalogue, house: Path) -> None:
    with_storage(house, "pcie4-x8")
    assert lines_of(lambda: load_machine("server-4x-l40s", catalogue)) == [
        "server.yaml:4:33: storage.link = 'pcie4-x8': no such link; did you mean 'pcie4-x16'?"
    ]


def test_nodes_need_names_of_their_own(catalogue: Catalogue, house: Path) -> None:
    node = "{host: nr1, host_link: pcie4-x16}"
    write(house, "hardware_profiles/machines/twins.yaml", f"network: pcie4-x16\nnodes: [{node}, {node}]\n")
    assert lines_of(lambda: load_machine("twins", catalogue)) == [
        "twins.yaml:2:1: nodes: give each node a short 'name' of its own"
    ]


@pytest.mark.parametrize("name", ["a.b", "a b", "'-a'", "'/'"])
def test_a_nodes_name_can_stand_before_a_dot(catalogue: Catalogue, house: Path, name: str) -> None:
    nodes = (
        f"{{name: n0, host: nr1, host_link: pcie4-x16}}, {{name: {name}, host: nr1, host_link: pcie4-x16}}"
    )
    write(house, "hardware_profiles/machines/odd.yaml", f"network: pcie4-x16\nnodes: [{nodes}]\n")
    (line,) = lines_of(lambda: load_machine("odd", catalogue))
    assert line.startswith(
        f"odd.yaml:2:61: nodes.1.name = '{name.strip(chr(39))}': write a short name of letters"
    )


def test_no_host_has_a_billion_devices(catalogue: Catalogue) -> None:
    machine = {"host": "server", "devices": {"l40s": 10**9}, "host_link": "pcie4-x16"}
    (line,) = lines_of(lambda: load_machine(machine, catalogue))
    assert line.endswith("devices.l40s = 1000000000: must be at most 1024")


def test_an_id_too_long_for_a_file_names_none(catalogue: Catalogue) -> None:
    (line,) = lines_of(lambda: load_machine("x" * 300, catalogue))
    assert "no such machine" in line


def test_an_unknown_machine_says_what_there_is(catalogue: Catalogue) -> None:
    (line,) = lines_of(lambda: load_machine("nr1-4x-l40", catalogue))
    assert line.endswith("no such machine; did you mean 'nr1-4x-l40s'?")
    (line,) = lines_of(lambda: load_machine("../links/pcie4-x16", catalogue))
    assert "no such machine" in line
