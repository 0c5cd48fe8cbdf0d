"""A published table, CSV or Parquet, as rows of text that know their place in the file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pyarrow.parquet as parquet  # type: ignore[import-untyped]
from pyarrow import ArrowException

from simulator.errors import InputError, Problem
from simulator.specs.yaml_file import read_text

T = TypeVar("T")

SUFFIXES = (".csv", ".parquet")

MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Row:
    """One row; a column the table lacks reads as blank."""

    path: Path
    line: int
    """In a CSV file; in a Parquet file the number of the row, from 1."""
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """What a cell says, blanks around it removed."""
        return self.cells.get(column, "").strip()

    def number(self, column: str) -> float:
        """A positive number; raises InputError."""
        try:
            value = float(self.text(column))
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            self._refuse(column, "write a number above 0")
        return value

    def number_or_zero(self, column: str) -> float:
        """A number from 0; raises InputError."""
        return 0.0 if self.text(column) in ("0", "0.0") else self.number(column)

    def count(self, column: str) -> int:
        """A whole number from 1, which may be written 8.0; raises InputError."""
        value = self.number(column)
        if not value.is_integer():
            self._refuse(column, "write a whole number from 1")
        return int(value)

    def _refuse(self, column: str, advice: str) -> NoReturn:
        raise InputError([Problem(self.path, self.line, None, column, self.text(column), advice)])


@dataclass(frozen=True)
class Table:
    """A file with a header."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def need(self, *columns: str) -> None:
        """Raises InputError naming every column that is not there."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            advice = "no such column in the header, and this table needs it"
            raise InputError([Problem(self.path, 1, None, column, None, advice) for column in missing])

    def parsed(self, parse: Callable[[Row], T]) -> Iterator[T]:
        """Every row through `parse`; raises InputError with the problems of all of them."""
        problems: list[Problem] = []
        results: list[T] = []
        for row in self.rows:
            try:
                results.append(parse(row))
            except InputError as error:
                problems += error.problems
            if len(problems) >= MOST_PROBLEMS:
                break
        if problems:
            raise InputError(problems)
        return iter(results)


def milliseconds(value: float) -> float:
    """Milliseconds as seconds."""
    return value / 1000


def read_table(path: Path) -> Table:
    """The table in a file; raises InputError where it cannot be read as one."""
    return _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)


def _read_csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(read_text(path)))
    try:
        header = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise InputError([Problem(path, reader.line_num, advice=f"not valid CSV: {error}")]) from None
    if not any(header):
        raise InputError([Problem(path, 1, advice="empty; a table begins with the names of its columns")])
    _check_lengths(path, header, lines)
    rows = (Row(path, line, dict(zip(header, cells, strict=True))) for line, cells in lines)
    return Table(path, tuple(header), tuple(rows))


def _check_lengths(path: Path, header: Sequence[str], lines: Sequence[tuple[int, list[str]]]) -> None:
    problems = [
        Problem(path, line, advice=f"{len(cells)} cells under {len(header)} columns")
        for line, cells in lines
        if len(cells) != len(header)
    ]
    if problems:
        raise InputError(problems[:MOST_PROBLEMS])


def _read_parquet(path: Path) -> Table:
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise InputError([Problem(path, advice=f"not a Parquet file: {error}")]) from None
    rows = tuple(
        Row(path, number, {str(name): _as_text(value) for name, value in cells.items()})
        for number, cells in enumerate(table.to_pylist(), start=1)
    )
    return Table(path, tuple(str(name) for name in table.column_names), rows)


def _as_text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def count_rows(path: Path) -> int:
    """How many rows a table has that nobody reads; 0 for what is no table at all."""
    try:
        if path.suffix == ".parquet":
            return int(parquet.read_metadata(path).num_rows)
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return max(0, sum(1 for cells in csv.reader(file) if cells) - 1)
    except (ArrowException, OSError, csv.Error):
        return 0
