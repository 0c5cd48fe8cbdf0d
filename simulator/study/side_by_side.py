"""Many independent simulations, worked on in several processes where that pays."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from typing import TypeVar

from simulator.specs.catalogue import Catalogue

Job = TypeVar("Job")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Told after each simulation how many of how many are done."""


def carry_out(
    work: Callable[[Job, Catalogue], Result], jobs: Sequence[Job], *, is_small: bool,
    progress: Progress | None = None, workers: int | None = None, catalogue: Catalogue | None = None,
) -> Iterator[Result]:  # fmt: skip
    """Results in the order of the jobs; they do not depend on the number of workers.

    work: a function of a module, so that other processes find it. workers: as many as there are cores if
    not given, and none for jobs so small that they are done before a process would have started. catalogue:
    for jobs done here, whose files may have been read.
    """
    tell = progress or (lambda done, total: None)
    count = min(len(jobs), core_count() if workers is None else workers)
    if count < 2 or (workers is None and is_small):
        catalogue = catalogue or Catalogue()
        for done, job in enumerate(jobs, start=1):
            yield work(job, catalogue)
            tell(done, len(jobs))
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done, result in enumerate(pool.map(partial(_in_worker, work), jobs), start=1):
            yield result
            tell(done, len(jobs))


def core_count() -> int:
    """Cores this process may use; all of the machine's where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_worker(work: Callable[[Job, Catalogue], Result], job: Job) -> Result:
    return work(job, _workers_catalogue())


@lru_cache
def _workers_catalogue() -> Catalogue:
    """One for all jobs of a process, so that a file is read once."""
    return Catalogue()
