"""CPU time of the simulator, also as a ratio to a fixed loop of SimPy timeouts in the same process, which
another load on the machine moves far less. `make bench`; compare before and after a change."""

import time
from collections.abc import Callable
from functools import cache

import pytest
from simpy import Environment

from simulator.graph.machine import machine_graph
from simulator.graph.work import Formats
from simulator.placement.memory import budget
from simulator.placement.program import Program
from simulator.placement.strategies import LayerSplit, SingleDevice, Strategy, TensorParallel
from simulator.serving.arrivals import Source, generate
from simulator.simulation.serve import serve
from simulator.specs.catalogue import Catalogue
from simulator.specs.machine import load_machine
from simulator.specs.model import load_model
from simulator.specs.workload import PoissonArrivals

TIMEOUTS = 500_000


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


def program_of(strategy: Strategy, machine: str) -> Program:
    catalogue = Catalogue()
    graph = machine_graph(load_machine(machine, catalogue))
    model = load_model("llama-3.1-8b", catalogue)
    return Program(model, strategy.place(model, graph), graph, Formats("fp8", "bf16", "fp8"))


def serving(strategy: Strategy, machine: str, fidelity: str, count: int) -> Callable[[], int]:
    """A run of `count` requests with the lengths of the Azure conversations, at 4 a second."""
    catalogue = Catalogue()
    engine = catalogue.engine("vllm").record
    program = program_of(strategy, machine)
    blocks = budget(program, engine).kv_blocks
    arrivals = PoissonArrivals(process="poisson", rate_per_s=4.0)
    requests = generate(arrivals, catalogue.histogram("azure-conv-2023"), count, seed=1)
    return lambda: serve(program, engine, blocks, lambda: Source(requests), fidelity, 16).step_count


@pytest.mark.parametrize(
    ("strategy", "machine", "fidelity", "count"),
    [
        (SingleDevice(), "hgx-h100-8", "step", 1000),
        (TensorParallel(degree=4), "hgx-h100-8", "step", 1000),
        (LayerSplit(gpu_layers=16), "epyc-9654-4x-l40s", "step", 1000),
        (SingleDevice(), "epyc-9654-4x-l40s", "task", 20),
    ],
    ids=["step-single", "step-tp4", "step-split", "task-single-20-requests"],
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
    assert steps > count


def test_lowering(benchmark):
    program = program_of(TensorParallel(degree=8), "hgx-h100-8")

    def lower() -> int:
        return len(Program(program.model, program.placement, program.machine, program.formats).template(1).tasks)

    assert benchmark.pedantic(lower, rounds=3) > 1000
