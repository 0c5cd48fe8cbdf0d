"""Writes what was measured as files of the catalogue: a device, a host, a machine, an engine; with a GPU its
device and its link too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simulator.specs.catalogue import Catalogue, default_roots
from simulator.specs.hardware import Transition
from simulator.study.calibration.measured_fit import FittedEfficiency
from simulator.study.calibration.timed_kernels import SCORE_PASSES

DEVICES, HOSTS = "hardware_profiles/devices", "hardware_profiles/hosts"
LINKS, MACHINES, ENGINES = "hardware_profiles/links", "hardware_profiles/machines", "scenarios/engines"

UNUSED_LINK = "pcie-gen4-x16"
"""A machine names the link to its devices, also where it has none."""
FP32_BYTES = 4


@dataclass(frozen=True)
class DeviceFigures:
    """What was found out about one device."""

    name: str
    capacity_bytes: int
    bandwidth_bytes_per_s: float
    peak_flops: Mapping[str, float]
    """By number format, the best that a product of matrices reached."""
    efficiency: Mapping[str, FittedEfficiency]
    """By operator class, for products with their format."""
    cache_bytes: int = 0
    units: int | None = None


@dataclass(frozen=True)
class OwnCodeFigures:
    """What our network's own code takes, on top of kernels."""

    step_s: float = 0.0
    operator_s: float = 0.0
    operators: Mapping[str, float] = field(default_factory=dict)
    passes: Mapping[str, float] = field(default_factory=dict)
    tokenize_s: float = 0.0
    detokenize_s: float = 0.0


@dataclass(frozen=True)
class LinkFigures:
    """Copies between this machine's memory and a GPU's."""

    bandwidth_bytes_per_s: float
    """Of page-locked memory, large copies."""
    latency_s: float
    pageable_efficiency: float


@dataclass(frozen=True)
class GpuFigures:
    """What was found out about a GPU, its link, and our network on it."""

    device: DeviceFigures
    link: LinkFigures
    launch_s: float
    """Of a kernel, where they are launched one by one."""
    transition: Transition
    """What a copy costs besides latency and bandwidth."""
    code: OwnCodeFigures = field(default_factory=OwnCodeFigures)


@dataclass(frozen=True)
class MachineFigures:
    """Everything that files are made of."""

    name: str
    """Id of the files."""
    cores: int
    cpu: DeviceFigures
    code: OwnCodeFigures
    ref: str
    """What measured it, with which PyTorch on how many threads."""
    date: str
    note: str | None = None
    """What one thread reaches."""
    gpu: GpuFigures | None = None


def profile_paths(name: str) -> tuple[str, ...]:
    """Every file that a machine of that name may have, in a folder of the catalogue."""
    return (
        f"{DEVICES}/{name}.yaml", f"{HOSTS}/{name}.yaml", f"{MACHINES}/{name}.yaml", f"{ENGINES}/{name}.yaml",
        f"{DEVICES}/{name}-gpu.yaml", f"{LINKS}/{name}-gpu.yaml", f"{ENGINES}/{name}-gpu.yaml",
    )  # fmt: skip


def profile_texts(figures: MachineFigures) -> dict[str, str]:
    """The text of each file by its path in a folder of the catalogue."""
    name = figures.name
    documents = {
        f"{DEVICES}/{name}.yaml": _device(figures, figures.cpu, "cpu"),
        f"{HOSTS}/{name}.yaml": _host(figures),
        f"{MACHINES}/{name}.yaml": _machine(figures),
        f"{ENGINES}/{name}.yaml": _engine(figures, figures.code),
    }
    if figures.gpu is not None:
        documents[f"{DEVICES}/{name}-gpu.yaml"] = _gpu(figures, figures.gpu)
        documents[f"{LINKS}/{name}-gpu.yaml"] = _link(figures, figures.gpu.link)
        documents[f"{ENGINES}/{name}-gpu.yaml"] = _engine(figures, figures.gpu.code, figures.gpu.launch_s)
    return {path: _as_yaml(document) for path, document in documents.items()}


