"""Tables of kernels for `validate`: found by their columns, judged device by device and way by way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from simulator.specs.catalogue import Catalogue
from simulator.study.calibration.columns import SUFFIXES, names_of, read_columns
from simulator.study.calibration.judge import TASKS, Judged, Task, judge
from simulator.study.calibration.readers import read_samples, recognises
from simulator.study.calibration.readers.operators import ANY_DEVICE
from simulator.study.calibration.samples import Samples


@dataclass(frozen=True)
class KernelTable:
    """One table of kernels."""

    path: Path
    mapped: int
    """Measurements that are kernels of the cost model on a device of the catalogue."""
    unmapped: Mapping[str, int]
    devices: frozenset[str]

    @property
    def name(self) -> str:
        """Of its file; in NVIDIA's databases all have the same, so the folders say which it is."""
        if self.path.stem.endswith("_perf"):
            return "/".join((*self.path.parts[-5:-1], self.path.stem.removesuffix("_perf")))
        return self.path.stem


@dataclass(frozen=True)
class OperatorJob:
    """Everything measured of one device, predicted in the ways of one task."""

    paths: tuple[Path, ...]
    """Of all tables of kernels, as other devices' rows count too."""
    device: str
    task: Task
    rows: int | None
    """At most so many of each kind of kernel; None: all."""


def kernel_table(path: Path, catalogue: Catalogue) -> KernelTable | None:
    """What a table of kernels holds; None for any other table. Raises InputError for a cell that cannot be
    read."""
    if path.suffix not in SUFFIXES or not recognises(names_of(path)):
        return None
    found = read_samples(read_columns(path), catalogue)
    known = [each for each in found.samples if each.device != ANY_DEVICE]
    unmapped = Counter(found.unmapped)
    unmapped["no column says of which device"] += sum(map(len, found.samples)) - sum(map(len, known))
    return KernelTable(path, sum(map(len, known)), dict(+unmapped), frozenset(each.device for each in known))


def operator_jobs(
    tables: Sequence[KernelTable], rows: int | None, tasks: Sequence[Task] = TASKS
) -> list[OperatorJob]:
    """Every device by every task; tables of other devices are read only for a task that learns from them."""
    devices = sorted(frozenset().union(*(table.devices for table in tables)))
    return [
        OperatorJob(
            tuple(table.path for table in tables if task == "device left out" or device in table.devices),
            device, task, rows,
        )
        for device in devices
        for task in tasks
    ]  # fmt: skip


def carry_out_judging(job: OperatorJob, catalogue: Catalogue) -> list[Judged]:
    """Predict what a job asks for."""
    samples = [_thinned(each, job.rows) for each in _samples(job.paths)]
    return judge(job.device, samples, job.task, catalogue)


def _thinned(samples: Samples, rows: int | None) -> Samples:
    if rows is None or len(samples) <= rows:
        return samples
    return samples.at(np.linspace(0, len(samples) - 1, max(rows, 1)).astype(np.intp))


@lru_cache(maxsize=1)
def _samples(paths: tuple[Path, ...]) -> tuple[Samples, ...]:
    """Those of all tables, read once in a process."""
    catalogue = Catalogue()
    found = [each for path in paths for each in read_samples(read_columns(path), catalogue).samples]
    return tuple(each for each in found if each.device != ANY_DEVICE)
