"""Plain tables of text, and the catalogue as such tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.study.init import Draft
from simulator.study.show import Entry
from simulator.study.sources import SourcedFigure

NOTHING = "-"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Columns of text under their headers; a terminal wraps the last one."""
    table = Table(box=None, pad_edge=False)
    for number, header in enumerate(headers, start=1):
        table.add_column(Text(header), no_wrap=number < len(headers), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def print_catalogue(entries: Sequence[Entry], console: Console) -> None:
    """A line for each file; where its figures have sources, how many are of which kind."""
    rows = [(each.id, each.name, each.summary, _counted(each.figures)) for each in entries]
    if any(entry.figures for entry in entries):
        print_table(("id", "name", "summary", "figures"), rows, console)
    else:
        print_table(("id", "name", "summary"), [row[:3] for row in rows], console)


def _counted(figures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in figures.items())


def print_sources(figures: Sequence[SourcedFigure], console: Console) -> None:
    """A line for each figure: its value, how far to trust it, who says so and when."""
    rows = [_sourced(each) for each in figures]
    print_table(("id", "figure", "value", "kind", "date", "source"), rows, console)


def _sourced(figure: SourcedFigure) -> tuple[str, ...]:
    source = figure.source
    date, ref = (source.date or NOTHING, source.ref) if source else (NOTHING, NOTHING)
    return figure.id, figure.key, figure.value, figure.kind or NOTHING, date, ref


def print_draft(draft: Draft, console: Console) -> None:
    """What was written, what is left to fill in, and the command that comes next."""

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    for path, _ in draft.files:
        say(f"wrote {path}")
    if draft.missing:
        say(f"fill in {', '.join(draft.missing)}, between < and >")
    say(f"then:  {draft.command}" if draft.missing else f"next:  {draft.command}")
