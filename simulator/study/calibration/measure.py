"""`calibrate measure`: times this machine's kernels, fits a profile to them, and tries it on the spot."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import InputError, Problem
from simulator.specs.architecture import Architecture
from simulator.specs.base import is_identifier
from simulator.specs.catalogue import Catalogue, default_roots
from simulator.study.calibration.compare_steps import COMPARED, Comparison, compare_steps
from simulator.study.calibration.measured_fit import FittedEfficiency, fit_efficiency
from simulator.study.calibration.measured_profile import (
    DeviceFigures,
    LinkFigures,
    MachineFigures,
    OwnCodeFigures,
    profile_texts,
)
from simulator.study.calibration.one_step import OneSequence
from simulator.study.calibration.own_code import CONTEXT, PLAIN, PROBES, LayerTimes, own_code
from simulator.study.calibration.timed_kernels import LARGE, KernelRow, as_csv, by_class, timings

if TYPE_CHECKING:
    from simulator.execution.measure import Bench

Progress = Callable[[int, int, str], None]
"""How much is done, of how much, and what comes next."""

LONGEST_S = 170.0
USUAL_S = 90.0
SHORTEST_S = 5.0
SHARE_OF_COMPARISON = 0.25
WEIGHT_OF_A_LAYER = 2
"""A probe of a layer takes as long as so many kernels."""
TEXT = "Where a model should run depends on three things: data, memory and transitions. " * 8
LARGE_ARRAY_BYTES = 2**28
ROUNDS = 3


@dataclass(frozen=True)
class Measured:
    """A machine, as it was measured."""

    figures: MachineFigures
    rows: tuple[KernelRow, ...]
    gpu_rows: tuple[KernelRow, ...]
    took_s: float
    comparison: Comparison | None

    @property
    def texts(self) -> dict[str, str]:
        """Every file to write by its path: profiles, and the tables they were fitted to."""
        name = self.figures.name
        tables = {f"{name}-operators.csv": as_csv(self.rows)}
        if self.gpu_rows:
            tables[f"{name}-gpu-operators.csv"] = as_csv(self.gpu_rows)
        return profile_texts(self.figures) | tables

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.figures.name,
            "took_s": self.took_s,
            "figures": asdict(self.figures),
            "kernels": [asdict(row) for row in (*self.rows, *self.gpu_rows)],
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
        }


def check_name(name: str) -> None:
    """Raises InputError for a name that is no id."""
    if not is_identifier(name):
        advice = "write letters, digits, '_', '+', '.' and '-'"
        raise InputError([Problem("command line", key="--name", value=name, advice=advice)])


def measure(
    name: str = "this-machine", seconds: float = USUAL_S, compare: bool = True,
    progress: Progress | None = None,
) -> Measured:  # fmt: skip
    """Measure the machine this runs on in about `seconds`; raises InputError for a name that is no id."""
    from simulator.execution.measure import Bench, has_gpu

    check_name(name)
    started = perf_counter()
    steps = _Steps(progress, compare, has_gpu())
    bench = Bench(seconds * (1 - SHARE_OF_COMPARISON if compare else 1) / steps.weight)
    figures, rows = _processor(name, bench, steps)
    gpu_rows: tuple[KernelRow, ...] = ()
    if has_gpu():
        figures, gpu_rows = _with_gpu(figures, Bench(bench.seconds_each, "cuda"), steps)
    with TemporaryDirectory() as folder:
        catalogue = written(figures, Path(folder))
        figures = replace(figures, code=_own_code(figures, bench, steps, catalogue, Path(folder)))
        catalogue = written(figures, Path(folder))
        comparison = None
        if compare:
            longer = Bench(seconds * SHARE_OF_COMPARISON / COMPARED)
            comparison = compare_steps(name, catalogue, longer, steps.next)
    return Measured(figures, rows, gpu_rows, perf_counter() - started, comparison)


class _Steps:
    """Counts what has been timed, for whoever watches."""

    def __init__(self, progress: Progress | None, compare: bool, has_gpu: bool) -> None:
        devices = 2 if has_gpu else 1
        kernels, layers = ROUNDS * devices * len(timings()), ROUNDS * (len(PROBES) + 1)
        self.total = kernels + layers + ROUNDS * devices + 1 + (COMPARED if compare else 0)
        self.weight = kernels + WEIGHT_OF_A_LAYER * layers + 3 * ROUNDS * devices + 3
        self.done, self._progress = 0, progress

    def next(self, what: str) -> None:
        if self._progress is not None:
            self._progress(min(self.done, self.total), self.total, what)
        self.done += 1


# --- kernels ------------------------------------------------------------------------------------------------


def _processor(name: str, bench: Bench, steps: _Steps) -> tuple[MachineFigures, tuple[KernelRow, ...]]:
    from simulator.execution.generation import cpu_name
    from simulator.execution.measure import machine_here

    here = machine_here()
    rows = _timed(bench, steps)
    bandwidth = _bandwidth(bench, steps)
    capacity = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = fitted(DeviceFigures(cpu_name(), capacity, bandwidth, {}, {}, here.cache_bytes), rows)
    threads = f"{here.threads} thread" + ("s" if here.threads > 1 else "")
    ref = f"placewright calibrate measure, torch {here.torch_version}, {threads}"
    date = datetime.now(UTC).date().isoformat()
    note = _one_thread(bench, here.threads, steps)
    cores = os.cpu_count() or 1
    return MachineFigures(name, cores, device, OwnCodeFigures(), ref, date, note), rows


def _timed(bench: Bench, steps: _Steps) -> tuple[KernelRow, ...]:
    """Of each kernel the best of some rounds, so that a busy moment spoils none."""
    best: dict[str, KernelRow] = {}
    for _ in range(ROUNDS):
        for timing in timings():
            steps.next(timing.what)
            row = timing.time(bench)
            if timing.what not in best or row.time_us < best[timing.what].time_us:
                best[timing.what] = row
    return tuple(best.values())


def _bandwidth(bench: Bench, steps: _Steps) -> float:
    rates = []
    for _ in range(ROUNDS):
        steps.next("memory bandwidth")
        rates.append(bench.bandwidth_bytes_per_s(LARGE_ARRAY_BYTES))
    return max(rates)


def fitted(device: DeviceFigures, rows: Sequence[KernelRow]) -> DeviceFigures:
    """The device with its peaks, the best that products reached, and an efficiency for each class."""
    products = [row for row in rows if row.operator == "matmul"]
    peaks: dict[str, float] = {}
    for row in products:
        peaks[row.precision] = max(peaks.get(row.precision, 0.0), row.flops / row.time_s)
    efficiency = {key: _fit(device, peaks, each) for key, each in by_class(rows).items()}
    return replace(device, peak_flops=peaks, efficiency=efficiency)


def _fit(device: DeviceFigures, peaks: Mapping[str, float], rows: Sequence[KernelRow]) -> FittedEfficiency:
    flops, moved, time_s = (
        np.array([getattr(row, name) for row in rows], dtype=np.float64)
        for name in ("flops", "moved_bytes", "time_s")
    )
    return fit_efficiency(flops, moved, time_s, peaks[rows[0].precision], device.bandwidth_bytes_per_s)


def _one_thread(bench: Bench, threads: int, steps: _Steps) -> str | None:
    """What one thread reaches of the largest product, as a remark; nothing else is measured so."""
    from simulator.execution.measure import Matmul, threads_used

    steps.next("one thread")
    if threads == 1:
        return None
    m, n, k = LARGE
    try:
        threads_used(1)
        alone_s, _ = bench.matmul(Matmul(m, n, k), "fp32")
    finally:
        threads_used(threads)
    return f"one of {threads} threads alone reaches {2 * m * n * k / alone_s / 1e9:.3g} GFLOP/s in fp32"


def _with_gpu(
    figures: MachineFigures, bench: Bench, steps: _Steps
) -> tuple[MachineFigures, tuple[KernelRow, ...]]:
    from simulator.execution.measure import gpu_facts

    name, capacity, units = gpu_facts()
    rows = _timed(bench, steps)
    bandwidth = _bandwidth(bench, steps)
    device = fitted(DeviceFigures(name, capacity, bandwidth, {}, {}, 0, units), rows)
    pinned = [LARGE_ARRAY_BYTES / bench.copy_s(LARGE_ARRAY_BYTES, way, True) for way in (True, False)]
    pageable = [LARGE_ARRAY_BYTES / bench.copy_s(LARGE_ARRAY_BYTES, way, False) for way in (True, False)]
    link = LinkFigures(min(pinned), bench.copy_s(8, True, True), min(1.0, min(pageable) / min(pinned)))
    return replace(figures, gpu=device, link=link), rows


# --- our own code -------------------------------------------------------------------------------------------


def _own_code(
    figures: MachineFigures, bench: Bench, steps: _Steps, catalogue: Catalogue, folder: Path
) -> OwnCodeFigures:
    """Of our network, in what the kernels do not account for."""
    from simulator.execution.measure import Bench
    from simulator.execution.random_weights import random_transformer

    longer = Bench(bench.seconds_each * WEIGHT_OF_A_LAYER)
    layers: dict[str, float] = {}
    step_s, plain = math.inf, random_transformer(PLAIN, seed=0)
    for _ in range(ROUNDS):
        for probe, arch in PROBES.items():
            steps.next(f"a layer: {probe}")
            layers[probe] = min(longer.layer_s(arch, CONTEXT), layers.get(probe, math.inf))
        steps.next("a step, and reading and writing text")
        step_s = min(longer.step_s(plain, 1, CONTEXT), step_s)
    tokenizer = _tokenizer(catalogue)
    tokenize_s, detokenize_s = bench.tokenize_s(tokenizer, TEXT), bench.detokenize_s(tokenizer, TEXT)
    times = LayerTimes(layers, step_s, tokenize_s, detokenize_s)

    def simulate(arch: Architecture, code: OwnCodeFigures) -> OneSequence:
        return OneSequence.of(figures.name, arch, written(replace(figures, code=code), folder))

    return own_code(times, simulate)


def _tokenizer(catalogue: Catalogue) -> Any:
    """Of the model with real weights where they are installed, else bytes."""
    from simulator.execution.packaged_weights import load_packaged
    from simulator.execution.tokenizer import Bytes
    from simulator.study.calibration.compare_steps import REAL

    try:
        return load_packaged(REAL, catalogue).tokenizer
    except InputError:
        return Bytes()


def written(figures: MachineFigures, folder: Path) -> Catalogue:
    """A catalogue that has the profiles, as anybody would read them, before all others."""
    for path, text in profile_texts(figures).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return Catalogue((folder, *default_roots()))
