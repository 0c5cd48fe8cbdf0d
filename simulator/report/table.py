"""A study as text: the table of rows, the table of memories, notes, and what every column means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TextIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simulator.placement.memory import part_name
from simulator.report.steady import steady_notes
from simulator.report.wording import (
    COST,
    ENERGY,
    MS_PER_S,
    THROUGHPUT,
    axis_text,
    mostly,
    percent,
    reading,
    row_name,
    shown_axes,
    status,
    transitions_text,
)
from simulator.results.clocks import MEANINGS
from simulator.results.run_result import MemoryUse, RunResult, StudyResult
from simulator.specs.engine import MetricsClock
from simulator.units import GIB, format_number

_NEVER_CUT = 100_000
_LONGEST_LIST = 12
_MEMORY_FIGURES = ("GiB used", "full")
_SECONDS_FROM_S = 1.0
"""TTFT is shown in seconds where most rows reach this, else in milliseconds."""
_STYLES = {"meets": "green", "misses": "red", "saturated": "yellow", "does not fit": "red"}


@dataclass(frozen=True)
class _Column:
    """One column of the main table."""

    header: str
    cell: Callable[[RunResult], str]
    is_figure: bool = True


def console_for(stream: TextIO) -> Console:
    """A console that colours and wraps for a terminal, and neither cuts nor wraps for a file or a pipe.

    Where a terminal is too narrow for a table, `print_study` lists its rows one by one instead.
    """
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, width=_NEVER_CUT, no_color=True, highlight=False, force_terminal=False)


def print_study(study: StudyResult, console: Console) -> None:
    """Print everything of a study except the verdict."""
    console.print(Text(study.scenario, style="bold"))
    _print_table(console, results_table(study), "SLO")
    for line in notes(study):
        _print_line(console, line)
    memory = memory_table(study)
    if memory is not None:
        console.print()
        _print_table(console, memory, "fullest memory")
    console.print()
    for line in legend(study):
        _print_line(console, line, "dim")
    rests_on = assumed_line(study)
    if rests_on:
        console.print()
        _print_line(console, rests_on)


def results_table(study: StudyResult) -> Table:
    """One line a row of the study, with the field's metrics."""
    columns = list(_columns(study))
    table = _empty_table()
    for column in columns:
        _add_column(table, column.header, is_figure=column.is_figure)
    for run in study.runs:
        table.add_row(*(_cell(column.cell(run)) for column in columns))
    return table


def memory_table(study: StudyResult) -> Table | None:
    """The fullest memory of each row; None where no row says. Rows that differ only in what leaves
    memory alone are one line."""
    rows = [run for run in study.runs if run.memory]
    if not rows:
        return None
    cells = {(run.machine, run.placement): _memory_cells(run) for run in rows}
    axes = shown_axes(study)
    if all(cells[run.machine, run.placement] == _memory_cells(run) for run in rows):
        axes = {}
    lines = [(run.machine, run.placement, *_axis_cells(run, axes), *_memory_cells(run)) for run in rows]
    table = _empty_table()
    for header in ("machine", "placement", *axes.values(), "fullest memory", *_MEMORY_FIGURES, "with GiB"):
        _add_column(table, header, is_figure=header in _MEMORY_FIGURES)
    for line in dict.fromkeys(lines):
        table.add_row(*(Text(cell) for cell in line))
    return table


def notes(study: StudyResult) -> list[str]:
    """What the table has no room for: why a row does not fit, requests that got no answer, shared links."""
    axes = shown_axes(study)
    return [f"{row_name(run, axes)}: {note}" for run in study.runs for note in _notes_of(run)]


def _clocks(study: StudyResult) -> Iterator[str]:
    """What TTFT and TPOT are, by each clock that some row is read from."""
    read = dict.fromkeys(run.metrics_clock for run in study.runs if run.metrics is not None)
    clocks: list[MetricsClock] = list(read) or ["client"]
    for clock in clocks:
        start_to_end, where = MEANINGS[clock]
        rows = "" if len(clocks) == 1 else f" ({', '.join(_read_from(study, clock))})"
        yield f"TTFT{rows}: time to first token, {start_to_end}."
        tpot = f"TPOT{rows}: mean time per output token after the first, within each request, {where}."
        yield f"{tpot} p50 and p99 run over requests."


