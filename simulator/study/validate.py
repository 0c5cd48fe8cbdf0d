"""`validate`: published measurements predicted by their own protocol, and how far off the predictions are.

No simulation here is fitted to a row; kernels are judged on rows that nothing was fitted to. A table that no
reader knows, and a row that cannot be simulated yet, are counted with the reason, so that the scoreboard says
what it does not cover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem
from simulator.results.accuracy import Accuracy, accuracy
from simulator.specs.catalogue import Catalogue
from simulator.study.calibration.board import (
    KernelTable,
    OperatorJob,
    carry_out_judging,
    kernel_table,
    operator_jobs,
)
from simulator.study.calibration.judge import Judged, OperatorScore, scores
from simulator.study.calibration.silicon import SILICON_TASKS, silicon_tables
from simulator.study.measurements import READERS, Job, Outcome, Pair, Reading
from simulator.study.measurements.collectives import reading_of
from simulator.study.measurements.table import SUFFIXES, count_rows, read_table
from simulator.study.side_by_side import Progress, carry_out

NO_READER = "no reader for this table yet"

FEW_JOBS = 8
"""So many simulations are done before worker processes would have started."""


@dataclass(frozen=True)
class TableScore:
    """How well the rows of one table are predicted."""

    table: str
    """Name of its file, without suffix."""
    rows: int
    predicted: int
    unsupported: Mapping[str, int]
    """Rows that were not predicted, by reason; with `predicted` they add up to `rows`."""
    metrics: Mapping[str, Accuracy]
    pairs: tuple[Pair, ...] = field(repr=False)
    """Every measured value with its prediction, in the order of the file."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "rows": self.rows,
            "predicted": self.predicted,
            "unsupported": dict(self.unsupported),
            "metrics": {name: errors.as_dict() for name, errors in self.metrics.items()},
        }


@dataclass(frozen=True)
class Scoreboard:
    """Every table of a folder, by path."""

    tables: tuple[TableScore, ...]
    operators: tuple[OperatorScore, ...] = ()
    """Of tables of kernels: by device, kind of operator and where the numbers come from."""

    def as_dict(self) -> dict[str, Any]:
        return {"tables": [table.as_dict() for table in self.tables],
                "operators": [score.as_dict() for score in self.operators]}  # fmt: skip


def validate(
    folder: str | Path, progress: Progress | None = None, rows: int | None = None,
    workers: int | None = None,
) -> Scoreboard:  # fmt: skip
    """Predict what the tables of a folder, or one table, have measured.

    rows: at most about so many rows of each table, spread evenly, for a quick look; rows that are one run
    stay together. workers: processes to use, as many as there are cores if not given; the result does not
    depend on it. Raises InputError for a known table that cannot be read, and where there is no table.
    """
    paths = tables_in(Path(folder))
    catalogue = Catalogue()
    kernels = {path: table for path in paths if (table := _kernels(path, catalogue)) is not None}
    readings = [Reading() if path in kernels else _read(path, catalogue) for path in paths]
    for reading in readings:
        _limit(reading, rows)
    jobs: list[Job | OperatorJob] = [job for reading in readings for job in reading.jobs]
    of_operators = operator_jobs(tuple(kernels.values()), rows)
    is_small = len(jobs) <= FEW_JOBS and not of_operators
    results = carry_out(_work, [*jobs, *of_operators], is_small=is_small, progress=progress, workers=workers)
    outcomes = list(results)
    following = iter([each for each in outcomes if isinstance(each, Outcome)])
    tables = [_kernel_score(kernels[path]) if path in kernels else _score(path, reading, following)
              for path, reading in zip(paths, readings, strict=True)]  # fmt: skip
    judged = [one for each in outcomes if not isinstance(each, Outcome) for one in each]
    return Scoreboard(tuple(tables), tuple(scores(judged)))


SILICON_ROWS = 4000
"""Of each kind of kernel and device, unless told otherwise: the databases have a hundred times as many."""


