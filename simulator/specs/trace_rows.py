"""Rows of a file of records as text, one after another: of CSV with a header, or of JSON objects."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem
from simulator.specs.yaml_file import open_text

Row = tuple[int, list[str]]
"""The line it ends in, and its cells."""


def rows_of(path: str | Path) -> Iterator[Row]:
    """The header and then the rows that are not empty; raises InputError where there is no such text."""
    is_json = Path(path).suffix in (".jsonl", ".ndjson")
    with open_text(path) as lines:
        yield from _of_objects(lines, path) if is_json else _of_csv(lines, path)


def _of_csv(lines: Iterator[str], path: str | Path) -> Iterator[Row]:
    reader = csv.reader(lines)
    try:
        yield 1, [name.strip() for name in next(reader, [])]
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise InputError([Problem(path, reader.line_num, advice=f"not valid CSV: {error}")]) from None


def _of_objects(lines: Iterator[str], path: str | Path) -> Iterator[Row]:
    """The keys of the first object are the header; what others lack is empty."""
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _object(line, path, number)
        if not names:
            names = list(record)
            yield number, names
        yield number, [_text(record.get(name)) for name in names]
    if not names:
        yield 1, []


def _object(line: str, path: str | Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError([Problem(path, number, advice=f"not valid JSON: {error}")]) from None
    if not isinstance(record, dict):
        raise InputError([Problem(path, number, advice='write an object a line, as {"arrival_s": 0, ...}')])
    return record


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