def _read_from(study: StudyResult, clock: MetricsClock) -> list[str]:
    axes = shown_axes(study)
    rows = [run for run in study.runs if run.metrics is not None and run.metrics_clock == clock]
    return [row_name(run, axes) for run in rows]


def legend(study: StudyResult) -> list[str]:
    """What the columns mean."""
    axes = shown_axes(study)
    limits = dict.fromkeys(f"{name} {limit:g} s" for run in study.runs for name, limit in run.slo.items())
    lines = [
        *_clocks(study),
        "SLO: whether every limit holds and every request finished"
        + (f" ({', '.join(limits)})." if limits else "; none is set."),
        "saturated: the queue still grew when arrivals ended; the percentiles are lower bounds.",
        "J/token, USD/M tokens: energy and cost per output token and per million of them, of the devices a"
        " placement holds and their share of the host.",
        "x (low..high): the figure when everything uncertain behind it is at its best and at its worst;"
        " narrower than 1 % is not shown.",
        "mostly: what the largest share of the requests' time went to (compute, memory, transfer, host,"
        " network, waiting).",
        "transitions: how often one output token's pass goes from one device to another.",
    ]
    return lines + [f"{short}: {name} of the scenario, in SI units." for name, short in axes.items()
                    if any(isinstance(run.axes.get(name), float) for run in study.runs)]  # fmt: skip


def assumed_line(study: StudyResult) -> str | None:
    """The assumed and vendor-claimed figures behind the rows, those of unknown costs first."""
    if not study.assumed:
        return None
    unknown = {name for run in study.runs if run.economics for name in run.economics.unknown}
    ordered = sorted(dict.fromkeys(study.assumed), key=lambda figure: not any(u in figure for u in unknown))
    shown, rest = ordered[:_LONGEST_LIST], len(ordered) - _LONGEST_LIST
    more = f"; and {rest} more" if rest > 0 else ""
    return f"rests on assumed or vendor-claimed figures: {'; '.join(shown)}{more}"


def _columns(study: StudyResult) -> Iterator[_Column]:
    yield _Column("machine", lambda run: run.machine, is_figure=False)
    yield _Column("placement", lambda run: run.placement, is_figure=False)
    for name, short in shown_axes(study).items():
        yield _Column(short, _axis_cell(name))
    yield _Column("SLO", status, is_figure=False)
    ttft_unit, ttft_scale = _ttft_unit(study)
    yield _Column(f"TTFT p50 {ttft_unit}", _figure("ttft_s.p50", ttft_scale))
    yield _Column(f"TTFT p99 {ttft_unit}", _figure("ttft_s.p99", ttft_scale))
    yield _Column("TPOT p50 ms", _figure("tpot_s.p50", MS_PER_S))
    yield _Column("TPOT p99 ms", _figure("tpot_s.p99", MS_PER_S))
    yield _Column("output tok/s", _figure(THROUGHPUT))
    yield _Column("J/token", _figure(ENERGY))
    yield _Column("USD/M tokens", _figure(COST))
    yield _Column("mostly", mostly, is_figure=False)
    yield _Column("transitions per token", _transitions, is_figure=False)


def _figure(name: str, scale: float = 1.0) -> Callable[[RunResult], str]:
    def cell(run: RunResult) -> str:
        found = reading(run, name)
        nothing_seen = found.value is None and name not in (COST, ENERGY)
        return "-" if run.metrics is None or nothing_seen else found.text(scale)

    return cell


def _axis_cell(name: str) -> Callable[[RunResult], str]:
    return lambda run: axis_text(run.axes[name]) if name in run.axes else "-"


def _axis_cells(run: RunResult, axes: dict[str, str]) -> list[str]:
    return [_axis_cell(name)(run) for name in axes]


