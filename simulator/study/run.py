"""`run`: every placement of a scenario, simulated and priced, with bands where figures are uncertain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem
from simulator.placement.placement import NotPlaceable
from simulator.placement.strategies import STRATEGIES, Strategy
from simulator.results.metrics import LatencyMetrics
from simulator.results.records import RunRecord
from simulator.results.run_result import Band, Economics, MemoryUse, RunResult, StudyResult
from simulator.results.sketch import RELATIVE_ERROR
from simulator.results.summary import counts_of, is_run_saturated, metrics_of, prompt_tokens_of
from simulator.serving.arrivals import users_of
from simulator.serving.routing import routing
from simulator.serving.speculation import drawn_acceptance
from simulator.simulation.serve import Keep, serve
from simulator.specs.arrivals import (
    Arrivals,
    BatchArrivals,
    DiurnalArrivals,
    TraceArrivals,
    dispersion,
)
from simulator.specs.base import Case
from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine
from simulator.specs.model import load_model
from simulator.specs.provenance import Figure
from simulator.specs.scenario import Cost, RunSpec, Scenario, load_scenario
from simulator.specs.workload import Lengths, Workload
from simulator.study.deploy import (
    Deployment,
    deploy,
    figures_behind,
    requests_of,
    source_of,
    transitions_per_token,
)
from simulator.study.economics import economics
from simulator.study.side_by_side import Progress, carry_out

RECORDED_STEPS = 6
"""Steps of each run whose tasks are kept for the timeline; where many loops serve, three for each."""

SMALL_STUDY_REQUESTS = 1500
"""Up to so many simulated requests a study is done before worker processes would have started."""


@dataclass(frozen=True)
class _Job:
    """One simulation of a study: a run, at one end of its ranges or between them."""

    number: int
    """Of the run in the scenario."""
    run: RunSpec
    cost: Cost
    case: Case
    keep: Keep


def run_scenario(
    path: str | Path, overrides: Sequence[str] = (), progress: Progress | None = None,
    workers: int | None = None, keep: Keep = "all",
) -> StudyResult:  # fmt: skip
    """Simulate every run of a scenario file; raises InputError for files that cannot be used.

    workers: processes to use; as many as there are cores if not given, none for a small study. The
    result does not depend on it. keep: `summary` does with little memory however many requests there are; a
    percentile then has a relative error.
    """
    catalogue = Catalogue()
    scenario = load_scenario(path, STRATEGIES, overrides, catalogue=catalogue)
    cases = [_cases(run, catalogue, scenario.figures) for run in scenario.runs]
    runs = {
        case: load_scenario(path, STRATEGIES, overrides, catalogue=catalogue, case=case).runs
        for case in dict.fromkeys(case for own in cases for case in own)
    }
    jobs = [
        _job(number, run, runs[case][number], case, keep)
        for number, run in enumerate(scenario.runs)
        for case in cases[number]
    ]
    requests = sum(job.run.workload.requests or SMALL_STUDY_REQUESTS for job in jobs)
    is_small = requests <= SMALL_STUDY_REQUESTS
    rows = list(carry_out(_simulate, jobs, is_small=is_small, progress=progress, workers=workers,
                          catalogue=catalogue))  # fmt: skip
    grouped: dict[int, dict[Case, RunResult]] = {}
    for job, row in zip(jobs, rows, strict=True):
        grouped.setdefault(job.number, {})[job.case] = row
    results = tuple(_with_bands(by_case) for _, by_case in sorted(grouped.items()))
    _check_that_one_fits(scenario, results)
    return StudyResult(scenario.name, results, _rests_on(scenario, results, catalogue))


def _job(number: int, run: RunSpec, in_case: RunSpec, case: Case, keep: Keep) -> _Job:
    """A run with what its scenario says of this case: of the placement, the engine's memory and money."""
    changed = replace(run, placement=in_case.placement, memory=in_case.memory)
    return _Job(number, changed, in_case.cost, case, keep)


def _check_that_one_fits(scenario: Scenario, results: Sequence[RunResult]) -> None:
    """Nothing to compare is a mistake in the question: said as such, with every reason."""
    if any(result.fits for result in results):
        return
    raise InputError([
        Problem(scenario.path, key=f"{result.machine}, {result.placement}",
                advice=f"does not fit: {result.reason}")
        for result in results
    ])  # fmt: skip


def _cases(run: RunSpec, catalogue: Catalogue, scenario_figures: Sequence[Figure]) -> tuple[Case, ...]:
    """The nominal case, and both ends where anything behind the run is uncertain and fits."""
    deployed = _deploy(run, catalogue, "nominal") if run.bands else None
    if deployed is None or isinstance(deployed, NotPlaceable):
        return ("nominal",)
    is_uncertain = deployed.figures or scenario_figures
    return ("nominal", "best", "worst") if is_uncertain else ("nominal",)


