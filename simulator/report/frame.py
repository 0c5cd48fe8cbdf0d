"""A study as a data frame: a row a run, a column a figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from simulator.results.run_result import RunResult, StudyResult


def frame(study: StudyResult) -> pd.DataFrame:
    """One row for each run; nested figures become columns such as `ttft_s.p99` or `memory.gpu-0.used_bytes`,
    and the ends of a band `ttft_s.p99.low` and `.high`. Units are in the names."""
    return pd.DataFrame([dict(_cells(run)) for run in study.runs])


def _cells(run: RunResult) -> Iterator[tuple[str, Any]]:
    row = run.as_dict()
    for key in ("machine", "model", "placement", "workload", "fidelity"):
        yield key, row[key]
    yield from row["axes"].items()
    for key in ("fits", "reason", "saturated", "meets_slo", "preemptions", "kv_blocks", "peak_kv_blocks"):
        yield key, row[key]
    for group in ("requests", "tokens"):
        yield from ((f"{group}.{name}", count) for name, count in row[group].items())
    for metric, value in (row["metrics"] or {}).items():
        if isinstance(value, dict):
            yield from ((f"{metric}.{name}", each) for name, each in value.items())
        else:
            yield metric, value
    for name, figure in (row["speculation"] or {}).items():
        if not isinstance(figure, dict):
            yield f"speculation.{name}", figure
    for name, band in row["bands"].items():
        yield from ((f"{name}.{end}", band[end]) for end in ("low", "high"))
    for memory in row["memory"]:
        for name in ("used_bytes", "capacity_bytes"):
            yield f"memory.{memory['memory']}.{name}", memory[name]
