"""What every reader of a published table has in common, and the readers by the name of their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from simulator.specs.catalogue import Catalogue
from simulator.study.measurements.table import Table


class Pair(NamedTuple):
    """One value that was measured and predicted."""

    metric: str
    """Lower case; says what it is (ttft, tpot, throughput, time) and ends in its unit."""
    measured: float
    predicted: float


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    pairs: tuple[Pair, ...] = ()
    unsupported: Mapping[str, int] = field(default_factory=dict)
    """How many of its rows could not be predicted, by reason."""


class Job(Protocol):
    """Rows that one simulation predicts: they travel to a worker process, so they hold plain values."""

    @property
    def row_count(self) -> int:
        """How many rows of the table it is about."""

    def predict(self, catalogue: Catalogue) -> Outcome:
        """Mimic the published protocol, and set what comes out beside what was measured."""


@dataclass
class Reading:
    """A table's rows: jobs in the order of the file, and rows that nobody can predict yet, by reason."""

    jobs: list[Job] = field(default_factory=list)
    unsupported: Counter[str] = field(default_factory=Counter)


Reader = Callable[[Table, Catalogue], Reading]
"""Raises InputError for a table that does not hold what its name promises."""

READERS: dict[str, Reader] = {}


def reader(table: str) -> Callable[[Reader], Reader]:
    """Register the reader of a table, by its file's name without suffix."""

    def register(read: Reader) -> Reader:
        assert table not in READERS, f"two readers of {table}"
        READERS[table] = read
        return read

    return register
