"""Every problem of a file at once, in its place, with the way out; ranges, cases and unknowns."""

import math
from pathlib import Path

import pytest

from simulator.specs.base import Case
from simulator.specs.hardware import Device, Host, Link, Memory
from simulator.specs.load import load, load_with_figures
from simulator.specs.quantities import Range

from .small_catalogue import FILES, lines_of, write

L40S = FILES["hardware_profiles/devices/l40s.yaml"]

BAD_DEVICE = """\
name: L40S
kind: gpuu
memory: {capacity: 46068, bandwith: 864 GB/s}
compute: {bf17: 362 TFLOP/s, fp8: 733 TFLOP, int8: 0 TOP/s}
powr: {idle: 35 W, max: 350 W}
price: {purchase: 10_000..7_000 USD}
efficiency:
  matmull.bf16: {compute: 1.2, memory: 0.87, blend: 0.5, overhead: unknown}
sources:
  memory: {kind: datasheet, ref: x, date: 2022-13-22}
  compute: {kind: measurd, ref: x}
  power: {kind: datasheet, ref: x}
"""


def test_every_planted_error_is_found_at_once_in_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.yaml", BAD_DEVICE)
    found = lines_of(lambda: load(path, Device))
    starts = [
        "bad.yaml:2:7: kind = 'gpuu': not one of: cpu, gpu, accelerator; did you mean 'gpu'?",
        "bad.yaml:3:1: memory.bandwidth: missing",
        "bad.yaml:3:20: memory.capacity = 46068: write a number and one of: B, kB, MB, GB",
        "bad.yaml:3:27: memory.bandwith = '864 GB/s': unknown key; did you mean 'bandwidth'?",
        "bad.yaml:4:11: compute.bf17 = '362 TFLOP/s': not one of: fp64",
        "bad.yaml:4:35: compute.fp8 = '733 TFLOP': write a number and one of",
        "bad.yaml:4:52: compute.int8 = '0 TOP/s': must be more than 0",
        "bad.yaml:5:1: powr: unknown key; did you mean 'power'?",
        "bad.yaml:6:19: price.purchase = '10_000..7_000 USD': a range goes from low to high",
        "bad.yaml:8:3: efficiency.matmull.bf16: unknown operator class",
        "bad.yaml:8:27: efficiency.matmull.bf16.compute = 1.2: must be at least 0 and at most 1",
        "bad.yaml:8:53: efficiency.matmull.bf16.blend = 0.5: must be at least 1",
        "bad.yaml:8:68: efficiency.matmull.bf16.overhead = 'unknown': may not be unknown here",
        "bad.yaml:10:43: sources.memory.date = '2022-13-22': write a date",
        "bad.yaml:11:19: sources.compute.kind = 'measurd': not one of: measured, ",
        "bad.yaml:12:3: sources.power: there is no such key in this file; did you mean 'powr'?",
    ]
    assert len(found) == len(starts)
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start)
    assert found[14].endswith("did you mean 'measured'?")


COLLECTIVE_LINK = """\
name: a link
bandwidth: 1 GB/s
latency: 1 us
collective:
  engine:
    - {latency: 4.2, efficiency: 1.5, growth: 9, below: 8, hops: 2 us, most_ranks: 1}
  library:
    - {algorithms: [all_reduce, allgather], latency: 4 us, efficiency: 0.5}
  libary: []
sources:
  bandwidth: {kind: assumed, ref: x}
  latency: {kind: assumed, ref: x}
  collective.engine: {kind: assumed, ref: x}
"""


def test_every_error_of_collectives_is_found(tmp_path: Path) -> None:
    found = lines_of(lambda: load(write(tmp_path, "bad.yaml", COLLECTIVE_LINK), Link))
    starts = [
        "bad.yaml:6:17: collective.engine.0.latency = 4.2: write a number and one of: ns, us",
        "bad.yaml:6:34: collective.engine.0.efficiency = 1.5: must be at least 0 and at most 1",
        "bad.yaml:6:47: collective.engine.0.growth = 9: must be at least -4 and at most 4",
        "bad.yaml:6:57: collective.engine.0.below = 8: write a number and one of: B, kB",
        "bad.yaml:6:60: collective.engine.0.hops = '2 us': unknown key; did you mean 'hop'?",
        "bad.yaml:6:84: collective.engine.0.most_ranks = 1: must be at least 2",
        "bad.yaml:7:3: collective.library: has no source",
        "bad.yaml:8:33: collective.library.0.algorithms.1 = 'allgather': not one of: all_reduce, all_gather",
        "bad.yaml:9:3: collective.libary: unknown key; did you mean 'library'?",
    ]
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts


