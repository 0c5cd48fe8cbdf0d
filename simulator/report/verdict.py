"""What a study comes to, in sentences: which placement, by how much, and what nobody knows.

A row is `decided` if its cost rests on no unknown figure. A price nobody has published gives a
break-even, never a point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulator.report.wording import (
    COST,
    MS_PER_S,
    context_key,
    is_context,
    joined,
    largest_share,
    metric_name,
    percent,
    reading,
    reading_name,
    row_name,
    shown_axes,
    status,
)
from simulator.results.run_result import TOKENS_PER_PRICE, RunResult, StudyResult
from simulator.units import format_number, format_seconds

_ADVICE = {
    "compute": "arithmetic limits it; faster or more devices or a shorter number format would pay most",
    "memory": "memory bandwidth limits it; faster memory, more devices or shorter formats of weights and KV"
    " cache would pay most",
    "transfer": "the links between devices limit it; a faster link or fewer transitions would pay most",
    "host": "host work limits it; more or faster host cores, or offloading their work, would pay most",
    "network": "the network limits it; a faster or nearer network would pay most",
    "waiting": "queueing limits it; another replica or a lower request rate would pay most",
}
_OVERHEAD_ADVICE = (
    "mostly what kernels cost however small they are; larger batches, fused kernels or fewer devices would"
    " pay most"
)
_LONGEST_LIST = 3


def verdict(study: StudyResult) -> list[str]:
    """Plain sentences; one set for each question (workload, model, SLO ...) that the scenario asks."""
    axes = shown_axes(study)
    own_axes = {name: short for name, short in axes.items() if not is_context(name)}
    questions: dict[tuple[tuple[str, str], ...], list[RunResult]] = {}
    for run in study.runs:
        questions.setdefault(context_key(run), []).append(run)
    lines = []
    for key, runs in questions.items():
        prefix = ", ".join(f"{axes.get(name, name)} {value}" for name, value in key)
        said = _Question(tuple(runs), own_axes).sentences()
        lines += [f"{prefix}: {each}" if len(questions) > 1 else each for each in said]
    return lines


def _advice(run: RunResult, category: str, share: float) -> str:
    """What would pay most, given the category that most of the time goes to."""
    overhead = run.metrics.overhead_share if run.metrics else 0.0
    return _OVERHEAD_ADVICE if category == "compute" and overhead > share / 2 else _ADVICE[category]


def break_even_usd(run: RunResult, usd_per_million_tokens: float) -> float | None:
    """The unknown purchase price at which a row's tokens cost this much; None if none is unknown.

    `known + added * price = cost of the run`. Negative if what is known alone costs more.
    """
    if run.economics is None or not run.economics.usd_per_unknown_purchase_usd:
        return None
    allowed_usd = usd_per_million_tokens * run.tokens["output"] / TOKENS_PER_PRICE
    return (allowed_usd - run.economics.known_usd) / run.economics.usd_per_unknown_purchase_usd


@dataclass(frozen=True)
class _Question:
    """The rows that answer one question, and what to say of them."""

    runs: tuple[RunResult, ...]
    axes: Mapping[str, str]

    def sentences(self) -> list[str]:
        ran = [run for run in self.runs if run.metrics is not None]
        if not any(run.fits for run in self.runs):
            return list(self._nothing_fits())
        if not ran:
            return ["No request finished under any placement that fits."]
        if any(run.slo for run in ran):
            meeting = [run for run in ran if run.meets_slo]
            said = list(self._best(meeting, "that meets the SLO") if meeting else self._nothing_meets(ran))
        else:
            steady = [run for run in ran if not run.saturated]
            said = [] if steady else ["Every placement is saturated: its percentiles are lower bounds."]
            said += [*self._best(steady or ran, ""), *self._fastest(steady or ran)]
        return said + self._tally()

    def _name(self, run: RunResult) -> str:
        return row_name(run, self.axes)

    def _nothing_fits(self) -> Iterator[str]:
        yield f"No placement fits{'' if len(self.runs) == 1 else f' (of {len(self.runs)})'}."
        for run in self.runs[:_LONGEST_LIST]:
            yield f"{self._name(run)}: {run.reason or 'no reason given'}."

    def _best(self, candidates: Sequence[RunResult], which: str) -> Iterator[str]:
        """The cheapest of `candidates`, how the next compares, what limits it, what stays open."""
        decided = sorted((run for run in candidates if _is_decided(run)), key=_cost)
        if not decided:
            yield from self._all_undecided(candidates, which)
            return
        winner = decided[0]
        open_points = [*self._unknown_rivals(winner, candidates), *self._ranges(winner, decided, candidates)]
        far = ", as far as figures are known" if open_points else ""
        figures = f"{_cost_text(winner)}{_latencies(winner)}"
        yield f"Cheapest{_gap(which)}{far}: {self._name(winner)}, at {figures}."
        if len(decided) > 1:
            yield self._compared(winner, decided[1])
        yield from self._limit(winner)
        yield from open_points

    def _all_undecided(self, candidates: Sequence[RunResult], which: str) -> Iterator[str]:
        yield f"Not decided by known figures: no placement{_gap(which)} has a cost that is known."
        for run in candidates:
            yield f"{self._name(run)}: {_cost_text(run)}{_unknown_text(run)}."
        if which:
            yield from self._fastest(candidates)

    def _compared(self, winner: RunResult, following: RunResult) -> str:
        times = _cost(following) / _cost(winner) if _cost(winner) else 1.0
        how = "as much" if times < 1.005 else f"{times:.2f} times as much"
        return f"Next: {self._name(following)}, which costs {how}, at {_cost_text(following)}" + (
            f"{_latencies(following)}."
        )

    def _fastest(self, candidates: Sequence[RunResult]) -> Iterator[str]:
        timed = [run for run in candidates if reading(run, "tpot_s.p99").value is not None]
        if len(candidates) > 1 and timed:
            first = min(timed, key=lambda run: reading(run, "tpot_s.p99").value or 0.0)
            yield f"Lowest TPOT p99: {self._name(first)}, {_time_text(first, 'tpot_p99')}."

    def _limit(self, run: RunResult) -> Iterator[str]:
        found = largest_share(run)
        if found is not None:
            yield f"Of its requests' time {percent(found[1])} goes to {found[0]}: {_advice(run, *found)}."

    def _unknown_rivals(self, winner: RunResult, candidates: Sequence[RunResult]) -> Iterator[str]:
        """Rows as good as the winner whose cost hangs on a figure nobody has published."""
        for run in candidates:
            if not _is_decided(run) and not _costs_more_for_sure(run, winner):
                yield f"Not decided by known figures: {self._name(run)} {_break_even_text(run, winner)}."

    def _ranges(
        self, winner: RunResult, decided: Sequence[RunResult], candidates: Sequence[RunResult]
    ) -> Iterator[str]:
        """Rows that a range may put in the winner's place, and limits that a range may break."""
        high = reading(winner, COST).high
        rivals = [run for run in decided[1:] if _may_cost_less(run, high)]
        if rivals:
            shown = [f"{self._name(run)} at {_cost_text(run)}" for run in rivals[:_LONGEST_LIST]]
            shown += [f"{len(rivals) - len(shown)} more"] if len(rivals) > len(shown) else []
            yield f"Not decided by known figures: within the ranges {joined(shown)} may be cheaper."
        for name in _limits_in_doubt(winner):
            yield f"Not decided by known figures: whether {self._name(winner)} meets the SLO;" + (
                f" its {metric_name(name)} is {_time_text(winner, name)}."
            )
        for run in self.runs:
            if _may_meet(run) and _may_cost_less(run, high):
                yield f"Not decided by known figures: {self._name(run)} misses the SLO at nominal" + (
                    f" figures, but within the ranges may meet it{_latencies(run)}, and may cost less."
                )

    def _nothing_meets(self, ran: Sequence[RunResult]) -> Iterator[str]:
        closest = min(ran, key=lambda run: (run.saturated, _unfinished(run) > 0, _excess(run)))
        yield f"No placement meets the SLO. Closest: {self._name(closest)}{_misses_text(closest)}."
        if _may_meet(closest):
            yield f"Not decided by known figures: within its ranges it may meet the SLO{_latencies(closest)}."
        yield from self._limit(closest)

    def _tally(self) -> list[str]:
        """How many rows stand how, where there are several."""
        words = {"meets": "meet the SLO", "misses": "miss it", "saturated": "saturated", "-": "simulated",
                 "does not fit": "do not fit"}  # fmt: skip
        counts = {word: sum(status(run) == key for run in self.runs) for key, word in words.items()}
        if len(self.runs) == 1 or not (counts["meet the SLO"] or counts["miss it"] or counts["do not fit"]):
            return []
        return [f"Of {len(self.runs)} rows: {', '.join(f'{n} {word}' for word, n in counts.items() if n)}."]


