"""How a row, a figure and its band are said; shared by table, verdict and figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.results.run_result import Band, Economics, RunResult, StudyResult
from simulator.units import format_number

COST = "usd_per_million_output_tokens"
ENERGY = "energy_j_per_output_token"
THROUGHPUT = "output_tokens_per_s"

MS_PER_S = 1e3
WIDE = 0.01
"""A band narrower than this share of its figure is not worth showing."""

_CONTEXT = ("workload", "model", "slo", "cost", "seed")
"""Axes whose values set the question; the others are possible answers."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One figure of a row. `value` is None where unknown, an end where nothing bounds it."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def is_wide(self) -> bool:
        if self.value is None or self.low is None or self.high is None:
            return True
        return self.high - self.low > WIDE * abs(self.value)

    def text(self, scale: float = 1.0) -> str:
        """`0.4`, `0.4 (0.38..0.45)`, `unknown (at least 0.3)`."""
        if self.value is not None and not self.is_wide:
            return format_number(self.value * scale)
        band = self._band_text(scale)
        shown = "unknown" if self.value is None else format_number(self.value * scale)
        return f"{shown} ({band})" if band else shown

    def _band_text(self, scale: float) -> str:
        if self.low is not None and self.high is not None:
            return f"{format_number(self.low * scale)}..{format_number(self.high * scale)}"
        if self.low is not None:
            return f"at least {format_number(self.low * scale)}"
        return "" if self.high is None else f"at most {format_number(self.high * scale)}"


def reading(run: RunResult, name: str) -> Reading:
    """The figure called as in `RunResult.bands`, such as `ttft_s.p99`."""
    if run.metrics is None:
        return Reading(None, None, None)
    if name in (COST, ENERGY):
        return _economic_reading(run.economics, name, run)
    value: Any = run.metrics
    for step in name.split("."):
        value = getattr(value, step)
    return _with_band(value, run.bands.get(name))


def _with_band(value: float | None, band: Band | None) -> Reading:
    return Reading(value, value, value) if band is None else Reading(value, band.low, band.high)


def _economic_reading(economics: Economics | None, name: str, run: RunResult) -> Reading:
    if economics is None:
        return Reading(None, None, None)
    found = _with_band(getattr(economics, name), run.bands.get(name))
    if name == ENERGY or not economics.unknown:
        return found
    return Reading(None, found.low if found.low is not None else known_cost(run), found.high)


def known_cost(run: RunResult) -> float | None:
    """USD per million output tokens of what is known of a row's cost; None where that says nothing."""
    tokens = run.tokens.get("output", 0)
    if run.economics is None or not tokens or not run.economics.known_usd:
        return None
    return run.economics.known_usd / tokens * 1e6


def status(run: RunResult) -> str:
    """How the row stands: does not fit, saturated, meets or misses the SLO, or `-` without one."""
    if not run.fits:
        return "does not fit"
    if run.saturated:
        return "saturated"
    if run.metrics is None:
        return "misses" if run.slo else "-"
    return {True: "meets", False: "misses", None: "-"}[run.meets_slo]


def largest_share(run: RunResult) -> tuple[str, float] | None:
    """The category that most of the requests' time went to, and its share."""
    if run.metrics is None or not run.metrics.attribution:
        return None
    return max(run.metrics.attribution.items(), key=lambda item: item[1])


def mostly(run: RunResult) -> str:
    """`memory 73 %`."""
    found = largest_share(run)
    return "-" if found is None else f"{found[0]} {percent(found[1])}"


def percent(share: float) -> str:
    """`73 %`."""
    return f"{share * 100:.0f} %"


def metric_name(slo_name: str) -> str:
    """`TTFT p99` for `ttft_p99`.

    >>> metric_name("ttft_p99"), metric_name("e2e_mean")
    ('TTFT p99', 'E2E mean')
    """
    metric, _, statistic = slo_name.rpartition("_")
    return f"{metric.upper()} {statistic}"


def reading_name(slo_name: str) -> str:
    """`ttft_s.p99` for `ttft_p99`."""
    metric, _, statistic = slo_name.rpartition("_")
    return f"{metric}_s.{statistic}"


def axis_text(value: object) -> str:
    """An axis value as a cell: counts exact, floats short."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown_axes(study: StudyResult) -> dict[str, str]:
    """Axes that need a column of their own, with a short name for each: the end of its key."""
    names = dict.fromkeys(name for run in study.runs for name in run.axes)
    shown = [name for name in names if not all(_is_in_labels(run, name) for run in study.runs)]
    return {name: _short(name, shown) for name in shown}


def _is_in_labels(run: RunResult, axis: str) -> bool:
    """Whether the machine's or the placement's label already says this value of the axis."""
    if axis not in run.axes or axis == "machine":
        return True
    kind = axis.split(".")[0]
    label = {"machine": run.machine, "placement": run.placement}.get(kind)
    return label is not None and _holds(label, axis_text(run.axes[axis]))


def _holds(label: str, text: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(text)}(?![\w.])", label) is not None


def _short(name: str, names: Sequence[str]) -> str:
    """The shortest end of a dotted name that no other name has."""
    steps = name.split(".")
    ends = (".".join(steps[-count:]) for count in range(1, len(steps) + 1))
    return next(
        (end for end in ends if not any(o != name and f".{o}".endswith(f".{end}") for o in names)), name
    )


def is_context(axis: str) -> bool:
    """Whether an axis changes the question (a workload, a model), not the answer (where it runs)."""
    return axis.split(".")[0] in _CONTEXT


def context_key(run: RunResult) -> tuple[tuple[str, str], ...]:
    """The question a row answers, where a study asks several."""
    return tuple((name, axis_text(value)) for name, value in run.axes.items() if is_context(name))


def row_name(run: RunResult, axes: Mapping[str, str]) -> str:
    """`tensor_parallel 4 on hgx-h100-8 (rate 4)`, with the values of `axes`."""
    own = [f"{short} {axis_text(run.axes[name])}" for name, short in axes.items() if name in run.axes]
    return f"{run.placement} on {run.machine}" + (f" ({', '.join(own)})" if own else "")


def joined(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def transitions_text(counts: Mapping[str, int]) -> str:
    """Transitions of one token; those between several devices of the same kinds are added up.

    >>> transitions_text({"cpu->gpu-0": 1, "gpu-0->gpu-1": 66, "gpu-1->gpu-0": 66})
    'cpu->gpu-0 1, gpu<->gpu 132'
    >>> transitions_text({"host->gpu-0": 1, "host->gpu-1": 1, "gpu-0->host": 1})
    'host->gpu 2, gpu-0->host 1'
    """
    alike = Counter(_kinds(key) for key in counts)
    summed: Counter[str] = Counter()
    for key, count in counts.items():
        summed[_kinds(key) if alike[_kinds(key)] > 1 else key] += count
    return ", ".join(f"{name} {count}" for name, count in summed.items()) or "none"


def _kinds(transition: str) -> str:
    """`host->gpu` for `host->gpu-1`, `gpu<->gpu` for either way between two of a kind."""
    source, target = (re.sub(r"-\d+$", "", end) for end in transition.split("->"))
    return f"{source}<->{target}" if source == target else f"{source}->{target}"
