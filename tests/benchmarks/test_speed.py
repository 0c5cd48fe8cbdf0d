"""CPU time of the simulator, also as a ratio to a fixed loop of SimPy timeouts in the same process, which
another load on the machine moves far less. `make bench`; compare before and after a change."""

import time
from collections.abc import Callable
from functools import cache

import pytest
from simpy import Environment

from simulator.placement.program import Program
from simulator.placement.strategies import (
    DataParallel,
    LayerSplit,
    PipelineParallel,
    SingleDevice,
    Strategy,
    TensorParallel,
)
from simulator.serving.arrivals import Source, generate
from simulator.simulation.serve import serve
from simulator.specs.arrivals import PoissonArrivals
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import Deployment, deploy

TIMEOUTS = 500_000

AZURE_PER_S = 19_366 / (58 * 60 + 21)
"""Mean rate of the Azure LLM inference trace 2023, conversations: 19,366 requests from 18:15:46.68 to
19:14:08.40 (github.com/Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv)."""


@cache
def yardstick_s() -> float:
    """CPU seconds of half a million SimPy timeouts."""

    def ticking(env: Environment, count: int):
        for _ in range(count):
            yield env.timeout(1)

    env = Environment()
    for _ in range(100):
        env.process(ticking(env, TIMEOUTS // 100))
    start = time.process_time()
    env.run()
    return time.process_time() - start


@cache
def deployment(strategy: Strategy, machine: str) -> Deployment:
    """Llama-3.1-8B in bf16 under vLLM."""
    catalogue = Catalogue()
    formats = PrecisionChoice(weights="bf16", activations="bf16", kv_cache="bf16")
    deployed = deploy(machine, load_model("llama-3.1-8b", catalogue), "vllm", formats, strategy, catalogue)
    assert isinstance(deployed, Deployment)
    return deployed


def serving(strategy: Strategy, machine: str, fidelity: str, count: int) -> Callable[[], int]:
    """A run of `count` requests with the lengths and the mean rate of the Azure conversations."""
    served = deployment(strategy, machine)
    blocks, cores = served.budget.kv_blocks, served.cores
    arrivals = PoissonArrivals(process="poisson", rate_per_s=AZURE_PER_S)
    requests = generate(arrivals, Catalogue().histogram("azure-conv-2023"), count, seed=1)

    def run() -> int:
        return serve(served.programs, served.engine, blocks, lambda: Source(requests), fidelity, cores).step_count

    return run


@pytest.mark.parametrize(
    ("strategy", "machine", "fidelity", "count"),
    [
        (SingleDevice(), "hgx-h100-8", "fast", 1000),
        (SingleDevice(), "hgx-h100-8", "step", 1000),
        (SingleDevice(), "hgx-h100-8", "task", 1000),
        (TensorParallel(degree=4), "hgx-h100-8", "fast", 1000),
        (LayerSplit(gpu_layers=24), "epyc-9654-4x-l40s", "fast", 1000),
        (PipelineParallel(stages=4), "hgx-h100-8", "fast", 1000),
        (PipelineParallel(stages=4, loops=1, microbatches=4), "hgx-h100-8", "fast", 1000),
        (DataParallel(replicas=4), "hgx-h100-8", "fast", 1000),
    ],
    ids=["fast", "step", "task", "fast-tp4", "fast-split", "fast-pipeline", "fast-microbatches", "fast-replicas"],
)
def test_serving(benchmark, strategy, machine, fidelity, count):
    run = serving(strategy, machine, fidelity, count)
    start = time.process_time()
    steps = benchmark.pedantic(run, rounds=1, warmup_rounds=0)
    spent_s = time.process_time() - start
    benchmark.extra_info.update(
        cpu_s=round(spent_s, 3), steps=steps, us_per_step=round(spent_s / steps * 1e6, 1),
        ratio_to_simpy=round(spent_s / yardstick_s(), 2),
    )  # fmt: skip
    print(f"\n{benchmark.extra_info}")
    assert steps > count


def test_lowering(benchmark):
    program = deployment(TensorParallel(degree=8), "hgx-h100-8").program

    def lower() -> int:
        return len(Program(program.model, program.placement, program.machine, program.formats).template(1).tasks)

    assert benchmark.pedantic(lower, rounds=3) > 1000
