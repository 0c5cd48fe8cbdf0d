"""The first steps of every row as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing.

A process is a row, a thread is a stream of a device, a link, or the engine's thread; a collective stands
on every stream it holds. Times are in microseconds, rounded to the clock's picosecond.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from simulator.report.wording import row_name, shown_axes
from simulator.results.records import Span
from simulator.results.run_result import RunResult, StudyResult

Event = dict[str, Any]

_US_PER_S = 1e6
_PICOSECOND_DIGITS = 6
_STEPS = "steps"
_POOL = "host pool"


def chrome_trace(study: StudyResult) -> dict[str, Any]:
    """The document in Chrome's trace event format; rows without recorded steps are left out."""
    axes = shown_axes(study)
    recorded = [run for run in study.runs if run.spans]
    events = [
        event
        for pid, run in enumerate(recorded, start=1)
        for event in _row_events(pid, row_name(run, axes), run)
    ]
    return {"displayTimeUnit": "ms", "otherData": {"scenario": study.scenario}, "traceEvents": events}


def _row_events(pid: int, title: str, run: RunResult) -> Iterator[Event]:
    tracks = list(on_tracks(run.spans))
    names = [_STEPS, *sorted({track for track, _ in tracks}, key=natural)]
    yield _metadata(pid, 0, "process_name", name=title)
    yield _metadata(pid, 0, "process_sort_index", sort_index=pid)
    for tid, name in enumerate(names):
        yield _metadata(pid, tid, "thread_name", name=name)
        yield _metadata(pid, tid, "thread_sort_index", sort_index=tid)
    for name, start_s, end_s, step in _steps(run.spans):
        yield _complete(pid, 0, name, "step", start_s, end_s, {"step": step})
    numbers = {name: tid for tid, name in enumerate(names)}
    for track, span in tracks:
        args = {"step": span.step} | ({} if span.layer is None else {"layer": span.layer})
        yield _complete(pid, numbers[track], span.name, span.category, span.start_s, span.end_s, args)


def on_tracks(spans: Sequence[Span]) -> Iterator[tuple[str, Span]]:
    """Each span once per stream it holds; those of a pool, which holds none, on lanes side by side."""
    for span in sorted(spans, key=_start):
        for unit in span.units:
            yield unit, span
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for span in sorted((span for span in spans if not span.units), key=_start):
        while busy and busy[0][0] <= span.start_s:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy) + 1
        heapq.heappush(busy, (span.end_s, lane))
        yield f"{_POOL} {lane}", span


def _steps(spans: Iterable[Span]) -> Iterator[tuple[str, float, float, int]]:
    """Each step from its first task to its last, or to the next step's first if that comes sooner."""
    by_step: dict[int, list[Span]] = {}
    for span in spans:
        by_step.setdefault(span.step, []).append(span)
    limits = [
        (min(span.start_s for span in each), max(span.end_s for span in each), step)
        for step, each in by_step.items()
    ]
    limits.sort()
    following = [start for start, _, _ in limits[1:]]
    for (start, end, step), next_start in zip(limits, [*following, float("inf")], strict=True):
        yield f"step {step}", start, min(end, next_start), step


def _complete(
    pid: int, tid: int, name: str, category: str, start_s: float, end_s: float, args: Mapping[str, int]
) -> Event:
    start_us, end_us = _microseconds(start_s), _microseconds(end_s)
    duration_us = round(end_us - start_us, _PICOSECOND_DIGITS)
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": category,
            "ts": start_us, "dur": duration_us, "args": dict(args)}  # fmt: skip


def _metadata(pid: int, tid: int, kind: str, **args: object) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": args}


def _microseconds(time_s: float) -> float:
    return round(time_s * _US_PER_S, _PICOSECOND_DIGITS)


def _start(span: Span) -> float:
    return span.start_s


def natural(name: str) -> list[tuple[int, str]]:
    """Order with gpu-2 before gpu-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
