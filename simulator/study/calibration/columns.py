"""A table of measured operators, CSV or Parquet, as arrays: such tables have tens of thousands of rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from csv import Error as BadCsv
from csv import reader as csv_rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute as compute  # type: ignore[import-untyped]
import pyarrow.csv as csv  # type: ignore[import-untyped]
import pyarrow.parquet as parquet  # type: ignore[import-untyped]
from numpy.typing import NDArray

from simulator.errors import InputError, Problem

Floats = NDArray[np.float64]
Texts = NDArray[np.str_]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp] | Flags

SUFFIXES = (".csv", ".parquet")

MOST = 1e12
"""No cell is beyond this either side of 0: in whatever unit, nothing measured is."""

SMALLEST = 1e-12
"""No cell but 0 is nearer to 0 than this."""

MOST_COUNTED = 1e9
"""Of tokens, heads, ranks and sides of products: 16 times two of them multiplied still fits 64 bits."""


@dataclass(frozen=True)
class Columns:
    """A table by columns, all of the same length."""

    path: Path
    table: Any
    """The pyarrow.Table."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.table.column_names)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def has(self, *names: str) -> bool:
        return set(names) <= set(self.names)

    def numbers(
        self, name: str, default: float | None = None, *, least: float = -MOST, most: float = MOST,
        rows: Rows | None = None,
    ) -> Floats:  # fmt: skip
        """A column as floats from `least` to `most`, of all rows or of some; blank cells, and a missing
        column, are `default`. Raises InputError with the first cell that is something else, or that is blank
        where there is no default."""
        what = f"a number from {least:g} to {most:g}"
        return self._checked(name, default, rows, lambda values: (values >= least) & (values <= most), what)

    def positive(self, name: str, rows: Rows | None = None) -> Floats:
        """As `numbers`, each above 0: times, rates, bytes."""
        what = f"a number above 0, up to {MOST:g}"
        return self._checked(name, None, rows, lambda values: (values > 0) & (values <= MOST), what)

    def counts(
        self, name: str, default: float | None = None, *, least: float = 1.0, rows: Rows | None = None
    ) -> Floats:
        """As `numbers`, each from `least` to `MOST_COUNTED`: sides of products, tokens, heads."""
        return self.numbers(name, default, least=least, most=MOST_COUNTED, rows=rows)

    def whole(self, name: str, *, least: int = 1, rows: Rows | None = None) -> NDArray[np.int64]:
        """As `counts`, each a whole number: ranks."""

        def is_fine(values: Floats) -> Flags:
            fine: Flags = (values >= least) & (values <= MOST_COUNTED) & (values == np.floor(values))
            return fine

        return self._checked(name, None, rows, is_fine, f"a whole number from {least}").astype(np.int64)

    def _checked(
        self, name: str, default: float | None, rows: Rows | None, is_fine: Callable[[Floats], Flags],
        what: str,
    ) -> Floats:  # fmt: skip
        """As `numbers`; what: what to write instead of a cell that is not fine."""
        numbers = np.arange(len(self)) if rows is None else np.arange(len(self))[rows]
        if name not in self.names and default is not None:
            return np.full(len(numbers), default)
        values = self._floats(name)[numbers]
        blank = np.isnan(values)
        if default is None and blank.any():
            self.refuse(name, int(numbers[blank][0]), None, f"is blank; write {what}")
        is_tiny = (values != 0) & (np.abs(values) < SMALLEST)
        wrong = np.flatnonzero(~blank & (is_tiny | ~is_fine(values)))
        if len(wrong):
            first = int(wrong[0])
            self.refuse(name, int(numbers[first]), f"{values[first]:g}", f"write {what}")
        return np.where(blank, default or 0.0, values)

    def texts(self, name: str, default: str | None = None) -> Texts:
        """A column as text without blanks around it; a missing column is `default`."""
        if name not in self.names and default is not None:
            return np.full(len(self), default)
        column = self._column(name)
        try:
            filled = compute.fill_null(compute.cast(column, pyarrow.string()), default or "")
        except pyarrow.ArrowException:
            raise InputError([Problem(self.path, 1, None, name, None, _NO_TEXT)]) from None
        return np.array([text.strip() for text in filled.to_pylist()], dtype=np.str_)

    def refuse(self, name: str, number: int, value: str | None, advice: str) -> NoReturn:
        """Raise InputError for the cell of a row, counted from 0."""
        raise InputError([Problem(self.path, self.line(number), None, name, value, advice)])

    def _column(self, name: str) -> Any:
        if name not in self.names:
            advice = "no such column in the header, and this table needs it"
            raise InputError([Problem(self.path, 1, None, name, None, advice)])
        return self.table.column(name)

    def _floats(self, name: str) -> Floats:
        """A column as floats, a blank cell not a number."""
        try:
            column = compute.cast(self._column(name), pyarrow.float64())
            return np.array(column.to_numpy(), dtype=np.float64)
        except pyarrow.ArrowException:
            texts = self.texts(name).tolist()
            return np.array([self._float(name, *each) for each in enumerate(texts)], dtype=np.float64)

    def _float(self, name: str, number: int, text: str) -> float:
        try:
            return float(text) if text else math.nan
        except ValueError:
            self.refuse(name, number, text, "write a number")

    def line(self, number: int) -> int:
        """Where row `number`, from 0, stands: the line of a CSV file, the number from 1 of a Parquet row."""
        return number + (2 if self.path.suffix == ".csv" else 1)


def read_columns(path: Path) -> Columns:
    """The table in a file; raises InputError where it cannot be read as one."""
    try:
        table = parquet.read_table(path) if path.suffix == ".parquet" else _read_csv(path)
        names = [name.strip() for name in table.column_names]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "a Parquet file" if path.suffix == ".parquet" else "a CSV table"
        raise InputError([Problem(path, advice=f"cannot be read as {kind}: {error}")]) from None
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise InputError([Problem(path, 1, None, name, None, _REPEATED) for name in repeated])
    return Columns(path, table.rename_columns(names))


_REPEATED = "the header has this column more than once; keep one"

_NO_TEXT = "cells of this column are neither numbers nor text in UTF-8; write them as such"


def _read_csv(path: Path) -> Any:
    """A column is numbers where all of its cells are; blank cells and nan are no value."""
    return csv.read_csv(
        path, convert_options=csv.ConvertOptions(strings_can_be_null=True, null_values=["", "nan", "NaN"])
    )


def names_of(path: Path) -> tuple[str, ...]:
    """Names of a table's columns, read alone; none where there is no table."""
    try:
        if path.suffix == ".parquet":
            return tuple(str(name).strip() for name in parquet.read_schema(path).names)
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return tuple(name.strip() for name in next(csv_rows(file), []))
    except (BadCsv, pyarrow.ArrowException, OSError, UnicodeDecodeError):
        return ()
