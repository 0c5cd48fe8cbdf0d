"""Times calls round by round, so that all of them had the same quiet moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TypeVar

from simulator.study.calibration.timed_kernels import KernelRow, Timing

Progress = Callable[[int, int, str], None]
"""Seconds done, of how many, and what comes next."""
BenchT = TypeVar("BenchT")


class Teller:
    """Says how far it is, by the clock."""

    def __init__(self, progress: Progress | None, seconds: float) -> None:
        self._progress, self._seconds, self._started = progress, seconds, perf_counter()

    def __call__(self, what: str) -> None:
        done_s = min(perf_counter() - self._started, self._seconds)
        if self._progress is not None:
            self._progress(round(done_s), round(self._seconds), what)


def best_of_rounds(
    calls: Mapping[str, Callable[[], float]], until_s: float, tell: Callable[[str], None]
) -> dict[str, float]:
    """The shortest time that each call returns, in as many rounds as end before `until_s`, by
    `perf_counter`; at least one."""
    started, rounds = perf_counter(), 0
    best = dict.fromkeys(calls, math.inf)
    while not rounds or perf_counter() + (perf_counter() - started) / rounds < until_s:
        for what, call in calls.items():
            tell(what)
            best[what] = min(best[what], call())
        rounds += 1
    return best


class BestRows:
    """The best row of every kernel so far."""

    def __init__(self) -> None:
        self._best: dict[str, KernelRow] = {}

    def calls(self, timings: Sequence[Timing[BenchT]], bench: BenchT) -> dict[str, Callable[[], float]]:
        """What times each kernel."""
        return {timing.what: partial(self._time, timing, bench) for timing in timings}

    def _time(self, timing: Timing[BenchT], bench: BenchT) -> float:
        row = timing.time(bench)
        best = self._best.get(timing.what)
        self._best[timing.what] = row if best is None or row.time_us < best.time_us else best
        return row.time_s

    @property
    def rows(self) -> tuple[KernelRow, ...]:
        return tuple(self._best.values())
