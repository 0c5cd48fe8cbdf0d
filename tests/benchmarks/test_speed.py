"""CPU time of the simulator, also as a ratio to a fixed loop of SimPy timeouts in the same process, which
another load on the machine moves far less. `make bench`; compare before and after a change."""

import resource
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
from simulator.simulation.serve import Keep, Serving
from simulator.specs.arrivals import PoissonArrivals
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import Deployment, deploy

TIMEOUTS = 500_000

AZURE_PER_S = 19_366 / (58 * 60 + 21)
"""Mean rate of the Azure LLM inference trace 2023, conversations: 19,366 requests from 18:15:46.68 to
19:14:08.40 (github.com/Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv)."""


EIGHT_NODES = {
    "nodes": [
        {"name": f"n{number}", "host": "hgx-xeon-8480p-2s", "devices": {"h100-sxm": 8},
         "host_link": "pcie-gen5-x16", "interconnect": "nvlink-4"}
        for number in range(8)
    ],
    "network": "ib-ndr",
}  # fmt: skip
"""Sixty-four H100."""


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
    model, ref = load_model("llama-3.1-8b", catalogue), EIGHT_NODES if machine == "eight nodes" else machine
    deployed = deploy(ref, model, "vllm", formats, strategy, catalogue)
    assert isinstance(deployed, Deployment)
    return deployed


def serving(
    strategy: Strategy, machine: str, fidelity: str, count: int, times: float = 1.0, keep: Keep = "all"
) -> Serving:
    """A run of `count` requests with the lengths of the Azure conversations, at so many times their mean rate."""
    served = deployment(strategy, machine)
    arrivals = PoissonArrivals(process="poisson", rate_per_s=AZURE_PER_S * times)
    source = Source(generate(arrivals, Catalogue().histogram("azure-conv-2023"), count, seed=1))
    blocks = served.budget.kv_blocks
    return Serving(served.programs, served.engine, blocks, source, fidelity, served.cores, keep=keep)


def memory_bytes() -> int:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(benchmark, run: Callable[[], int]) -> int:
    """Run once and note what a step costs."""
    start = time.process_time()
    steps = benchmark.pedantic(run, rounds=1, warmup_rounds=0)
    spent_s = time.process_time() - start
    benchmark.extra_info.update(
        cpu_s=round(spent_s, 3), steps=steps, us_per_step=round(spent_s / steps * 1e6, 1),
        ratio_to_simpy=round(spent_s / yardstick_s(), 2),
    )  # fmt: skip
    return steps


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
    steps = measured(benchmark, lambda: serving(strategy, machine, fidelity, count).run().step_count)
    print(f"\n{benchmark.extra_info}")
    assert steps > count


@pytest.mark.parametrize("keep", ["all", "summary"])
def test_ten_thousand_requests(benchmark, keep):
    """Also how much memory a request takes that is over; nothing where a summary is kept."""
    run = serving(SingleDevice(), "hgx-h100-8", "fast", 10_000, keep=keep)
    before = memory_bytes()
    steps = measured(benchmark, lambda: run.run().step_count)
    grown = memory_bytes() - before
    benchmark.extra_info.update(peak_bytes_per_request=round(grown / 10_000))
    print(f"\n{benchmark.extra_info}")
    assert steps > 10_000


@pytest.mark.parametrize("replicas", [1, 64])
def test_replicas(benchmark, replicas):
    """The same requests for each replica: a step should cost about the same, however many replicas there are."""
    strategy = SingleDevice() if replicas == 1 else DataParallel(replicas=replicas)
    start = time.process_time()
    run = serving(strategy, "eight nodes", "fast", 100 * replicas, times=replicas / 8)
    set_up_s = time.process_time() - start
    steps = measured(benchmark, lambda: run.run().step_count)
    benchmark.extra_info.update(set_up_s=round(set_up_s, 2))
    print(f"\n{benchmark.extra_info}")
    assert steps > 100 * replicas


def test_lowering(benchmark):
    program = deployment(TensorParallel(degree=8), "hgx-h100-8").program

    def lower() -> int:
        return len(Program(program.model, program.placement, program.machine, program.formats).template(1).tasks)

    assert benchmark.pedantic(lower, rounds=3) > 1000