def _deploy(run: RunSpec, catalogue: Catalogue, case: Case) -> Deployment | NotPlaceable:
    strategy = run.placement
    assert isinstance(strategy, Strategy)
    model = load_model(run.model, catalogue)
    choice = run.machine_ref, model, run.engine, run.precision, strategy
    deployed = deploy(*choice, catalogue, case, run.scheduler, run.memory)
    return deployed if isinstance(deployed, NotPlaceable) else replace(deployed, kv_blocks=run.kv_blocks)


# -- one run ------------------------------------------------------------------------------------------------


def _simulate(job: _Job, catalogue: Catalogue) -> RunResult:
    return simulate(job.run, job.cost, job.case, catalogue, job.keep)


def simulate(
    run: RunSpec, cost: Cost, case: Case, catalogue: Catalogue, keep: Keep = "all"
) -> RunResult:
    """One placement under one workload, every range taken at its `case`."""
    strategy = run.placement
    assert isinstance(strategy, Strategy)
    blank = RunResult(
        run.machine_name, run.model, strategy.label, workload_label(run.workload), run.fidelity, run.axes,
        fits=False, slo=run.slo,
    )  # fmt: skip
    deployment = _deploy(run, catalogue, case)
    if isinstance(deployment, NotPlaceable):
        return replace(blank, reason=deployment.reason)
    if keep == "summary" and deployment.engine.metrics_clock == "call":
        advice = ("latencies of this engine are of one call for all requests, over when the last one is; "
                  "a summary cannot tell them: use --keep all")  # fmt: skip
        raise InputError([Problem("scenario", key="engine", value=run.engine, advice=advice)])
    requests = requests_of(run.workload, run.seed, catalogue, deployment.program.model)
    shortest, smallest = int(requests.prompt_tokens.min()), int(requests.total_tokens.min())
    reason = deployment.refusal(shortest, smallest)
    fewest = deployment.budget.blocks_for(smallest)
    memory = memory_use(deployment, dict.fromkeys(deployment.pools, fewest))
    if reason is not None:
        return replace(blank, reason=reason, memory=memory)
    recorded = max(RECORDED_STEPS, 3 * len(deployment.programs))
    speculation = deployment.program.placement.speculation
    if speculation is not None:  # the passes for prompts, and a round
        recorded = max(recorded, 2 + speculation.tokens + 1)
    record = serve(
        deployment.programs, deployment.engine, deployment.blocks,
        lambda: source_of(run.workload, requests), run.fidelity, deployment.cores,
        recorded if case == "nominal" else 0, deployment.budget.host_blocks,
        routing(run.routing, run.seed), run.workload.timeout_s, keep,
        drawn_acceptance(deployment.program.placement, run.seed),
    )  # fmt: skip
    return _row(blank, deployment, record, run.workload, cost, case)


def _row(
    blank: RunResult, deployment: Deployment, record: RunRecord, workload: Workload, cost: Cost, case: Case
) -> RunResult:
    counts = counts_of(record)
    if counts["failed"] and not counts["finished"]:
        reason = f"no request was answered: {counts['failed']} of {sum(counts.values())} clients gave up"
        return replace(blank, fits=True, reason=reason, requests=counts)
    if not counts["finished"]:
        reason = ("no request could be served: each is longer than the model's context, than the KV cache "
                  "holds, or than a step takes where prompts are whole; or none may wait")  # fmt: skip
        return replace(blank, reason=reason, requests=counts)
    arrivals = workload.arrivals
    open_loop = users_of(arrivals) is None and not isinstance(arrivals, BatchArrivals)
    return replace(
        blank,
        fits=True,
        fidelity=record.fidelity,
        crowded=record.crowded,
        event_steps=record.event_steps,
        steps=record.step_count,
        saturated=open_loop and is_run_saturated(record, dispersion(arrivals), _cycle(arrivals)),
        memory=memory_use(deployment, record.peak_blocks_of),
        requests=counts,
        tokens={"input": prompt_tokens_of(record), "output": record.output_tokens},
        transitions_per_token=transitions_per_token(deployment.decoding),
        link_bytes=dict(record.link_bytes),
        metrics=metrics_of(record, deployment.engine.metrics_clock),
        metrics_clock=deployment.engine.metrics_clock,
        percentile_error=0.0 if record.summary is None else RELATIVE_ERROR,
        economics=economics(deployment, record, cost, unknown_as_zero=case == "best"),
        preemptions=record.preemptions,
        prefilled_tokens=record.prefilled_tokens,
        reused_tokens=record.reused_tokens,
        kv_blocks=deployment.answers_in.kv_blocks,
        peak_kv_blocks=record.peak_blocks_of[deployment.decoding.placement.role],
        speculation=record.speculation,
        draft_share=_draft_share(record),
        spans=record.spans,
    )


