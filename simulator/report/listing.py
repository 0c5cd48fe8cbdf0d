"""Plain tables of text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Columns of text under their headers; a terminal wraps the last one."""
    table = Table(box=None, pad_edge=False)
    for number, header in enumerate(headers, start=1):
        table.add_column(Text(header), no_wrap=number < len(headers), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