def _transitions(run: RunResult) -> str:
    return transitions_text(run.transitions_per_token) if run.fits else "-"


def _ttft_unit(study: StudyResult) -> tuple[str, float]:
    found = [reading(run, "ttft_s.p99").value or 0.0 for run in study.runs if run.metrics is not None]
    return ("s", 1.0) if found and median(found) >= _SECONDS_FROM_S else ("ms", MS_PER_S)


def _memory_cells(run: RunResult) -> tuple[str, str, str, str]:
    fullest = max(run.memory, key=lambda use: use.used_bytes / use.capacity_bytes)
    alike = sum(_fill(use) == _fill(fullest) for use in run.memory) - 1
    parts = (f"{part_name(name)} {_gib(part)}" for name, part in fullest.parts.items() if part)
    return (
        fullest.memory + (f" and {alike} alike" if alike else ""),
        f"{_gib(fullest.used_bytes)} of {_gib(fullest.capacity_bytes)}",
        percent(fullest.used_bytes / fullest.capacity_bytes),
        ", ".join(parts),
    )


def _fill(use: MemoryUse) -> tuple[int, int]:
    return use.used_bytes, use.capacity_bytes


def _gib(size_bytes: float) -> str:
    return format_number(size_bytes / GIB)


def _notes_of(run: RunResult) -> Iterator[str]:
    if not run.fits:
        yield f"does not fit: {run.reason or 'no reason given'}"
    elif run.metrics is None:
        yield "no request finished"
    unanswered = {name: n for name, n in run.requests.items() if name != "finished" and n}
    if unanswered:
        counts = ", ".join(f"{n} {name}" for name, n in unanswered.items())
        yield f"of {sum(run.requests.values())} requests {counts}"
    if run.preemptions:
        yield f"{run.preemptions} preemptions for want of KV blocks"
    if run.speculation is not None and run.speculation.tokens_per_round is not None:
        accepted, drafting = run.speculation.accepted_share or 0.0, percent(run.draft_share)
        tokens = f"{run.speculation.tokens_per_round:.2f} tokens a round"
        yield (f"{tokens}, {percent(accepted)} of those proposed accepted; "
               f"{drafting} of the requests' time on the small model's passes")  # fmt: skip
    if run.reused_tokens:
        share = run.reused_tokens / run.prefilled_tokens
        yield f"{100 * share:.0f} % of the tokens to prefill were in the cache"
    yield from steady_notes(run)
    if run.crowded:
        steps, links = f"{run.event_steps} of {run.steps} steps", ", ".join(run.crowded)
        yield f"{steps} simulated task by task, because transfers share {links}"


def _empty_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def _add_column(table: Table, header: str, *, is_figure: bool) -> None:
    table.add_column(Text(header), justify="right" if is_figure else "left", overflow="fold")


def _cell(text: str) -> Text:
    return Text(text, style=_STYLES.get(text, ""))


def _print_table(console: Console, table: Table, first: str) -> None:
    """As a table where its lines fit, else each row as a paragraph headed by what comes before `first`."""
    natural = console.measure(table, options=console.options.update(width=_NEVER_CUT))
    if natural.maximum > console.width:
        for name, figures in _paragraphs(table, first):
            _print_line(console, name)
            console.print(Padding(Text(figures), (0, 0, 0, 2)))
        return
    with console.capture() as capture:
        console.print(table)
    lines = (line.rstrip() for line in capture.get().splitlines())
    console.file.write("".join(f"{line}\n" for line in lines if line))


def _paragraphs(table: Table, first: str) -> Iterator[tuple[str, str]]:
    headers = [str(column.header) for column in table.columns]
    split = headers.index(first)
    for row in zip(*(column.cells for column in table.columns), strict=True):
        told = [f"{header} {cell}" for header, cell in zip(headers, row, strict=True)]
        name = ", ".join([str(row[0]), str(row[1]), *told[2:split]])
        yield name, "; ".join(each for each in told[split:] if not each.endswith(" -"))


def _print_line(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style=style))
