"""What `calibrate measure` found, as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from simulator.report.listing import print_table
from simulator.study.calibration.compare_steps import Comparison
from simulator.study.calibration.measure import Measured
from simulator.study.calibration.measured_profile import DeviceFigures, GpuFigures
from simulator.units import format_rate, format_seconds

MUCH = 0.2
"""Share of a processor that other programs may use before it is said that they spoil the result."""


def print_measured(measured: Measured, console: Console) -> None:
    """Each device with its fits, real steps beside simulated ones, and what to make of them."""
    _print_device(measured.figures.cpu, console)
    _print_comparison(measured.comparison, console)
    if measured.gpu is not None:
        _print_device(measured.gpu.figures.device, console)
        console.print(Text(_of_link(measured.gpu.figures)))
        _print_comparison(measured.gpu.comparison, console)
    for sentence in _sentences(measured):
        console.print(Text(sentence))


def _print_device(device: DeviceFigures, console: Console) -> None:
    peaks = ", ".join(f"{name} {peak / 1e9:.3g} GFLOP/s" for name, peak in device.peak_flops.items())
    console.print(Text(f"{device.name}: {peaks}, memory {format_rate(device.bandwidth_bytes_per_s)}"))
    console.print()
    rows = [
        (key, f"{fit.compute:.3f}", f"{fit.memory:.3f}", format_seconds(fit.overhead_s), f"{fit.blend:.2f}",
         str(fit.samples), f"{fit.median_error:.1%}", f"{fit.p90_error:.1%}")
        for key, fit in device.efficiency.items()
    ]  # fmt: skip
    headers = ("class", "compute", "memory", "overhead", "blend", "kernels", "median error", "9 of 10 within")
    print_table(headers, rows, console)


def _of_link(gpu: GpuFigures) -> str:
    rate, latency, launch = (
        format_rate(gpu.link.bandwidth_bytes_per_s), format_seconds(gpu.link.latency_s),
        format_seconds(gpu.launch_s),
    )  # fmt: skip
    return (
        f"Copies: {rate}, {gpu.link.pageable_efficiency:.0%} of it from memory that is not page-locked, "
        f"{latency} until the first byte; a kernel launched by itself: {launch}."
    )


def _print_comparison(comparison: Comparison | None, console: Console) -> None:
    console.print()
    if comparison is None:
        return
    rows = [
        (step.model, f"{step.phase} of {step.new} after {step.context}", format_seconds(step.measured_s),
         format_seconds(step.simulated_s), f"{step.error:+.1%}")
        for step in comparison.steps
    ]  # fmt: skip
    print_table(("model", "step", "measured", "simulated", "error"), rows, console)
    console.print()
    console.print(Text(f"Median error of all steps: {comparison.median_error:.1%}."))
    for group, error in comparison.groups.items():
        console.print(Text(f"{group}: {error:.1%}."))
    console.print()


def _sentences(measured: Measured) -> Iterator[str]:
    comparison = measured.comparison
    if comparison is not None and comparison.note is not None:
        yield f"{comparison.note[0].upper()}{comparison.note[1:]}."
    if measured.gpu_fault is not None:
        yield f"The GPU could not be measured, so that no file is of it: {measured.gpu_fault}"
    if measured.others > MUCH:
        yield (
            f"Other programs used {measured.others:.0%} of a processor meanwhile: times may be too long, "
            "and fits too loose; better measure again when the machine is quiet."
        )
    yield f"It took {format_seconds(measured.took_s)}."
