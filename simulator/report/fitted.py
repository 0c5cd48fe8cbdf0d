"""What `calibrate fit` found, as a table."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from simulator.report.listing import print_table
from simulator.study.calibration.calibrate import FittedDevice
from simulator.study.calibration.profile_text import efficiency_line

FAR_OFF = 0.15
"""A median error above which a class is said to follow the formula badly."""


def print_fitted(fitted: FittedDevice, console: Console) -> None:
    """The numbers of each class with their errors, and which rows were of no use."""
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
