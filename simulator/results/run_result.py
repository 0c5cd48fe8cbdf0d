"""What a study says of one placement under one workload: the row of every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.results.metrics import LatencyMetrics
from simulator.results.records import Span, SpeculationRecord
from simulator.specs.engine import MetricsClock

TOKENS_PER_PRICE = 1e6
"""Prices are quoted for a million tokens."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """How full one memory was, and with what."""

    memory: str
    used_bytes: int
    capacity_bytes: int
    parts: Mapping[str, int]
    """Bytes of weights, kv_cache, activations and engine; they add up to `used_bytes`."""


@dataclass(frozen=True, slots=True)
class Band:
    """The ends of a figure when everything uncertain behind it is at its best and at its worst for the
    owner; None where nothing bounds it."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Economics:
    """Energy and money of a run, of the devices a placement holds and their share of the host."""

    energy_j_per_output_token: float | None
    usd_per_million_output_tokens: float | None
    known_usd: float
    """Cost of the run's time as far as it is known."""
    unknown: tuple[str, ...] = ()
    """Figures nobody has published that the two depend on."""
    usd_per_unknown_purchase_usd: float = 0.0
    """What a dollar of unknown purchase price would add to the cost of the run; 0 if all are known."""


@dataclass(frozen=True)
class RunResult:
    """One row. `metrics` and `economics` are None for a placement that does not fit."""

    machine: str
    model: str
    placement: str
    workload: str
    fidelity: str
    axes: Mapping[str, Any]
    fits: bool
    reason: str | None = None
    """Why it does not fit: the arithmetic, or what the machine lacks."""
    saturated: bool = False
    crowded: Mapping[str, int] = field(default_factory=dict)
    """Links whose sharing called for windows of fidelity `task`, and how many."""
    event_steps: int = 0
    """Steps carried out task by task."""
    steps: int = 0
    memory: tuple[MemoryUse, ...] = ()
    requests: Mapping[str, int] = field(default_factory=lambda: {"finished": 0, "rejected": 0, "failed": 0})
    """Counts of finished, rejected and failed."""
    tokens: Mapping[str, int] = field(default_factory=lambda: {"input": 0, "output": 0})
    """Input and output tokens of finished requests."""
    transitions_per_token: Mapping[str, int] = field(default_factory=dict)
    """How often a token's own pass goes from one device to another, as `a->b`."""
    link_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes over each directed link in the whole run; over a memory bus in both directions together."""
    metrics: LatencyMetrics | None = None
    metrics_clock: MetricsClock = "client"
    """What TTFT, TPOT and end-to-end latency are read from."""
    percentile_error: float = 0.0
    """By what share of itself a percentile may be wrong; 0 where every request was kept."""
    economics: Economics | None = None
    bands: Mapping[str, Band] = field(default_factory=dict)
    """By metric, as `ttft_s.p99` or `usd_per_million_output_tokens`; only those that rest on ranges."""
    slo: Mapping[str, float] = field(default_factory=dict)
    """Limit in seconds by name, as `ttft_p99`."""
    preemptions: int = 0
    prefilled_tokens: int = 0
    """What sequences had to have cached before they could decode, again after each recomputation."""
    reused_tokens: int = 0
    """Of these, what was in the cache already."""
    kv_blocks: int = 0
    peak_kv_blocks: int = 0
    speculation: SpeculationRecord | None = None
    """Of a placement in which a small model, the drafter, proposes tokens."""
    draft_share: float = 0.0
    """Of the requests' time, what they spent on the drafter's passes."""
    spans: tuple[Span, ...] = field(default=(), repr=False)
    """Tasks of the first steps, for timelines."""

    @property
    def meets_slo(self) -> bool | None:
        """Whether every limit holds; None where there is no limit or nothing ran. A saturated run never
        does: its percentiles are lower bounds."""
        if self.metrics is None or not self.slo:
            return None
        if self.saturated or self.requests.get("finished", 0) < sum(self.requests.values()):
            return False
        return all((self.value(name) or 0.0) <= limit for name, limit in self.slo.items())

    def value(self, slo_name: str) -> float | None:
        """The metric that a limit such as `ttft_p99` is set on."""
        assert self.metrics is not None
        metric, _, statistic = slo_name.rpartition("_")
        result: float | None = getattr(getattr(self.metrics, f"{metric}_s"), statistic)
        return result

    def as_dict(self) -> dict[str, Any]:
        """The row as `--json` prints it."""
        return {
            "machine": self.machine,
            "model": self.model,
            "placement": self.placement,
            "workload": self.workload,
            "fidelity": self.fidelity,
            "axes": dict(self.axes),
            "fits": self.fits,
            "reason": self.reason,
            "saturated": self.saturated,
            "shared_links": dict(self.crowded),
            "steps": self.steps,
            "event_steps": self.event_steps,
            "memory": [
                {"memory": m.memory, "used_bytes": m.used_bytes, "capacity_bytes": m.capacity_bytes,
                 "parts": dict(m.parts)}
                for m in self.memory
            ],
            "requests": dict(self.requests),
            "tokens": dict(self.tokens),
            "transitions_per_token": dict(self.transitions_per_token),
            "link_bytes": dict(self.link_bytes),
            "metrics": self._metrics_dict(),
            "metrics_clock": self.metrics_clock,
            "bands": {name: {"low": band.low, "high": band.high} for name, band in self.bands.items()},
            "unknown": list(self.economics.unknown) if self.economics else [],
            "meets_slo": self.meets_slo,
            "preemptions": self.preemptions,
            "prefilled_tokens": self.prefilled_tokens,
            "reused_tokens": self.reused_tokens,
            "kv_blocks": self.kv_blocks,
            "peak_kv_blocks": self.peak_kv_blocks,
            "speculation": self._speculation_dict(),
        }  # fmt: skip

    def _speculation_dict(self) -> dict[str, Any] | None:
        if self.speculation is None:
            return None
        return self.speculation.as_dict() | {"draft_share": self.draft_share}

    def _metrics_dict(self) -> dict[str, Any] | None:
        metrics, economics = self.metrics, self.economics
        if metrics is None or economics is None:
            return None
        known_to = {"percentile_error": self.percentile_error} if self.percentile_error else {}
        return known_to | {
            "ttft_s": metrics.ttft_s.as_dict(),
            "tpot_s": metrics.tpot_s.as_dict(),
            "itl_s": metrics.itl_s.as_dict(),
            "e2e_s": metrics.e2e_s.as_dict(),
            "output_tokens_per_s": metrics.output_tokens_per_s,
            "total_tokens_per_s": metrics.total_tokens_per_s,
            "requests_per_s": metrics.requests_per_s,
            "energy_j_per_output_token": economics.energy_j_per_output_token,
            "usd_per_million_output_tokens": economics.usd_per_million_output_tokens,
            "attribution": dict(metrics.attribution),
            "steady": metrics.steady and metrics.steady.as_dict(),
        }


@dataclass(frozen=True)
class StudyResult:
    """All rows of a scenario, in the order of its axes."""

    scenario: str
    runs: tuple[RunResult, ...]
    assumed: tuple[str, ...] = ()
    """Uncertain figures that the rows rest on and that are assumed or a vendor's claim."""

    def as_dict(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return {"scenario": self.scenario, "runs": [run.as_dict() for run in self.runs],
                "rests_on": list(self.assumed)}  # fmt: skip