def _gap(which: str) -> str:
    return f" {which}" if which else ""


def _cost(run: RunResult) -> float:
    """Of a decided row."""
    value = reading(run, COST).value
    assert value is not None
    return value


def _is_decided(run: RunResult) -> bool:
    return reading(run, COST).value is not None


def _cost_text(run: RunResult) -> str:
    found = reading(run, COST)
    if found.value is None and found.low is None:
        return "an unknown cost"
    return f"{found.text()} USD per million output tokens"


def _unknown_text(run: RunResult) -> str:
    unknown = run.economics.unknown if run.economics is not None else ()
    return f"; unknown: {joined(dict.fromkeys(unknown))}" if unknown else ""


def _costs_more_for_sure(run: RunResult, winner: RunResult) -> bool:
    """Whether even what is known of a row's cost is more than the winner's, wherever ranges end."""
    least, most = reading(run, COST).low, reading(winner, COST).high
    return least is not None and most is not None and least >= most


def _may_cost_less(run: RunResult, winner_high: float | None) -> bool:
    low = reading(run, COST).low
    return low is None or winner_high is None or low < winner_high


def _break_even_text(run: RunResult, winner: RunResult) -> str:
    """What the unknown price would have to be for the row to be the cheaper one."""
    economics, price_usd = run.economics, break_even_usd(run, _cost(winner))
    if economics is None or price_usd is None:
        return f"has {_cost_text(run)}{_unknown_text(run)}"
    too = "meets the SLO too and " if run.slo else ""
    if price_usd <= 0:
        return f"{too}costs less only at the best ends of ranges, whatever is unknown of it"
    things, others = _split_unknown(economics.unknown)
    counted = f" ({others}, unknown too, not counted)" if others else ""
    if len(things) > 1:
        return f"{too}breaks even where {joined(things)} cost {format_number(price_usd)} USD each{counted}"
    each = " each" if len(economics.unknown) > len(set(economics.unknown)) else ""
    limit = f"{format_number(price_usd)} USD{each}{counted}"
    return f"{too}costs less only if {joined(things)} can be had for less than {limit}"


