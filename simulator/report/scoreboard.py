"""The errors of predictions against published measurements, as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.results.accuracy import Accuracy
from simulator.study.calibration.judge import WAYS
from simulator.study.validate import Scoreboard

HEADERS = ("table", "rows", "predicted", "metric", "median error", "p90", "bias", "rank corr.",
           "pairs in order")  # fmt: skip


def print_scoreboard(board: Scoreboard, console: Console) -> None:
    """A row for each metric of each table, then the rows that were not predicted and why."""
    table = Table(box=None, pad_edge=False)
    for header in HEADERS:
        is_text = header in ("table", "metric")
        table.add_column(Text(header), no_wrap=True, justify="left" if is_text else "right")
    for score in board.tables:
        first = (score.table, f"{score.rows:,}", f"{score.predicted:,}")
        metrics = list(score.metrics.items())
        for number, (name, errors) in enumerate(metrics):
            head = first if number == 0 else ("", "", "")
            table.add_row(*(Text(cell) for cell in (*head, name, *_cells(errors))))
        if not metrics:
            table.add_row(*(Text(cell) for cell in first))
    console.print(table)
    console.print(Text(
        "An error is predicted / measured - 1; median and p90 are of its absolute value, bias is its median."
    ))  # fmt: skip
    print_operators(board, console)
    for score in board.tables:
        for reason, count in score.unsupported.items():
            console.print(Text(f"{score.table}: {count:,} of {score.rows:,} rows not predicted: {reason}"))


def print_operators(board: Scoreboard, console: Console) -> None:
    """A row for each device and kind of operator, a column for each way of getting its numbers."""
    if not board.operators:
        return
    table = Table(box=None, pad_edge=False)
    for number, header in enumerate(("device", "operators", "rows", *WAYS)):
        table.add_column(Text(header), no_wrap=number < 3, justify="left" if number < 2 else "right")
    for device, what in dict.fromkeys((score.device, score.what) for score in board.operators):
        mine = {s.way: s for s in board.operators if (s.device, s.what) == (device, what)}
        rows = max(score.rows for score in mine.values())
        errors = [_median_and_p90(mine[way].errors) if way in mine else "-" for way in WAYS]
        table.add_row(*(Text(cell) for cell in (device, what, f"{rows:,}", *errors)))
    console.print(Text("\nKernels: median error, p90, by where their numbers come from"))
    console.print(table)


def _median_and_p90(errors: Accuracy) -> str:
    return f"{errors.median_ape:.1%}  {errors.p90_ape:.0%}"


def _cells(errors: Accuracy) -> tuple[str, ...]:
    return (
        f"{errors.median_ape:.1%}",
        f"{errors.p90_ape:.1%}",
        f"{errors.bias:+.1%}",
        "-" if errors.rank_correlation is None else f"{errors.rank_correlation:.2f}",
        "-" if errors.pairs_in_order is None else f"{errors.pairs_in_order:.0%}",
    )
