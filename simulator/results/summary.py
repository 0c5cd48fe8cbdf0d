"""What a run's metrics need, added up while it goes on: nothing grows with the number of requests.

Means are of exact sums; percentiles come from a `Sketch`, to its relative error. Whether the run is saturated
is told from counts over stretches of the arrivals, so to the nearest stretch.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from simulator.results.clocks import latencies
from simulator.results.metrics import (
    CATEGORIES,
    DEVIATIONS,
    LEAST_GROWN,
    NOTHING_SEEN,
    QUANTILES,
    Distribution,
    LatencyMetrics,
    is_saturated,
    latency_metrics,
    window,
)
from simulator.results.records import RequestRecord, RunRecord
from simulator.results.sketch import Sketch
from simulator.specs.engine import MetricsClock

WAITING = 4096
"""Values are brought into a sketch so many at a time."""


class Summed:
    """Some values of which the mean and percentiles are asked for."""

    def __init__(self) -> None:
        self.sketch = Sketch()
        self.count, self._sum = 0, 0.0
        self._lost = 0.0
        """What rounding has taken from the sum (Neumaier 1974, doi:10.1002/zamm.19740540106)."""
        self._values, self._counts = array("d"), array("q")

    def add(self, value_s: float, count: int = 1) -> None:
        """Count a value some times."""
        self._values.append(value_s)
        self._counts.append(count)
        if len(self._values) >= WAITING:
            self._bring_in()

    def add_each(self, values_s: Iterable[float], count: int) -> None:
        """Count each of some values so many times."""
        self._values.extend(values_s)
        self._counts.extend([count] * (len(self._values) - len(self._counts)))
        if len(self._values) >= WAITING:
            self._bring_in()

    @property
    def total_s(self) -> float:
        """All values added up."""
        self._bring_in()
        return self._sum + self._lost

    def distribution(self, is_interpolated: bool) -> Distribution:
        """Percentiles by interpolation between values, or values that were observed."""
        total_s = self.total_s
        if not self.count:
            return NOTHING_SEEN
        quantile = self.sketch.interpolated if is_interpolated else self.sketch.observed
        return Distribution(total_s / self.count, *map(quantile, QUANTILES))

    def _bring_in(self) -> None:
        self.sketch.add(self._values, self._counts)
        self.count += sum(self._counts)
        part = math.fsum(value * count for value, count in zip(self._values, self._counts, strict=True))
        total = self._sum + part
        larger, smaller = (self._sum, part) if abs(self._sum) >= abs(part) else (part, self._sum)
        self._lost += (larger - total) + smaller
        self._sum = total
        self._values, self._counts = array("d"), array("q")


@dataclass(slots=True)
class _Stretch:
    """Some arrivals that follow each other, and the time until the next stretch."""

    arrived: int = 0
    refused: int = 0
    in_system: int = 0
    """Requests in the system as each arrived, added up."""
    done: int = 0
    """Answers that were complete before the last arrival of the run, and not before the first of these."""

    def take_in(self, other: _Stretch) -> None:
        """Make this and the next one stretch."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


STRETCHES = 768


@dataclass(slots=True)
class Flow:
    """Arrivals and answers by stretches of as many arrivals each. When there are too many stretches, every
    two become one."""

    stretches: list[_Stretch] = field(default_factory=list)
    _each: int = 1
    """Arrivals of a full stretch."""
    _done: int = 0
    """Answers since the last arrival."""

    def arrive(self, in_system: int) -> None:
        """A request arrives when so many are in the system."""
        if self.stretches:
            self.stretches[-1].done += self._done
        self._done = 0
        if not self.stretches or self.stretches[-1].arrived == self._each:
            if len(self.stretches) == STRETCHES:
                self._halve()
            self.stretches.append(_Stretch())
        last = self.stretches[-1]
        last.arrived += 1
        last.in_system += in_system

    def refuse(self) -> None:
        """The request that arrived last can never be served."""
        self.stretches[-1].refused += 1

    def finish(self) -> None:
        """An answer is complete."""
        self._done += 1

    def _halve(self) -> None:
        self._each *= 2
        for one, other in zip(self.stretches[::2], self.stretches[1::2], strict=True):
            one.take_in(other)
        del self.stretches[1::2]

    def is_saturated(self, share: float = 1 / 3, dispersion: float = 1.0) -> bool:
        """As `metrics.is_saturated`, of the last `share` of arrivals and as many before."""
        arrived = sum(each.arrived for each in self.stretches)
        last, rest = _last(self.stretches, arrived * share)
        before, _ = _last(rest, arrived * share)
        if sum(each.arrived for each in last) < LEAST_GROWN:
            return False
        is_growing = _mean_in_system(last) - _mean_in_system(before) > LEAST_GROWN
        count = sum(each.arrived - each.refused for each in last)
        done = sum(each.done for each in last)
        return is_growing and done < count - DEVIATIONS * math.sqrt((max(1.0, dispersion) + 1) * count)