def _draft_share(record: RunRecord) -> float:
    if record.speculation is None:
        return 0.0
    return sum(record.speculation.draft_time_s.values()) / sum(record.time_s.values())


def _cycle(arrivals: Arrivals) -> float:
    """Requests after which the rate of arrivals is what it was."""
    return arrivals.rate_per_s * arrivals.period_s if isinstance(arrivals, DiurnalArrivals) else 0.0


def memory_use(deployment: Deployment, blocks: Mapping[str, int]) -> tuple[MemoryUse, ...]:
    """Every memory's account with so many KV blocks taken in placements, by what they are for."""
    taken: dict[str, Counter[str]] = {}
    for role, account in deployment.pools.items():
        for need in account.needs:
            taken.setdefault(need.memory, Counter()).update(need.with_blocks(blocks[role]))
    capacity = {need.memory: need.capacity_bytes for need in deployment.budget.needs}
    return tuple(
        MemoryUse(memory, parts.total(), capacity[memory], dict(parts)) for memory, parts in taken.items()
    )


def workload_label(workload: Workload) -> str:
    """A workload in a few words."""
    arrivals = workload.arrivals
    if isinstance(arrivals, TraceArrivals):
        return f"trace {Path(arrivals.file).name}"
    rate = getattr(arrivals, "rate_per_s", None)
    users = users_of(arrivals)
    detail = f" {rate:g} req/s" if rate is not None else f" {users} users" if users is not None else ""
    return f"{arrivals.process}{detail}, {_lengths_label(workload.lengths)}"


def _lengths_label(lengths: Lengths | None) -> str:
    histogram = getattr(lengths, "histogram", None)
    if histogram is not None:
        return str(histogram)
    if hasattr(lengths, "lognormal"):
        return "lognormal lengths"
    prompt, output = getattr(lengths, "prompt", None), getattr(lengths, "output", None)
    return f"{_span(prompt)} in, {_span(output)} out"


def _span(bounds: Any) -> str:
    return str(bounds.low) if bounds.low == bounds.high else f"{bounds.low}..{bounds.high}"


# -- bands ------------------------------------------------------------------------------------------------


def _with_bands(cases: Mapping[Case, RunResult]) -> RunResult:
    """The nominal row with the ends of what is uncertain in it."""
    nominal = cases["nominal"]
    ends = [cases[case] for case in ("best", "worst") if case in cases]
    if nominal.metrics is None or nominal.economics is None or not ends:
        return nominal
    values = _flat(nominal.metrics) | _flat_money(nominal.economics)
    bands = {}
    for name, value in values.items():
        others = [_value(end, name) for end in ends]
        known = [other for other in (value, *others) if other is not None]
        low = min(known, default=None)
        high = None if value is None or None in others else max(known)
        if low != high:
            bands[name] = Band(low, high)
    return replace(nominal, bands=bands)


def _value(row: RunResult, name: str) -> float | None:
    if row.metrics is None or row.economics is None:
        return None
    return (_flat(row.metrics) | _flat_money(row.economics))[name]


def _flat(metrics: LatencyMetrics) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        result |= {f"{name}.{key}": value for key, value in getattr(metrics, name).as_dict().items()}
    for name in ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s"):
        result[name] = getattr(metrics, name)
    return result


def _flat_money(money: Economics) -> dict[str, float | None]:
    return {
        "energy_j_per_output_token": money.energy_j_per_output_token,
        "usd_per_million_output_tokens": money.usd_per_million_output_tokens,
    }


def _rests_on(scenario: Scenario, results: Sequence[RunResult], catalogue: Catalogue) -> tuple[str, ...]:
    """Uncertain figures behind the study that are assumed or claimed by a vendor, each once."""
    found: dict[str, None] = {}
    for run, result in zip(scenario.runs, results, strict=True):
        if not (result.fits or result.memory):
            continue  # it was not even placed
        machine, engine = load_machine(run.machine_ref, catalogue), catalogue.engine(run.engine)
        for figure in figures_behind(machine, run.engine, engine):
            if figure.source_kind in ("assumed", "vendor-claim"):
                found[f"{figure.key_path} ({figure.kind}, {figure.source_kind})"] = None
    return tuple(found)
