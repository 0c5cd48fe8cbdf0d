"""A table of measured operators, CSV or Parquet, as arrays: such tables have tens of thousands of rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute as compute  # type: ignore[import-untyped]
import pyarrow.csv as csv  # type: ignore[import-untyped]
import pyarrow.parquet as parquet  # type: ignore[import-untyped]
from numpy.typing import NDArray

from simulator.errors import InputError, Problem

Floats = NDArray[np.float64]
Texts = NDArray[np.str_]

SUFFIXES = (".csv", ".parquet")


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

    def numbers(self, name: str, default: float | None = None) -> Floats:
        """A column as floats; blank cells, and a missing column, are `default`. Raises InputError with the
        first cell that is no number, or that is blank where there is no default."""
        if name not in self.names and default is not None:
            return np.full(len(self), default)
        column = self._column(name)
        try:
            column = compute.cast(column, pyarrow.float64())
        except pyarrow.ArrowInvalid:
            self._refuse_text(name, column)
        values = np.array(column.to_numpy(), dtype=np.float64)
        blank = np.isnan(values)
        if default is not None:
            values[blank] = default
        elif blank.any():
            self._refuse(name, int(np.flatnonzero(blank)[0]), "", "write a number")
        return values

    def positive(self, name: str) -> Floats:
        """As `numbers`, each above 0."""
        values = self.numbers(name)
        wrong = np.flatnonzero(~((values > 0) & np.isfinite(values)))
        if len(wrong):
            first = int(wrong[0])
            self._refuse(name, first, f"{values[first]:g}", "write a number above 0")
        return values

    def texts(self, name: str, default: str | None = None) -> Texts:
        """A column as text without blanks around it; a missing column is `default`."""
        if name not in self.names and default is not None:
            return np.full(len(self), default)
        column = compute.fill_null(compute.cast(self._column(name), pyarrow.string()), default or "")
        return np.array([text.strip() for text in column.to_pylist()], dtype=np.str_)

    def _column(self, name: str) -> Any:
        if name not in self.names:
            advice = "no such column in the header, and this table needs it"
            raise InputError([Problem(self.path, 1, None, name, None, advice)])
        return self.table.column(name)

    def _refuse_text(self, name: str, column: Any) -> None:
        for number, cell in enumerate(column.to_pylist()):
            try:
                float(cell)
            except (TypeError, ValueError):
                self._refuse(name, number, str(cell), "write a number")

    def _refuse(self, name: str, number: int, value: str, advice: str) -> None:
        raise InputError([Problem(self.path, self.line(number), None, name, value, advice)])

    def line(self, number: int) -> int:
        """Where row `number`, from 0, stands: the line of a CSV file, the number from 1 of a Parquet row."""
        return number + (2 if self.path.suffix == ".csv" else 1)


def read_columns(path: Path) -> Columns:
    """The table in a file; raises InputError where it cannot be read as one."""
    try:
        table = parquet.read_table(path) if path.suffix == ".parquet" else _read_csv(path)
    except (pyarrow.ArrowException, OSError) as error:
        kind = "a Parquet file" if path.suffix == ".parquet" else "a CSV table"
        raise InputError([Problem(path, advice=f"cannot be read as {kind}: {error}")]) from None
    return Columns(path, table.rename_columns([name.strip() for name in table.column_names]))


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
            return tuple(name.strip() for name in file.readline().rstrip("\r\n").split(","))
    except (pyarrow.ArrowException, OSError):
        return ()
