"""Recorded requests in order of arrival: a CSV file with a header, or JSONL, an object a line.

Columns or keys, by any of the names that published traces use; others are ignored:

    arrival    arrival_s | timestamp_ms | timestamp (in ms too) | TIMESTAMP (date and time, from the first on)
    prompt     prompt_tokens | input_length | ContextTokens
    output     output_tokens | output_length | GeneratedTokens
    priority   priority (may be absent)
    prefix     hash_ids (may be absent): ids of the prompt's blocks of tokens, one after another

`hash_ids` are those of the Mooncake traces (Qin et al. 2024, arXiv:2407.00079): the same id says that a block
of 512 tokens and all before it are the same. In CSV they are separated by spaces.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError, Problem
from simulator.specs.quantities import MOST_PRIORITY, MOST_TOKENS
from simulator.specs.trace_rows import Row, rows_of

_MOST_PROBLEMS = 20

MOST_SECONDS = 100 * 86400.0
"""Latest arrival: the simulated clock counts 64-bit picoseconds, which end after 106 days."""

MOST_ID = 2**62

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prefixes(Sequence[tuple[int, ...]]):
    """What prompts begin with: for each an id for every block of tokens; the same id says that this block and
    all before it are the same."""

    ids: Ints
    starts: Ints
    """Where the ids of each prompt begin."""
    ends: Ints
    block_tokens: int

    @classmethod
    def one_each(cls, ids: Ints, block_tokens: int) -> "Prefixes":
        """Prompts that begin with one block."""
        return cls(ids, np.arange(len(ids)), np.arange(1, len(ids) + 1), block_tokens)

    @classmethod
    def of_counts(cls, ids: Ints, counts: Ints, block_tokens: int) -> "Prefixes":
        """Prompts whose ids follow one another, so many of each."""
        ends = np.cumsum(counts)
        return cls(ids, ends - counts, ends, block_tokens)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.ids[self.starts[row] : self.ends[row]].tolist())

    def rows(self, which: slice) -> "Prefixes":
        """Those of some prompts."""
        return replace(self, starts=self.starts[which], ends=self.ends[which])

    def repeated(self, times: int) -> "Prefixes":
        """The same prompts over and over."""
        return replace(self, starts=np.tile(self.starts, times), ends=np.tile(self.ends, times))


@dataclass(frozen=True)
class Trace:
    """Recorded requests, in order of arrival."""

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    priorities: Ints | None = None
    prefixes: Prefixes | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def round_s(self) -> float:
        """From the first request to the first of the next time, where the trace is played again: its duration
        and a mean gap."""
        gaps = len(self) - 1
        return float(self.arrival_s[-1] - self.arrival_s[0]) * (gaps + 1) / gaps if gaps else 0.0

    def faster(self, factor: float) -> "Trace":
        """The same requests at so many times the rate."""
        return replace(self, arrival_s=self.arrival_s / factor)

    def repeated(self, times: int) -> "Trace":
        """The trace, so many times one after another; prompts that are the same stay so."""
        shifts = np.repeat(np.arange(times) * self.round_s, len(self))
        return Trace(
            np.tile(self.arrival_s, times) + shifts,
            np.tile(self.prompt_tokens, times),
            np.tile(self.output_tokens, times),
            None if self.priorities is None else np.tile(self.priorities, times),
            None if self.prefixes is None else self.prefixes.repeated(times),
        )

    def first(self, count: int) -> "Trace":
        """The first so many requests."""
        return Trace(
            self.arrival_s[:count],
            self.prompt_tokens[:count],
            self.output_tokens[:count],
            None if self.priorities is None else self.priorities[:count],
            None if self.prefixes is None else self.prefixes.rows(slice(count)),
        )


def load_trace(
    path: str | Path, requests: int | None = None, *, hash_block: int = 512, rate_scale: float = 1.0,
    repeat: int = 1,
) -> Trace:  # fmt: skip
    """The first `requests` of a trace, or all, played `repeat` times and `rate_scale` times as fast; raises
    InputError with the problems of its rows.

    hash_block: tokens that an id of `hash_ids` stands for.
    """
    recorded = _Reader(path, hash_block).trace(requests)
    available = len(recorded) * repeat
    if requests is not None and available < requests:
        raise InputError([Problem(path, advice=f"holds {available} requests, {requests} are asked for")])
    rounds = repeat if requests is None else -(-requests // len(recorded))
    played = recorded.faster(rate_scale)
    if played.arrival_s[0] + played.round_s * rounds > MOST_SECONDS and (rounds > 1 or rate_scale < 1):
        advice = f"takes longer than 100 days at {rate_scale:g} of its rate, {rounds} times over"
        raise InputError([Problem(path, advice=advice)])
    return played.repeated(rounds).first(requests or available)


# -- what a column may hold ---------------------------------------------------------------------------------

ManyCells = Callable[[list[str]], NDArray[Any]]
"""Reads cells all at once; raises ValueError where one of them is wrong, or merely not plain."""


def _time(text: str, most: float) -> float:
    return float(_times([text], most)[0])


def _times(cells: list[str], most: float) -> Floats:
    if re.search("[^0-9.eE+ -]", "".join(cells)):
        raise ValueError  # float() takes underscores and the digits of every script
    return _within(np.array(list(map(float, cells))), 0, most)


def _seconds(cells: list[str]) -> Floats:
    return _times(cells, MOST_SECONDS)


def _milliseconds(cells: list[str]) -> Floats:
    return _times(cells, MOST_SECONDS * 1000) / 1000


def _moments(cells: list[str]) -> Floats:
    return np.array([_moment(cell) for cell in cells])


def _moment(text: str) -> float:
    moment = datetime.fromisoformat(text.strip())
    return (moment - datetime(2000, 1, 1, tzinfo=moment.tzinfo)).total_seconds()


def _whole(cells: list[str], least: int, most: int) -> Ints:
    digits = "".join(cells) if len(cells) > 1 else cells[0].strip()
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError
    return _within(np.array(list(map(int, cells)), dtype=np.int64), least, most)


def _within(values: NDArray[Any], least: float, most: float) -> NDArray[Any]:
    if not ((values >= least) & (values <= most)).all():
        raise ValueError
    return values


def _tokens(cells: list[str]) -> Ints:
    return _whole(cells, 1, MOST_TOKENS)


def _priorities(cells: list[str]) -> Ints:
    return _whole(cells, 0, MOST_PRIORITY)


def _ids(cells: list[str]) -> Ints:
    """Of all cells, one after another."""
    ids = " ".join(cells).split()
    return _whole(ids, 0, MOST_ID) if ids else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class _Kind:
    """What stands in a column."""

    wanted: str
    readers: Mapping[str, ManyCells]
    """By the names that it may have."""
    advice: str
    is_optional: bool = False


_A_COUNT = f"write a whole number from 1 to {MOST_TOKENS:,}"
_ARRIVAL = _Kind(
    "arrival",
    {"arrival_s": _seconds, "timestamp_ms": _milliseconds, "timestamp": _milliseconds, "TIMESTAMP": _moments},
    "write a time that is not negative and at most 100 days",
)
_PROMPT = _Kind(
    "prompt length", dict.fromkeys(("prompt_tokens", "input_length", "ContextTokens"), _tokens), _A_COUNT
)
_OUTPUT = _Kind(
    "output length", dict.fromkeys(("output_tokens", "output_length", "GeneratedTokens"), _tokens), _A_COUNT
)
_PRIORITY = _Kind(
    "priority", {"priority": _priorities}, f"write a whole number from 0 to {MOST_PRIORITY:,}", True
)
_PREFIX = _Kind(
    "prefix", {"hash_ids": _ids}, "write the ids of the prompt's blocks, whole numbers from 0 on", True
)


@dataclass(frozen=True)
class _Column:
    index: int
    name: str
    kind: _Kind
    read: ManyCells


def _columns(header: list[str], path: str | Path) -> tuple[_Column, ...]:
    """Where everything stands; raises InputError naming what is missing."""
    found = []
    problems = []
    for kind in (_ARRIVAL, _PROMPT, _OUTPUT, _PRIORITY, _PREFIX):
        names = [name for name in kind.readers if name in header]
        if names:
            found.append(_Column(header.index(names[0]), names[0], kind, kind.readers[names[0]]))
        elif not kind.is_optional:
            advice = f"no column of {kind.wanted}s; name one of: {', '.join(kind.readers)}"
            problems.append(Problem(path, 1, advice=advice))
    if problems:
        raise InputError(problems)
    return tuple(found)


# -- rows ---------------------------------------------------------------------------------------------------

_AT_ONCE = 8192
_READING_ERRORS = (ValueError, OverflowError, TypeError, IndexError)

_Part = dict[str, NDArray[Any]]
"""Columns of some rows, by what they hold; `counts` are those of a prefix's ids."""


