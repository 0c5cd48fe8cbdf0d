"""What is said where the means of a whole run are not those of its steady state."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.results.run_result import RunResult
from simulator.results.steady import Estimate
from simulator.units import format_number

WORTH_SAYING = 0.05
"""A mean that is off by less is not worth a line."""


def steady_notes(run: RunResult) -> Iterator[str]:
    """A line with the means of the steady state, if the whole run's mean TTFT or TPOT is off them."""
    metrics = run.metrics
    if metrics is None or metrics.steady is None:
        return
    steady = metrics.steady
    if _is_off(metrics.ttft_s.mean, steady.ttft_s) or _is_off(metrics.tpot_s.mean, steady.tpot_s):
        means = [
            f"TTFT {_text(steady.ttft_s, 1e3, ' ms')}",
            f"TPOT {_text(steady.tpot_s, 1e3, ' ms')}",
            _text(steady.output_tokens_per_s, 1, " tok/s"),
        ]
        yield (
            f"after a warm-up of {steady.warmup_requests} requests, which percentiles include, the means"
            f" of {steady.requests} are {', '.join(means)} (90 % confidence)"
        )


def _is_off(whole: float | None, steady: Estimate | None) -> bool:
    if whole is None or steady is None:
        return False
    return abs(whole - steady.mean) > max(steady.half_width, WORTH_SAYING * steady.mean)


def _text(estimate: Estimate | None, scale: float, unit: str) -> str:
    if estimate is None:
        return "-"
    return f"{format_number(estimate.mean * scale)} ± {format_number(estimate.half_width * scale)}{unit}"