def test_figures_by_number_of_ranks_are_of_a_form_that_is_gone(tmp_path: Path) -> None:
    head, _, tail = COLLECTIVE_LINK.partition("  engine:\n")
    old = head + "  - {ranks: 2, latency: 4.2 us, efficiency: 0.5}\n" + tail[tail.index("sources:") :]
    (line, *_) = lines_of(lambda: load(write(tmp_path, "old.yaml", old), Link))
    assert line.endswith("collective: write a mapping of 'engine' and 'library', each a list of ways")


def test_a_file_that_holds_no_mapping(tmp_path: Path) -> None:
    assert "write a mapping" in lines_of(lambda: load(write(tmp_path, "a.yaml", ""), Device))[0]
    assert "write a mapping" in lines_of(lambda: load(write(tmp_path, "a.yaml", "- 1"), Device))[0]
    nothing = lines_of(lambda: load(write(tmp_path, "a.yaml", "memory: 5\nsources: 3"), Device))
    assert "a.yaml:1:9: memory = 5: write a mapping of keys" in nothing
    assert "a.yaml:1:1: name: missing; this key is needed here" in nothing


def test_field_names_of_the_code_are_no_keys_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", L40S.replace("capacity:", "capacity_bytes:"))
    found = lines_of(lambda: load(path, Device))
    assert any("memory.capacity_bytes = '46068 MiB': unknown key" in line for line in found)


def test_figures_need_a_source_and_sources_need_a_figure(tmp_path: Path) -> None:
    text = L40S.replace("  compute: {kind", "  compute.fp8: {kind").replace(
        "  power: {kind", "  powers: {kind"
    )
    found = lines_of(lambda: load(write(tmp_path, "a.yaml", text), Device))
    assert found == [
        "a.yaml:4:11: compute.bf16: has no source; add it, or a key that encloses it, under 'sources'",
        "a.yaml:5:9: power.idle: has no source; add it, or a key that encloses it, under 'sources'",
        "a.yaml:5:21: power.max: has no source; add it, or a key that encloses it, under 'sources'",
        "a.yaml:12:3: sources.powers: there is no such key in this file; did you mean 'power'?",
    ]


def test_an_unknown_figure_needs_no_source(house: Path) -> None:
    host = load(house / "hardware_profiles/hosts/nr1.yaml", Host)
    assert host.price.purchase_usd is None
    assert "price" not in host.sources


def test_a_sound_device_is_plain_si_floats(house: Path) -> None:
    device = load(house / "hardware_profiles/devices/l40s.yaml", Device)
    assert device.memory.capacity_bytes == 46068 * 2**20
    assert device.memory.available_bytes == 45589 * 2**20
    assert device.compute == {"bf16": 362e12, "fp8": 733e12}
    assert device.efficiency["matmul.bf16"].overhead_s == 3.4e-6
    assert device.sources["price"].date == "2026"
    assert type(device.name) is str


def test_link_achieves_its_share(house: Path) -> None:
    link = load(house / "hardware_profiles/links/pcie4-x16.yaml", Link)
    assert link.bandwidth_bytes_per_s == 31.5e9
    assert link.achieved_bytes_per_s == pytest.approx(25.2e9)


@pytest.mark.parametrize(
    ("case", "price_usd", "cores", "offload", "max_w"),
    [
        ("nominal", 8500, 8, 0.45, math.sqrt(30 * 150)),
        ("best", 7000, 64, 0.9, 30),
        ("worst", 10_000, 1, 0, 150),
    ],
)
def test_cases_take_the_end_that_suits_the_owner(
    house: Path, case: Case, price_usd: float, cores: float, offload: float, max_w: float
) -> None:
    device = load(house / "hardware_profiles/devices/l40s.yaml", Device, case)
    host = load(house / "hardware_profiles/hosts/nr1.yaml", Host, case)
    assert device.price.purchase_usd == price_usd
    assert host.cores == pytest.approx(cores)
    assert host.offload_fraction == pytest.approx(offload)
    assert host.power.max_w == pytest.approx(max_w)
    assert (host.power.idle_w, host.memory.bandwidth_bytes_per_s, host.cpu) == (None, None, None)


@pytest.mark.parametrize(("case", "expected"), [("nominal", 12e3), ("best", 10e3), ("worst", 20e3)])
def test_a_range_may_state_its_nominal(house: Path, case: Case, expected: float) -> None:
    assert load(house / "hardware_profiles/hosts/server.yaml", Host, case).price.purchase_usd == expected


