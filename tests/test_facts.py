"""Tables of facts, where they lie beside the project: every row of them has its profile, with the same figures.
Where a profile says otherwise on purpose, this says why."""

import csv
from pathlib import Path

import pytest

from simulator.specs.catalogue import Catalogue

ROOT = Path(__file__).parent.parent
FACTS = ROOT.parent / "shared" / "facts"
shipped = Catalogue((ROOT,))

DEVICES = {
    "nvidia-t4": "t4",
    "nvidia-l4": "l4",
    "nvidia-a10": "a10",
    "nvidia-a10g": "a10g",
    "nvidia-a40": "a40",
    "nvidia-a100-40-sxm": "a100-40-sxm",
    "nvidia-a100-40-pcie": "a100-40-pcie",
    "nvidia-a100-80-sxm": "a100-80-sxm",
    "nvidia-a100-80-pcie": "a100-80-pcie",
    "nvidia-l40s": "l40s",
    "nvidia-rtx3090": "rtx-3090",
    "nvidia-rtx4090": "rtx-4090",
    "nvidia-rtx5090": "rtx-5090",
    "nvidia-rtx6000ada": "rtx-6000-ada",
    "nvidia-rtxpro6000": "rtx-pro-6000",
    "nvidia-h100-sxm": "h100-sxm",
    "nvidia-h100-pcie": "h100-pcie",
    "nvidia-h100-nvl": "h100-nvl",
    "nvidia-h200-sxm": "h200-sxm",
    "nvidia-h200-nvl": "h200-nvl",
    "nvidia-gh200": "gh200",
    "nvidia-b200": "b200-sxm",
    "nvidia-b300": "b300-sxm",
    "nvidia-gb200": "gb200",
    "nvidia-gb300": "gb300",
    "amd-mi210": "mi210",
    "amd-mi250x": "mi250x",
    "amd-mi300x": "mi300x",
    "amd-mi325x": "mi325x",
    "amd-mi355x": "mi355x",
    "intel-gaudi2": "gaudi-2",
    "intel-gaudi3": "gaudi-3",
    "intel-arc-b60": "arc-pro-b60",
    "google-tpu-v5e": "tpu-v5e",
    "google-tpu-v5p": "tpu-v5p",
    "google-tpu-v6e": "tpu-v6e",
    "google-tpu-v7x": "tpu-v7x",
    "aws-trainium2": "trainium2",
    "aws-inferentia2": "inferentia2",
    "groq-lpu-v1": "groq-lpu-v1",
    "qualcomm-ai100-std": "cloud-ai-100-std",
    "qualcomm-ai100-pro": "cloud-ai-100-pro",
    "qualcomm-ai100-ultra": "cloud-ai-100-ultra",
    "intel-8380": "xeon-8380",
    "intel-8480p": "xeon-8480p",
    "intel-8592p": "xeon-8592p",
    "intel-6980p": "xeon-6980p",
    "amd-7763": "epyc-7763",
    "amd-9654": "epyc-9654",
    "amd-9755": "epyc-9755",
    "aws-graviton4": "graviton4",
    "apple-m2-max": "m2-max",
    "apple-m2-ultra": "m2-ultra",
    "apple-m3-max": "m3-max",
    "apple-m3-ultra": "m3-ultra",
    "apple-m4-max": "m4-max",
}

HOSTS = {"neureality-nr1": "nr1"}
"""Rows of devices that are no device but what carries some."""

LINKS = {
    "pcie3-x16": "pcie-gen3-x16",
    "pcie4-x16": "pcie-gen4-x16",
    "pcie5-x16": "pcie-gen5-x16",
    "pcie6-x16": "pcie-gen6-x16",
    "pcie5-x8-b60": "pcie-gen5-x8",
    "nvlink3": "nvlink-3",
    "nvlink4": "nvlink-4",
    "nvlink5": "nvlink-5",
    "nvlink6": "nvlink-6",
    "nvlink-c2c": "nvlink-c2c",
    "xgmi-mi300x-8": "xgmi-mi300x",
    "xgmi-mi355x-8": "xgmi-mi355x",
    "gaudi3-roce": "gaudi-3-roce",
    "cxl2-x8-gen5": "cxl-2-x8",
    "nvme-gen4": "nvme-gen4",
    "nvme-gen5": "nvme-gen5",
    "ib-hdr": "ib-hdr",
    "ib-ndr": "ib-ndr",
    "ib-xdr": "ib-xdr",
    "eth-100": "eth-100",
    "eth-200": "eth-200",
    "eth-400": "eth-400",
    "eth-800": "eth-800",
}

MEMORIES = {
    "ddr4-8ch-3200": ("epyc-7763-2s", 2),
    "ddr5-8ch-4800": ("xeon-8480p-2s", 2),
    "ddr5-12ch-4800": ("epyc-9654-2s", 2),
    "ddr5-12ch-6400": ("xeon-6980p-2s", 2),
    "lpddr5x-grace": ("grace-gh200", 1),
}
"""Rows of links that are the memory of a host, with the sockets that the host has of it."""

