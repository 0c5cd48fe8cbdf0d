"""`calibrate measure`: times this machine's kernels, fits a profile to them, and tries it on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import InputError, Problem
from simulator.specs.architecture import Architecture
from simulator.specs.base import is_identifier
from simulator.specs.catalogue import Catalogue
from simulator.study.calibration.compare_steps import REAL, Comparison, RealSteps
from simulator.study.calibration.measured_fit import FittedEfficiency, fit_efficiency
from simulator.study.calibration.measured_gpu import GpuBenches, MeasuredGpu, measure_gpu
from simulator.study.calibration.measured_profile import (
    DeviceFigures,
    MachineFigures,
    OwnCodeFigures,
    profile_paths,
    profile_texts,
    written,
)
from simulator.study.calibration.one_step import OneSequence
from simulator.study.calibration.own_code import (
    WIDE,
    WIDE_STEPS,
    LayerTimes,
    layer_calls,
    own_code,
    slowdown_in_steps,
    step_calls,
    wide_step,
)
from simulator.study.calibration.rounds import BestRows, Progress, Teller, best_of_rounds
from simulator.study.calibration.timed_kernels import LARGE, KernelRow, as_csv, best_rates, by_class, timings

if TYPE_CHECKING:
    from simulator.execution.measure import Bench

USUAL_S = 100.0
SHARE_OF_PATIENCE = 0.1
"""Of the time: how long in all timings are done again while other programs are busy."""
SHARE_BEFORE_GPU = 0.5
"""Of the time, for the processor where there is a GPU too."""
EACH_S = 0.04
"""How long one kernel is timed in each round, at least."""
TEXT = "Where a model should run depends on three things: data, memory and transitions. " * 8
LARGE_ARRAY_BYTES = 2**28
BANDWIDTH = "memory bandwidth"
PRODUCTS = "matmul.fp32"


@dataclass(frozen=True)
class Measured:
    """A machine, as it was measured."""

    figures: MachineFigures
    rows: tuple[KernelRow, ...]
    took_s: float
    others: float
    """Of one processor, what other programs used meanwhile."""
    comparison: Comparison | None
    gpu: MeasuredGpu | None = None
    gpu_fault: str | None = None
    """Why there is nothing of a GPU that is there."""

    @property
    def texts(self) -> dict[str, str]:
        """Every file to write by its path: profiles, and the tables they were fitted to."""
        rows = (self.rows, self.gpu.rows if self.gpu is not None else ())
        tables = zip(_tables(self.figures.name), rows, strict=True)
        return profile_texts(self.figures) | {path: as_csv(rows) for path, rows in tables if rows}

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.figures.name,
            "took_s": self.took_s,
            "others": self.others,
            "figures": asdict(self.figures),
            "kernels": [asdict(row) for row in self.rows],
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
            "gpu": None if self.gpu is None else self.gpu.as_dict(),
            "gpu_fault": self.gpu_fault,
        }


def check_name(name: str) -> None:
    """Raises InputError for a name that is no id."""
    if not is_identifier(name):
        advice = "write letters, digits, '_', '+', '.' and '-'"
        raise InputError([Problem("command line", key="--name", value=name, advice=advice)])


def refuse_existing(name: str, out: Path) -> None:
    """Raises InputError where a file is there already that a measurement would replace."""
    paths = [out / path for path in (*profile_paths(name), *_tables(name))]
    there = [path for path in paths if path.exists()]
    if there:
        advice = "is there already; take another --name, or --force to replace it"
        raise InputError([Problem(path, advice=advice) for path in there])


def _tables(name: str) -> tuple[str, str]:
    """Of the processor's kernels, and of a GPU's."""
    return f"hardware_profiles/{name}-operators.csv", f"hardware_profiles/{name}-gpu-operators.csv"


def measure(
    name: str = "this-machine", seconds: float = USUAL_S, compare: bool = True,
    thread_count: int | None = None, with_gpu: bool = True, progress: Progress | None = None,
) -> Measured:  # fmt: skip
    """Measure the machine this runs on in about `seconds`; raises InputError for a name that is no id.

    thread_count: that PyTorch computes with; as many as it chooses if not given.
    """
    from simulator.execution.replay import threads

    check_name(name)
    with threads(thread_count):
        return _measure(name, seconds, compare, with_gpu, progress)


def _measure(
    name: str, seconds: float, compare: bool, with_gpu: bool, progress: Progress | None
) -> Measured:
    """Everything is timed round by round, real steps too, so that all of it had the same quiet moments."""
    from simulator.execution.measure import Bench, OtherPrograms, has_gpu

    with_gpu = with_gpu and has_gpu()
    started, catalogue = perf_counter(), Catalogue()
    watch = OtherPrograms(seconds * SHARE_OF_PATIENCE)
    bench, kernels, tell = Bench(EACH_S, "cpu", watch), BestRows(), Teller(progress, seconds)
    real = RealSteps(catalogue) if compare else None
    calls: dict[str, Callable[[], float]] = {BANDWIDTH: partial(bench.s_per_byte, LARGE_ARRAY_BYTES)}
    calls |= kernels.calls(timings(), bench) | layer_calls(bench) | step_calls(bench)
    calls |= real.calls(bench) if real is not None else {}
    best = best_of_rounds(calls, started + seconds * (SHARE_BEFORE_GPU if with_gpu else 1.0), tell)
    figures = _processor(name, bench, kernels.rows, best)
    gpu, gpu_fault = None, None
    with TemporaryDirectory() as folder:
        figures = replace(figures, code=_own_code(figures, bench, best, catalogue, Path(folder)))
        figures = _in_steps(figures, best, Path(folder))
        own = written(figures, Path(folder))
        comparison = None if real is None else real.compared(best, name, own)
        if with_gpu:
            try:
                gpu = measure_gpu(
                    figures, GpuBenches.of_first(), real, Path(folder), started + seconds, tell
                )
                figures = replace(figures, gpu=gpu.figures)
            except RuntimeError as error:  # of PyTorch: out of memory, no kernel for the device ...
                gpu_fault = next(iter(str(error).splitlines()), type(error).__name__)
    took_s = perf_counter() - started
    return Measured(figures, kernels.rows, took_s, watch.share, comparison, gpu, gpu_fault)


# --- kernels ------------------------------------------------------------------------------------------------


def _processor(
    name: str, bench: Bench, rows: Sequence[KernelRow], best: Mapping[str, float]
) -> MachineFigures:
    from simulator.execution.generation import cpu_name
    from simulator.execution.measure import machine_here

    here = machine_here()
    capacity = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bare = DeviceFigures(cpu_name(), capacity, 1 / best[BANDWIDTH], {}, {}, here.cache_bytes)
    threads = f"{here.threads} thread" + ("s" if here.threads > 1 else "")
    ref = f"placewright calibrate measure, torch {here.torch_version}, {threads}"
    date = datetime.now(UTC).date().isoformat()
    note = _one_thread(bench, here.threads)
    cores = os.cpu_count() or 1
    return MachineFigures(name, cores, fitted(bare, rows), OwnCodeFigures(), ref, date, note)


def fitted(device: DeviceFigures, rows: Sequence[KernelRow]) -> DeviceFigures:
    """The device with its peaks, the best that products reached, and an efficiency for each class."""
    peaks = best_rates(rows)
    efficiency = {key: _fit(device, peaks, each) for key, each in by_class(rows).items()}
    return replace(device, peak_flops=peaks, efficiency=efficiency)


def _fit(device: DeviceFigures, peaks: Mapping[str, float], rows: Sequence[KernelRow]) -> FittedEfficiency:
    flops, moved, time_s = (
        np.array([getattr(row, name) for row in rows], dtype=np.float64)
        for name in ("flops", "moved_bytes", "time_s")
    )
    precision = rows[0].precision
    assert precision is not None, "a kernel computes in some format"
    return fit_efficiency(flops, moved, time_s, peaks[precision], device.bandwidth_bytes_per_s)


def _one_thread(bench: Bench, thread_count: int) -> str | None:
    """What one thread reaches of the largest product, as a remark; nothing else is measured so."""
    from simulator.execution.measure import Matmul
    from simulator.execution.replay import threads

    if thread_count == 1:
        return None
    m, n, k = LARGE
    with threads(1):
        alone_s, _ = bench.matmul(Matmul(m, n, k), "fp32")
    return f"one of {thread_count} threads alone reaches {2 * m * n * k / alone_s / 1e9:.3g} GFLOP/s in fp32"


# --- our own code, and what comes of it ---------------------------------------------------------------------


def _in_steps(figures: MachineFigures, best: Mapping[str, float], folder: Path) -> MachineFigures:
    """With products of matrices as fast as they are in steps of a made-up model."""
    priced = OneSequence.of(figures.name, WIDE, written(figures, folder))
    halved = OneSequence.of(figures.name, WIDE, written(slowed(figures, 2.0), folder))
    measured_s = {step: best[wide_step(*step)] for step in WIDE_STEPS}
    return slowed(figures, slowdown_in_steps(measured_s, priced, halved))


def slowed(figures: MachineFigures, times: float) -> MachineFigures:
    """With products of matrices in fp32 that take so many times as long, but for their overhead."""
    fit = figures.cpu.efficiency[PRODUCTS]
    slow = replace(fit, compute=fit.compute / times, memory=fit.memory / times, slowdown=times)
    cpu = replace(figures.cpu, efficiency={**figures.cpu.efficiency, PRODUCTS: slow})
    return replace(figures, cpu=cpu)


def _own_code(
    figures: MachineFigures, bench: Bench, best: Mapping[str, float], catalogue: Catalogue, folder: Path
) -> OwnCodeFigures:
    """Of our network, in what the kernels do not account for."""
    tokenizer = _tokenizer(catalogue)
    times = LayerTimes.of(best, bench.tokenize_s(tokenizer, TEXT), bench.detokenize_s(tokenizer, TEXT))

    def simulate(arch: Architecture, code: OwnCodeFigures) -> OneSequence:
        return OneSequence.of(figures.name, arch, written(replace(figures, code=code), folder))

    return own_code(times, simulate)


def _tokenizer(catalogue: Catalogue) -> Any:
    """Of the model with real weights where they are installed, else bytes."""
    from simulator.execution.packaged_weights import load_packaged
    from simulator.execution.tokenizer import Bytes

    try:
        return load_packaged(REAL, catalogue).tokenizer
    except InputError:
        return Bytes()
