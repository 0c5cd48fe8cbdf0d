"""Recorded requests: a CSV file with a header, one request a row, in order of arrival.

Columns, by any of the names that published traces use; others are ignored:

    arrival   arrival_s | timestamp_ms | TIMESTAMP (a date and time; counted from the first)
    prompt    prompt_tokens | input_length | ContextTokens
    output    output_tokens | output_length | GeneratedTokens
"""

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.errors import InputError, Problem
from simulator.specs.quantities import MOST_TOKENS
from simulator.specs.yaml_file import read_text

if TYPE_CHECKING:
    from _csv import Reader

_MOST_PROBLEMS = 20

MOST_SECONDS = 100 * 86400.0
"""Latest arrival: the simulated clock counts 64-bit picoseconds, which end after 106 days."""


@dataclass(frozen=True)
class Trace:
    """Recorded requests, in order of arrival."""

    arrival_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.arrival_s)


def _time(text: str, most: float) -> float:
    if re.search("[^0-9.eE+ -]", text):
        raise ValueError  # float() takes underscores and the digits of every script
    value = float(text)
    if not 0 <= value <= most:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    return _time(text, MOST_SECONDS)


def _milliseconds(text: str) -> float:
    return _time(text, MOST_SECONDS * 1000) / 1000


def _moment(text: str) -> float:
    moment = datetime.fromisoformat(text.strip())
    return (moment - datetime(2000, 1, 1, tzinfo=moment.tzinfo)).total_seconds()


def _tokens(text: str) -> int:
    digits = text.strip()
    value = int(digits) if re.fullmatch("[0-9]{1,18}", digits) else 0
    if not 1 <= value <= MOST_TOKENS:
        raise ValueError
    return value


_ARRIVALS: Mapping[str, Callable[[str], float]] = {
    "arrival_s": _seconds,
    "timestamp_ms": _milliseconds,
    "TIMESTAMP": _moment,
}
_PROMPTS: Mapping[str, Callable[[str], float]] = dict.fromkeys(
    ("prompt_tokens", "input_length", "ContextTokens"), _tokens
)
_OUTPUTS: Mapping[str, Callable[[str], float]] = dict.fromkeys(
    ("output_tokens", "output_length", "GeneratedTokens"), _tokens
)


def load_trace(path: str | Path, requests: int | None = None) -> Trace:
    """The first `requests` of a trace, or all; raises InputError with the problems of its rows."""
    reader = csv.reader(io.StringIO(read_text(path)))
    try:
        return _read(reader, path, requests)
    except csv.Error as error:
        raise InputError([Problem(path, reader.line_num, advice=f"not valid CSV: {error}")]) from None


def _read(reader: "Reader", path: str | Path, requests: int | None) -> Trace:
    columns = _columns(next(reader, []), path)
    rows: list[tuple[float, float, float]] = []
    problems: list[Problem] = []
    for cells in reader:
        if not cells:
            continue
        if len(rows) == requests or len(problems) >= _MOST_PROBLEMS:
            break
        row, found = _row(cells, columns, path, reader.line_num)
        if rows and not found and row[0] < rows[-1][0]:
            found = [Problem(path, reader.line_num, advice="arrives before the row above; sort by arrival")]
        if rows and not found and row[0] - rows[0][0] > MOST_SECONDS:
            found = [Problem(path, reader.line_num, advice="arrives more than 100 days after the first row")]
        problems += found
        rows.append(row)
    if not rows:
        problems = [Problem(path, 1, advice="holds no request")]
    if requests is not None and len(rows) < requests and not problems:
        problems = [Problem(path, advice=f"holds {len(rows)} requests, {requests} are asked for")]
    if problems:
        raise InputError(problems)
    start_s = rows[0][0] if columns[0].name == "TIMESTAMP" else 0.0
    return Trace(
        tuple(row[0] - start_s for row in rows),
        tuple(int(row[1]) for row in rows),
        tuple(int(row[2]) for row in rows),
    )


@dataclass(frozen=True)
class _Column:
    index: int
    name: str
    read: Callable[[str], float]
    wanted: str


def _columns(header: list[str], path: str | Path) -> tuple[_Column, _Column, _Column]:
    """Where arrival, prompt and output stand; raises InputError naming what is missing."""
    names = [name.strip() for name in header]
    problems: list[Problem] = []

    def find(known: Mapping[str, Callable[[str], float]], wanted: str) -> _Column:
        for name, read in known.items():
            if name in names:
                return _Column(names.index(name), name, read, wanted)
        problems.append(Problem(path, 1, advice=f"no column of {wanted}s; name one of: {', '.join(known)}"))
        return _Column(0, "", _seconds, wanted)

    columns = find(_ARRIVALS, "arrival"), find(_PROMPTS, "prompt length"), find(_OUTPUTS, "output length")
    if problems:
        raise InputError(problems)
    return columns


_WANTED = {
    "arrival": "write a time that is not negative and at most 100 days",
    "prompt length": f"write a whole number from 1 to {MOST_TOKENS:,}",
    "output length": f"write a whole number from 1 to {MOST_TOKENS:,}",
}


def _row(
    cells: list[str], columns: tuple[_Column, _Column, _Column], path: str | Path, line: int
) -> tuple[tuple[float, float, float], list[Problem]]:
    values = [0.0, 0.0, 0.0]
    problems = []
    for position, column in enumerate(columns):
        cell = cells[column.index] if column.index < len(cells) else ""
        try:
            values[position] = column.read(cell)
        except (ValueError, OverflowError, TypeError):
            problems.append(Problem(path, line, key=column.name, value=cell, advice=_WANTED[column.wanted]))
    return (values[0], values[1], values[2]), problems
