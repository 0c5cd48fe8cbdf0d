"""The errors of predictions against published measurements, as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.results.accuracy import Accuracy
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
    for score in board.tables:
        for reason, count in score.unsupported.items():
            console.print(Text(f"{score.table}: {count:,} of {score.rows:,} rows not predicted: {reason}"))


def _cells(errors: Accuracy) -> tuple[str, ...]:
    return (
        f"{errors.median_ape:.1%}",
        f"{errors.p90_ape:.1%}",
        f"{errors.bias:+.1%}",
        "-" if errors.rank_correlation is None else f"{errors.rank_correlation:.2f}",
        "-" if errors.pairs_in_order is None else f"{errors.pairs_in_order:.0%}",
    )