def validate_silicon(
    progress: Progress | None = None, rows: int | None = None, workers: int | None = None
) -> Scoreboard:
    """Predict the kernels of NVIDIA's databases by the shipped profiles, and on shapes left out; devices that
    no profile was fitted to are predicted from their data sheet and class. Raises InputError where the
    package is not installed."""
    catalogue = Catalogue()
    tables = [table for path in silicon_tables() if (table := kernel_table(path, catalogue)) is not None]
    jobs = operator_jobs(tables, rows or SILICON_ROWS, SILICON_TASKS)
    results = carry_out(carry_out_judging, jobs, is_small=False, progress=progress, workers=workers)
    judged = [one for each in results for one in each]
    return Scoreboard(tuple(_kernel_score(table) for table in tables), tuple(scores(judged)))


def _kernels(path: Path, catalogue: Catalogue) -> KernelTable | None:
    """A table of kernels by its columns; one that a reader knows by its name, or as collectives, is none."""
    return None if path.stem in READERS else kernel_table(path, catalogue)


def _kernel_score(table: KernelTable) -> TableScore:
    """How much of a table of kernels is predicted; the errors stand by device."""
    rows = table.mapped + sum(table.unmapped.values())
    return TableScore(table.name, rows, table.mapped, dict(sorted(table.unmapped.items())), {}, ())


def tables_in(folder: Path) -> list[Path]:
    """Every table under a folder, sorted by path; a file stands for itself."""
    if folder.is_file() and folder.suffix in SUFFIXES:
        return [folder]
    found = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not found:
        what = "holds no table" if folder.is_dir() else "is no table" if folder.exists() else "does not exist"
        advice = f"{what}; name a .csv or .parquet file, or a folder that holds some"
        raise InputError([Problem(folder, advice=advice)])
    return found


def _read(path: Path, catalogue: Catalogue) -> Reading:
    if path.stem not in READERS:
        return reading_of(path) or Reading(unsupported=Counter({NO_READER: count_rows(path)}))
    return READERS[path.stem](read_table(path), catalogue)


def _limit(reading: Reading, rows: int | None) -> None:
    """Keep jobs of about `rows` rows, at least one, and count the others as left out."""
    total = sum(job.row_count for job in reading.jobs)
    if rows is None or total <= rows:
        return
    most = max(1, rows * len(reading.jobs) // total)
    kept = {number * len(reading.jobs) // most for number in range(most)}
    left_out = [job for number, job in enumerate(reading.jobs) if number not in kept]
    reason = f"left out: only {rows} rows were asked for"
    reading.unsupported[reason] += sum(job.row_count for job in left_out)
    reading.jobs = [job for number, job in enumerate(reading.jobs) if number in kept]


# -- carrying jobs out --------------------------------------------------------------------------------------


def _work(job: Job | OperatorJob, catalogue: Catalogue) -> Outcome | list[Judged]:
    return carry_out_judging(job, catalogue) if isinstance(job, OperatorJob) else job.predict(catalogue)


# -- scores -------------------------------------------------------------------------------------------------


def _score(path: Path, reading: Reading, outcomes: Iterator[Outcome]) -> TableScore:
    """Sum up a table; `outcomes` are those of its own jobs first."""
    unsupported = Counter(reading.unsupported)
    pairs: list[Pair] = []
    predicted = 0
    for job, outcome in zip(reading.jobs, outcomes, strict=False):
        unsupported.update(outcome.unsupported)
        predicted += job.row_count - sum(outcome.unsupported.values())
        pairs += outcome.pairs
    rows = predicted + sum(unsupported.values())
    return TableScore(path.stem, rows, predicted, dict(sorted(unsupported.items())), _metrics(pairs),
                      tuple(pairs))  # fmt: skip


def _metrics(pairs: Sequence[Pair]) -> dict[str, Accuracy]:
    by_metric: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_metric.setdefault(pair.metric, []).append(pair)
    return {
        name: accuracy([pair.measured for pair in group], [pair.predicted for pair in group])
        for name, group in sorted(by_metric.items())
    }
