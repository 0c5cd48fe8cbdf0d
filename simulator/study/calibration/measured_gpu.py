"""The GPU's part of `calibrate measure`: its kernels, fitted as `calibrate fit` fits a table, its link, and
our network on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from simulator.costs.transfers import TRANSITION_DEFAULTS
from simulator.specs.architecture import Architecture
from simulator.specs.catalogue import Catalogue
from simulator.specs.hardware import Device, Precision, Transition
from simulator.study.calibration.calibrate import fitted_classes
from simulator.study.calibration.columns import Columns, read_columns
from simulator.study.calibration.compare_steps import Comparison, RealSteps
from simulator.study.calibration.copies import fit_copies, read_copies
from simulator.study.calibration.fit import FittedClass
from simulator.study.calibration.measured_fit import FittedEfficiency
from simulator.study.calibration.measured_profile import (
    DeviceFigures,
    GpuFigures,
    LinkFigures,
    MachineFigures,
    OwnCodeFigures,
    written,
)
from simulator.study.calibration.one_step import OneSequence
from simulator.study.calibration.own_code import LayerTimes, layer_calls, own_code
from simulator.study.calibration.profile_text import efficiency_line
from simulator.study.calibration.readers import read_samples
from simulator.study.calibration.rounds import BestRows, best_of_rounds
from simulator.study.calibration.timed_gpu_kernels import gpu_timings
from simulator.study.calibration.timed_kernels import KernelRow, Timing, as_csv, best_rates

if TYPE_CHECKING:
    from simulator.execution.measure import Bench
    from simulator.execution.measure_gpu import GpuBench, GpuFacts

EACH_S = 0.01
"""How long a kernel is timed in each round, at least."""
STEP_S = 0.04
"""How long a layer or a step is."""
THE_FOUR = ("compute", "memory", "overhead", "blend")
"""Numbers that every class has."""
BANDWIDTH, LAUNCH = "GPU: memory bandwidth", "GPU: launching kernels"


@dataclass(frozen=True)
class GpuBenches:
    """What a GPU is timed with."""

    facts: GpuFacts
    kernels: GpuBench
    steps: Bench
    timings: tuple[Timing[GpuBench], ...]

    @classmethod
    def of_first(cls) -> GpuBenches:
        """Of the first GPU that PyTorch sees."""
        from simulator.execution.measure import Bench
        from simulator.execution.measure_gpu import GpuBench, gpu_facts

        facts = gpu_facts()
        timings = gpu_timings(cast(Precision, facts.half), facts.has_fp8, facts.capacity_bytes)
        return cls(facts, GpuBench(EACH_S, facts), Bench(STEP_S, "cuda"), timings)


@dataclass(frozen=True)
class MeasuredGpu:
    """A GPU, as it was measured."""

    figures: GpuFigures
    rows: tuple[KernelRow, ...]
    comparison: Comparison | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "kernels": [asdict(row) for row in self.rows],
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
        }


def measure_gpu(
    figures: MachineFigures, benches: GpuBenches, real: RealSteps | None, folder: Path, until_s: float,
    tell: Callable[[str], None],
) -> MeasuredGpu:  # fmt: skip
    """A GPU, until `perf_counter` says `until_s`; `figures` are what its machine was found to be.

    real: networks whose steps are compared; they are moved to the GPU. folder: to try profiles in.
    """
    bench, steps, facts, kernels = benches.kernels, benches.steps, benches.facts, BestRows()
    calls = gpu_calls(bench, benches.timings, kernels) | layer_calls(steps, in_prompts=("plain",))
    calls |= real.calls(steps) if real is not None else {}
    best = best_of_rounds(calls, until_s, tell)
    gpu = fitted_gpu(facts, kernels.rows, 1 / best[BANDWIDTH], best[LAUNCH], folder)
    times = LayerTimes.of(best, figures.code.tokenize_s, figures.code.detokenize_s)

    def simulate(arch: Architecture, code: OwnCodeFigures) -> OneSequence:
        tried = replace(figures, gpu=replace(gpu, code=code))
        return OneSequence.of(figures.name, arch, written(tried, folder), on_gpu=True)

    gpu = replace(gpu, code=own_code(times, simulate))
    own = written(replace(figures, gpu=gpu), folder)
    comparison = None if real is None else real.compared(best, figures.name, own, on_gpu=True)
    return MeasuredGpu(gpu, kernels.rows, comparison)


def gpu_calls(
    bench: GpuBench, timings: Sequence[Timing[GpuBench]], kernels: BestRows
) -> dict[str, Callable[[], float]]:
    """What times kernels and copies, a large array, and launches."""
    timed = kernels.calls(timings, bench)
    return {BANDWIDTH: partial(bench.s_per_byte, bench.largest_bytes), LAUNCH: bench.launch_s, **timed}


def fitted_gpu(
    facts: GpuFacts, rows: Sequence[KernelRow], bytes_per_s: float, launch_s: float, folder: Path
) -> GpuFigures:
    """The figures that fit the rows of a table. folder: to write it to."""
    path = folder / "gpu-operators.csv"
    path.write_text(as_csv(rows), encoding="utf-8")
    columns = read_columns(path)
    bare = DeviceFigures(
        facts.name, facts.capacity_bytes, bytes_per_s, best_rates(rows), {}, facts.cache_bytes, facts.units
    )
    classes = fitted_classes(read_samples(columns, Catalogue()).samples, {"": _as_device(bare)})
    device = replace(bare, efficiency={_key(each): _as_numbers(each) for each in classes})
    return _with_link(device, columns, launch_s)


def _as_device(figures: DeviceFigures) -> Device:
    """What kernels are fitted to: its peaks, bandwidth, cache and multiprocessors."""
    unknown = {"idle": "unknown", "max": "unknown"}
    return Device.model_validate({
        "name": figures.name, "kind": "gpu", "units": figures.units,
        "memory": {
            "capacity": f"{figures.capacity_bytes} B", "bandwidth": f"{figures.bandwidth_bytes_per_s} B/s",
            **({"cache": f"{figures.cache_bytes} B"} if figures.cache_bytes else {}),
        },
        "compute": {name: f"{peak} FLOP/s" for name, peak in figures.peak_flops.items()},
        "power": unknown, "price": {"purchase": "unknown"},
    })  # fmt: skip


def _key(fitted: FittedClass) -> str:
    """Products are by format; what is found of other kernels in 16 bits is taken to hold in fp32 too."""
    return fitted.key if fitted.operator_class == "matmul" else fitted.operator_class


def _as_numbers(fitted: FittedClass) -> FittedEfficiency:
    four = fitted.efficiency
    written_as = yaml.safe_load(efficiency_line(four))
    more = {key: value for key, value in written_as.items() if key not in THE_FOUR}
    return FittedEfficiency(
        four.compute, four.memory, four.overhead_s, four.blend, fitted.samples, fitted.median_error,
        fitted.p90_error, more=more,
    )  # fmt: skip


def _with_link(device: DeviceFigures, columns: Columns, kernel_launch_s: float) -> GpuFigures:
    copies = read_copies(columns)
    pinned = copies.where(copies.is_pinned)
    nominal = float((pinned.nbytes / pinned.time_s).max())
    fit = fit_copies(copies, nominal, Transition(launch_s=0.0, synchronize_s=0.0))
    assert fit is not None, "there are enough copies"
    assert fit.synchronize_s is not None, "some go to the host"
    # Times show only the sum of launching a copy and of the link's latency.
    launch_s = min(fit.latency_s, TRANSITION_DEFAULTS["gpu"].launch_s)
    copy = Transition(launch_s=launch_s, synchronize_s=fit.synchronize_s)
    reached = nominal * fit.efficiency
    pageable = (fit.pageable_efficiency or fit.efficiency) / fit.efficiency
    link = LinkFigures(reached, fit.latency_s - launch_s, pageable)
    return GpuFigures(device, link, kernel_launch_s, copy)