def _last(stretches: Sequence[_Stretch], arrivals: float) -> tuple[Sequence[_Stretch], Sequence[_Stretch]]:
    """As many of the last stretches as come closest to so many arrivals, and the rest."""
    found, first = 0, len(stretches)
    while first and found + stretches[first - 1].arrived / 2 <= arrivals:
        first -= 1
        found += stretches[first].arrived
    return stretches[first:], stretches[:first]


def _mean_in_system(stretches: Sequence[_Stretch]) -> float:
    arrived = sum(each.arrived for each in stretches)
    return sum(each.in_system for each in stretches) / arrived if arrived else 0.0


@dataclass
class Summary:
    """Of all requests of a run."""

    clock: MetricsClock = "client"
    """What latencies are read from; not `call`, which knows where they begin only at the end."""
    counts: dict[str, int] = field(default_factory=lambda: {"finished": 0, "rejected": 0, "failed": 0})
    prompt_tokens: int = 0
    """Of finished requests, as all that follows."""
    output_tokens: int = 0
    ttft_s: Summed = field(default_factory=Summed)
    tpot_s: Summed = field(default_factory=Summed)
    e2e_s: Summed = field(default_factory=Summed)
    itl_s: Summed = field(default_factory=Summed)
    flow: Flow = field(default_factory=Flow)
    end_s: float = 0.0
    first_sent_s: float | None = None
    """Of all requests."""

    @property
    def start_s(self) -> float:
        return self.first_sent_s or 0.0

    def begin_anew(self) -> None:
        """Forget all requests so far: they only warmed up."""
        vars(self).update(vars(Summary(self.clock)))

    def add(self, request: RequestRecord) -> None:
        """Count a request that is over."""
        self.counts[request.status] += 1
        if self.first_sent_s is None or request.sent_s < self.first_sent_s:
            self.first_sent_s = request.sent_s
        if request.status == "rejected":
            self.flow.refuse()
        if request.status != "finished":
            return
        self.flow.finish()
        self.end_s = max(self.end_s, request.last_received_s)
        self.prompt_tokens += request.prompt_tokens
        self.output_tokens += request.output_tokens
        ((ttft_s, tpot_s, e2e_s),) = latencies((request,), self.clock)
        self.ttft_s.add(ttft_s)
        self.e2e_s.add(e2e_s)
        if tpot_s is not None:
            self.tpot_s.add(tpot_s)


# -- of a run, whatever was kept of it ----------------------------------------------------------------------


def counts_of(record: RunRecord) -> dict[str, int]:
    """How many requests were finished, rejected and failed."""
    if record.summary is not None:
        return dict(record.summary.counts)
    counts = {"finished": 0, "rejected": 0, "failed": 0}
    for request in record.requests:
        counts[request.status] += 1
    return counts


def prompt_tokens_of(record: RunRecord) -> int:
    """Of finished requests."""
    if record.summary is not None:
        return record.summary.prompt_tokens
    return sum(request.prompt_tokens for request in record.finished())


def is_run_saturated(record: RunRecord, dispersion: float = 1.0, cycle: float = 0.0) -> bool:
    """Whether requests arrived faster than they were served when arrivals ended; see `is_saturated`."""
    if record.summary is None:
        return is_saturated(record, dispersion, cycle)
    arrivals = sum(record.summary.counts.values())
    return record.summary.flow.is_saturated(window(arrivals, cycle) / max(1, arrivals), dispersion)


def metrics_of(record: RunRecord, clock: MetricsClock = "client") -> LatencyMetrics:
    """Derive the metrics of a run in which at least one request finished."""
    summary = record.summary
    if summary is None:
        return latency_metrics(record, clock)
    assert summary.clock == clock
    total_s = sum(record.time_s.values())
    return LatencyMetrics(
        ttft_s=summary.ttft_s.distribution(True),
        tpot_s=summary.tpot_s.distribution(True),
        itl_s=summary.itl_s.distribution(False),
        e2e_s=summary.e2e_s.distribution(True),
        output_tokens_per_s=summary.output_tokens / record.duration_s,
        total_tokens_per_s=(summary.prompt_tokens + summary.output_tokens) / record.duration_s,
        requests_per_s=summary.counts["finished"] / record.duration_s,
        attribution={name: record.time_s[name] / total_s for name in CATEGORIES},
        overhead_share=record.overhead_s / total_s,
    )