ELSEWHERE = {"xgmi-mi300x-pair": "a pair of xgmi-mi300x is what its `collective` says of two ranks"}

DIFFERENT = {
    ("nvidia-l4", "units"): "58, as shaders at 128 a multiprocessor make it; 60 is a slip of the database",
    ("nvidia-rtx3090", "fp16_tflops"): "71, with 32-bit accumulation, as inference uses it",
    ("nvidia-rtx4090", "fp16_tflops"): "165.2, with 32-bit accumulation, as inference uses it",
    ("nvidia-rtx5090", "fp16_tflops"): "209.5, with 32-bit accumulation, as inference uses it",
    ("nvidia-a10g", "tdp_w"): "150 to 300 W: two sources disagree",
    ("nvidia-b300", "tdp_w"): "1,000 to 1,400 W: sources disagree; the nominal is the row's",
    ("groq-lpu-v1", "tdp_w"): "215 W are an average, 300 W the maximum",
    ("groq-lpu-v1", "llc_mb"): "the SRAM is its memory",
}

DEVICE_FIGURES = {
    "fp32_tflops": 1e12,
    "tf32_tflops": 1e12,
    "bf16_tflops": 1e12,
    "fp16_tflops": 1e12,
    "fp8_tflops": 1e12,
    "int8_tops": 1e12,
    "fp4_tflops": 1e12,
    "units": 1,
    "llc_mb": 1e6,
    "mem_gb": 1e9,
    "mem_visible_mib": 2**20,
    "mem_bw_gbs": 1e9,
    "tdp_w": 1,
}
"""Columns of the table of devices, and what one of them is in SI units."""


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, str]]:
    """Every row of devices and links by its id, but those of collectives, which are fitted into link files."""
    if not FACTS.is_dir():
        pytest.skip(f"there is no {FACTS.name} folder beside this copy of the project")
    found = {}
    for name in ("devices", "links"):
        with (FACTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            found |= {row["id"]: row for row in csv.DictReader(file) if row["kind"] != "collective"}
    return found


def test_every_row_has_a_profile(rows: dict[str, dict[str, str]]) -> None:
    assert rows.keys() == DEVICES.keys() | HOSTS.keys() | LINKS.keys() | MEMORIES.keys() | ELSEWHERE.keys()
    assert all(shipped.find("hosts", name) for name in HOSTS.values())


@pytest.mark.parametrize("row_id", DEVICES)
def test_a_device_has_the_figures_of_its_row(row_id: str, rows: dict[str, dict[str, str]]) -> None:
    row, ours = rows[row_id], device_figures(DEVICES[row_id])
    given = {column: float(row[column]) * unit for column, unit in DEVICE_FIGURES.items() if row[column]}
    if "mem_visible_mib" in given:
        del given["mem_gb"]
    differing = [
        column
        for column, figure in given.items()
        if (row_id, column) not in DIFFERENT and ours[column] != pytest.approx(figure, rel=2e-3)
    ]
    assert {column: (given[column], ours[column]) for column in differing} == {}


def device_figures(name: str) -> dict[str, float | None]:
    device = shipped.device(name).record
    memory, compute = device.memory, device.compute
    peaks = [column for column in DEVICE_FIGURES if column.endswith(("_tflops", "_tops"))]
    return {column: compute.get(column.partition("_")[0]) for column in peaks} | {
        "units": device.units,
        "llc_mb": memory.cache_bytes,
        "mem_gb": memory.capacity_bytes,
        "mem_visible_mib": memory.capacity_bytes,
        "mem_bw_gbs": memory.bandwidth_bytes_per_s,
        "tdp_w": device.power.max_w,
    }


@pytest.mark.parametrize("row_id", LINKS)
def test_a_link_has_the_figures_of_its_row(row_id: str, rows: dict[str, dict[str, str]]) -> None:
    """What is achieved may be a range; it then holds the row's."""
    row = rows[row_id]
    assert shipped.link(LINKS[row_id]).record.bandwidth_bytes_per_s == pytest.approx(
        float(row["nominal_unidir_gbs"]) * 1e9, rel=2e-3
    )
    if row["achieved_ratio"]:
        worst, best = (shipped.link(LINKS[row_id], case).record.efficiency for case in ("worst", "best"))
        assert worst - 0.01 <= float(row["achieved_ratio"]) <= best + 0.01


@pytest.mark.parametrize("row_id", MEMORIES)
def test_a_host_has_the_memory_of_its_row(row_id: str, rows: dict[str, dict[str, str]]) -> None:
    host, sockets = MEMORIES[row_id]
    nominal = float(rows[row_id]["nominal_unidir_gbs"]) * 1e9 * sockets
    assert shipped.host(host).record.memory.bandwidth_bytes_per_s == pytest.approx(nominal, rel=2e-3)