class _Reader:
    """Reads the rows of one file: many at once where all is plain, one by one to say what is wrong."""

    def __init__(self, path: str | Path, hash_block: int) -> None:
        self.path, self.hash_block = path, hash_block
        self.problems: list[Problem] = []

    def trace(self, requests: int | None) -> Trace:
        """The first `requests`, or all there are."""
        rows = rows_of(self.path)
        self.columns = _columns(next(rows)[1], self.path)
        parts = list(self._parts(islice(rows, requests)))
        if not parts:
            self.problems = [Problem(self.path, 1, advice="holds no request")]
        if self.problems:
            raise InputError(self.problems)
        read = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        is_counted = self.columns[0].name == "TIMESTAMP"
        return Trace(
            read["arrival"] - (read["arrival"][0] if is_counted else 0.0),
            read["prompt length"],
            read["output length"],
            read.get("priority"),
            Prefixes.of_counts(read["prefix"], read["counts"], self.hash_block) if "prefix" in read else None,
        )

    def _parts(self, rows: Iterator[Row]) -> Iterator[_Part]:
        self.first_s = self.last_s = None
        while len(self.problems) < _MOST_PROBLEMS and (some := list(islice(rows, _AT_ONCE))):
            try:
                yield self._read(some)
            except _READING_ERRORS:
                yield from self._one_by_one(some)

    def _one_by_one(self, rows: Sequence[Row]) -> Iterator[_Part]:
        for row in rows:
            if len(self.problems) >= _MOST_PROBLEMS:
                return
            try:
                yield self._read([row])
            except _READING_ERRORS as error:
                self.problems += self._cells_wrong(row) or [Problem(self.path, row[0], advice=str(error))]
                yield {}

    def _read(self, rows: Sequence[Row]) -> _Part:
        """Some rows; raises ValueError where anything is wrong."""
        part = {
            column.kind.wanted: column.read([cells[column.index] for _, cells in rows])
            for column in self.columns
        }
        if "prefix" in part:
            index = self.columns[-1].index
            part["counts"] = np.array([len(cells[index].split()) for _, cells in rows])
            self._check_prefixes(part["counts"], part["prompt length"])
        self._check_order(part["arrival"])
        return part

    def _check_order(self, arrivals: Floats) -> None:
        before = arrivals[0] if self.last_s is None else self.last_s
        first = arrivals[0] if self.first_s is None else self.first_s
        if (np.diff(arrivals, prepend=before) < 0).any():
            raise ValueError("arrives before the row above; sort by arrival")
        if arrivals[-1] - first > MOST_SECONDS:
            raise ValueError("arrives more than 100 days after the first row")
        self.first_s, self.last_s = first, arrivals[-1]

    def _check_prefixes(self, counts: Ints, prompts: Ints) -> None:
        if (counts > -(-prompts // self.hash_block)).any():
            raise ValueError(
                f"has more hash_ids than its prompt has blocks of {self.hash_block} tokens; say `hash_block`"
            )

    def _cells_wrong(self, row: Row) -> list[Problem]:
        line, cells = row
        found = []
        for column in self.columns:
            cell = cells[column.index] if column.index < len(cells) else ""
            try:
                column.read([cell])
            except _READING_ERRORS:
                found.append(Problem(self.path, line, key=column.name, value=cell, advice=column.kind.advice))
        return found
