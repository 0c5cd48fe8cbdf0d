"""The law of the fidelities on whole runs of every placement strategy, on machines where flows meet."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.placement.placement import NotPlaceable
from simulator.placement.strategies import STRATEGIES
from simulator.results.records import RunRecord
from simulator.simulation.serve import serve
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import RunSpec, load_scenario
from simulator.study.deploy import Deployment, deploy, requests_of, source_of
from tests import tiny

CATALOGUE = Catalogue()
SCENARIO = "scenarios/tiny-strategies.yaml"
LOAD = "workload={arrivals: {process: poisson, rate: %s req/s}, lengths: {prompt: %s, output: 3..25}, requests: 8}"


def runs(*overrides: str) -> list[RunSpec]:
    return list(load_scenario(SCENARIO, STRATEGIES, overrides, catalogue=CATALOGUE).runs)


def served(run: RunSpec, deployment: Deployment, fidelity: str) -> RunRecord:
    requests = requests_of(run.workload, run.seed, CATALOGUE, deployment.program.model)
    blocks = min(deployment.budget.kv_blocks, 2000)
    return serve(deployment.programs, deployment.engine, blocks, lambda: source_of(run.workload, requests),
                 fidelity, deployment.cores)  # fmt: skip


def compared(run: RunSpec) -> RunRecord | None:
    """The record of `step`, which must be that of `task` and of `fast`; None if it cannot be placed."""
    model = load_model(run.model, CATALOGUE)
    strategy: Any = run.placement
    deployment = deploy(run.machine_ref, model, run.engine, run.precision, strategy, CATALOGUE)
    if isinstance(deployment, NotPlaceable) or not deployment.budget.kv_blocks:
        return None
    by_task, by_step, fast = (served(run, deployment, each) for each in ("task", "step", "fast"))
    assert tiny.facts(by_task) == tiny.facts(by_step) == tiny.facts(fast), run.placement
    return by_step


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-mixtral", pytest.param("tiny-gemma2", marks=pytest.mark.slow)])
def test_every_strategy_is_the_same_in_all_fidelities(model: str) -> None:
    records = [compared(run) for run in runs(f"model={model}", LOAD % (900, "5..40"))]
    assert sum(record is not None for record in records) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["nr1-4x-l40s", "xeon-6454s-1s-4x-rtx-4090"])
def test_so_is_every_strategy_with_a_large_model(machine: str) -> None:
    """Behind one uplink or on one memory bus, some of them with windows of events."""
    formats = "precision={weights: bf16, activations: bf16, kv_cache: bf16}"
    load = LOAD % (3, "100..900")
    found = [compared(run) for run in runs("model=llama-3.1-8b", f"machine={machine}", formats, load)]
    records = [record for record in found if record is not None]
    assert len(records) >= 6
    assert any(record.crowded for record in records)
    assert any(not record.crowded for record in records)
