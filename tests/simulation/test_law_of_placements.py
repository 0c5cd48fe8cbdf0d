"""The law of the fidelities for every placement that lowering knows, and for every strategy: whole runs at
fidelity `task`, `step` and `fast` have the same record, to the tick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from simulator.placement.placement import Placement
from simulator.placement.program import Program, programs_of
from simulator.placement.strategies import STRATEGIES, Strategy
from simulator.results.records import RunRecord
from simulator.simulation.serve import serve
from simulator.specs.catalogue import Catalogue
from simulator.specs.scenario import load_scenario
from tests import tiny
from tests.placed import EXPERT_PLACEMENTS, FLOAT64, PLACEMENTS, machine, model, some_slow

BLOCKS = 9
"""Few enough that sequences are preempted."""
MEET_ON_A_LINK = {"streamed ranks", "some experts aside, the others whole"}
"""Whose flows meet, so that windows of `step` are events; of all others it must be the recursion that agrees."""
STAGES = {"receive_s": 3e-6, "tokenize_s": 2e-7, "detokenize_s": 5e-7, "send_s": 3e-7}


def rows_of(seed: int) -> list[tuple[float, int, int]]:
    """Five requests that come while others are served, as (sent, prompt tokens, output tokens)."""
    rng = np.random.default_rng(seed)
    gaps_s = rng.exponential(scale=10 ** rng.uniform(-5, -3), size=5)
    return [(float(at), int(rng.integers(1, 25)), int(rng.integers(1, 7))) for at in gaps_s.cumsum()]


def run(programs: Sequence[Program], seed: int, fidelity: str) -> RunRecord:
    engine = tiny.engine(step_s=4e-6, per_sequence_s=3e-7, stages=STAGES)
    users = None if seed % 2 else 2
    return serve(programs, engine, BLOCKS * programs[0].placement.loops, tiny.source(tiny.requests(*rows_of(seed)), users),
                 fidelity, cores=2)  # fmt: skip


def assert_law(
    placements: Sequence[Placement], name: str, where: str = "epyc-9654-4x-l40s", is_eager: bool = False
) -> None:
    programs, preemptions = programs_of(model(name), placements, machine(where), FLOAT64, is_eager), 0
    for seed in range(2):
        by_task, by_step, fast = (run(programs, seed, each) for each in ("task", "step", "fast"))
        assert tiny.facts(by_task) == tiny.facts(by_step)
        assert tiny.facts(by_task) == tiny.facts(fast)
        assert by_task.event_steps == by_task.step_count
        assert not by_step.crowded or placements[0].name in MEET_ON_A_LINK
        preemptions += by_task.preemptions
    assert preemptions or len(programs) > 2, "workloads must reach preemption too"


@pytest.mark.parametrize("placement", some_slow(PLACEMENTS), ids=lambda placement: placement.name)
def test_the_law_for_every_placement(placement: Placement) -> None:
    assert_law((placement,), "tiny-llama")


@pytest.mark.parametrize("placement", some_slow(EXPERT_PLACEMENTS), ids=lambda placement: placement.name)
def test_the_law_for_experts_in_other_places(placement: Placement) -> None:
    assert_law((placement,), "tiny-mixtral")


SCENARIO = Path(__file__).parents[2] / "scenarios" / "tiny-strategies.yaml"
WITH_STORAGE = "xeon-6454s-1s-4x-rtx-4090"
RUNS = load_scenario(SCENARIO, STRATEGIES, catalogue=Catalogue()).runs
STRATEGIES_USED = {run.placement.label: run.placement for run in RUNS if isinstance(run.placement, Strategy)}


@pytest.mark.parametrize("is_eager", [False, True], ids=["compiled", "eager"])
@pytest.mark.parametrize("label", some_slow(list(STRATEGIES_USED)))
def test_the_law_for_every_strategy(label: str, is_eager: bool) -> None:
    strategy = STRATEGIES_USED[label]
    name = "tiny-mixtral" if "expert" in label else "tiny-llama"
    found = strategy.place(model(name), machine(WITH_STORAGE))
    placements = (found,) if isinstance(found, Placement) else found
    assert isinstance(placements, tuple), found
    assert_law(placements, name, WITH_STORAGE, is_eager)