def _as_yaml(document: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
    return f"# Written by `placewright calibrate measure`.\n{text}"


def _measured(figures: MachineFigures, **more: Any) -> dict[str, Any]:
    given = {key: value for key, value in more.items() if value is not None}
    return {"kind": "measured", "ref": figures.ref, "date": figures.date} | given


def _told(figures: MachineFigures) -> dict[str, Any]:
    """What the system says of itself."""
    return {"kind": "measured", "ref": "as the operating system tells it", "date": figures.date}


def _device(figures: MachineFigures, device: DeviceFigures, kind: str) -> dict[str, Any]:
    memory = {"capacity": f"{device.capacity_bytes} B", "bandwidth": _rate(device.bandwidth_bytes_per_s)}
    if device.cache_bytes:
        memory["cache"] = f"{device.cache_bytes} B"
    sources: dict[str, Any] = {
        "memory": _told(figures),
        "memory.bandwidth": _measured(figures, note="the best of reading, copying and adding large arrays"),
        "compute": _measured(figures, note=_compute_note(figures, kind)),
    }
    if device.units is not None:
        sources["units"] = _told(figures)
    for key, fit in device.efficiency.items():
        sources[f"efficiency.{key}"] = _measured(
            figures, samples=fit.samples, median_error=f"{fit.median_error:.1%}", note=_slowdown(fit)
        )
    return {
        "name": device.name,
        "kind": kind,
        **({"units": device.units} if device.units is not None else {}),
        "memory": memory,
        "compute": {name: f"{peak / 1e9:.4g} GFLOP/s" for name, peak in device.peak_flops.items()},
        "efficiency": {key: _efficiency(fit) for key, fit in device.efficiency.items()},
        "sources": sources,
    }


def _gpu(figures: MachineFigures, gpu: GpuFigures) -> dict[str, Any]:
    """A device with what its copies cost besides."""
    document = _device(figures, gpu.device, "gpu")
    sources = document.pop("sources")
    note = "of launch and the link's latency only the sum shows; launch has what GPUs usually take of it"
    sources["transition"] = _measured(figures, note=note)
    transition = {
        "launch": _time(gpu.transition.launch_s), "synchronize": _time(gpu.transition.synchronize_s)
    }  # fmt: skip
    return document | {"transition": transition, "sources": sources}


def _compute_note(figures: MachineFigures, kind: str) -> str:
    best = "the best that a product of matrices reached"
    return f"{best}; {figures.note}" if figures.note and kind == "cpu" else best


def _slowdown(fit: FittedEfficiency) -> str | None:
    if fit.slowdown == 1.0:
        return None
    return f"then slowed by {fit.slowdown:.3f}: what products take in steps over what they take by themselves"


def _efficiency(fit: FittedEfficiency) -> dict[str, Any]:
    return {
        "compute": float(f"{fit.compute:.4g}"),
        "memory": float(f"{fit.memory:.4g}"),
        "overhead": _time(fit.overhead_s),
        "blend": float(f"{fit.blend:.4g}"),
        **fit.more,
    }


def _host(figures: MachineFigures) -> dict[str, Any]:
    cpu = figures.cpu
    return {
        "name": f"This machine: {cpu.name}",
        "kind": "server",
        "cores": figures.cores,
        "memory": {
            "capacity": f"{cpu.capacity_bytes} B",
            "bandwidth": _rate(cpu.bandwidth_bytes_per_s),
            "efficiency": 1.0,
        },
        "cpu": {"device": figures.name, "sockets": 1, "share": 1.0},
        "power": {"idle": "unknown", "max": "unknown"},
        "price": {"purchase": "unknown"},
        "sources": {
            "cores": _told(figures),
            "memory": _told(figures),
            "memory.bandwidth": _measured(figures),
            "memory.efficiency": _measured(figures, note="the bandwidth is what was reached"),
            "cpu": _measured(figures, note="the device was measured on all that PyTorch uses"),
        },
    }


def _machine(figures: MachineFigures) -> dict[str, Any]:
    has_gpu = figures.gpu is not None
    return {
        "name": f"This machine: {figures.cpu.name}",
        "host": figures.name,
        **({"devices": {f"{figures.name}-gpu": 1}} if has_gpu else {}),
        "host_link": f"{figures.name}-gpu" if has_gpu else UNUSED_LINK,
    }


def _link(figures: MachineFigures, link: LinkFigures) -> dict[str, Any]:
    return {
        "name": "Between this machine and its GPU",
        "bandwidth": _rate(link.bandwidth_bytes_per_s),
        "latency": _time(link.latency_s),
        "pageable_efficiency": float(f"{link.pageable_efficiency:.4g}"),
        "sources": {key: _measured(figures) for key in ("bandwidth", "latency", "pageable_efficiency")},
    }


def _engine(
    figures: MachineFigures, code: OwnCodeFigures, launch_s: float | None = None
) -> dict[str, Any]:
    """launch_s: of a kernel, where the network is on a device beside the processor."""
    is_eager = launch_s is not None
    ours = {"kind": "measured", "ref": "this program's network", "date": figures.date}
    return {
        "name": "This program's own network, called step by step",
        "scheduler": {
            "policy": "continuous_batching", "max_num_seqs": 1, "max_num_batched_tokens": 32768,
            "chunked_prefill": False, "kv_block_tokens": 16, "full_reservation": True,
        },
        "memory": {"utilization": 0.9, "context": "0.3..1 GB", "sampler_bytes_per_logit": 4},
        "overheads": {"step": _time(code.step_s), "per_sequence": "0 us"},
        **({"launch": {"kernel": _time(launch_s), "graphs": "none"}} if launch_s is not None else {}),
        "host_stages": {
            "receive": "0 us/request", "tokenize": f"{_time(code.tokenize_s)}/token",
            "detokenize": f"{_time(code.detokenize_s)}/token", "send": "0 us/token",
        },
        "code": {
            "operator": _time(code.operator_s),
            "operators": {key: _time(each_s) for key, each_s in code.operators.items() if each_s},
            "passes": {key: float(f"{each:.4g}") for key, each in code.passes.items() if each},
            "score_bytes": SCORE_PASSES * FP32_BYTES,
        },
        "sources": {
            "scheduler": ours | {"note": "one sequence at a time, of any length; its cache has no blocks"},
            "memory": {"kind": "assumed", "ref": "this program", "note": "a process with PyTorch, and room"},
            "overheads": _measured(figures),
            **({"launch": _measured(figures)} if is_eager else {}),
            "host_stages": _measured(figures, note="receiving and sending: in the same process"),
            "code": _measured(figures),
            "code.score_bytes": ours | {"note": f"fp32, {SCORE_PASSES} passes over the scores; counted"},
        },
    }  # fmt: skip


def written(figures: MachineFigures, folder: Path) -> Catalogue:
    """A catalogue that has the profiles, as anybody would read them, before all others."""
    for path, text in profile_texts(figures).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return Catalogue((folder, *default_roots()))


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.4g} GB/s"


def _time(time_s: float) -> str:
    return f"{time_s * 1e6:.4g} us"
