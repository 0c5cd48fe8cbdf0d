"""Small studies built by hand for the tests of the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simulator.results.metrics import CATEGORIES, Distribution, LatencyMetrics
from simulator.results.records import Span
from simulator.results.run_result import Band, Economics, MemoryUse, RunResult, StudyResult

GIB = 2**30
OUTPUT_TOKENS = 1_000_000
SLO = {"ttft_p99": 1.0, "tpot_p99": 0.06}


def metrics(ttft_s: float = 0.4, tpot_s: float = 0.03, rate: float = 800.0, most: str = "memory") -> LatencyMetrics:
    """Latencies whose p99 is given and whose p50 is half of it."""
    attribution = dict.fromkeys(CATEGORIES, 0.05) | {most: 0.75}
    return LatencyMetrics(
        _distribution(ttft_s), _distribution(tpot_s), _distribution(tpot_s), _distribution(2 * ttft_s),
        rate, 3 * rate, rate / 200, attribution,
    )  # fmt: skip


def _distribution(p99: float) -> Distribution:
    return Distribution(0.6 * p99, 0.5 * p99, 0.8 * p99, 0.9 * p99, p99)


def a_run(
    machine: str = "box", placement: str = "single_device", usd: float | None = 0.4, **changes: Any
) -> RunResult:
    """A row that fits and meets its SLO; `usd` is its cost per million output tokens."""
    money = Economics(1.5, usd, known_usd=(usd or 0.0) * OUTPUT_TOKENS / 1e6)
    base = RunResult(
        machine, "llama", placement, "poisson 4 req/s", "step", axes={"machine": machine}, fits=True,
        memory=(MemoryUse("gpu-0", 10 * GIB, 40 * GIB, {"weights": 8 * GIB, "kv_cache": 2 * GIB}),),
        requests={"finished": 100, "rejected": 0, "failed": 0},
        tokens={"input": 3_000_000, "output": OUTPUT_TOKENS},
        transitions_per_token={"host->gpu-0": 1, "gpu-0->host": 1}, metrics=metrics(), economics=money, slo=SLO,
    )  # fmt: skip
    return replace(base, **changes)


def unfit(machine: str = "box", placement: str = "tensor_parallel 4") -> RunResult:
    return a_run(machine, placement, fits=False, metrics=None, economics=None, memory=(), requests={}, tokens={},
                 reason="needs 91.2 GiB of 79.6 GiB on gpu-3: weights 70.1")  # fmt: skip


def unpriced(known_usd: float = 0.1, added: float = 1e-5, **changes: Any) -> RunResult:
    """A row on an NR1 whose price and power nobody has published."""
    money = Economics(None, None, known_usd, ("hosts.nr1.price", "hosts.nr1.power"), added)
    bands = {"usd_per_million_output_tokens": Band(known_usd * 1e6 / OUTPUT_TOKENS, None)}
    return a_run("nr1", economics=money, bands=bands, **changes)


def saturated(machine: str = "small") -> RunResult:
    return a_run(machine, usd=0.1, saturated=True, metrics=metrics(30.0, 0.2, 300.0, "waiting"))


def a_study(*runs: RunResult, assumed: tuple[str, ...] = ()) -> StudyResult:
    return StudyResult("Who should host?", runs, assumed)


def spans() -> tuple[Span, ...]:
    """Two steps; an all-reduce holds both devices, and two tasks of the host's pool overlap."""
    return (
        Span("qkv@gpu-0", "compute", "qkv_proj", ("gpu-0",), 0.0, 2e-6, 0, layer=3),
        Span("qkv@gpu-1", "compute", "qkv_proj", ("gpu-1",), 0.0, 1e-6, 0),
        Span("all_reduce", "collective", "all_reduce", ("gpu-0", "gpu-1"), 2e-6, 3e-6, 0),
        Span("commit", "host", "commit", (), 3e-6, 5e-6, 0),
        Span("gather", "host", "gather", (), 4e-6, 6e-6, 1),
        Span("qkv@gpu-0", "compute", "qkv_proj", ("gpu-0",), 6e-6, 8e-6, 1),
        Span("copy", "transfer", "copy", ("gpu-0.d2h",), 8e-6, 8.5e-6, 1),
    )