def _split_unknown(unknown: Sequence[str]) -> tuple[list[str], str]:
    """What has no known price, and the other unknown figures in a few words."""
    unique = list(dict.fromkeys(unknown))
    prices = [name for name in unique if "price" in name or "purchase" in name]
    others = [name for name in unique if name not in prices]
    if others and all("power" in name for name in others):
        others = ["its own power"]
    return [_thing(name) for name in prices] or ["it"], joined(others) if others else ""


def _thing(key_path: str) -> str:
    """`nr1` for `hosts.nr1.price`."""
    _, *steps = key_path.split(".")
    return steps[0] if len(steps) > 1 else key_path


def _time_text(run: RunResult, name: str) -> str:
    """`310 (290..340) ms of 1 s`: a latency, its band, its limit."""
    found = reading(run, reading_name(name))
    if found.value is None:
        return "not observed"
    scale, unit = (1.0, "s") if found.value >= 1 else (MS_PER_S, "ms")
    limit = run.slo.get(name)
    return f"{found.text(scale)} {unit}" + ("" if limit is None else f" of {format_seconds(limit)}")


def _latencies(run: RunResult) -> str:
    """`; TTFT p99 310 ms of 1 s, TPOT p99 21 ms of 60 ms`: the limits, or the usual two."""
    names = run.slo or ("ttft_p99", "tpot_p99")
    return "; " + ", ".join(f"{metric_name(name)} {_time_text(run, name)}" for name in names)


def _unfinished(run: RunResult) -> int:
    return sum(run.requests.values()) - run.requests.get("finished", 0)


def _ratios(run: RunResult) -> dict[str, float]:
    """Each limited latency as a multiple of its limit."""
    return {name: (run.value(name) or 0.0) / limit for name, limit in run.slo.items()}


def _excess(run: RunResult) -> float:
    return max(_ratios(run).values(), default=0.0)


def _misses_text(run: RunResult) -> str:
    """Which limits a row breaks, and by how much."""
    least = "at least " if run.saturated else ""
    broken = [
        f"its {metric_name(name)} is {least}{_time_text(run, name)}, {least}{percent(ratio - 1)} over"
        for name, ratio in _ratios(run).items() if ratio > 1
    ]  # fmt: skip
    if run.saturated:
        broken.insert(0, "it is saturated, so its queue would go on growing")
    if _unfinished(run):
        broken.append(f"{_unfinished(run)} of {sum(run.requests.values())} requests were rejected or failed")
    return "; " + "; ".join(broken) if broken else ""


def _limits_in_doubt(run: RunResult) -> list[str]:
    """Limits that hold at nominal figures and break at the worst end of a range."""
    highs = {name: reading(run, reading_name(name)) for name in run.slo}
    return [name for name, found in highs.items()
            if found.value is not None and (found.high is None or found.high > run.slo[name])]  # fmt: skip


def _may_meet(run: RunResult) -> bool:
    """Whether a row that misses at nominal figures holds every limit at the best end of its ranges."""
    if run.metrics is None or run.meets_slo or not run.slo or run.saturated or _unfinished(run):
        return False
    lows = {name: reading(run, reading_name(name)).low for name in run.slo}
    return all(low is None or low <= run.slo[name] for name, low in lows.items())
