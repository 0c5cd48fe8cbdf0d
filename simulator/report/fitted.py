"""What `calibrate fit` found, as a table."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from simulator.report.listing import print_table
from simulator.study.calibration.calibrate import FittedDevice
from simulator.study.calibration.calibrate_link import FittedLink, copy_figures, way_line
from simulator.study.calibration.profile_text import efficiency_line, short

FAR_OFF = 0.15
"""A median error above which a class is said to follow the formula badly."""


def print_fitted(fitted: FittedDevice | FittedLink, console: Console) -> None:
    """The numbers with their errors, and which rows were of no use."""
    if isinstance(fitted, FittedLink):
        _print_link(fitted, console)
    else:
        _print_device(fitted, console)


def _print_device(fitted: FittedDevice, console: Console) -> None:
    rows = [
        (each.key, f"{each.samples:,}", f"{each.median_error:.1%}", f"{each.p90_error:.1%}",
         efficiency_line(each.efficiency).strip("{}"))
        for each in fitted.classes
    ]  # fmt: skip
    print_table(("class", "rows", "median error", "p90", fitted.device), rows, console)
    for each in fitted.classes:
        if each.median_error > FAR_OFF:
            console.print(Text(
                f"{each.key}: half of its rows are more than {each.median_error:.0%} off; look for rows of "
                "another kernel, or times that hold more than the kernel"
            ))  # fmt: skip
    for reason, count in fitted.unused.items():
        console.print(Text(f"{count:,} rows not used: {reason}"))


def _print_link(fitted: FittedLink, console: Console) -> None:
    rows = []
    if fitted.collectives is not None:
        found = fitted.collectives
        score = (f"{found.samples:,}", f"{found.median_error:.1%}", f"{found.p90_error:.1%}")
        for by, ways in (("engine", found.collectives.engine), ("library", found.collectives.library)):
            rows += [(f"collective.{by}", *score, way_line(way).strip("{}")) for way in ways]
    if fitted.copies is not None:
        copies = fitted.copies
        text = ", ".join(f"{name}: {value}" for name, value in copy_figures(copies).items())
        score = (f"{copies.samples:,}", f"{copies.median_error:.1%}", f"{copies.p90_error:.1%}")
        rows.append(("copies", *score, text))
    print_table(("figures", "rows", "median error", "p90", fitted.link), rows, console)
    if fitted.copies is not None and fitted.copies.synchronize_s is not None:
        wait = f"{short(fitted.copies.synchronize_s * 1e6)} us"
        console.print(Text(f"A copy to the host ends {wait} later: the device's `transition.synchronize`."))
    for reason, count in fitted.unused.items():
        console.print(Text(f"{count:,} rows not used: {reason}"))