def test_nominal_is_the_midpoint_or_the_geometric_mean_of_a_wide_range() -> None:
    assert Range.between(1, 2).nominal == 1.5
    assert Range.between(1, 4).nominal == 2
    assert Range.between(0, 4).nominal == 2


@pytest.mark.parametrize(
    ("price", "advice"),
    [
        ("{range: 1..2 USD, nominal: 3 USD}", "the nominal lies outside its range"),
        ("{range: 1 USD, nominal: 1 USD}", "'range' takes low..high"),
        ("{range: 1..2 USD}", "write a quantity, or {range"),
        ("{range: 1..2 USD, nominal: 1}", "one of: USD"),
        ("[1 USD]", "one of: USD"),
        ("true", "one of: USD"),
        ("-5 USD", "must be at least 0"),
    ],
)
def test_bad_ranges_are_problems(tmp_path: Path, price: str, advice: str) -> None:
    text = L40S.replace("7_000..10_000 USD", price)
    found = lines_of(lambda: load(write(tmp_path, "a.yaml", text), Device))
    assert len(found) == 1
    assert advice in found[0]


def test_uncertain_figures_are_reported_with_what_they_affect(house: Path) -> None:
    figures = load_with_figures(house / "hardware_profiles/hosts/nr1.yaml", Host).figures
    facts = {
        each.key_path: (each.kind, each.low, each.high, each.source_kind, each.affects) for each in figures
    }
    assert facts == {
        "cores": ("range", 1, 64, "assumed", "time"),
        "memory.bandwidth": ("unknown", None, None, "published", "time"),
        "cpu": ("unknown", None, None, None, "time"),
        "offload_fraction": ("range", 0, 0.9, "vendor-claim", "time"),
        "power.idle": ("unknown", None, None, "assumed", "energy"),
        "power.max": ("range", 30, 150, "assumed", "energy"),
        "price.purchase": ("unknown", None, None, None, "money"),
    }


def test_a_range_with_its_nominal_is_one_figure(house: Path) -> None:
    (figure,) = load_with_figures(house / "hardware_profiles/hosts/server.yaml", Host).figures
    assert (figure.key_path, figure.low, figure.high, figure.source_kind) == (
        "price.purchase",
        1e4,
        2e4,
        "assumed",
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "usable: 45_589 MiB",
            "usable: 50_000 MiB",
            "memory.usable = '50_000 MiB': must not exceed the capacity",
        ),
        ("idle: 35 W", "idle: 400 W", "power.idle = '400 W': must not exceed 'max'"),
        ("bandwidth: 864 GB/s", "bandwidth: unknown", "memory: a device's memory bandwidth must be known"),
    ],
)
def test_rules_over_two_fields_name_the_one_to_blame(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    found = lines_of(lambda: load(write(tmp_path, "a.yaml", L40S.replace(old, new)), Device))
    assert len(found) == 1
    assert expected in found[0]


def test_code_builds_records_from_si_floats() -> None:
    memory = Memory(capacity_bytes=80e9, bandwidth_bytes_per_s=None)
    assert memory.available_bytes == 80e9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pageable_efficiency: 0.9", "link.yaml:5:22: pageable_efficiency = 0.9: must not exceed 'efficiency'"),
        ("pageable_efficiency: 0", "link.yaml:5:22: pageable_efficiency = 0: must be more than 0"),
        ("pageable: 0.2", "link.yaml:5:1: pageable = 0.2: unknown key"),
    ],
)
def test_a_pageable_copy_is_no_faster_than_a_pinned_one(tmp_path: Path, text: str, expected: str) -> None:
    link = FILES["hardware_profiles/links/pcie4-x16.yaml"].replace("sources:", f"{text}\nsources:")
    (line,) = lines_of(lambda: load(write(tmp_path, "link.yaml", link), Link))
    assert line.startswith(expected)


def test_a_device_may_state_its_transitions(tmp_path: Path) -> None:
    text = L40S.replace("sources:\n", "transition: {launch: 4 us, synchronize: 5..15 us}\nsources:\n"
                        "  transition: {kind: measured, ref: runs}\n")  # fmt: skip
    device = load(write(tmp_path, "device.yaml", text), Device)
    assert device.transition is not None
    assert device.transition.launch_s == 4e-6
    assert device.transition.synchronize_s == pytest.approx(75**0.5 * 1e-6)
